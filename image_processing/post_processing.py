"""Class and mask logits -> semantic maps, instances, panoptic segments, as the reference computes them.

Notation: Q queries, K classes, (h, w) logits at 1/4, canvas (H, W) = 4 * (h, w) the padded network input,
input size = the image's part of the canvas, target size = the size asked for (the original image).

All resizing is bilinear with `align_corners=False`, of logits up to the canvas, then cut to the input size, then to
the target; nothing is ever squashed to a fixed square. Images are handled one by one, class scores a few rows and
masks a few columns at a time, so that the `(Q, H, W)` probabilities never exist at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import update_wrapper
from numbers import Integral
from types import MethodType, NoneType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.utils import logging

from .host_transfers import to_host, waits_for
from .model_outputs import check_thresholds, checked_outputs, checked_sizes
from .run_lengths import coco_run_lengths, run_lengths
from .segments import BoxedMask, instance_segments, panoptic_segments
from .semantic_labels import LOGITS_STRIDE, ImageScores


logger = logging.get_logger(__name__)


class TaskMethod:
    """A method that a processor has only for some values of its `task`, also in the eyes of `hasattr`.

    `pipeline("image-segmentation")` answers with the first of panoptic, instance, semantic that the processor has.
    """

    def __init__(self, function: Callable, tasks: tuple[str, ...]):
        update_wrapper(cast(Callable, self), function)
        self.function, self.tasks = function, tasks

    def __get__(self, processor: Any, owner: type | None = None) -> Callable:
        if processor is None:
            return self.function
        if processor.task not in self.tasks:
            fix = " or ".join(f"task={task!r}" for task in self.tasks)
            raise AttributeError(
                f"{type(processor).__name__} has task={processor.task!r}, which does not offer"
                f" {self.function.__name__}: load it with {fix} if the model was trained for that"
            )
        return MethodType(self.function, processor)


def for_tasks(*tasks: str) -> Callable[[Callable], Any]:
    """Decorator: the method exists only on processors of these tasks."""
    return lambda function: TaskMethod(function, tasks)


class FASegPostProcessing:
    """The `post_process_*` methods: Mask2Former's arguments and results, the reference's numbers.

    Sizes are `(height, width)`. `input_sizes` are the unpadded sizes that the network saw, as the processor returned
    them. Left out, they follow from `target_sizes`, taken as the images' own sizes, by the resize rule.

    Transformers' own `Mask2FormerImageProcessor` finds the same instances and panoptic segments at equal sizes, but

    - resizes all masks to 384 x 384 first, which loses thin ones, and then probabilities (panoptic) or binary masks
      (instance) to the target; here logits are resized;
    - looks at as many (query, class) pairs as there are queries, not at `max_detections`, and returns instances in no
      order, of which the later one is on top in the map;
    - gives a panoptic segment every pixel that it won, also those outside of its mask, which are void here;
    - compares areas with those of class times mask probability above `mask_threshold`, not of mask probability, and
      drops a segment whose share is `overlap_mask_area_threshold` itself;
    - lists a fused segment once per query, and may give the segment after it an id that is taken;
    - returns float maps of -1 where no query passes the threshold, for instances whatever form was asked for; its void
      is 0 otherwise.

    tests/image_processing/test_as_transformers.py shows each.
    """

    task: str
    label_ids_to_fuse: Sequence[int] | None

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to which the processor resizes an image."""
        raise NotImplementedError

    def canvas_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The size to which the processor pads a batch of resized images."""
        raise NotImplementedError

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Any = None,
        input_sizes: Any = None,
        return_segmentation_scores: bool = False,
        resize_masks_first: bool | None = None,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """One map of class ids per image.

        An instance model knows objects alone: it gives the pixels between them a class too, and that is warned of. A
        panoptic model knows all classes, and its maps are what the reference makes of it.

        Args:
            outputs: with `class_queries_logits` `(B, Q, K+1)` and `masks_queries_logits` `(B, Q, H/4, W/4)`, or, of a
                model without queries (SeMask), with `logits` `(B, K, H/4, W/4)`, or (QLSeg) with `semantic_scores`
                `(B, K, H, W)`.
            target_sizes: B sizes of the maps; left out, maps are at the input sizes.
            input_sizes: B sizes, see the class.
            return_segmentation_scores: also return the class scores.
            resize_masks_first: resize masks, not class scores, to the target. The reference does so for instance and
                panoptic models, which is the default for those tasks.
        Returns:
            int64 maps `(height, width)`; with `return_segmentation_scores` objects with `segmentation` and
            `segmentation_scores` `(K, height, width)`, which are logits or scores where the model gives such.
        Raises:
            ValueError: not as many sizes as images; an input size larger than the canvas; logits that do not belong
                together or are not finite.
        """
        if self.task == "instance":
            logger.warning_once(
                "this processor is of an instance model (task='instance'), which learnt objects and nothing of what "
                "lies between them: a map of classes gives each pixel that of some object. "
                "post_process_instance_segmentation, or subtask='instance' of a pipeline, finds the objects"
            )
        results: list[Any] = []
        for scores in self.semantic_scores(outputs, target_sizes, input_sizes, resize_masks_first):
            if not return_segmentation_scores:
                results.append(scores.labels())
                continue
            stacked = scores.stacked()
            data = {"segmentation": stacked.argmax(dim=0), "segmentation_scores": stacked}
            results.append(SemanticSegmentationPostProcessorOutput(data=data))
        return results

    def semantic_scores(
        self, outputs: Any, target_sizes: Any = None, input_sizes: Any = None, resize_masks_first: bool | None = None
    ) -> Iterator[ImageScores]:
        """Class scores of every image, made a few rows at a time; arguments as in
        `post_process_semantic_segmentation`, which reduces them."""
        if resize_masks_first is None:
            resize_masks_first = self.task != "semantic"
        classes, maps, stride = checked_outputs(outputs)
        canvas, sizes = self._sizes(maps, target_sizes, input_sizes, stride, has_queries=classes is not None)
        for index, (input_size, target_size) in enumerate(sizes):
            class_logits = None if classes is None else classes[index]
            yield ImageScores(maps[index], canvas, input_size, target_size, class_logits, resize_masks_first)

    @for_tasks("instance", "panoptic")
    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Any = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        input_sizes: Any = None,
        max_detections: int = 100,
        return_coco_rle: bool = False,
    ) -> list[dict]:
        """The instances of each image, best first.

        Args:
            outputs: as for semantic segmentation.
            threshold: least score (class probability times mean mask probability) of an instance.
            mask_threshold: a pixel belongs to an instance above this mask probability.
            overlap_mask_area_threshold: accepted because `pipeline` passes it; instances may overlap.
            target_sizes, input_sizes: as for semantic segmentation.
            return_coco_annotation: return one run-length encoding per instance as `segmentation`, in transformers'
                form, which COCO's tools do not read: starts, counted from 1 row by row, and lengths.
            return_binary_maps: return `(N, height, width)` bool masks as `segmentation`.
            max_detections: number of (query, class) pairs to look at.
            return_coco_rle: return COCO's uncompressed run-length encoding per instance as `segmentation`,
                `{"size": [height, width], "counts": [...]}`, column by column; `run_lengths.compressed` makes it that
                of results files. Of the last three one may be True; they keep overlaps.
        Returns:
            per image `segmentation`, an int32 map of instance ids from 0 with -1 where there is none (the better
            instance on top; all -1, or no masks, if nothing is found), and `segments_info`, a list of `id`,
            `label_id`, `was_fused`, `score`. A panoptic processor with `label_ids_to_fuse` returns no instances of
            those classes.
        Raises:
            ValueError: thresholds outside of 0..1; more than one form; and as for semantic segmentation.
        """
        forms = {
            "return_coco_annotation": return_coco_annotation,
            "return_binary_maps": return_binary_maps,
            "return_coco_rle": return_coco_rle,
        }
        asked = [name for name, value in forms.items() if value]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} are True: choose one")
        check_thresholds(threshold, mask_threshold, overlap_mask_area_threshold)
        results = []
        for masks, scores, labels, size in self.found_instances(
            outputs, threshold, mask_threshold, target_sizes, input_sizes, max_detections
        ):
            segments = [
                {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
                for index, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True))
            ]
            device = outputs.masks_queries_logits.device
            segmentation: Any
            if return_coco_annotation or return_coco_rle:
                pixels = to_host(*(mask.pixels for mask in masks)) if masks else []
                segmentation = [
                    coco_run_lengths(part, mask.rows.start, mask.columns.start, size)
                    if return_coco_rle
                    else run_lengths(mask._replace(pixels=torch.from_numpy(part)).whole().numpy())
                    for part, mask in zip(pixels, masks, strict=True)
                ]
            elif return_binary_maps:
                segmentation = torch.zeros((len(masks), *size), dtype=torch.bool, device=device)
                for mask, boxed in zip(segmentation, masks, strict=True):
                    mask[boxed.rows, boxed.columns] = boxed.pixels
            else:
                segmentation = torch.full(size, -1, dtype=torch.int32, device=device)
                for index, boxed in reversed(list(enumerate(masks))):
                    segmentation[boxed.rows, boxed.columns].masked_fill_(boxed.pixels, index)
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    @for_tasks("instance", "panoptic")
    def found_instances(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        target_sizes: Any = None,
        input_sizes: Any = None,
        max_detections: int = 100,
    ) -> Iterator[tuple[list[BoxedMask], np.ndarray, np.ndarray, tuple[int, int]]]:
        """The instances of each image, best first, of which `post_process_instance_segmentation` makes maps.

        Args:
            outputs, threshold, mask_threshold, target_sizes, input_sizes, max_detections: as there.
        Yields:
            per image N masks in their bounding boxes, on the device of the logits, on the host scores `(N,)` and
            labels `(N,)` int64, and the image's `(height, width)`.
        """
        check_thresholds(threshold, mask_threshold, 0.0)
        if not isinstance(max_detections, Integral) or max_detections < 1:
            raise ValueError(f"max_detections={max_detections!r}: pass a number of at least 1")
        if self.task == "panoptic" and self.label_ids_to_fuse is None:
            logger.warning_once(
                "label_ids_to_fuse is not set: all classes are taken for things, and found as instances"
            )
        stuff = set(self.label_ids_to_fuse or ()) if self.task == "panoptic" else set()
        for image in self._images(outputs, target_sizes, input_sizes):
            found = instance_segments(*image, threshold, mask_threshold, int(max_detections), stuff)
            yield *found, image[2] if image[3] is None else image[3]

    @for_tasks("panoptic")
    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Sequence[int] | set[int] | None = None,
        target_sizes: Any = None,
        input_sizes: Any = None,
    ) -> list[dict]:
        """The segments of each image; no two overlap.

        Args:
            outputs: as for semantic segmentation.
            threshold: class probability above which a query is a segment.
            mask_threshold: least mask probability of a segment's pixels.
            overlap_mask_area_threshold: least share of its mask that a segment must win.
            label_ids_to_fuse: classes whose segments become one ("stuff"); the processor's own if left out.
            target_sizes, input_sizes: as for semantic segmentation.
        Returns:
            per image `segmentation`, an int32 map of segment ids from 1 with 0 where there is none, as COCO's panoptic
            format has it (all 0 if nothing is found), and `segments_info`, a list of `id`, `label_id`, `was_fused`,
            `score`, each id once.
        """
        check_thresholds(threshold, mask_threshold, overlap_mask_area_threshold)
        if label_ids_to_fuse is None:
            label_ids_to_fuse = self.label_ids_to_fuse
        if label_ids_to_fuse is None:
            logger.warning_once("label_ids_to_fuse is not set: no segments are fused, each query stays one segment")
        if not isinstance(label_ids_to_fuse, (Iterable, NoneType)) or isinstance(label_ids_to_fuse, (str, dict)):
            raise ValueError(f"label_ids_to_fuse={label_ids_to_fuse!r}: pass a list of class ids")
        stuff = set() if label_ids_to_fuse is None else {int(index) for index in label_ids_to_fuse}
        results = []
        for image in self._images(outputs, target_sizes, input_sizes):
            segmentation, segments = panoptic_segments(
                *image, threshold, mask_threshold, overlap_mask_area_threshold, stuff
            )
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def _sizes(
        self, maps: Tensor, target_sizes: Any, input_sizes: Any, stride: int = LOGITS_STRIDE, has_queries: bool = True
    ) -> tuple[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int] | None]]]:
        """The canvas of a batch of maps `(B, C, h, w)`; per image its input size, and its target size or None.

        The canvas of a model without queries need not be a multiple of the stride: it is what the processor's rule
        makes of the input sizes.
        """
        batch, _, height, width = maps.shape
        canvas = (height * stride, width * stride)
        targets = None if target_sizes is None else checked_sizes("target_sizes", target_sizes, batch)
        inputs = None if input_sizes is None else checked_sizes("input_sizes", input_sizes, batch)
        if inputs is None and targets is not None:
            inputs = [self.network_size(*target) for target in targets]
        if inputs is not None and not (has_queries and input_sizes is not None):
            expected = self.canvas_size(inputs)
            if not has_queries and tuple(-(-side // stride) for side in expected) == (height, width):
                canvas = expected
            elif expected != canvas and input_sizes is None:
                logger.warning(
                    f"target_sizes {targets} would have been resized and padded to {expected}, but the model saw"
                    f" {canvas}: taking all of it as image. Pass the processor's input_sizes to cut the padding."
                )
                inputs = None
        inputs = [canvas] * batch if inputs is None else inputs
        for size in inputs:
            if size[0] > canvas[0] or size[1] > canvas[1]:
                raise ValueError(f"input_sizes holds {size}, larger than the padded network input {canvas}")
        return canvas, list(zip(inputs, [None] * batch if targets is None else targets))

    def _images(
        self, outputs: Any, target_sizes: Any, input_sizes: Any
    ) -> Iterator[tuple[Tensor, Tensor, tuple[int, int], tuple[int, int] | None]]:
        """Per image: class logits, mask logits, input size, target size or None."""
        masks = getattr(outputs, "masks_queries_logits", None)
        # Where reading them means waiting, segments are found first, and the logits checked with what is read then.
        classes, masks, _ = checked_outputs(outputs, read=masks is None or not waits_for(masks.device))
        if classes is None:
            raise ValueError("the outputs have no class_queries_logits: only models with queries find segments")
        _, sizes = self._sizes(masks, target_sizes, input_sizes)
        for index, (input_size, target_size) in enumerate(sizes):
            yield classes[index], masks[index], input_size, target_size
