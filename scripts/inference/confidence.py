"""How sure the model is of each pixel: the best class's share of the scores of all classes.

FASeg's score of a class is a sum over queries of class probability times mask probability, which is no distribution
over classes: the share makes it one. Scores of SeMask and QLSeg become probabilities by a softmax, as in their
evaluation. Scores of several windows or sizes are averaged before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from image_processing.semantic_labels import best_classes


LEAST_SUM = torch.finfo(torch.float32).tiny  # where nothing was found at all, the confidence is 0


def confidence_of(scores: Tensor, classes: int = 0) -> Tensor:
    """Share of the best class in `scores` (at least 0), whose dimension `classes` goes; in 0..1."""
    return scores.amax(dim=classes) / scores.sum(dim=classes).clamp(min=LEAST_SUM)


def watched(blocks: Iterable[Tensor], confidence: Tensor, softmax: bool) -> Iterator[Tensor]:
    """The blocks `(n, width, K)` of an image as they are; their confidence goes into `confidence` on the way."""
    start = 0
    for block in blocks:
        confidence[start : start + len(block)] = confidence_of(block.softmax(-1) if softmax else block, -1)
        start += len(block)
        yield block


@torch.no_grad()
def labels_and_confidence(
    model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int], softmax: bool
) -> tuple[Tensor, Tensor]:
    """What `inference.semantic_labels` gives, and the confidence in it, float32, both of `target_size`.

    All scores at that size never exist at once.

    Args:
        softmax: whether the scores become probabilities by a softmax.
    """
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    mask = inputs["pixel_mask"][0]
    input_size = (int(mask[:, 0].sum()), int(mask[0].sum()))
    (scores,) = processor.semantic_scores(outputs, [target_size], [input_size])
    confidence = torch.empty(target_size, device=mask.device)
    return best_classes(watched(scores, confidence, softmax), target_size, mask.device), confidence
