"""What the error report counts beyond mean IoU: errors by distance from a boundary, by segment size, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from scripts.data.ignored import IGNORE_INDEX
from scripts.evaluation.segment_size import BINS, SegmentSizeCounts, size_bin


# Pixels by their distance from the nearest one of another label, up to and with these; the rest is farther away.
DISTANCES = (1, 2, 4, 8, 16, 32, 64)
CONFIDENCE_BINS = 20
# Confidences are summed as whole numbers of this share: sums then depend on no order, of images or processes.
CONFIDENCE_UNIT = 2**20


def boundary_distances(labels: np.ndarray) -> np.ndarray:
    """`(H, W)` int32 distance of each pixel from the nearest of another label; 1: a neighbour, largest: there is none.

    Steps go to all eight neighbours, as in Boundary IoU; the image's edge is no boundary.
    """
    largest = ndimage.maximum_filter(labels, 3, mode="nearest")
    edge = largest != ndimage.minimum_filter(labels, 3, mode="nearest")
    if not edge.any():
        return np.full(labels.shape, np.iinfo(np.int32).max, dtype=np.int32)
    # One step further than the nearest pixel that has another label beside it.
    return ndimage.distance_transform_cdt(~edge, metric="chessboard") + np.int32(1)


class DistanceCounts:
    """Pixels and wrong pixels by distance from the boundaries of the truth; the outline of ignored parts is one.

    Attributes:
        totals: `(2, bands)` int64, bands by `DISTANCES`.
    """

    def __init__(self) -> None:
        self.totals = np.zeros((2, len(DISTANCES) + 1), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image; `sample["label"]` has ids below K or 255."""
        reference = sample["label"]
        valid = reference != IGNORE_INDEX
        band = np.searchsorted(DISTANCES, boundary_distances(reference))
        wrong = valid & (prediction != reference)
        self.totals += [np.bincount(band[kept], minlength=self.totals.shape[1]) for kept in (valid, wrong)]


class CalibrationCounts:
    """Pixels by confidence: how many, how many right, how sure on average.

    Stands before the predictor in `evaluate_split`, for confidences exist only there: called for an image's label
    map it keeps the confidence until `add` counts the same image.

    Attributes:
        totals: `(3, CONFIDENCE_BINS)` int64: pixels, right pixels, sum of confidence in `CONFIDENCE_UNIT`ths. Bin b
            holds the confidences from b/20 up to (b+1)/20, the last one 1 as well.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.confidence: np.ndarray | None = None
        self.totals = np.zeros((3, CONFIDENCE_BINS), dtype=np.int64)

    def __call__(self, image: Any) -> np.ndarray:
        labels, self.confidence = self.predictor.with_confidence(image)
        return labels

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts the image that was predicted last."""
        reference, confidence = sample["label"], self.confidence
        assert confidence is not None
        self.confidence = None
        valid = reference != IGNORE_INDEX
        units = np.rint(confidence[valid].astype(np.float64) * CONFIDENCE_UNIT).astype(np.int64)
        bins = np.minimum(units * CONFIDENCE_BINS // CONFIDENCE_UNIT, CONFIDENCE_BINS - 1)
        right = (prediction == reference)[valid]
        self.totals[0] += np.bincount(bins, minlength=CONFIDENCE_BINS)
        self.totals[1] += np.bincount(bins[right], minlength=CONFIDENCE_BINS)
        # Weights are summed in float64, exact below 2**53: 2**33 pixels.
        self.totals[2] += np.bincount(bins, weights=units, minlength=CONFIDENCE_BINS).astype(np.int64)

    def scores(self) -> Calibration:
        pixels, right, confidence = self.totals[0], self.totals[1], self.totals[2] / CONFIDENCE_UNIT
        total = int(pixels.sum()) or math.nan
        return Calibration(
            pixels=pixels,
            accuracy=shares(right, pixels),
            confidence=shares(confidence, pixels),
            mean_accuracy=float(right.sum() / total),
            mean_confidence=float(confidence.sum() / total),
            expected_calibration_error=float(np.abs(right - confidence).sum() / total),
        )


@dataclass
class Calibration:
    """Of each bin the pixels, the share of right ones and the mean confidence (nan without pixels), in 0..1; of all
    pixels both means, and the mean distance of the two over pixels, bin by bin (ECE); nan without any.
    """

    pixels: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    mean_accuracy: float
    mean_confidence: float
    expected_calibration_error: float


def shares(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Parts of wholes, nan where a whole is 0."""
    return np.divide(parts, wholes, out=np.full(len(wholes), np.nan), where=wholes > 0)


@dataclass
class SizeGroup:
    """Segments of similar size: areas in pixels (`largest` None: no bound), their pixels and how many are wrong."""

    smallest: int
    largest: int | None
    segments: int
    pixels: int
    wrong: int
    mean_iou: float


def size_groups(counts: SegmentSizeCounts) -> list[SizeGroup]:
    """The groups of `SegmentSizeCounts.scores` with their errors: pixels of the truth that were missed."""
    groups, first, smallest = [], 0, 1
    for row in counts.scores():
        largest = row["max_area"]
        last = BINS - 1 if largest is None else int(size_bin(np.array(largest)))
        right, pixels = (int(counts.totals[kind, first : last + 1].sum()) for kind in (0, 1))
        groups.append(SizeGroup(smallest, largest, row["segments"], pixels, pixels - right, row["mean_iou"]))
        first, smallest = last + 1, (largest or 0) + 1
    return groups
