"""The path of a query's focus from layer to layer, with what the query stood for after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from scripts.explaining.focus import Look, Segment, focus_shares, layer_names


TOKEN = 32  # pixels of the network's input along a token of the coarsest level, and along an HRCA window
NOTHING = "nothing"


@dataclass(frozen=True)
class Step:
    """One decoder layer of one query.

    Attributes:
        number: from 1.
        reads: "1/32", "1/16", "1/8" or "1/4 HRCA".
        focus: `(h, w)` attention on that level; all zero for HRCA without a window.
        inside, even, chance: shares as in `scripts.explaining.focus`, None where the layer looked nowhere.
        windows: boxes `(left, top, right, bottom)` in pixels of the network's input that HRCA kept, else none.
        answer: the query's best class after the layer, perhaps `NOTHING`, with its score.
        score: of the segment's class after the layer.
    """

    number: int
    reads: str
    focus: Tensor
    inside: float | None
    even: float | None
    chance: float | None
    windows: list[tuple[int, int, int, int]]
    answer: tuple[str, float]
    score: float


@dataclass(frozen=True)
class FocusPath:
    """A segment and the steps of its query."""

    segment: Segment
    steps: list[Step]


def window_boxes(seen: Look, layer: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the windows that a layer kept, best first; none unless it is an HRCA layer."""
    entry = seen.outputs.hrca_windows[layer]
    if entry is None:
        return []
    columns = seen.outputs.focus_maps[0].shape[-1]
    places = [divmod(index, columns) for index in entry[0][0].tolist() if index >= 0]
    return [(TOKEN * left, TOKEN * top, TOKEN * (left + 1), TOKEN * (top + 1)) for top, left in places]


def focus_path(seen: Look, segment: Segment, config: Any) -> FocusPath:
    """The path of one segment's query.

    Args:
        seen: of `look` with `every_prediction`.
    """
    names = [*(str(config.id2label[index]) for index in sorted(config.id2label)), NOTHING]
    predictions = [*seen.outputs.auxiliary_logits[1:], {"class_queries_logits": seen.outputs.class_queries_logits}]
    steps = []
    for layer, reads in enumerate(layer_names(config)):
        focus = seen.outputs.focus_maps[layer][0]
        shares = focus_shares(focus, [segment], seen.image_cells, config.mask_padding)
        probs = predictions[layer]["class_queries_logits"][0, segment.query].float().softmax(-1)
        best = int(probs.argmax())
        steps.append(
            Step(
                number=layer + 1,
                reads=reads,
                focus=focus[segment.query].float().cpu(),
                inside=None if shares is None else float(shares.inside),
                even=None if shares is None else float(shares.even),
                chance=None if shares is None else float(shares.chance),
                windows=window_boxes(seen, layer),
                answer=(names[best], float(probs[best])),
                score=float(probs[segment.label]),
            )
        )
    return FocusPath(segment, steps)


def counterpart(segment: Segment, others: list[Segment]) -> Segment | None:
    """The segment of another model's look at the same image that has the same class and overlaps most."""
    best, best_overlap = None, 0.0
    for other in (other for other in others if other.label == segment.label):
        mask = F.interpolate(other.mask[None, None].float(), segment.mask.shape, mode="nearest")[0, 0] > 0
        overlap = float((mask & segment.mask).sum() / (mask | segment.mask).sum())
        if overlap > best_overlap:
            best, best_overlap = other, overlap
    return best
