"""Class and mask logits -> semantic maps, instances, panoptic segments, as the reference computes them.

Notation: Q queries, K classes, (h, w) logits at 1/4, canvas (H, W) = 4 * (h, w) the padded network input,
input size = the image's part of the canvas, target size = the size asked for (the original image).

All resizing is bilinear with `align_corners=False`, of logits up to the canvas, then cut to the input size, then to
the target; nothing is ever squashed to a fixed square. Images are handled one by one and queries a few at a time,
so that the `(Q, H, W)` probabilities never exist at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import update_wrapper
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.utils import logging

from .semantic_labels import LOGITS_STRIDE, ImageScores


logger = logging.get_logger(__name__)

QUERY_CHUNK = 25


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear `(N, h, w)` -> `(N, *size)`."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def upsampled_masks(
    mask_logits: Tensor, input_size: tuple[int, int], target_size: tuple[int, int] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of queries: their slice of Q and their logits at the input size, or at `target_size` if given."""
    canvas = (mask_logits.shape[-2] * LOGITS_STRIDE, mask_logits.shape[-1] * LOGITS_STRIDE)
    for start in range(0, mask_logits.shape[0], QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        masks = resize(mask_logits[chunk].float(), canvas)[:, : input_size[0], : input_size[1]]
        yield chunk, masks if target_size is None else resize(masks, target_size)


def instance_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    target_size: tuple[int, int] | None,
    threshold: float,
    mask_threshold: float,
    max_detections: int,
    excluded_labels: set[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs of one image, best first.

    A pair's score is its class probability times the mean mask probability inside its mask. One query may stand for
    several classes.

    Returns:
        masks `(N, *size)` bool, scores `(N,)` in `[threshold, 1]`, labels `(N,)` int64. Empty masks are left out.
    """
    class_probs = class_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = class_probs.shape[1]
    scores, pairs = class_probs.flatten().topk(min(max_detections, class_probs.numel()))
    queries, labels = pairs // num_classes, pairs % num_classes
    if excluded_labels:
        allowed = ~torch.isin(labels, torch.tensor(sorted(excluded_labels), device=labels.device))
        scores, queries, labels = scores[allowed], queries[allowed], labels[allowed]

    used, position = queries.unique(return_inverse=True)
    masks, quality = [], []
    for _, logits in upsampled_masks(mask_logits[used], input_size, target_size):
        inside = logits > logit(mask_threshold)
        masks.append(inside)
        area = inside.flatten(1).sum(1)
        quality.append((logits.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6))
    if not masks:
        size = input_size if target_size is None else target_size
        return torch.zeros((0, *size), dtype=torch.bool, device=labels.device), scores, labels
    all_masks = torch.cat(masks)
    scores = scores * torch.cat(quality)[position]

    order = scores.argsort(descending=True, stable=True)
    order = order[(scores[order] >= threshold) & all_masks.flatten(1).any(1)[position[order]]]
    return all_masks[position[order]], scores[order], labels[order]


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    target_size: tuple[int, int] | None,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: set[int],
) -> tuple[Tensor, list[dict]]:
    """The segments of one image, ids from 1 in the order of the queries.

    A query is kept if its best class is an object with a probability above `threshold`. Pixels go to the query with
    the highest class times mask probability. A segment is dropped if less than `overlap_mask_area_threshold` of its
    mask won its pixels.

    Returns:
        map `(*size)` int32 with 0 where there is no segment, and one dict per segment: `id`, `label_id`,
        `was_fused`, `score`.
    """
    scores, labels = class_logits.float().softmax(dim=-1).max(dim=-1)
    kept = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, labels = scores[kept], labels[kept]
    size = input_size if target_size is None else target_size
    segmentation = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    segments: list[dict] = []
    if len(labels) == 0:
        return segmentation, segments

    probs = torch.cat([masks.sigmoid() for _, masks in upsampled_masks(mask_logits[kept], input_size, target_size)])
    winner = (scores[:, None, None] * probs).argmax(dim=0)
    fused: dict[int, int] = {}
    for query, label in enumerate(labels.tolist()):
        won, mask = winner == query, probs[query] >= mask_threshold
        segment = won & mask
        won_area, mask_area = int(won.sum()), int(mask.sum())
        if not bool(segment.any()) or won_area / mask_area < overlap_mask_area_threshold:
            continue  # a segment without pixels comes first: its mask may be empty too
        if label in fused:
            segmentation[segment] = fused[label]
            continue
        segment_info = {"id": len(segments) + 1, "label_id": label, "was_fused": label in label_ids_to_fuse}
        segments.append(segment_info | {"score": round(scores[query].item(), 6)})
        segmentation[segment] = len(segments)
        if label in label_ids_to_fuse:
            fused[label] = len(segments)
    return segmentation, segments


def logit(probability: float) -> float:
    """Inverse sigmoid; 0 for 0.5, so that the default threshold is the reference's `logits > 0`."""
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability))


def run_lengths(mask: Tensor) -> list[int]:
    """Run-length encoding of one binary mask: start (counted from 1, row by row) and length of each run."""
    pixels = F.pad(mask.flatten().to(torch.int8), (1, 1))
    edges = torch.where(pixels[1:] != pixels[:-1])[0] + 1
    edges[1::2] -= edges[::2]
    return edges.tolist()


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
            ValueError: as many sizes as images are needed; an input size larger than the canvas.
        """
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
        classes, stride = getattr(outputs, "class_queries_logits", None), LOGITS_STRIDE
        maps = getattr(outputs, "semantic_scores", None)
        if maps is not None:
            classes, stride = None, 1
        elif classes is None:
            maps = outputs.logits
        else:
            maps = outputs.masks_queries_logits
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
    ) -> list[dict]:
        """The instances of each image, best first.

        Args:
            outputs: as for semantic segmentation.
            threshold: least score (class probability times mean mask probability) of an instance.
            mask_threshold: a pixel belongs to an instance above this mask probability.
            overlap_mask_area_threshold: accepted because `pipeline` passes it; instances may overlap.
            target_sizes, input_sizes: as for semantic segmentation.
            return_coco_annotation: return one run-length encoding per instance as `segmentation`.
            return_binary_maps: return `(N, height, width)` bool masks as `segmentation`. These two keep overlaps.
            max_detections: number of (query, class) pairs to look at.
        Returns:
            per image `segmentation`, an int32 map of instance ids with -1 where there is none (the better instance
            on top), and `segments_info`, a list of `id`, `label_id`, `was_fused`, `score`. A panoptic processor with
            `label_ids_to_fuse` returns no instances of those classes.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps are both True: choose one")
        stuff = set(self.label_ids_to_fuse or ()) if self.task == "panoptic" else set()
        results = []
        for image in self._images(outputs, target_sizes, input_sizes):
            masks, scores, labels = instance_segments(*image, threshold, mask_threshold, max_detections, stuff)
            segments = [
                {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
                for index, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True))
            ]
            segmentation: Any
            if return_coco_annotation:
                segmentation = [run_lengths(mask) for mask in masks]
            elif return_binary_maps:
                segmentation = masks
            else:
                segmentation = torch.full(masks.shape[-2:], -1, dtype=torch.int32, device=masks.device)
                for index in reversed(range(len(masks))):
                    segmentation[masks[index]] = index
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

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
            per image `segmentation`, an int32 map of segment ids from 1 with 0 where there is none, and
            `segments_info`, a list of `id`, `label_id`, `was_fused`, `score`.
        """
        if label_ids_to_fuse is None:
            label_ids_to_fuse = self.label_ids_to_fuse
        if label_ids_to_fuse is None:
            logger.warning_once("label_ids_to_fuse is not set: no segments are fused, each query stays one segment")
        stuff = set(label_ids_to_fuse or ())
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
        classes, masks = outputs.class_queries_logits, outputs.masks_queries_logits
        _, sizes = self._sizes(masks, target_sizes, input_sizes)
        for index, (input_size, target_size) in enumerate(sizes):
            yield classes[index], masks[index], input_size, target_size


def checked_sizes(name: str, sizes: Any, batch: int) -> list[tuple[int, int]]:
    """`sizes` (list or tensor) as B pairs of positive integers, or ValueError."""
    pairs = [tuple(int(side) for side in size) for size in sizes]
    if len(pairs) != batch:
        raise ValueError(f"{name} has {len(pairs)} sizes for {batch} images: pass one (height, width) per image")
    for pair in pairs:
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"{name} holds {pair}: pass (height, width), both at least 1")
    return [(pair[0], pair[1]) for pair in pairs]
