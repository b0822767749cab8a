"""What the ids of a label map stand for: a class, nothing (ignored), or no class at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.data.class_map import UNKNOWN
from scripts.data.ignored import IGNORE_INDEX


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
