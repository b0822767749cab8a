"""Where labelled images come from: the flags that name a dataset, its splits as undecoded streams, its classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.folders import MAX_SHARDS, folder_stream, matched_pairs
from scripts.storage.retries import BackOff, bound_stalls, with_retries


IGNORE_INDEX = 255
NAME_COLUMNS = ("image_id", "file_name", "filename", "id")
READING_ERRORS = (OSError, ValueError, datasets.exceptions.DatasetGenerationError)


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
    done, back_off = 0, BackOff("dataset")
    while True:
        try:
            rest = rows.skip(done) if done and isinstance(rows, datasets.IterableDataset) else islice(rows, done, None)
            for row in rest:
                yield row
                done += 1
                back_off.succeeded()
            return
        except UserError:
            raise
        except Exception as error:
            try:
                back_off.failed(error)
            except READING_ERRORS as fault:
                raise UserError(f"dataset cannot be read: {first_line(fault)}") from fault


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


def open_split(arguments: DatasetArguments, split: str) -> datasets.IterableDataset:
    """Stream of one split with all its columns; see `load_split`."""
    name = arguments.dataset_name or ""
    settings: dict[str, Any] = {"split": split, "streaming": arguments.streaming}
    data: Any
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        data = datasets.load_from_disk(name)
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise ValueError(f"the folder holds {', '.join(data)}")
            data = data[split]
        elif str(data.split or split) != split:
            raise ValueError(f"the folder holds {data.split}")
    elif Path(name).suffix == ".parquet":
        if "://" not in name and not Path(name).is_file():
            raise FileNotFoundError(f"no file {name}")
        data = datasets.load_dataset("parquet", data_files={split: name}, **settings)
    elif "://" in name and not name.startswith("hf://"):
        raise ValueError("a URL must end in .parquet")
    else:
        data = datasets.load_dataset(
            name, arguments.dataset_config_name, revision=arguments.dataset_revision, **settings
        )
    if not isinstance(data, datasets.IterableDataset):
        count = len(data)
        data = data.to_iterable_dataset(num_shards=max(1, min(MAX_SHARDS, count)))
        data.info.splits = datasets.SplitDict({split: datasets.SplitInfo(name=split, num_examples=count)})
    return data


def load_split(
    arguments: DatasetArguments, split: str, with_labels: bool = True, also: tuple[str, ...] = ()
) -> datasets.IterableDataset:
    """Stream of one split, images and maps undecoded.

    Args:
        with_labels: whether the column of label maps is needed and read.
        also: columns that are read as well where there are such.
    Raises:
        UserError: the dataset, split or a column does not exist.
    """
    folders = split_folders(arguments, split)
    if folders:
        pairs = matched_pairs(*folders)
        return folder_stream(pairs, arguments.image_column_name, arguments.label_column_name, split)
    if not arguments.dataset_name:
        raise UserError(
            "no dataset: give --dataset_name (a Hub dataset, a folder or a parquet file), "
            "or --train_images and --train_masks"
        )
    bound_stalls()
    place = f"--dataset_name {arguments.dataset_name}, split {split!r}"
    try:
        data = with_retries(lambda: open_split(arguments, split), place, if_answered=True)
    except READING_ERRORS as error:
        raise UserError(f"{place}: {error}") from error
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
    return data


def number_of_examples(data: datasets.IterableDataset, split: str) -> int | None:
    """Rows of the split as its card tells, None where it does not."""
    info = (data.info.splits or {}).get(split)
    return info.num_examples if info is not None and info.num_examples else None


def load_classes(arguments: DatasetArguments, data: datasets.IterableDataset | None = None) -> dict[int, str] | None:
    """Names by id of the classes to be learnt: those of the dataset, or what `--class_map` makes of them; else None.

    Raises:
        UserError: a file that is not as it should be.
    """
    if arguments.mapped_classes:
        return arguments.mapped_classes.id2label
    return dataset_classes(arguments, data)


def dataset_classes(
    arguments: DatasetArguments, data: datasets.IterableDataset | None = None
) -> dict[int, str] | None:
    """Class names by id, from `--id2label`, `id2label.json` beside the data, or a `ClassLabel`; else None.

    Raises:
        UserError: a file that is not `{"0": "name", ...}` with ids 0..K-1.
    """
    path = Path(arguments.id2label) if arguments.id2label else classes_file(arguments)
    if path is not None:
        try:
            names = {int(key): str(name) for key, name in json.loads(path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f'{path}: {error}: write {{"0": "name", ...}}') from error
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"{path}: ids {sorted(names)[:5]}... are not 0..{len(names) - 1}: number the classes from 0"
            )
        return dict(sorted(names.items()))
    for feature in (data.features or {}).values() if data is not None else ():
        label = getattr(feature, "feature", feature)
        if isinstance(label, datasets.ClassLabel):
            return dict(enumerate(label.names))
    return None


def classes_file(arguments: DatasetArguments) -> Path | None:
    """`id2label.json` beside the data, None if there is none.

    Raises:
        UserError: the Hub is there but goes on failing: without its names the run would have other classes.
    """
    return file_beside(arguments, "id2label.json")


def file_beside(arguments: DatasetArguments, name: str) -> Path | None:
    """The file of that name beside the data, None if there is none.

    Raises:
        UserError: the Hub is there but goes on failing.
    """
    folders = [folder for folder in (arguments.train_images, arguments.eval_images) if folder]
    places = [parent for folder in folders for parent in (Path(folder), Path(folder).absolute().parent)]
    if arguments.dataset_name:
        place = Path(arguments.dataset_name)
        if place.exists():
            places.append(place if place.is_dir() else place.parent)
        else:
            download = partial(
                hf_hub_download, arguments.dataset_name, name, repo_type="dataset", revision=arguments.dataset_revision
            )
            try:
                return Path(with_retries(download, name, if_answered=True))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                pass
    return next((place / name for place in places if (place / name).is_file()), None)
