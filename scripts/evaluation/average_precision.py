"""Mask AP and AR by COCO's rules: matched by pycocotools image by image, of which a few numbers each are kept.

IoU thresholds 0.5 to 0.95, 101 recall points, 100 detections per image, areas in pixels of the masks. A detection that
matches a crowd region of its class counts as nothing, nor does one without a match whose area is outside the range.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from scripts.cli.errors import UserError
from scripts.data.segments import Segments
from scripts.evaluation.bootstrap import interval, multiplicities
from scripts.inference.found_segments import Instance


IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")  # in the order of pycocotools: below 32**2, to 96**2, above
DETECTIONS = (1, 10, 100)  # of an image and class, for recall; precision takes the last
BLOCK = 2**22  # detections times resamples that are weighed at once


def check_installed() -> None:
    """Raises `UserError` where pycocotools is missing."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise UserError(
            "average precision needs pycocotools: pip install 'faseg-transformers[coco]', or '.[coco]' in the checkout"
        ) from error


@dataclass(frozen=True)
class ImageMatches:
    """What precision and recall take from an image, T thresholds and A areas.

    Args:
        index: its place in the split.
        classes, scores, ranks: `(D,)` of the detections; the rank, from 0, is that by score in its class.
        flags: `(D, A * T / 4)` uint8, `(2, A, T)` bits of each detection: matched, ignored.
        present: `(C,)` classes that the image has, in the reference or among the detections.
        expected: `(C, A)` reference segments of each that are to be found.
    """

    index: int
    classes: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    flags: np.ndarray
    present: np.ndarray
    expected: np.ndarray


def encoded(reference: Segments) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(number, run-length encoding)` of each segment, from one mask at a time."""
    from pycocotools.mask import encode

    for layer in reference.layers.numpy():
        for number in np.unique(layer[layer > 0]).tolist():
            yield number - 1, encode(np.asfortranarray(layer == number, dtype=np.uint8))


def image_matches(index: int, reference: Segments, instances: Sequence[Instance]) -> ImageMatches:
    """Matches the detections of an image with its reference segments, those of each class among themselves."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from pycocotools.mask import area

    def annotation(number: int, label: int, mask: Any, **more: Any) -> dict[str, Any]:
        """Numbers begin at 1: pycocotools takes a match with 0 for none."""
        facts = {"id": number + 1, "image_id": 1, "category_id": label, "segmentation": mask, "area": int(area(mask))}
        return {**facts, "iscrowd": 0, **more}

    labels, crowd = reference.classes.tolist(), reference.crowd.tolist()
    expected = [annotation(n, labels[n], mask, iscrowd=int(crowd[n])) for n, mask in encoded(reference)]
    found = [annotation(n, each.label, each.run_lengths(), score=each.score) for n, each in enumerate(instances)]
    present = sorted({each["category_id"] for each in (*expected, *found)})
    height, width = reference.size
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (expected, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": 1, "height": height, "width": width}],
                "categories": [{"id": label} for label in present],
                "annotations": annotations,
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "segm")
        evaluation.evaluate()
    # By class, then area; there are detections or reference segments of each of these classes.
    areas = range(0, len(evaluation.evalImgs), len(AREAS))
    by_class = [evaluation.evalImgs[first : first + len(AREAS)] for first in areas]
    numbers = [len(of_area[0]["dtScores"]) for of_area in by_class]
    flags = np.zeros((sum(numbers), 2, len(AREAS), len(IOUS)), dtype=bool)
    for stop, number, of_area in zip(np.cumsum(numbers), numbers, by_class):
        for place, each in enumerate(of_area):
            flags[stop - number : stop, 0, place] = (each["dtMatches"] > 0).T
            flags[stop - number : stop, 1, place] = (each["dtIgnore"] > 0).T
    expected_of = [[np.count_nonzero(np.equal(each["gtIgnore"], 0)) for each in of_area] for of_area in by_class]
    return ImageMatches(
        index,
        np.repeat(np.array(present, dtype=np.int32), numbers),
        np.array([score for of_area in by_class for score in of_area[0]["dtScores"]], dtype=np.float64),
        np.array([rank for number in numbers for rank in range(number)], dtype=np.int32),
        np.packbits(flags.reshape(len(flags), 2 * len(AREAS) * len(IOUS)), axis=1),
        np.array(present, dtype=np.int32),
        np.array(expected_of, dtype=np.int64).reshape(-1, len(AREAS)),
    )


def precision_over_recall(
    matched: np.ndarray, ignored: np.ndarray, weights: np.ndarray, expected: np.ndarray
) -> np.ndarray:
    """Average precision `(T, R)` of one class at T thresholds under R weightings of the images, nan without reference.

    Args:
        matched, ignored: `(T, D)` bool of the detections, best first.
        weights: `(R, D)` how often the image of each counts.
        expected: `(R,)` reference segments.
    """
    seen = weights.cumsum(axis=1, dtype=np.int64)
    values = np.full((len(matched), len(weights)), np.nan)
    measured = expected > 0
    for row, (match, ignore) in enumerate(zip(matched, ignored)):
        hits, left_out = np.flatnonzero(match & ~ignore), np.flatnonzero(ignore)
        before = np.pad(weights[:, left_out].cumsum(axis=1, dtype=np.int64), ((0, 0), (1, 0)))
        counted = seen[:, hits] - before[:, np.searchsorted(left_out, hits)]
        true = weights[:, hits].cumsum(axis=1, dtype=np.int64)
        precision = true / np.maximum(counted, 1)
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        points = np.searchsorted(RECALLS, true / np.maximum(expected, 1)[:, None], side="right")
        values[row] = (best_from_here * np.diff(points, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(measured, values, np.nan)


def mean_of_known(values: np.ndarray) -> float:
    """Mean of what is not nan; nan where all is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass
class ClassMatches:
    """The detections of one class in all images, best first; of equal scores the earlier image's.

    Args:
        matched, ignored: `(A, T, D)` bool.
        ranks: `(D,)`, see `ImageMatches`.
        images: `(D,)` positions of their images.
        expected: `(N, A)` reference segments of each image.
    """

    matched: np.ndarray
    ignored: np.ndarray
    ranks: np.ndarray
    images: np.ndarray
    expected: np.ndarray


@dataclass
class PrecisionCounts:
    """What was found in the images of a split, at most some kilobytes each; scored once all processes' are there.

    Args:
        num_labels: K classes.
        wanted: those that are scored.
    """

    num_labels: int
    wanted: Collection[int]
    images: list[ImageMatches] = field(default_factory=list)

    def add(self, index: int, reference: Segments, instances: Sequence[Instance]) -> None:
        """Matches one image, `index` being its place in the split."""
        self.images.append(image_matches(index, reference, instances))

    def gather(self, accelerator: Accelerator) -> None:
        """Takes in the images of all processes, in the order of the split."""
        if accelerator.num_processes > 1:
            self.images = gather_object(self.images)
        self.images.sort(key=lambda image: image.index)

    def by_class(self) -> Iterator[tuple[int, ClassMatches]]:
        """Each wanted class that occurs in the references; the others have no precision."""
        if not self.images:
            return
        together = {name: np.concatenate([getattr(image, name) for image in self.images])
                    for name in ("classes", "scores", "ranks", "flags", "present", "expected")}  # fmt: skip
        of_detection, of_class = (
            np.repeat(np.arange(len(self.images)), [len(getattr(image, name)) for image in self.images])
            for name in ("classes", "present")
        )
        order = np.lexsort((together["ranks"], of_detection, -together["scores"], together["classes"]))
        bounds = np.searchsorted(together["classes"][order], np.arange(self.num_labels + 1))
        for label in sorted(self.wanted):
            rows = together["present"] == label
            if not together["expected"][rows].any():
                continue
            chosen = order[bounds[label] : bounds[label + 1]]
            bits = np.unpackbits(together["flags"][chosen], axis=1).astype(bool)
            matched, ignored = bits.reshape(-1, 2, len(AREAS), len(IOUS)).transpose(1, 2, 3, 0)
            expected = np.zeros((len(self.images), len(AREAS)), dtype=np.int64)
            expected[of_class[rows]] = together["expected"][rows]
            yield label, ClassMatches(matched, ignored, together["ranks"][chosen], of_detection[chosen], expected)

    def segments(self) -> np.ndarray:
        """`(K,)` reference segments, without crowd regions."""
        counts = np.zeros(self.num_labels, dtype=np.int64)
        for image in self.images:
            counts[image.present] += image.expected[:, 0]
        return counts

    def scores(self) -> dict[str, Any]:
        """Fractions 0..1, nan where there is nothing to measure: means over the classes that occur, and lists
        `per_category_...` of K."""
        precision = np.full((self.num_labels, len(AREAS), len(IOUS)), np.nan)
        recall = np.full((self.num_labels, len(AREAS), len(DETECTIONS), len(IOUS)), np.nan)
        for label, found in self.by_class():
            once = np.ones((1, len(found.images)), dtype=np.uint8)
            expected = found.expected.sum(axis=0)
            true = found.matched & ~found.ignored
            for area in np.flatnonzero(expected).tolist():
                of_area = found.matched[area], found.ignored[area]
                precision[label, area] = precision_over_recall(*of_area, once, expected[area : area + 1])[:, 0]
                for place, most in enumerate(DETECTIONS):
                    recall[label, area, place] = true[area][:, found.ranks < most].sum(axis=1) / expected[area]
        scores: dict[str, Any] = {"average_precision": mean_of_known(precision[:, 0])}
        for percent, place in ((50, 0), (75, 5)):
            scores[f"average_precision_{percent}"] = mean_of_known(precision[:, 0, place])
        for area, name in enumerate(AREAS[1:], 1):
            scores[f"average_precision_{name}"] = mean_of_known(precision[:, area])
        for place, most in enumerate(DETECTIONS):
            scores[f"average_recall_{most}"] = mean_of_known(recall[:, 0, place])
        for area, name in enumerate(AREAS[1:], 1):
            scores[f"average_recall_{name}"] = mean_of_known(recall[:, area, -1])
        scores["per_category_average_precision"] = precision[:, 0].mean(axis=1).tolist()
        scores["per_category_average_precision_50"] = precision[:, 0, 0].tolist()
        return scores

    def interval(self, resamples: int, seed: int) -> dict[str, Any]:
        """Of the average precision: every image weighs as often as it comes into a resampled split."""
        times = np.array([multiplicities(seed, image.index, resamples) for image in self.images], dtype=np.uint8)
        values = np.full((self.num_labels, resamples), np.nan)
        for label, found in self.by_class():
            size = max(1, BLOCK // max(1, len(found.images)))
            for first in range(0, resamples, size):
                block = times[:, first : first + size].T
                expected = block.astype(np.int64) @ found.expected[:, 0]
                precision = precision_over_recall(found.matched[0], found.ignored[0], block[:, found.images], expected)
                values[label, first : first + size] = precision.mean(axis=0)
        return interval(np.array([mean_of_known(of_split) for of_split in values.T]), seed)
