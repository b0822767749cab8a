"""An interval for a figure: what another draw of images from the same source would have given (bootstrap)."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.evaluation.mean_iou import class_counts, confusion_matrix, scores_from_counts, valid_part


def multiplicities(seed: int, index: int, resamples: int) -> np.ndarray:
    """How often image `index` comes into each resampled split, `(resamples,)` int64.

    Instead of drawing N of N images, every image comes Poisson(1) times into each, drawn from (seed, index) alone: so
    neither order nor number of processes changes an interval, and counts of images can be added as they come.
    """
    return np.random.default_rng([seed, index]).poisson(1, resamples)


def interval(values: np.ndarray, seed: int, confidence: float = 0.95) -> dict[str, Any]:
    """`low` and `high` of a figure: percentiles over the resampled splits that it is not nan of.

    Args:
        values: `(resamples,)`.
    """
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail]) if np.isfinite(values).any() else (np.nan, np.nan)
    return {
        "low": float(low),
        "high": float(high),
        "confidence": confidence,
        "resamples": len(values),
        "seed": seed,
    }


class BootstrapCounts:
    """Class-wise counts of many resampled splits at once, in memory that does not grow with the images.

    Attributes:
        totals: `(resamples, 3, K)` int64, see `mean_iou.class_counts`.
    """

    def __init__(self, num_labels: int, resamples: int, seed: int = 0) -> None:
        self.seed = seed
        self.totals = np.zeros((resamples, 3, num_labels), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image; `sample["label"]` has ids below K or 255, `sample["index"]` is its place."""
        resamples, _, num_labels = self.totals.shape
        confusion = confusion_matrix(prediction, sample["label"], max(256, num_labels + 2))
        counts = class_counts(valid_part(confusion, num_labels))
        times = multiplicities(self.seed, sample["index"], resamples)
        present = np.flatnonzero(counts.any(axis=0))
        self.totals[:, :, present] += times[:, None, None] * counts[None, :, present]

    def scores(self, confidence: float = 0.95) -> dict[str, Any]:
        """`interval` of mean IoU, over the resampled splits that hold any reference pixel."""
        values = np.array([scores_from_counts(counts)["mean_iou"] for counts in self.totals])
        return interval(values, self.seed, confidence)
