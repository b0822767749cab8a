"""What the ids of a label map stand for: a class, nothing (ignored), or no class at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.class_map import UNKNOWN
from scripts.data.sources import IGNORE_INDEX, classes_file


IGNORED, OUTSIDE = -1, -2


@dataclass(frozen=True)
class LabelRule:
    """From stored ids to classes, as the trainer does it.

    Args:
        num_labels: classes; where none are named, every id but 255 counts as one.
        first: stored id of class 0: 1 with `--do_reduce_labels`, where 0 is ignored.
        table: of `--class_map`: stored id -> stored id, `UNKNOWN` for ids of no class.
    """

    num_labels: int
    first: int = 0
    table: np.ndarray | None = None

    def classes(self, ids: np.ndarray) -> np.ndarray:
        """Classes 0..K-1 of ids of any shape, `IGNORED` and `OUTSIDE`, as int64."""
        ids = ids.astype(np.int64)
        if self.table is not None:
            known = np.clip(ids, 0, len(self.table) - 1)
            ids = np.where((ids >= 0) & (ids < len(self.table)), self.table[known], UNKNOWN)
        index = ids - self.first
        classes = np.where((index >= 0) & (index < self.num_labels), index, OUTSIDE)
        classes[(ids == IGNORE_INDEX) | ((ids == 0) & (self.first == 1))] = IGNORED
        return classes


def read_names(arguments: DatasetArguments) -> dict[int, str] | None:
    """Class names by id of `--id2label` or of the file beside the data, whatever their ids; None without a file.

    Unlike `dataset_classes` this takes a file that the trainer refuses, so that the fault can be told with the others.

    Raises:
        UserError: no such file, or not of the form `{"0": "name", ...}`.
    """
    path = Path(arguments.id2label) if arguments.id2label else classes_file(arguments)
    if path is None:
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return dict(sorted((int(index), str(name)) for index, name in names.items()))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f'{path}: {error}: write {{"0": "name", ...}}') from error
