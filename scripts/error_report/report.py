"""The error report of `scripts/eval.py --report`: what it counts while a split is evaluated, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from scripts.drawing.visualization import model_palette
from scripts.error_report.counts import CalibrationCounts, DistanceCounts, size_groups
from scripts.error_report.images import ImageRanking
from scripts.error_report.page import Findings, report_html
from scripts.evaluation.segment_size import SegmentSizeCounts
from scripts.models.families import family_of
from scripts.storage.atomic import atomic_file


class ErrorReport:
    """Counts what the page shows, in memory that does not grow with the images.

    Args:
        predictor: image -> label map, with `with_confidence`.
        counters: for `evaluate_split`, by name; the report's are added.
    Attributes:
        predictor: to be used in place of the one given.
    """

    def __init__(self, num_labels: int, predictor: Any, counters: dict[str, Any]) -> None:
        self.predictor = self.calibration = CalibrationCounts(predictor)
        self.distances, self.images = DistanceCounts(), ImageRanking(num_labels)
        self.sizes = counters.setdefault("segment_sizes", SegmentSizeCounts(num_labels))
        for name in ("calibration", "distances", "images"):
            counters[f"report_{name}"] = getattr(self, name)

    def gather(self, accelerator: Accelerator) -> None:
        """Brings the images of all processes together, as `evaluate_split` did the counts; each must call it."""
        self.images.gather(accelerator)

    def write(self, file: Path, results: dict[str, Any], confusion: np.ndarray, config: Any) -> None:
        """Writes the page atomically.

        Args:
            results: of `results.build_results`.
            confusion: of `evaluate_split`.
            config: the model's.
        """
        worst, best = self.images.ranked()
        found = Findings(
            results=results,
            names=list(results["per_class"]),
            palette=model_palette(config),
            confusion=confusion,
            distances=self.distances.totals,
            sizes=size_groups(self.sizes),
            calibration=self.calibration.scores(),
            softmax=family_of(config).softmax_scores,
            worst=worst,
            best=best,
        )
        with atomic_file(file) as partial:
            partial.write_text(report_html(found), encoding="utf-8")
