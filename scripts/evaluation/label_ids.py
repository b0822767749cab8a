"""Which ids the label maps of a benchmark's data hold, and the table that brings them to the benchmark's classes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, RowFormat, decode_label, sample_name
from scripts.data.sources import readable
from scripts.evaluation.protocols import PROTOCOLS


PEEKED_ROWS = 8


def raw_id_table(name: str) -> np.ndarray | None:
    """`(256,)` uint8: stored id -> id that the benchmark is run with; ids that stand for nothing become 255."""
    raw_ids = PROTOCOLS[name].raw_ids if name in PROTOCOLS else None
    if raw_ids is None:
        return None
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for raw, new in raw_ids.items():
        table[raw] = new
    return table


def peeked_ids(rows: Iterable[dict[str, Any]], form: RowFormat) -> set[int]:
    """The ids in the first maps that can be read."""
    ids: set[int] = set()
    for index, row in enumerate(islice(rows, PEEKED_ROWS)):
        try:
            label = decode_label(row[form.label_column], sample_name(row, form.image_column, index), form.bounds)
        except BadSample:
            continue  # the run will name it
        ids.update(label.unique().tolist())
    return ids


def recognised_ids(name: str, num_labels: int, ids: set[int]) -> str:
    """Whether `ids` of the first maps are the dataset's own numbering, "raw", or the benchmark's, "train".

    Nearly every Cityscapes map holds a raw id (vegetation is 21, sky 23, car 26). Where it goes wrong the first such
    id later stops the run, for it is outside the classes.

    Raises:
        UserError: 255 among classes from 1 on, where 0 stands for unlabelled: they may start at 0 already.
    """
    protocol = PROTOCOLS[name]
    last = max((protocol.raw_ids or {}).values(), default=IGNORE_INDEX)
    if any(last < i != IGNORE_INDEX for i in ids):
        return "raw"
    if num_labels in protocol.reduced and IGNORE_INDEX in ids:
        raise UserError(
            f"the label maps hold {IGNORE_INDEX}: do their classes start at 0 already? Give --label_ids reduced; "
            "if 0 is unlabelled in them, --label_ids train"
        )
    return "train"


def label_rule(
    name: str, num_labels: int, label_ids: str, data: LabelledDataset
) -> tuple[str, np.ndarray | None, bool]:
    """How the maps of `data` become those of benchmark `name`.

    Args:
        label_ids: one of `LABEL_IDS`.
        data: looked at where `label_ids` is "auto".
    Returns:
        what the maps hold ("raw", "train" or "reduced"), `raw_id_table` if they need it, and whether 0 is unlabelled
        in what comes of it.
    """
    protocol = PROTOCOLS[name]
    reduced = num_labels in protocol.reduced
    if label_ids == "auto":
        look = reduced or protocol.raw_ids is not None
        ids = peeked_ids(readable(data.stream), data.row_format) if look else set()
        label_ids = recognised_ids(name, num_labels, ids)
    return label_ids, raw_id_table(name) if label_ids == "raw" else None, reduced and label_ids != "reduced"
