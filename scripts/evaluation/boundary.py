"""Boundary IoU: how well outlines agree (Cheng et al., "Boundary IoU", CVPR 2021), for semantic maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from scripts.data.ignored import IGNORE_INDEX
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_counts, valid_part


DILATION_RATIO = 0.02


def boundary_distance(height: int, width: int, dilation_ratio: float = DILATION_RATIO) -> int:
    """Width of a boundary in pixels: the share `dilation_ratio` of the image's diagonal, at least 1."""
    return max(1, round(dilation_ratio * float(np.hypot(height, width))))


def boundary_mask(labels: np.ndarray, distance: int) -> np.ndarray:
    """`(H, W)` bool: True where the pixel is within `distance` of the inner outline of its own class's mask.

    The paper erodes the mask of each class `distance` times by 3x3 pixels, outside the image being no mask, and
    keeps what went. A pixel stays if the window of `2 * distance + 1` around it holds one class only, which the
    largest and smallest id in the window tell for all classes at once.

    Args:
        labels: `(H, W)` ids below 65535.
    """
    ids = labels.astype(np.uint16)
    size = 2 * distance + 1
    largest = ndimage.maximum_filter(ids, size, mode="constant", cval=np.iinfo(np.uint16).max)
    smallest = ndimage.minimum_filter(ids, size, mode="nearest")
    return largest != smallest


class BoundaryCounts:
    """Pixels of boundaries, by class: right, of the reference, predicted; summed over images before the ratio.

    The paper defines the measure for one mask; here a class's pixels of all images are one mask, as in mean IoU.
    Ignored pixels count nowhere, and their outline is an outline of both maps.

    Attributes:
        totals: `(3, K)` int64.
    """

    def __init__(self, num_labels: int, dilation_ratio: float = DILATION_RATIO) -> None:
        self.dilation_ratio = dilation_ratio
        self.totals = np.zeros((3, num_labels), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image; `sample["label"]` has ids below K or 255."""
        num_labels = self.totals.shape[1]
        reference = sample["label"]
        height, width = reference.shape
        distance = boundary_distance(height, width, self.dilation_ratio)
        # K stands for "no boundary": a pixel may be on one map's boundary only.
        outside = np.min_scalar_type(num_labels).type(num_labels)
        ignored = reference == IGNORE_INDEX
        known = np.where(ignored, IGNORE_INDEX, prediction)
        found = np.where(boundary_mask(known, distance) & ~ignored & (prediction < num_labels), prediction, outside)
        wanted = np.where(boundary_mask(reference, distance) & ~ignored, reference, outside)
        counts = confusion_matrix(found, wanted, max(256, num_labels + 2))
        square = valid_part(counts, num_labels + 1, ignore_index=-1)[:, :-1]
        self.totals += np.stack([np.diag(square), square.sum(axis=1), square.sum(axis=0)])[:, :num_labels]

    def scores(self) -> dict[str, Any]:
        """`mean_boundary_iou` over the classes with a boundary in the references, and it by class (nan: none)."""
        scores = scores_from_counts(self.totals)
        return {
            "mean_boundary_iou": scores["mean_iou"],
            "per_category_boundary_iou": scores["per_category_iou"],
            "dilation_ratio": self.dilation_ratio,
        }
