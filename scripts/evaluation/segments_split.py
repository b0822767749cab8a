"""From a split whose maps hold segments to average precision and panoptic quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from scripts.cli.processes import summed
from scripts.data.bands import as_image
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.loading import StreamRow
from scripts.data.samples import BadSamples, decode_segments
from scripts.evaluation.average_precision import PrecisionCounts, check_installed
from scripts.evaluation.panoptic_quality import PanopticCounts
from scripts.evaluation.split import EvaluationSamples, over_split
from scripts.inference.found_segments import FoundSegments, SegmentPredictor
from scripts.models.tasks import PANOPTIC


class SegmentSamples(EvaluationSamples):
    """Decodes the row that it is given as an index, whose map holds segments."""

    def decode(self, item: StreamRow) -> dict[str, Any]:
        """`image` (see `as_image`), `segments` and `name`."""
        image, segments, name = decode_segments(item.row, self.form, item.index)
        return {"image": as_image(image), "segments": segments, "name": name}


def things_of(model: Any, processor: Any) -> list[int]:
    """The classes with instances of an instance or a panoptic model, in order."""
    stuff = set(processor.label_ids_to_fuse or ()) if processor.task == PANOPTIC else set()
    return [index for index in range(model.config.num_labels) if index not in stuff]


def evaluate_segments(
    model: Any,
    processor: Any,
    data: LabelledDataset,
    accelerator: Accelerator,
    predictor: Callable[[Image.Image], FoundSegments] | None = None,
    limit: int | None = None,
    num_workers: int = 1,
    bad_samples: BadSamples | None = None,
    resamples: int = 0,
    seed: int = 0,
    precision: bool | None = None,
) -> dict[str, Any]:
    """Figures of a split against its original segments, over all processes; the same for any number of them.

    Args:
        processor: of task "instance" or "panoptic".
        data: of the same task and of the model's classes.
        predictor: image -> segments at its size, of whatever score; by default the model's.
        limit, num_workers, bad_samples: see `over_split`.
        resamples, seed: of the interval, see `bootstrap.multiplicities`; 0 measures none.
        precision: whether average precision is measured; by default of an instance model. Of a panoptic model it is
            that of its things.
    Returns:
        `average_precision` of instances or `panoptic_quality`, and the others, as fractions 0..1, nan where there is
        nothing to measure, see `PanopticCounts.scores` and `PrecisionCounts.scores`; `images`; `segments`, `(K,)`
        reference segments of each class; with resamples `interval`, of the main figure.
    Raises:
        UserError: as `over_split`; pycocotools is not installed.
    """
    model = accelerator.unwrap_model(model).eval()
    num_labels, things = model.config.num_labels, things_of(model, processor)
    panoptic = PanopticCounts(num_labels, resamples, seed) if processor.task == PANOPTIC else None
    found = PrecisionCounts(num_labels, things) if precision or panoptic is None else None
    if found is not None:
        check_installed()
    # Average precision sorts by score, whatever it is; the best alone may be shown, all are counted.
    with_instances = found is not None
    predictor = predictor or SegmentPredictor(model, processor, accelerator.device, 0, with_instances=with_instances)
    wanted = torch.tensor(things)

    def count(sample: dict[str, Any]) -> None:
        index, reference, prediction = sample["index"], sample["segments"], predictor(sample["image"])
        if panoptic is not None:
            assert prediction.panoptic is not None
            panoptic.add(index, reference, prediction.panoptic)
        if found is not None:
            found.add(index, reference.chosen(torch.isin(reference.classes, wanted)), prediction.instances)

    samples = SegmentSamples(data.row_format, num_labels)
    images = over_split(samples, count, data, accelerator, limit, num_workers, bad_samples)
    scores: dict[str, Any] = {"images": images}
    if found is not None:
        found.gather(accelerator)
        scores |= found.scores()
        scores["segments"] = found.segments()
    if panoptic is not None:
        panoptic.totals = summed(panoptic.totals, accelerator)
        scores |= panoptic.scores(things)
        scores["segments"] = panoptic.segments()
    if resamples and panoptic is not None:
        scores["interval"] = panoptic.interval()
    elif resamples and found is not None:
        scores["interval"] = found.interval(resamples, seed)
    return scores
