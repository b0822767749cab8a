"""The figures of an instance or a panoptic model as `eval.py` measures, writes and prints them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator

from scripts.cli.processes import on_main
from scripts.data.first_look import FirstLook
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSamples
from scripts.evaluation.degenerate import look_at_classes
from scripts.evaluation.results import in_percent
from scripts.evaluation.segment_rules import check_segment_classes
from scripts.evaluation.segments_split import evaluate_segments, things_of
from scripts.models.tasks import PANOPTIC


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        scores: for `build_results`.
        facts: what else the results file says of it.
        segments: `(K, 1)` reference segments of each class.
        look: what the first label maps hold.
    """

    scores: dict[str, Any]
    facts: dict[str, Any]
    segments: np.ndarray
    look: FirstLook


def measure(
    arguments: Any, model: Any, processor: Any, data: LabelledDataset, accelerator: Accelerator, bad: BadSamples
) -> Measured:
    """Figures by the flags of `eval.py`.

    Args:
        bad: gets what could not be read.
    Raises:
        UserError: see `check_segment_classes`, `look_at_classes` and `evaluate_segments`.
    """
    names = model.config.id2label
    if data.holds_class_maps:  # a model trained on reduced labels is compared with reduced labels
        data.do_reduce_labels |= bool(processor.do_reduce_labels)
    check_segment_classes(data, names)
    look = on_main(accelerator, lambda: look_at_classes(data, names))
    started = time.perf_counter()
    scores = evaluate_segments(
        model,
        processor,
        data,
        accelerator,
        limit=arguments.max_eval_samples,
        num_workers=arguments.dataloader_num_workers,
        bad_samples=bad,
        resamples=arguments.bootstrap_samples if arguments.extended_metrics else 0,
        seed=arguments.seed,
        precision=True,
    )
    segments = scores.pop("segments")
    facts: dict[str, Any] = {"images": scores.pop("images"), "segments": int(segments.sum())}
    facts["seconds"] = round(time.perf_counter() - started, 1)
    if not facts["segments"]:
        facts["warning"] = "the label maps hold no segments of these classes: there is nothing to find"
        accelerator.print(f"warning: {facts['warning']}", file=sys.stderr)
    if interval := scores.pop("interval", None):
        facts["interval"] = interval | in_percent({key: interval[key] for key in ("low", "high")})
    if processor.task == PANOPTIC:
        facts["things"] = [names[index] for index in things_of(model, processor)]
    return Measured(scores, facts, segments[:, None], look)
