"""Where labelled images come from: the rows of a split, and the files that lie beside the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import yaml
from datasets.utils.file_utils import is_relative_path, xgetsize
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name

from scripts.cli.errors import UserError, errors_explained
from scripts.data.annotated_folders import Annotations
from scripts.data.arguments import DatasetArguments, check_dataset_flags
from scripts.data.bounds import Bounds, named_files, names_in
from scripts.data.folder_splits import folder_samples, shared_out, split_folders, stored_split
from scripts.data.folder_stream import MAX_SHARDS, folder_stream
from scripts.data.held_back import HeldBack
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.layouts import FORMS
from scripts.data.stored_rows import (
    NAME_COLUMNS,
    CountedShards,
    ShardRows,
    name_column,
    parquet_rows,
    stream_of_rows,
    without_gaps,
)
from scripts.storage.json_files import read_json
from scripts.storage.retries import Busy, bound_stalls, with_retries


ROWS_AT_ONCE = 100
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
            if done and isinstance(rows, datasets.IterableDataset | ShardRows):
                stream = iter(rows.skip(done))
            else:
                stream = islice(rows, done, None)
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


class Source(NamedTuple):
    """The rows of a split.

    Args:
        stream: images and maps undecoded.
        files: paths or URLs of the files that hold them; none where that is unknown.
        held_back: what `--train_val_split` holds back of the training split, if it does.
        annotations: what is known of the segments that labels hold, of folders where something is.
        shards: those of the stream, where their rows can be counted: of parquet files, and of data read whole.
    """

    stream: datasets.IterableDataset
    files: list[str]
    held_back: HeldBack | None = None
    annotations: Annotations | None = None
    shards: CountedShards | None = None


def bounds_of(arguments: DatasetArguments, split: str) -> Bounds:
    """What the rows of a split and the card of its data set may name."""
    allowed = partial(Bounds, allow_urls=arguments.allow_urls, allow_links=arguments.allow_links)
    if split_folders(arguments, stored_split(arguments, split)):  # the rows are made here, of what the user named
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
    """One split of `--dataset_name` with all its columns; see `open_source`.

    Where its shards are of chosen rows, the stream still holds the others, too: they are left out when images are no
    longer decoded.
    """
    name = arguments.dataset_name or ""
    stored = stored_split(arguments, split)
    bounds = bounds_of(arguments, split)
    data: Any
    in_order: list[str] = []
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        check_saved(Path(name), bounds)
        data, folder, splits = datasets.load_from_disk(name), Path(name), []
        if isinstance(data, datasets.DatasetDict):
            if stored not in data:
                raise ValueError(f"the folder holds {', '.join(data)}")
            data, folder, splits = data[stored], folder / stored, list(data)
        elif str(data.split or stored) != stored:
            raise ValueError(f"the folder holds {data.split}")
        files = sorted(str(file) for file in folder.glob("*.arrow"))
    else:
        builder = dataset_builder(arguments, name, stored, bounds)
        # By default a parquet file is read by as many rows as its first row group has: if none, Arrow refuses to read.
        if getattr(builder.config, "batch_size", ROWS_AT_ONCE) is None:
            builder.config.batch_size = ROWS_AT_ONCE
        if arguments.streaming:
            data = builder.as_streaming_dataset(split=stored)
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(split=stored)
        splits = [str(each) for each in builder.config.data_files or builder.info.splits or {}]
        in_order = [str(file) for file in (builder.config.data_files or {}).get(stored, [])]
        files = sorted(in_order)
    choice: HeldBack | None = None
    shards: CountedShards | None = None
    if isinstance(data, datasets.IterableDataset) and is_parquet(data, in_order):
        shards = CountedShards(data, partial(row_groups, in_order))
    if arguments.train_val_split is not None and stored == arguments.train_split_name:
        choice, groups = choice_of_rows(arguments, data, splits, in_order)
        if isinstance(data, datasets.IterableDataset):
            shards = CountedShards(data, lambda: groups, choice.kept(split))
        else:
            data = data.select(np.flatnonzero(choice.kept(split)))
    if not isinstance(data, datasets.IterableDataset):
        count = len(data)
        num_shards = max(1, min(MAX_SHARDS, count))
        data = data.to_iterable_dataset(num_shards=num_shards)
        tell_count(data, split, count)
        shards = CountedShards(data, lambda: [[len(part)] for part in np.array_split(np.arange(count), num_shards)])
    return Source(data, files, choice, shards=shards)


def is_parquet(data: datasets.IterableDataset, files: list[str]) -> bool:
    """Whether the shards of a stream are these files, and all are parquet files."""
    return data.num_shards == len(files) and all(file.partition("?")[0].endswith(".parquet") for file in files)


def row_groups(files: list[str]) -> list[list[int]]:
    """Rows of each row group of each parquet file.

    Raises:
        UserError: a file is broken or out of reach.
    """
    with errors_explained("dataset cannot be read", *READING_ERRORS):
        return parquet_rows(files, with_names=False)[0]


def tell_count(data: datasets.IterableDataset, split: str, count: int) -> None:
    """Makes a stream know how many rows it has."""
    data.info.splits = datasets.SplitDict({split: datasets.SplitInfo(name=split, num_examples=count)})


def choice_of_rows(
    arguments: DatasetArguments, data: Any, splits: list[str], files: list[str]
) -> tuple[HeldBack, list[list[int]]]:
    """What `--train_val_split` holds back, and, of a stream, the rows of each row group of each shard.

    Args:
        data: the whole training split, a stream or not.
        splits: all that the dataset has.
        files: those of the split, in the order of the stream's shards.
    Raises:
        ValueError: a stream that does not tell how many rows its files hold.
    """
    if not isinstance(data, datasets.IterableDataset):
        column = name_column(data.column_names)
        names = without_gaps(list(data[column])) if column else None
        return shared_out(arguments, splits, len(data), names), []
    if not is_parquet(data, files):
        raise ValueError(
            "--train_val_split: its stream does not tell how many rows there are, as parquet files do: give "
            "--no_streaming"
        )
    groups, names = parquet_rows(files)
    return shared_out(arguments, splits, sum(map(sum, groups)), names), groups


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
    check_dataset_flags(arguments)
    if samples := folder_samples(arguments, split, with_labels):
        pairs, choice, annotations = samples
        files = [file for pair in pairs for file in pair.files]
        if annotations and annotations.json_file:
            files.append(str(annotations.json_file))
        return Source(folder_stream(pairs, arguments, split, annotations), files, choice, annotations)
    if not arguments.dataset_name:
        raise UserError(
            "no dataset: give --dataset_name (a Hub dataset, a folder or a parquet file), "
            "or --train_images and --train_masks"
        )
    if arguments.mask_suffix is not None:
        raise UserError(
            f"--mask_suffix is for folders of image files: --dataset_name {arguments.dataset_name} is none"
        )
    bound_stalls()
    place = f"--dataset_name {arguments.dataset_name}, split {split!r}"
    here = not is_relative_path(arguments.dataset_name) or Path(arguments.dataset_name).exists()
    hint = "" if here else " (no such folder or file here, so it is taken for a name on the Hub)"
    with errors_explained(f"{place}{hint}", *READING_ERRORS):
        source = with_retries(lambda: open_split(arguments, split), place, if_answered=True)
    data, shards = source.stream, source.shards
    columns = data.column_names
    if columns is None:
        columns = list(next(readable(data), {}))
        if not columns:
            raise UserError(f"{place}: it is empty")
    wanted = {"image": arguments.image_column_name}
    if with_labels:
        wanted["label"] = arguments.label_column_name
        if arguments.class_column_name:
            wanted["class"] = arguments.class_column_name
    for flag, column in wanted.items():
        if column not in columns:
            raise UserError(f"no column {column!r} in {place}: it has {', '.join(columns)}; set --{flag}_column_name")
    feature = (data.features or {}).get(arguments.label_column_name)
    if with_labels and isinstance(feature, datasets.ClassLabel):
        classes = ", ".join(feature.names[:5])
        raise UserError(
            f"column {arguments.label_column_name!r} of {place} holds a class for a whole image ({classes}), no label "
            f"map: give another column by --label_column_name; of folders, understood are {FORMS}"
        )
    kept = list(wanted.values())
    others = [column for column in (*NAME_COLUMNS, *also) if column in columns and column not in kept]
    data = data.select_columns(kept + others)
    for column in kept:
        feature = (data.features or {}).get(column)
        if feature is None or isinstance(feature, datasets.Image):  # words, such as COCO's json, stay as they are
            data = data.cast_column(column, datasets.Image(decode=False))
    if shards is not None:
        shards = replace(shards, data=data)
        if shards.chosen is not None:
            data = stream_of_rows(shards.listed(), data.features)
            tell_count(data, split, int(shards.chosen.sum()))
    return source._replace(stream=data, shards=shards)


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
