"""What the classes of a dataset are called."""

from __future__ import annotations

import json
from pathlib import Path

import datasets

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.sources import file_beside


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
        names = json.loads(file.read_text(encoding="utf-8"))
        return dict(sorted((int(index), str(name)) for index, name in names.items()))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f'{file}: {error}: write {{"0": "name", ...}}') from error


def read_class_names(file: Path) -> dict[int, str]:
    """Class names by id 0..K-1 of a file.

    Raises:
        UserError: see `read_names`, or other ids.
    """
    names = read_names(file)
    if list(names) != list(range(len(names))):
        raise UserError(f"{file}: ids {list(names)[:5]}... are not 0..{len(names) - 1}: number the classes from 0")
    return names


def names_of_features(features: datasets.Features | None) -> dict[int, str] | None:
    """Names by id of the first `ClassLabel` among the columns, None without one."""
    for feature in (features or {}).values():
        label = getattr(feature, "feature", feature)
        if isinstance(label, datasets.ClassLabel):
            return dict(enumerate(label.names))
    return None
