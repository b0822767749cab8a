"""How many pixels each class has, and the weights and shares that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.cli.parser import start_of
from scripts.data.augmentation import LEAST_SHARE
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_classes, sample_name
from scripts.data.streaming import interleaved_rows
from scripts.storage.json_files import read_json


FIRST_MAPS = 1000  # looked at: enough to tell a rare class from a common one, and seconds of work


def count_class_pixels(data: LabelledDataset, num_labels: int, limit: int = FIRST_MAPS) -> list[int]:
    """Pixels of each class in the first label maps, images undecoded; the shards in an order that is always the same.

    Unreadable maps are passed over: training counts and names them.

    Args:
        num_labels: K classes.
        limit: most maps that are read.
    Returns:
        K numbers.
    Raises:
        UserError: an id that is no class.
    """
    form, first = data.row_format, int(data.do_reduce_labels)
    shards = np.random.default_rng(0).permutation(data.stream.num_shards).tolist()
    counts = np.zeros(IGNORE_INDEX + 1 + num_labels, dtype=np.int64)
    total = min(limit, data.num_examples or limit)
    rows = islice(interleaved_rows(data.stream, shards), limit)
    for place, row in tqdm(rows, "count pixels", total, unit="map", dynamic_ncols=True):
        name = sample_name(row, form.image_column, place)
        try:
            label = decode_classes(row, form, num_labels, name)
        except BadSample:
            continue
        counts += np.bincount(label.numpy().ravel(), minlength=len(counts))
    counts[IGNORE_INDEX] = 0
    return counts[first : first + num_labels].tolist()


def read_class_pixels(file: str, split: str, id2label: Mapping[Any, str]) -> list[int]:
    """Pixels of each class as `scripts/check_dataset.py --json` counted them.

    Args:
        split: the one that is trained on.
        id2label: names of the K classes.
    Returns:
        K numbers.
    Raises:
        UserError: no such file, or one of other classes or splits.
    """
    what = f"--class_counts {file}"
    again = f"run {start_of('check_dataset')} with --json and the flags of this training"
    kinds = {"classes": list, "splits": dict}
    found = read_json(Path(file), what, kinds, needed=kinds)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in found["classes"]]
    if names != [id2label[index] for index in sorted(id2label)]:
        raise UserError(f"{what}: it is of other classes than the data set: {again}")
    pixels = found["splits"].get(split, {})
    pixels = pixels.get("class_pixels") if isinstance(pixels, dict) else None
    if not isinstance(pixels, dict):
        raise UserError(f"{what}: it has no counts of split {split!r}: {again}")
    counts = [pixels.get(str(index), 0) for index in sorted(id2label)]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{what}: its counts of pixels are no whole numbers: {again}")
    return counts


def shares_of(counts: Sequence[int]) -> list[float]:
    """Share of each class in all labelled pixels, to six digits.

    Raises:
        UserError: there is no labelled pixel.
    """
    total = sum(counts)
    if not total:
        raise UserError(f"no label map that was counted holds a pixel of any class: see {start_of('check_dataset')}")
    return [float(f"{count / total:.6g}") for count in counts]


def balanced_weights(shares: Sequence[float]) -> list[float]:
    """Weight of each class, inverse to the square root of its share, with a mean of 1, to four digits.

    The square root keeps common classes from being drowned out (Mahajan et al. 2018, as cited in "Class-Balanced Loss
    Based on Effective Number of Samples", CVPR 2019). A share below `LEAST_SHARE`, also of a class that was not seen,
    counts as that.
    """
    weights = 1 / np.sqrt(np.maximum(shares, LEAST_SHARE))
    return [float(f"{weight:.4g}") for weight in weights / weights.mean()]
