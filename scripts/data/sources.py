"""Where labelled images come from: the rows of a split, and the files that lie beside the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.utils.file_utils import is_relative_path, xgetsize
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import DatasetArguments
from scripts.data.bounds import Bounds, named_files, names_in
from scripts.data.folders import MAX_SHARDS, folder_stream, matched_pairs
from scripts.storage.json_files import read_json
from scripts.storage.retries import Busy, bound_stalls, with_retries


IGNORE_INDEX = 255
NAME_COLUMNS = ("image_id", "file_name", "filename", "id")
READING_ERRORS = (OSError, ValueError, datasets.exceptions.DatasetGenerationError)


def check_class_count(count: int, do_reduce_labels: bool) -> None:
    """Refuses more classes than label maps can hold beside the ignored id, whatever `ignore_value` says.

    Raises:
        UserError: names the count and the most that fit.
    """
    most = IGNORE_INDEX - do_reduce_labels
    if count > most:
        raise UserError(
            f"{count} classes, but label maps are read with {IGNORE_INDEX} as the ignored id"
            + (" and 0 as another (--do_reduce_labels)" if do_reduce_labels else "")
            + f", so {most} fit: merge some by --class_map"
        )


def check_ignored_id(config: Any) -> None:
    """Refuses a model that ignores another id than the label maps do.

    Raises:
        UserError: `ignore_value` is not 255, or 255 would be a class.
    """
    ignored, num_labels = getattr(config, "ignore_value", IGNORE_INDEX), getattr(config, "num_labels", 0)
    if ignored != IGNORE_INDEX or num_labels > IGNORE_INDEX:
        raise UserError(
            f"label maps are read with {IGNORE_INDEX} as the ignored id: need ignore_value={IGNORE_INDEX} and at most "
            f"{IGNORE_INDEX} classes, not ignore_value={ignored} and {num_labels} classes"
        )


def readable(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`rows` as they come; after a fault of the network they are opened anew and skipped to where they broke off.

    Raises:
        UserError: a file of the dataset is broken or out of reach.
    """
    stream: Iterator[dict[str, Any]] | None = None
    done = 0

    def next_row() -> dict[str, Any] | None:
        nonlocal stream
        if stream is None:
            rest = rows.skip(done) if done and isinstance(rows, datasets.IterableDataset) else islice(rows, done, None)
            stream = iter(rest)
        try:
            return next(stream, None)
        except Exception:  # whatever it is, the stream is opened anew if another try follows
            stream = None
            raise

    try:
        while (row := with_retries(next_row, "dataset")) is not None:
            yield row
            done += 1
    except READING_ERRORS as error:
        raise UserError(f"dataset cannot be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says first, its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def split_folders(arguments: DatasetArguments, split: str) -> tuple[str, str, str, str] | None:
    """`(flag, folder, flag, folder)` of the images and maps of a split, None if it is not given as folders.

    The split that is trained on (`train`, or `--train_split_name`) is in the training folders, any other in those of
    evaluation.

    Raises:
        UserError: one folder without the other, or folders of the other split only.
    """
    kind = "train" if split in ("train", getattr(arguments, "train_split_name", "train")) else "eval"
    given = {flag: getattr(arguments, flag) for flag in ("train_images", "train_masks", "eval_images", "eval_masks")}
    images, masks = given[f"{kind}_images"], given[f"{kind}_masks"]
    if images and masks:
        return f"--{kind}_images", images, f"--{kind}_masks", masks
    if images or masks or (any(given.values()) and not arguments.dataset_name):
        missing = f"--{kind}_masks" if images else f"--{kind}_images"
        raise UserError(f"split {split!r}: no {missing}: give both folders, images and label maps")
    return None


Source = tuple[datasets.IterableDataset, list[str]]  # rows; paths or URLs of their files, none where that is unknown


def bounds_of(arguments: DatasetArguments, split: str) -> Bounds:
    """What the rows of a split and the card of its data set may name."""
    allowed = partial(Bounds, allow_urls=arguments.allow_urls, allow_links=arguments.allow_links)
    if split_folders(arguments, split):  # the rows are made here, of what the user named
        return allowed((Path(Path.cwd().anchor),))
    name = arguments.dataset_name or ""
    place = Path(name).absolute()
    if place.exists():
        folder = (place if place.is_dir() else place.parent).resolve()
        # A repository in the Hub's cache: its snapshots are links to files beside them.
        cached = [above.parent for above in folder.parents if above.name == "snapshots"]
        return allowed((folder, *cached, *download_folders()))
    if name.startswith("hf://"):
        return allowed(download_folders(), name.rstrip("/"))
    if "://" in name:
        return allowed()
    cache = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset")).resolve()
    return allowed((cache, *download_folders()), f"hf://datasets/{name}")


def download_folders() -> tuple[Path, ...]:
    """Where `datasets` keeps what it has downloaded and extracted, under names that nobody can guess."""
    places = (datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.EXTRACTED_DATASETS_PATH)
    return tuple(Path(place).resolve() for place in places)


def check_card(arguments: DatasetArguments, bounds: Bounds) -> None:
    """Refuses a card whose configurations name files of other places, before anything looks for them.

    Raises:
        UserError: names one of them.
    """
    for name in ("README.md", ".huggingface.yaml"):
        file = file_of_dataset(arguments, name)
        if file is None:
            continue
        with errors_explained(f"{name} of the data set", yaml.YAMLError, ValueError, RecursionError):
            text = file.read_text(encoding="utf-8")
            if name != "README.md":
                card = yaml.safe_load(text)
            else:
                card = DatasetCard(text).data.to_dict() if text.startswith("---") else {}
        for named in named_files(card):
            inside = bounds.hub and is_relative_path(named)
            bounds.checked_name(f"{bounds.hub}/{named}" if inside else named, f"{name} of the data set")


def check_saved(folder: Path, bounds: Bounds) -> None:
    """Refuses a folder of `save_to_disk` that names files of other places.

    Raises:
        UserError: names one of them.
    """
    splits = folder / "dataset_dict.json"
    broken, names = f"{folder} is no whole folder of save_to_disk", ["."]
    kinds = {"_data_files": list[dict[str, str]]}
    with errors_explained(broken, KeyError, ValueError, OSError):
        if splits.is_file():
            names = read_json(splits, f"{broken}: {splits.name}", {"splits": list[str]}, ["splits"])["splits"]
        for name in names:
            state = Path(bounds.checked_name(str(folder.absolute() / name), splits.name), "state.json")
            for entry in read_json(state, f"{broken}: {name}/{state.name}", kinds, kinds)["_data_files"]:
                bounds.checked_name(str(state.parent / entry["filename"]), f"{name}/{state.name}")


def open_split(arguments: DatasetArguments, split: str) -> Source:
    """One split of `--dataset_name` with all its columns; see `open_source`."""
    name = arguments.dataset_name or ""
    bounds = bounds_of(arguments, split)
    data: Any
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        check_saved(Path(name), bounds)
        data, folder = datasets.load_from_disk(name), Path(name)
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise ValueError(f"the folder holds {', '.join(data)}")
            data, folder = data[split], folder / split
        elif str(data.split or split) != split:
            raise ValueError(f"the folder holds {data.split}")
        files = sorted(str(file) for file in folder.glob("*.arrow"))
    else:
        builder = dataset_builder(arguments, name, split, bounds)
        if arguments.streaming:
            data = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(split=split)
        files = sorted(str(file) for file in (builder.config.data_files or {}).get(split, []))
    if not isinstance(data, datasets.IterableDataset):
        count = len(data)
        data = data.to_iterable_dataset(num_shards=max(1, min(MAX_SHARDS, count)))
        data.info.splits = datasets.SplitDict({split: datasets.SplitInfo(name=split, num_examples=count)})
    return data, files


def dataset_builder(arguments: DatasetArguments, name: str, split: str, bounds: Bounds) -> datasets.DatasetBuilder:
    """What reads `name`, a parquet file or URL, a folder or a Hub dataset; asks the Hub for its files, once."""
    if Path(name).suffix == ".parquet":
        if "://" in name:
            return url_builder(name, split)
        if not Path(name).is_file():
            raise FileNotFoundError(f"no file {name}")
        return datasets.load_dataset_builder("parquet", data_files={split: name})
    if "://" in name and not name.startswith("hf://"):
        raise ValueError("a URL must end in .parquet")
    check_card(arguments, bounds)
    revision = arguments.dataset_revision
    try:
        builder = datasets.load_dataset_builder(name, arguments.dataset_config_name, revision=revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(f"{error}: a script is code, which is not run: convert the data to parquet") from error
    for file in names_in(dict(builder.config.data_files or {})):
        bounds.checked_name(file, f"{name}")
    return builder


def url_builder(url: str, split: str) -> datasets.DatasetBuilder:
    """What reads the parquet file of a URL.

    Raises:
        Busy: the server failed a request and answered the next.
        FileNotFoundError: with what the server answered.
    """
    try:
        return datasets.load_dataset_builder("parquet", data_files={split: url})
    except FileNotFoundError:
        pass  # what `fsspec` says of a busy server, too: it is asked once more to hear its answer
    try:
        xgetsize(url)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot be opened: {error.__cause__ or 'no such file'}") from error
    raise Busy(f"{url} is there, but could not be opened")


def open_source(
    arguments: DatasetArguments, split: str, with_labels: bool = True, also: tuple[str, ...] = ()
) -> Source:
    """The rows of one split, images and maps undecoded; see `LabelledDataset`.

    Raises:
        UserError: the dataset, split or a column does not exist.
    """
    if folders := split_folders(arguments, split):
        pairs = matched_pairs(*folders)
        stream = folder_stream(pairs, arguments.image_column_name, arguments.label_column_name, split)
        return stream, [file for _, *pair in pairs for file in pair]
    if not arguments.dataset_name:
        raise UserError(
            "no dataset: give --dataset_name (a Hub dataset, a folder or a parquet file), "
            "or --train_images and --train_masks"
        )
    bound_stalls()
    place = f"--dataset_name {arguments.dataset_name}, split {split!r}"
    with errors_explained(place, *READING_ERRORS):
        data, files = with_retries(lambda: open_split(arguments, split), place, if_answered=True)
    columns = data.column_names
    if columns is None:
        columns = list(next(readable(data), {}))
        if not columns:
            raise UserError(f"{place}: it is empty")
    wanted = {"image": arguments.image_column_name}
    if with_labels:
        wanted["label"] = arguments.label_column_name
    for flag, column in wanted.items():
        if column not in columns:
            raise UserError(f"no column {column!r} in {place}: it has {', '.join(columns)}; set --{flag}_column_name")
    kept = list(wanted.values())
    others = [column for column in (*NAME_COLUMNS, *also) if column in columns and column not in kept]
    data = data.select_columns(kept + others)
    for column in kept:
        feature = (data.features or {}).get(column)
        if feature is None or isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data, files


def file_beside(arguments: DatasetArguments, name: str) -> Path | None:
    """The file of that name beside the data, None if there is none.

    Raises:
        UserError: the Hub is there but goes on failing.
    """
    folders = [Path(folder) for folder in (arguments.train_images, arguments.eval_images) if folder]
    places = [place for folder in folders for place in (folder, folder.absolute().parent)]
    found = [place / name for place in places if (place / name).is_file()]
    return found[0] if found else file_of_dataset(arguments, name)


def file_of_dataset(arguments: DatasetArguments, name: str) -> Path | None:
    """The file of that name beside the data of `--dataset_name`, None if there is none.

    Raises:
        UserError: the Hub is there but goes on failing.
    """
    if not arguments.dataset_name:
        return None
    place = Path(arguments.dataset_name)
    if place.exists():
        file = (place if place.is_dir() else place.parent) / name
        return file if file.is_file() else None
    download = partial(
        hf_hub_download, arguments.dataset_name, name, repo_type="dataset", revision=arguments.dataset_revision
    )
    try:
        return Path(with_retries(download, name, if_answered=True))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
