"""Mean IoU by the size of segments: are small things found as well as large ones?

A segment is a connected region (by sides) of one class in one label map. A pixel of class c belongs to the size of its
segment in the reference; a pixel wrongly predicted as c belongs to the size of its segment in the prediction. So the
true positives, misses and false alarms of all sizes add up to those of mean IoU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scripts.data.ignored import IGNORE_INDEX
from scripts.evaluation.mean_iou import scores_from_counts


GROUPS = 10
# Bin b holds the areas from 2**(b/4) up to 2**((b+1)/4) pixels.
BINS_PER_OCTAVE = 4
BINS = 32 * BINS_PER_OCTAVE


def segment_areas(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The segments of a map: `(H, W)` int32 segment of each pixel, and `(S,)` int64 area of each segment.

    Runs of equal ids along rows are the nodes of a graph, touching runs of one id in neighbouring rows its edges.
    """
    height, width = labels.shape
    starts = np.ones((height, width), dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(starts.ravel(), dtype=np.int32).reshape(height, width) - 1
    # Two runs touch first where one of them starts.
    touching = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    above, below = runs[:-1][touching], runs[1:][touching]
    count = int(runs[-1, -1]) + 1
    graph = coo_array((np.ones(len(above), dtype=np.int8), (above, below)), shape=(count, count))
    number, segment_of_run = connected_components(graph, directed=False)
    lengths = np.diff(np.flatnonzero(starts.ravel()), append=labels.size)
    areas = np.bincount(segment_of_run, weights=lengths, minlength=number).astype(np.int64)
    return segment_of_run[runs].astype(np.int32, copy=False), areas


def size_bin(areas: np.ndarray) -> np.ndarray:
    """Bin of each area in pixels, see `BINS_PER_OCTAVE`."""
    return np.minimum((np.log2(areas) * BINS_PER_OCTAVE + 1e-9).astype(np.int64), BINS - 1)


def largest_area(last_bin: int) -> int:
    """The largest area in pixels that falls into `last_bin`."""
    return int(np.ceil(2 ** ((last_bin + 1) / BINS_PER_OCTAVE) - 1e-9)) - 1


class SegmentSizeCounts:
    """Pixels by size of segment and class: right, of the reference, predicted; and segments of the reference by size.

    Attributes:
        totals: `(4, BINS, K)` int64; the last holds numbers of segments.
    """

    def __init__(self, num_labels: int) -> None:
        self.totals = np.zeros((4, BINS, num_labels), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image; `sample["label"]` has ids below K or 255."""
        num_labels = self.totals.shape[2]
        reference = sample["label"]
        prediction = np.minimum(prediction, num_labels).astype(np.int64)  # K: no class
        valid = reference != IGNORE_INDEX
        segments, areas = segment_areas(reference)
        reference_bin = size_bin(areas)[segments]
        right = valid & (prediction == reference)
        false_alarm = valid & ~right & (prediction < num_labels)

        def count(kept: np.ndarray, bins: np.ndarray, labels: np.ndarray) -> np.ndarray:
            pairs = bins[kept] * num_labels + labels[kept]
            return np.bincount(pairs, minlength=BINS * num_labels).reshape(BINS, num_labels)

        true_positives = count(right, reference_bin, prediction)
        self.totals[0] += true_positives
        self.totals[1] += count(valid, reference_bin, reference.astype(np.int64))
        predicted_segments, predicted_areas = segment_areas(prediction)
        alarms = count(false_alarm, size_bin(predicted_areas)[predicted_segments], prediction)
        self.totals[2] += true_positives + alarms
        label_of_segment = np.zeros(len(areas), dtype=np.int64)
        label_of_segment[segments.ravel()] = reference.ravel()
        self.totals[3] += count(label_of_segment != IGNORE_INDEX, size_bin(areas), label_of_segment)

    def scores(self) -> list[dict[str, Any]]:
        """Up to ten groups with about as many segments of the reference each, smallest first.

        Returns:
            per group `max_area` (pixels, at the images' own size; None: no bound), `segments`, `classes` (with
            reference pixels), `mean_iou` over them. Fewer than ten where one bin holds more than a tenth.
        """
        numbers = self.totals[3].sum(axis=1)
        total = int(numbers.sum())
        if total == 0:
            return []
        share = numbers.cumsum() / total
        ends = sorted({int(np.searchsorted(share, group / GROUPS - 1e-12)) for group in range(1, GROUPS)} | {BINS - 1})
        groups, first = [], 0
        for last in ends:
            part = self.totals[:, first : last + 1].sum(axis=1)
            # A group beyond the largest segment of the reference holds false alarms only: they join the one before.
            groups.append((last, part))
            first = last + 1
        while len(groups) > 1 and not groups[-1][1][3].any():
            (_, part), (last, _) = groups[-2], groups[-1]
            groups[-2:] = [(last, part + groups[-1][1])]
        rows = []
        for last, part in groups:
            scores = scores_from_counts(part[:3])
            rows.append(
                {
                    "max_area": None if last == BINS - 1 else largest_area(last),
                    "segments": int(part[3].sum()),
                    "classes": int((part[1] > 0).sum()),
                    "mean_iou": scores["mean_iou"],
                }
            )
        return rows
