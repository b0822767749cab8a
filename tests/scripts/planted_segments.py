"""Segments as a model would find them, drawn by hand: they overlap, touch, hide one another."""

import numpy as np
import torch

from image_processing.segments import BoxedMask
from scripts.inference.found_segments import FoundSegments, Instance, PanopticMap


SIZE = (40, 60)
NAMES = {0: "sky", 1: "cell", 2: "car"}


def instance(label: int, score: float, mask: np.ndarray, whole_columns: bool = False) -> Instance:
    """An instance of a mask `(H, W)` bool, its box perhaps with empty columns, as a model's may have."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    down = slice(int(rows[0]), int(rows[-1]) + 1)
    across = slice(0, mask.shape[1]) if whole_columns else slice(int(columns[0]), int(columns[-1]) + 1)
    return Instance(label, score, BoxedMask(mask.shape, down, across, torch.from_numpy(mask[down, across].copy())))


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """A rectangle as a mask of `SIZE`."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def masks() -> list[np.ndarray]:
    """Two cells that touch, a small car on the first, one wholly hidden behind that cell."""
    ring = box(5, 5, 25, 25)
    ring[10:12, 10:20] = False
    return [ring, box(5, 25, 25, 40), box(14, 8, 18, 12), box(15, 15, 20, 20)]


def found_instances() -> FoundSegments:
    """Those masks as instances, best first."""
    labels, scores = (1, 1, 2, 1), (0.9, 0.8, 0.7, 0.6)
    each = zip(labels, scores, masks(), strict=True)
    return FoundSegments(SIZE, [instance(*one, whole_columns=bool(number % 2)) for number, one in enumerate(each)])


def found_panoptic() -> FoundSegments:
    """Sky behind two cells and a car; one corner without a segment."""
    ids = np.ones(SIZE, dtype=np.int32)
    for number, mask in enumerate(masks()[:3], 2):
        ids[mask] = number
    ids[30:, 50:] = 0
    listed = [
        {"id": number, "label_id": label, "was_fused": label == 0, "score": score}
        for number, (label, score) in enumerate([(0, 0.95), (1, 0.9), (1, 0.85), (2, 0.81)], 1)
    ]
    return FoundSegments(SIZE, [], PanopticMap(ids, listed))
