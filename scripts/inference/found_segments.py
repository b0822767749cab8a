"""What an instance or panoptic model finds in an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from image_processing.host_transfers import to_host
from image_processing.run_lengths import coco_run_lengths, compressed
from image_processing.segments import BoxedMask
from scripts.inference.predictors import outputs_of, processed_inputs
from scripts.models.tasks import PANOPTIC


class Instance(NamedTuple):
    """One object: its class, its score in 0..1, and its mask on the CPU, in its bounding box."""

    label: int
    score: float
    mask: BoxedMask

    def run_lengths(self) -> dict[str, Any]:
        """The mask as COCO's results files have it: `size` `[height, width]` and compressed `counts`."""
        mask = self.mask
        return compressed(coco_run_lengths(mask.pixels.numpy(), mask.rows.start, mask.columns.start, mask.size))


class PanopticMap(NamedTuple):
    """Segments that do not overlap.

    Args:
        ids: `(H, W)` int32, 0 where there is no segment.
        segments: one dictionary each, with `id`, `label_id`, `was_fused` and `score`.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]


@dataclass(frozen=True)
class FoundSegments:
    """What was found in an image of this `(height, width)`.

    Args:
        instances: objects, best first; they may overlap. Of a panoptic model those of classes with instances.
        panoptic: of a panoptic model the map of all segments, else None.
    """

    size: tuple[int, int]
    instances: list[Instance]
    panoptic: PanopticMap | None = None


@dataclass
class SegmentPredictor:
    """The segments of an image at its own size, after the processor's resize.

    Args:
        processor: of an instance or a panoptic model.
        threshold: least score of an instance; average precision wants all, 0.
        panoptic_threshold: class probability above which a query is a segment of a panoptic map.
        with_instances: whether the instances of a panoptic model are wanted beside its map.
    """

    model: Any
    processor: Any
    device: Any
    threshold: float = 0.5
    panoptic_threshold: float = 0.8
    with_instances: bool = True

    def __call__(self, image: Image.Image) -> FoundSegments:
        outputs, input_size = outputs_of(self.model, processed_inputs(self.processor, image, self.device))
        return self.found(outputs, input_size, (image.height, image.width))

    def found(self, outputs: Any, input_size: tuple[int, int], size: tuple[int, int]) -> FoundSegments:
        """The segments of an image of this `(height, width)`, which the network read at the input size."""
        sizes: dict[str, Any] = {"target_sizes": [size], "input_sizes": [input_size]}
        instances = []
        if self.with_instances or self.processor.task != PANOPTIC:
            ((masks, scores, labels, _),) = self.processor.found_instances(outputs, self.threshold, **sizes)
            instances = [
                Instance(label, score, mask)
                for label, score, mask in zip(labels.tolist(), scores.tolist(), on_host(masks), strict=True)
            ]
        if self.processor.task != PANOPTIC:
            return FoundSegments(size, instances)
        (found,) = self.processor.post_process_panoptic_segmentation(outputs, self.panoptic_threshold, **sizes)
        (ids,) = to_host(found["segmentation"])
        panoptic = PanopticMap(ids, found["segments_info"])
        return FoundSegments(size, instances, panoptic)


def on_host(masks: list[BoxedMask]) -> list[BoxedMask]:
    """The masks with their pixels on the CPU, by one transfer; one that several instances have is brought once."""
    pixels = {id(mask.pixels): mask.pixels for mask in masks}
    brought = dict(zip(pixels, to_host(*pixels.values()), strict=True)) if pixels else {}
    return [mask._replace(pixels=torch.from_numpy(brought[id(mask.pixels)])) for mask in masks]
