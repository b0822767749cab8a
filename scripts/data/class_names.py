"""What the classes of a dataset are called, and the colours that it brings for them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import DatasetArguments
from scripts.data.class_map import named_twice
from scripts.data.sources import file_beside
from scripts.drawing.visualization import parse_palette
from scripts.storage.json_files import read_json


PALETTE_FILE = "palette.json"
THINGS_FILE = "thing_ids.json"
logger = logging.getLogger(__name__)


def classes_file(arguments: DatasetArguments) -> Path | None:
    """The file of `--id2label`, else `id2label.json` beside the data; None if there is neither.

    Raises:
        UserError: the Hub is there but goes on failing: without its names the run would have other classes.
    """
    return Path(arguments.id2label) if arguments.id2label else file_beside(arguments, "id2label.json")


def read_names(file: Path) -> dict[int, str]:
    """Names by id of a file `{"0": "name", ...}`, by id, whatever their ids.

    Raises:
        UserError: no such file, or not of that form.
    """
    try:
        names = read_json(file, kinds={}, of_pairs=named_once)
    except UserError as error:
        raise UserError(f'{error}: write {{"0": "name", ...}}') from error
    return dict(sorted(names.items()))


def named_once(pairs: list[tuple[str, Any]]) -> dict[int, str]:
    """Names by id of a JSON object, which itself lets the last of two equal keys win.

    Raises:
        UserError: an id that is no number or comes twice, or a name that is no text.
    """
    names: dict[int, str] = {}
    for key, name in pairs:
        try:
            index = int(key)
        except ValueError:
            raise UserError(f"{key!r} is no id of a class, which is a number") from None
        if index in names:
            raise UserError(f"id {index} is named twice, {names[index]!r} and {name!r}")
        if not isinstance(name, str):
            raise UserError(f"the name of id {index} is {name!r}, no text")
        names[index] = name
    return names


def read_class_names(file: Path) -> dict[int, str]:
    """Class names by id 0..K-1 of a file.

    Raises:
        UserError: see `read_names`, other ids, or two classes of one name.
    """
    names = read_names(file)
    if list(names) != list(range(len(names))):
        raise UserError(f"{file}: ids {list(names)[:5]}... are not 0..{len(names) - 1}: number the classes from 0")
    if twice := named_twice(names):
        raise UserError(f"{file}: {twice}")
    return names


def names_of_features(features: datasets.Features | None) -> dict[int, str] | None:
    """Names by id of the first `ClassLabel` among the columns, None without one."""
    for feature in (features or {}).values():
        label = getattr(feature, "feature", feature)
        if isinstance(label, datasets.ClassLabel):
            return dict(enumerate(label.names))
    return None


def palette_file(arguments: DatasetArguments) -> Path | None:
    """`palette.json` beside the file of `--id2label` where that is given, else beside the data; None without one.

    Nor is there one where the Hub does not give it: colours stop no training.
    """
    if arguments.id2label:  # other names than the dataset's may stand for other classes
        file = Path(arguments.id2label).parent / PALETTE_FILE
        return file if file.is_file() else None
    try:
        return file_beside(arguments, PALETTE_FILE)
    except UserError as error:
        logger.warning("no colours of the dataset: %s", error)
        return None


def thing_ids_file(arguments: DatasetArguments) -> Path | None:
    """`thing_ids.json` beside the data, a list of the ids of classes that have instances; None without one."""
    return file_beside(arguments, THINGS_FILE)


def read_palette(file: Path) -> dict[str, str]:
    """Colour `"#rrggbb"` by class id, as a model's configuration holds it.

    Raises:
        UserError: the file holds something that is no colour.
    """
    with errors_explained(str(file), ValueError):
        palette = parse_palette(read_json(file))
    return {str(index): "#{:02x}{:02x}{:02x}".format(*colour) for index, colour in sorted(palette.items())}
