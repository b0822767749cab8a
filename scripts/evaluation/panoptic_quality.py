"""Panoptic quality (Kirillov et al., CVPR 2019) by the rules of panopticapi, from counts that add up over images.

A predicted and a reference segment of one class match if their IoU is above 0.5; at most one can. Void is what lies in
no reference segment. It is taken out of the predicted segment before IoU is measured, and a crowd region matches
nothing and is missed by nothing. A predicted segment without a match is no false positive if more than half of it lies
on void and crowd regions of its class, taken together. Pixels without a predicted segment are no void: the reference
segment there counts in full, where torchmetrics' PanopticQuality takes such pixels out of IoU as well.

# Deviation: of several crowd regions of one class in an image all count, where panopticapi sees the last one listed;
# COCO has one at most. Areas of reference segments are counted in the map, where panopticapi trusts those in the json.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from scripts.data.segments import Segments
from scripts.evaluation.bootstrap import interval, multiplicities
from scripts.inference.found_segments import PanopticMap


# IoU is summed in whole numbers of this fraction, so that sums depend on no order of images: that of 10**8
# segments fits, and rounding moves no quality by more than 1e-11.
IOU_UNIT = 2.0**-36


def image_counts(reference: Segments, prediction: PanopticMap, num_labels: int) -> np.ndarray:
    """`(4, num_labels)` int64 of an image: sum of IoU in `IOU_UNIT`, true positives, false positives, false negatives.

    Args:
        reference: in one layer.
        prediction: of the same size.
    Raises:
        ValueError: reference segments in several layers, see `Segments.disjoint`.
    """
    if len(reference.layers) > 1:
        raise ValueError("reference segments overlap: panoptic quality needs at most one at each pixel")
    count = len(prediction.segments) + 1
    numbers = np.zeros(
        max([int(prediction.ids.max(initial=0)), *(s["id"] for s in prediction.segments)]) + 1, np.int64
    )
    numbers[[segment["id"] for segment in prediction.segments]] = np.arange(1, count)
    pairs = reference.layers[0].numpy() * np.int64(count) + numbers[prediction.ids]
    overlaps = np.bincount(pairs.ravel(), minlength=(len(reference) + 1) * count).reshape(-1, count)

    void, both = overlaps[0, 1:], overlaps[1:, 1:]
    predicted, expected = overlaps.sum(axis=0)[1:], overlaps.sum(axis=1)[1:]
    union = predicted + expected[:, None] - both - void
    classes, crowd = reference.classes.numpy(), reference.crowd.numpy()
    labels = np.array([segment["label_id"] for segment in prediction.segments], dtype=np.int64)
    same = classes[:, None] == labels
    matched = same & ~crowd[:, None] & (2 * both > union)
    nowhere = void + (both * (same & crowd[:, None])).sum(axis=0)

    counts = np.zeros((4, num_labels), dtype=np.int64)
    true, found = np.nonzero(matched)
    np.add.at(counts[0], classes[true], np.rint(both[true, found] / union[true, found] / IOU_UNIT).astype(np.int64))
    for row, of_class in (
        (1, classes[true]),
        (2, labels[~matched.any(axis=0) & (2 * nowhere <= predicted)]),
        (3, classes[~matched.any(axis=1) & ~crowd]),
    ):
        counts[row] = np.bincount(of_class, minlength=num_labels)
    return counts


def qualities(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Panoptic, segmentation and recognition quality `(..., K)` of counts `(..., 4, K)`.

    They are nan of a class with neither reference segments nor false positives, which panopticapi leaves out of the
    means, and all 0 of one without a match.
    """
    iou, matched, false, missed = np.moveaxis(counts.astype(np.float64), -2, 0)
    iou = iou * IOU_UNIT
    with np.errstate(divide="ignore", invalid="ignore"):
        recognition = matched / (matched + (false + missed) / 2)
        segmentation = np.where(recognition == 0, 0, iou / matched)
        return iou / (matched + (false + missed) / 2), segmentation, recognition


def mean_of(values: np.ndarray) -> np.ndarray:
    """Mean over the last dimension of what is not nan; nan where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)


class PanopticCounts:
    """`image_counts` summed over images, and over images of resampled splits.

    Attributes:
        totals: `(1 + resamples, 4, K)` int64, that of the split itself first; those of several processes add up.
    """

    def __init__(self, num_labels: int, resamples: int = 0, seed: int = 0) -> None:
        self.seed = seed
        self.totals = np.zeros((1 + resamples, 4, num_labels), dtype=np.int64)

    def add(self, index: int, reference: Segments, prediction: PanopticMap) -> None:
        """Counts one image, `index` being its place in the split."""
        counts = image_counts(reference, prediction, self.totals.shape[2])
        times = np.append(1, multiplicities(self.seed, index, len(self.totals) - 1))
        present = np.flatnonzero(counts.any(axis=0))
        self.totals[:, :, present] += times[:, None, None] * counts[None, :, present]

    def segments(self) -> np.ndarray:
        """`(K,)` reference segments, without crowd regions."""
        return self.totals[0, 1] + self.totals[0, 3]

    def scores(self, things: Collection[int]) -> dict[str, Any]:
        """Fractions 0..1, nan where there is nothing to measure: means over all classes, things and stuff, and lists
        `per_category_...` of K.

        Args:
            things: classes with instances; the others are stuff.
        """
        scores: dict[str, Any] = {}
        is_thing = np.isin(np.arange(self.totals.shape[2]), list(things))
        for name, values in zip(("panoptic", "segmentation", "recognition"), qualities(self.totals[0])):
            scores[f"{name}_quality"] = float(mean_of(values))
            scores[f"{name}_quality_things"] = float(mean_of(values[is_thing]))
            scores[f"{name}_quality_stuff"] = float(mean_of(values[~is_thing]))
            scores[f"per_category_{name}_quality"] = values.tolist()
        return scores

    def interval(self) -> dict[str, Any]:
        """Of the panoptic quality over all classes."""
        return interval(mean_of(qualities(self.totals[1:])[0]), self.seed)
