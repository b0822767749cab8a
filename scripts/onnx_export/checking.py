"""An ONNX file against the model it was made from, run by onnxruntime: numbers, labels, speed.

Notation: B batch, Q queries, K classes, (h, w) logits at 1/4.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.onnx_export.network import CLASSES, INPUT, MASKS, STEP, least_side


CLASS_TOLERANCE = 1e-4  # those of the golden tests of whole models at full size
MASK_TOLERANCE = 1e-3
DECIDED = 1e-3  # where the best two scores of a pixel are further apart, labels have to be equal
CLOSE = 1e-3  # a mask probability this near to its threshold may be decided otherwise by float noise
DRAWS = 6


@dataclass
class Comparison:
    """One input through both.

    `class_difference` and `mask_difference` are maximal absolute ones; `equal_labels` is a share of pixels;
    `decided_otherwise` counts pixels of other labels though the best two scores are `DECIDED` apart;
    `nearest_decision` is the least distance of a mask probability from the attention threshold.
    """

    size: str
    equal_labels: float
    decided_otherwise: int
    nearest_decision: float = math.inf
    class_difference: float = 0.0
    mask_difference: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        return (
            self.class_difference <= CLASS_TOLERANCE
            and self.mask_difference <= MASK_TOLERANCE
            and not self.decided_otherwise
        )

    def __str__(self) -> str:
        text = f"{self.size}: {100 * self.equal_labels:.3f} % of labels equal"
        if self.decided_otherwise:
            text += f" ({self.decided_otherwise} others though the best two scores are {DECIDED:g} apart)"
        if self.nearest_decision < math.inf:
            text += f", class logits within {self.class_difference:.1e}, mask logits within {self.mask_difference:.1e}"
        return text


@dataclass
class Check:
    """All comparisons of one file: those that count, and those set apart for a close decision."""

    counted: list[Comparison] = field(default_factory=list)
    apart: list[Comparison] = field(default_factory=list)

    @property
    def equal_labels(self) -> float:
        return min(comparison.equal_labels for comparison in self.counted)


def open_session(file: Path) -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def sizes_to_check(model: Any, processor: Any, size: tuple[int, int] | None) -> list[tuple[int, int, int]]:
    """Three times batch, height and width: the static size, or from the least up to about the processor's own."""
    if size:
        return [(1, *size)] * 3
    least = least_side(model.config)
    own = processor.size["shortest_edge"] or processor.size["height"] or least
    own = max(least, STEP * math.ceil(own / STEP))
    return [(1, least, least + STEP), (2, least + 2 * STEP, least), (1, own, STEP * math.ceil(own / 24))]


def compare_network(
    model: Any, session: onnxruntime.InferenceSession, sizes: Sequence[tuple[int, int, int]], seed: int, exact: bool
) -> Check:
    """Logits of pictures of these sizes.

    Args:
        exact: whether the file has float32 weights. A comparison out of tolerance is then set apart if a mask decision
            was close, and another picture drawn, `DRAWS` at most.
    """
    check = Check()
    for index, (batch_size, height, width) in enumerate(sizes):
        for draw in range(DRAWS):
            pixels = drawn_pictures(batch_size, height, width, seed + 100 * index + draw)
            found = compare_logits(model, session, pixels)
            if not exact or found.within_tolerance or found.nearest_decision > CLOSE:
                check.counted.append(found)
                break
            check.apart.append(found)
        else:
            check.counted.append(check.apart.pop())
    return check


def drawn_pictures(batch_size: int, height: int, width: int, seed: int) -> Tensor:
    """`(B, 3, H, W)` normalised pictures: large smooth patches and a little grain."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch_size, 3, -(-height // 48), -(-width // 48), generator=generator)
    smooth = F.interpolate(patches, size=(height, width), mode="bicubic", align_corners=False)
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


@torch.no_grad()
def compare_logits(model: Any, session: onnxruntime.InferenceSession, pixels: Tensor) -> Comparison:
    """Both on the same normalised pictures."""
    with nearest_decision(model) as nearest:
        outputs = model(pixel_values=pixels)
    ours = outputs.class_queries_logits, outputs.masks_queries_logits
    theirs = tuple(torch.from_numpy(logits) for logits in session.run([CLASSES, MASKS], {INPUT: pixels.numpy()}))
    differences = [float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True)]
    scores = class_scores(*ours)
    labels = class_scores(*theirs).argmax(dim=1)
    return Comparison(
        " x ".join(str(side) for side in (len(pixels), *pixels.shape[2:])),
        *label_agreement(scores, labels),
        nearest_decision=min(nearest, default=math.inf),
        class_difference=not_nan(differences[0]),
        mask_difference=not_nan(differences[1]),
    )


def class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """`(B, K, h, w)` sums over queries of class times mask probability."""
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())


def label_agreement(scores: Tensor, labels: Tensor) -> tuple[float, int]:
    """Share of pixels whose label is the best of the scores `(B, K, h, w)`; how many differ where that is decided."""
    best = scores.topk(min(2, scores.shape[1]), dim=1)
    equal = best.indices[:, 0] == labels
    decided = best.values[:, 0] - best.values[:, -1] > DECIDED
    return float(equal.float().mean()), int((decided & ~equal).sum())


def not_nan(difference: float) -> float:
    """NaN as infinity, which no tolerance admits."""
    return math.inf if math.isnan(difference) else difference


@contextmanager
def nearest_decision(model: Any) -> Iterator[list[float]]:
    """Collects, per layer of masked attention, the least distance of a mask probability from its threshold."""
    distances: list[float] = []

    def watched(decoder: Any) -> Callable[..., Tensor]:
        blocked = decoder._blocked

        def run(probs: Tensor, valid: Tensor | None) -> Tensor:
            distances.append(float((probs - decoder.config.attention_mask_threshold).abs().min()))
            return blocked(probs, valid)

        return run

    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "_blocked"):
                stack.enter_context(mock.patch.object(module, "_blocked", watched(module)))
        yield distances


# ---- with pre- and post-processing ----------------------------------------------------------------------------------


def drawn_picture(height: int, width: int, seed: int) -> np.ndarray:
    """`(height, width, 3)` uint8."""
    pixels = drawn_pictures(1, height, width, seed)[0].permute(1, 2, 0)
    return (pixels * 55 + 120).clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def eager_labels(model: Any, processor: Any, picture: np.ndarray) -> Tensor:
    """`(H, W)` label map of processor and model, as users get it."""
    inputs = processor(picture, return_tensors="pt", input_data_format="channels_last")
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    sizes = {"target_sizes": [picture.shape[:2]], "input_sizes": inputs["input_sizes"]}
    return processor.post_process_semantic_segmentation(outputs, **sizes)[0]


def compare_pictures(model: Any, processor: Any, session: onnxruntime.InferenceSession, seed: int) -> Check:
    """Label maps of three pictures: upright, wide, and larger than the network's size.

    The resized picture differs by one of 255 here and there, which rounds otherwise: labels are counted, no more.
    """
    edge = processor.size["shortest_edge"] or processor.size["height"] or 64
    check = Check()
    sizes = [(edge, edge * 3 // 4), (edge * 2 // 3, edge), (edge * 5 // 4, edge * 3 // 2)]
    for index, (height, width) in enumerate(sizes):
        picture = drawn_picture(height, width, seed + index)
        labels = torch.from_numpy(session.run(["labels"], {"picture": picture})[0].astype(np.int64))
        share = float((eager_labels(model, processor, picture) == labels).float().mean())
        check.counted.append(Comparison(f"picture of {height} x {width}", share, 0))
    return check


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed_ratio(eager: Callable[[], Any], exported: Callable[[], Any], runs: int) -> float:
    """Median time of `eager` over that of `exported`, in turns, after one round that does not count."""
    times: dict[Callable[[], Any], list[float]] = {eager: [], exported: []}
    for _ in range(runs + 1):
        for call in times:
            start = time.perf_counter()
            call()
            times[call].append(time.perf_counter() - start)
    return statistics.median(times[eager][1:]) / statistics.median(times[exported][1:])
