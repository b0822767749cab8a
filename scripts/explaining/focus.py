"""Focus consistency: do the queries look where their segments turn out to be?

Notation: Q queries, K classes, S segments; a cell is one value of a mask, 4x4 pixels of the network's input.

A *segment* is what one query decides of a semantic prediction: the cells to whose class that query contributes most.
Segments under 64 cells, the area of one token at 1/32, are left out, and so are those whose query's final mask (cells
of probability one half or more, within the image) is empty. Of an instance or a panoptic model a segment is what one
query finds by the rules of its post-processing, each query with its best class: above a threshold, and the panoptic
ones by the cells that they win. Of each segment's query and each decoder layer:

- *inside* is the share of its focus, the attention averaged over heads, that lies in its final mask;
- *even* is what that share would be if it spread its focus evenly over all that the layer lets it see: masked
  attention blocks what its mask of one layer ago leaves out, and HRCA shows the kept windows only. Inside above even
  is the focus's own work;
- *chance* is the mask's share of the image, as of a focus spread over all of it;
- *reaches* tells whether any of what it sees lies in its mask.

An HRCA layer counts as the others do, by its attention in the windows that it keeps; one that keeps no window looks
nowhere and is left out. Cells of a coarser level count by how much of them the mask covers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from image_processing.semantic_labels import ImageScores
from scripts.cli.errors import UserError
from scripts.inference.predictors import input_size_of, processed_inputs
from scripts.models.tasks import DEFAULT_THRESHOLDS, PANOPTIC, SEMANTIC


MASK_STRIDE = 4
MIN_CELLS = 64
LEAST_WON = 0.8  # share of its mask that a panoptic segment must win
UNIT = 1_000_000  # shares are counted in whole millionths: sums do not depend on the number of processes
DEFINITION = (
    "mean over predicted segments, in percent, of the share of a layer's focus inside the final mask of the segment's "
    "query; even: spread evenly over what the layer lets the query see; chance: over the whole image"
)


@dataclass(frozen=True)
class Segment:
    """What one query decides of a prediction.

    Attributes:
        score: of the class, in 0..1; of an instance times the mean probability in its mask.
        area: share of the image.
        mask: `(h, w)` bool, the query's final mask.
    """

    query: int
    label: int
    score: float
    area: float
    mask: Tensor


@dataclass(frozen=True)
class Look:
    """One image's forward pass with its focus.

    Attributes:
        outputs: of the network.
        input_size: height and width of the image in the network's input, without padding.
        image_cells: `(h, w)` bool, cells of the image; the others are padding.
        segments: largest first.
        without_mask: segments that were left out for an empty final mask.
    """

    outputs: Any
    input_size: tuple[int, int]
    image_cells: Tensor
    segments: list[Segment]
    without_mask: int


@dataclass(frozen=True)
class FocusShares:
    """Of one layer, `(S,)` shares in 0..1 for the segments; see the top of this file."""

    inside: Tensor
    even: Tensor
    chance: Tensor
    reaches: Tensor


def check_tells_focus(model: Any, flag: str) -> None:
    """Raises `UserError` if the model has no focus to tell."""
    if "output_focus" not in inspect.signature(type(model).forward).parameters:
        raise UserError(f"{flag}: a model of type {model.config.model_type!r} has no focus to look at: give a FASeg")


@torch.no_grad()
def look(
    model: Any,
    processor: Any,
    image: Image.Image,
    device: Any,
    every_prediction: bool = False,
    threshold: float | None = None,
) -> Look:
    """Runs the network on an image after the processor's own resize.

    Args:
        every_prediction: whether `outputs.auxiliary_logits` are wanted, the predictions before each layer.
        threshold: of the segments of an instance or a panoptic model; by default that of its post-processing.
    """
    inputs = processed_inputs(processor, image, device)
    pixels, mask = inputs["pixel_values"], inputs["pixel_mask"]
    outputs = model(pixels, pixel_mask=mask, output_focus=True, output_auxiliary_logits=every_prediction)
    mask = mask[0] > 0
    image_cells = mask[::MASK_STRIDE, ::MASK_STRIDE]
    logits = outputs.class_queries_logits[0].float(), outputs.masks_queries_logits[0].float(), image_cells
    if processor.task == SEMANTIC:
        segments, without_mask = predicted_segments(*logits)
    else:
        least = DEFAULT_THRESHOLDS[processor.task] if threshold is None else threshold
        segments, without_mask = found_segments(*logits, processor.task == PANOPTIC, least), 0
    return Look(outputs, input_size_of(inputs), image_cells, segments, without_mask)


def predicted_segments(class_logits: Tensor, masks_logits: Tensor, image_cells: Tensor) -> tuple[list[Segment], int]:
    """The segments of one image, largest first, and how many were left out for an empty final mask.

    Args:
        class_logits: `(Q, K + 1)`.
        masks_logits: `(Q, h, w)`.
        image_cells: `(h, w)` bool.
    """
    class_probs, masks = class_logits.softmax(-1)[:, :-1], masks_logits.sigmoid()
    cells_size = (masks.shape[1], masks.shape[2])
    labels = ImageScores(masks_logits, cells_size, class_logits=class_logits).labels().masked_fill(~image_cells, -1)
    deciding = torch.full_like(labels, -1)
    for label in labels[image_cells].unique().tolist():
        there = labels == label
        deciding[there] = (class_probs[:, label, None] * masks[:, there]).argmax(0)
    cells = int(image_cells.sum())
    segments, without_mask = [], 0
    for query in deciding[image_cells].unique().tolist():
        own = labels[deciding == query]
        if own.numel() < MIN_CELLS:
            continue
        mask = (masks[query] >= 0.5) & image_cells
        if not mask.any():
            without_mask += 1
            continue
        label = int(own.mode().values)
        segments.append(Segment(query, label, float(class_probs[query, label]), own.numel() / cells, mask))
    return sorted(segments, key=lambda segment: -segment.area), without_mask


def found_segments(
    class_logits: Tensor, masks_logits: Tensor, image_cells: Tensor, are_panoptic: bool, threshold: float
) -> list[Segment]:
    """The segments that the queries of an instance or a panoptic model find in one image, largest first.

    Args:
        class_logits, masks_logits, image_cells: as for `predicted_segments`.
        are_panoptic: whether every cell goes to one query at most.
        threshold: least score of an instance, or class probability of a panoptic segment.
    """
    probs, masks = class_logits.softmax(-1), masks_logits.sigmoid() * image_cells
    inside = masks >= 0.5
    if are_panoptic:
        scores, labels = probs.max(-1)
        kept = (labels < probs.shape[-1] - 1) & (scores > threshold)
        claims = scores[:, None, None] * masks * kept[:, None, None]
        won = inside & (claims.argmax(0) == torch.arange(len(claims), device=claims.device)[:, None, None])
        kept &= won.sum((1, 2)) >= LEAST_WON * inside.sum((1, 2))
    else:
        class_probs, labels = probs[:, :-1].max(-1)
        scores = class_probs * (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        kept, won = scores >= threshold, inside
    kept &= won.sum((1, 2)) >= MIN_CELLS
    cells = int(image_cells.sum())
    segments = [
        Segment(query, int(labels[query]), float(scores[query]), int(won[query].sum()) / cells, inside[query])
        for query in kept.nonzero().flatten().tolist()
    ]
    return sorted(segments, key=lambda segment: -segment.area)


def focus_shares(
    focus: Tensor, segments: Sequence[Segment], image_cells: Tensor, mask_padding: bool = False
) -> FocusShares | None:
    """How one layer's focus lies to the final masks; None if the layer looked nowhere (HRCA without a window).

    Args:
        focus: `(Q, h / f, w / f)` of one image, where f is 1, 2, 4 or 8.
        image_cells: `(h, w)` bool; with `mask_padding` chance is that of a focus spread over the image alone.
    """
    focus = focus[[segment.query for segment in segments]].float().flatten(1)
    if not segments or not focus.any():
        return None
    factor = round((image_cells.numel() / focus.shape[1]) ** 0.5)
    covered = F.avg_pool2d(torch.stack([segment.mask for segment in segments]).float(), factor).flatten(1)
    seen = focus > 0
    places = image_cells[::factor, ::factor].flatten() if mask_padding else torch.ones_like(seen[0])
    return FocusShares(
        inside=(focus * covered).sum(1) / focus.sum(1),
        even=(seen * covered).sum(1) / seen.sum(1),
        chance=(places * covered).sum(1) / places.sum(),
        reaches=((seen * covered) > 0).any(1).float(),
    )


def layer_names(config: Any) -> list[str]:
    """What each decoder layer reads: "1/32", "1/16", "1/8" or "1/4 HRCA"."""
    names = ["1/32", "1/16", "1/8", "1/4 HRCA"][: 4 if config.use_high_resolution_cross_attention else 3]
    return [names[index % len(names)] for index in range(config.decoder_layers)]


class FocusCounts:
    """Focus consistency over images, at a single scale: one more forward pass each.

    Attributes:
        totals: `(layers + 1, 5)` int64: per layer its segments and their four shares in millionths; last, images,
            segments, segments without a mask.
    """

    def __init__(self, model: Any, processor: Any, device: Any) -> None:
        check_tells_focus(model, "--focus")
        self.model, self.processor, self.device = model, processor, device
        self.totals = np.zeros((model.config.decoder_layers + 1, 5), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image of `EvaluationSamples`; its prediction is made anew, with the focus."""
        self.count(look(self.model, self.processor, sample["image"], self.device))

    def count(self, seen: Look) -> None:
        """Counts the segments of one image."""
        self.totals[-1, :3] += 1, len(seen.segments), seen.without_mask
        for total, focus in zip(self.totals, seen.outputs.focus_maps, strict=False):
            shares = focus_shares(focus[0], seen.segments, seen.image_cells, self.model.config.mask_padding)
            if shares is None:
                continue
            columns = (shares.inside, shares.even, shares.chance, shares.reaches)
            total += [len(seen.segments), *(round(float(column.sum()) * UNIT) for column in columns)]

    def scores(self) -> dict[str, Any]:
        """What the results file says: means over segments as fractions, None for a layer that never looked."""
        images, segments, without_mask = (int(count) for count in self.totals[-1, :3])
        layers = []
        for index, name in enumerate(layer_names(self.model.config)):
            count, *sums = self.totals[index].tolist()
            means = [total / UNIT / count if count else None for total in sums]
            keys = ("inside", "even", "chance", "reaches")
            layers.append({"layer": index + 1, "reads": name, **dict(zip(keys, means, strict=True))})
        return {
            "definition": DEFINITION,
            "images": images,
            "segments": segments,
            "segments_without_mask": without_mask,
            "layers": layers,
        }
