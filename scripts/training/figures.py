"""The figure that models of each task are judged by in training: early stopping and `best/` go by it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from scripts.data.labelled_dataset import LabelledDataset
from scripts.evaluation.degenerate import why_it_says_nothing
from scripts.evaluation.mean_iou import scores_from_confusion
from scripts.evaluation.split import evaluate_split
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC
from scripts.training.log import EVALUATIONS


Scores = dict[str, float]  # of a split by name, in 0..1; NaN where nothing was to be found


@dataclass(frozen=True)
class Figure:
    """What an evaluation gives.

    Args:
        name: of the score that models are compared by; a key of `EVALUATIONS`.
        evaluate: `(model, processor, data, accelerator) -> Scores`, the same in all processes.
    """

    name: str
    evaluate: Callable[[Any, Any, LabelledDataset, Accelerator], Scores]

    @property
    def words(self) -> str:
        """What lines for people call it."""
        return EVALUATIONS[self.name]


def scores_of_maps(model: Any, processor: Any, data: LabelledDataset, accelerator: Accelerator) -> Scores:
    """Mean IoU and overall accuracy of label maps."""
    confusion, _ = evaluate_split(model, processor, data, accelerator)
    if warning := why_it_says_nothing(confusion, model.config.id2label):
        accelerator.print(f"warning: {warning}", file=sys.stderr)
    scores = scores_from_confusion(confusion)
    return {name: float(scores[name]) for name in ("mean_iou", "overall_accuracy")}


def scores_of_segments(model: Any, processor: Any, data: LabelledDataset, accelerator: Accelerator) -> Scores:
    """What there is to tell of segments in single numbers, by the model's task."""
    from scripts.evaluation.segments_split import evaluate_segments

    scores = evaluate_segments(model, processor, data, accelerator)
    return {
        name: math.nan if score is None else float(score)
        for name, score in scores.items()
        if score is None or isinstance(score, float)
    }


# By task.
FIGURES = {
    SEMANTIC: Figure("mean_iou", scores_of_maps),
    INSTANCE: Figure("average_precision", scores_of_segments),
    PANOPTIC: Figure("panoptic_quality", scores_of_segments),
}
