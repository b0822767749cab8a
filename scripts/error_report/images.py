"""The best and the worst images of a split, a bounded number of them, small enough for a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from scripts.data.bands import for_eyes
from scripts.data.ignored import IGNORE_INDEX
from scripts.evaluation.mean_iou import class_counts, confusion_matrix, scores_from_counts, valid_part


IMAGES = 5  # worst ones, and as many best ones
LONGEST_EDGE = 480
WRONG_COLOUR = np.array((213, 94, 0), dtype=np.float32)  # vermilion, told from grey by colour-blind readers


@dataclass
class RankedImage:
    """An image, its maps and how well they agree.

    Args:
        index: its place in the split.
        mean_iou: over the classes of its truth, in 0..1.
        accuracy: share of right pixels.
        classes: ids in its truth or prediction, most wrong pixels first.
        image: the RGB image, at most `LONGEST_EDGE` long, as the following are.
        truth, prediction: class ids.
        errors: see `error_map`.
    """

    index: int
    name: str
    mean_iou: float
    accuracy: float
    classes: list[int]
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    errors: Image.Image

    @property
    def rank(self) -> tuple[float, int]:
        """Worst first; of equals the one that comes first in the split."""
        return (self.mean_iou, self.index)


def small_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that fits into `LONGEST_EDGE`."""
    scale = min(1.0, LONGEST_EDGE / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def small_map(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class ids at `size` (width, height), each pixel that of the nearest."""
    rows, columns = (
        ((np.arange(small) + 0.5) * large / small).astype(np.int64)
        for small, large in zip((size[1], size[0]), labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def error_map(image: Image.Image, wrong: np.ndarray, ignored: np.ndarray) -> Image.Image:
    """The image in grey with wrong pixels in vermilion and ignored ones in black, at `small_size`.

    A small pixel that stands for several takes their mean, so that thin errors do not get lost.
    """
    size = small_size(image)

    def share(mask: np.ndarray) -> np.ndarray:
        shrunk = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        return np.asarray(shrunk, dtype=np.float32)[..., None] / 255

    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32)[..., None]
    grey = 90 + grey * 0.6  # neither black nor white: both mean something else
    is_wrong, is_ignored = share(wrong), share(ignored)
    mixed = grey * (1 - is_wrong - is_ignored) + WRONG_COLOUR * is_wrong
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))


class ImageRanking:
    """Keeps the best and the worst images of a split by mean IoU; images that are all ignored have no rank.

    Attributes:
        totals: `(1,)` int64, images with a rank.
    """

    def __init__(self, num_labels: int, images: int = IMAGES) -> None:
        self.num_labels, self.images = num_labels, images
        self.totals = np.zeros(1, dtype=np.int64)
        self.worst: list[RankedImage] = []
        self.best: list[RankedImage] = []

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Looks at one image; `sample` as `EvaluationSamples` gives it."""
        size = max(256, self.num_labels + 2)
        confusion = valid_part(confusion_matrix(prediction, sample["label"], size), self.num_labels)
        counts = class_counts(confusion)
        scores = scores_from_counts(counts)
        if not counts[1].any():
            return
        self.totals += 1
        rank = (scores["mean_iou"], sample["index"])
        is_worst = len(self.worst) < self.images or rank < self.worst[-1].rank
        is_best = len(self.best) < self.images or rank > self.best[-1].rank
        if not (is_worst or is_best):
            return
        image = self.drawn(sample, prediction, counts, scores)
        if is_worst:
            self.worst = sorted([*self.worst, image], key=lambda kept: kept.rank)[: self.images]
        if is_best:
            self.best = sorted([*self.best, image], key=lambda kept: kept.rank, reverse=True)[: self.images]

    @staticmethod
    def drawn(
        sample: dict[str, Any], prediction: np.ndarray, counts: np.ndarray, scores: dict[str, Any]
    ) -> RankedImage:
        """What the page shows of an image."""
        image, truth = for_eyes(sample["image"]), sample["label"]
        ignored = truth == IGNORE_INDEX
        size = small_size(image)
        right, reference, predicted = counts
        wrong = reference + predicted - 2 * right
        present = np.flatnonzero(reference + predicted)
        return RankedImage(
            index=sample["index"],
            name=sample["name"],
            mean_iou=scores["mean_iou"],
            accuracy=scores["overall_accuracy"],
            classes=present[np.argsort(-wrong[present], kind="stable")].tolist(),
            image=image.convert("RGB").resize(size, Image.Resampling.BOX),
            truth=small_map(truth, size),
            prediction=small_map(prediction, size),
            errors=error_map(image, (prediction != truth) & ~ignored, ignored),
        )

    def gather(self, accelerator: Accelerator) -> None:
        """Ranks the images of all processes together; each must call it."""
        if accelerator.num_processes > 1:
            self.worst, self.best = gather_object(self.worst), gather_object(self.best)
        self.worst = sorted(self.worst, key=lambda kept: kept.rank)[: self.images]
        self.best = sorted(self.best, key=lambda kept: kept.rank, reverse=True)[: self.images]

    def ranked(self) -> tuple[list[RankedImage], list[RankedImage]]:
        """The worst, worst first, and the best, best first; none is in both, so there may be fewer."""
        total = int(self.totals[0])
        worst = self.worst[: min(self.images, (total + 1) // 2)]
        return worst, self.best[: min(self.images, total - len(worst))]
