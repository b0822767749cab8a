"""An ONNX file against the model it was made from, run by onnxruntime: numbers, labels, speed.

The model decides by thresholds what its queries look at: which pixels are below their mask's threshold, and which
windows HRCA keeps. Float noise may turn a decision that stands on the threshold, and what follows then differs by far
more than noise. So the model repeats the file's decisions: logits have to agree within the tolerances of the golden
tests on every input, and each decision that the model alone would have taken otherwise has to stand so near to its
threshold that an error within those tolerances turns it.

Notation: B batch, Q queries, K classes, L tokens of a level, W kept windows, (h, w) logits at 1/4.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_faseg.transformer_decoder_faseg import POOLING_THRESHOLD
from scripts.onnx_export.network import CLASSES, INPUT, LABELS, MASKS, PICTURE, STEP, least_side


CLASS_TOLERANCE = 1e-4  # those of the golden tests of whole models at full size
MASK_TOLERANCE = 1e-3
DECIDED = 1e-3  # where the best two scores of a pixel are further apart, labels have to be equal


@dataclass
class Comparison:
    """One input through both.

    `equal_labels` is a share of pixels, `decided_otherwise` counts pixels of other labels though the best two scores
    are `DECIDED` apart. Of exact files also: `class_difference` and `mask_difference`, maximal and absolute;
    `decisions`, how many; `turned`, those that the model alone takes otherwise; `farthest`, the largest distance of
    these from their threshold, in logits.
    """

    size: str
    equal_labels: float
    decided_otherwise: int
    class_difference: float = 0.0
    mask_difference: float = 0.0
    decisions: int = 0
    turned: int = 0
    farthest: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        return (
            self.class_difference <= CLASS_TOLERANCE
            and max(self.mask_difference, self.farthest) <= MASK_TOLERANCE
            and not self.decided_otherwise
        )

    def __str__(self) -> str:
        text = f"{self.size}: {100 * self.equal_labels:.3f} % of labels equal"
        if self.decided_otherwise:
            text += f" ({self.decided_otherwise} others though the best two scores are {DECIDED:g} apart)"
        if self.decisions:
            text += f", class logits within {self.class_difference:.1e}, mask logits within {self.mask_difference:.1e}"
            text += f"; {self.turned} of {self.decisions:,} decisions differ"
        if self.turned:
            text += f", at most {self.farthest:.1e} from their threshold"
        return text


def open_session(file: Path | bytes) -> onnxruntime.InferenceSession:
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


# ---- logits, with the file's decisions ------------------------------------------------------------------------------


class Decisions:
    """What a file decides, and the model that decides the same.

    `count`, `turned` and `farthest` are `decisions`, `turned` and `farthest` of `Comparison`, since the last `read`.
    """

    def __init__(self, file: Path) -> None:
        watched = onnx.load(file)
        constants = {value.name: onnx.numpy_helper.to_array(value) for value in watched.graph.initializer}
        self.names = list(decisions_of(watched.graph, constants))
        results = {value.name for value in (*watched.graph.input, *watched.graph.output)}
        new = [name for name in (INPUT, CLASSES, MASKS, *self.names) if name not in results]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
        self.session = open_session(watched.SerializeToString())

    def read(self, inputs: dict[str, np.ndarray], names: Sequence[str] = ()) -> list[Tensor]:
        """Runs the file and keeps what it decides; returns its values of these names."""
        found = [torch.from_numpy(value) for value in self.session.run([*self.names, *names], inputs)]
        self.left = found[: len(self.names)]
        self.count = sum(decided.numel() for decided in self.left)
        self.turned, self.farthest = 0, 0.0
        return found[len(self.names) :]

    @contextmanager
    def repeated_by(self, model: Any) -> Iterator[None]:
        """Inside the block the model decides as the file did."""
        with ExitStack() as stack:
            for decoder in (module for module in model.modules() if hasattr(module, "_keep_windows")):
                for name, function in self._repeating(decoder).items():
                    stack.enter_context(mock.patch.object(decoder, name, function))
            yield
        if self.left:  # the model takes fewer decisions than the file
            self._note(len(self.left), math.inf)

    def _repeating(self, decoder: Any) -> dict[str, Callable[..., Tensor]]:
        """Methods for the places in a transformer decoder where it decides."""
        blocked, initial, windows = decoder._blocked, decoder._initial_queries, decoder._keep_windows
        threshold = decoder.config.attention_mask_threshold
        return {
            "_blocked": lambda probs, valid: blocked(self._sides(probs, threshold), valid),
            "_initial_queries": lambda probs, *others: initial(self._sides(probs, POOLING_THRESHOLD), *others),
            "_keep_windows": lambda attention, *others: self._windows(attention, windows(attention, *others)),
        }

    def _sides(self, probs: Tensor, threshold: float) -> Tensor:
        """`(B, Q, L)` mask probabilities to 0 where the file found them below the threshold, and to 1 elsewhere."""
        below = self._next(probs.shape, torch.bool)
        if below is None:
            return probs
        turned = (probs < threshold) != below
        if turned.any():
            distances = probs[turned].double().logit() - math.log(threshold / (1 - threshold))
            self._note(int(turned.sum()), float(distances.abs().max()))
        return (~below).to(probs.dtype)

    def _windows(self, attention: Tensor, own: Tensor) -> Tensor:
        """The file's choice `(B, W)` in place of the model's `own`, by attention `(B, Q, L)`."""
        if not own.numel():  # a picture too small for any window: no decision
            return own
        kept = self._next(own.shape, torch.int64)
        if kept is None:
            return own
        scores = attention.sum(1)
        ranks, own_ranks = (scores.gather(1, index).sort().values for index in (kept, own))
        if turned := int((kept.sort().values != own.sort().values).sum()):
            apart = (ranks.log() - own_ranks.log()).abs()
            # Windows of the same attention, as of none at all, are a tie that either may break as it likes.
            self._note(turned, float(apart.where(ranks != own_ranks, 0).max()))
        return kept

    def _next(self, shape: torch.Size, kind: torch.dtype) -> Tensor | None:
        found = self.left.pop(0) if self.left else None
        if found is not None and found.shape == shape and found.dtype == kind:
            return found
        self._note(1, math.inf)  # another decision than the model's
        return None

    def _note(self, turned: int, distance: float) -> None:
        self.turned += turned
        self.farthest = max(self.farthest, not_nan(distance))


def decisions_of(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> Iterator[str]:
    """Names of the decisions in `graph`, in its order: what is below a threshold, and the indices of the best."""
    for node in graph.node:
        if node.op_type == "TopK":
            yield node.output[1]
        threshold = constants.get(node.input[1]) if node.op_type == "Less" else None
        if threshold is not None and threshold.size == 1 and threshold.dtype == np.float32:
            yield node.output[0]


def compare_network(
    model: Any,
    session: onnxruntime.InferenceSession,
    sizes: Sequence[tuple[int, int, int]],
    seed: int,
    decisions: Decisions | None,
) -> list[Comparison]:
    """Logits of pictures of these sizes; `decisions` of files whose weights are exact, None for others."""
    comparisons = []
    for index, size in enumerate(sizes):
        pixels = drawn_pictures(*size, seed + 100 * index)
        inputs = {INPUT: pixels.numpy()}
        if decisions is not None:
            decisions.read(inputs)
        logits = [torch.from_numpy(found) for found in session.run([CLASSES, MASKS], inputs)]
        comparisons.append(compare_logits(model, pixels, logits, decisions))
    return comparisons


def drawn_pictures(batch_size: int, height: int, width: int, seed: int) -> Tensor:
    """`(B, 3, H, W)` normalised pictures: large smooth patches and a little grain."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch_size, 3, -(-height // 48), -(-width // 48), generator=generator)
    smooth = F.interpolate(patches, size=(height, width), mode="bicubic", align_corners=False)
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


@torch.no_grad()
def compare_logits(model: Any, pixels: Tensor, theirs: Sequence[Tensor], decisions: Decisions | None) -> Comparison:
    """The file's class and mask logits of normalised pictures, and the decisions behind them, with the model's."""
    with decisions.repeated_by(model) if decisions else nullcontext():
        outputs = model(pixel_values=pixels)
    ours = outputs.class_queries_logits, outputs.masks_queries_logits
    differences = [not_nan(float((one - other).abs().max())) for one, other in zip(ours, theirs, strict=True)]
    found = Comparison(
        " x ".join(str(side) for side in (len(pixels), *pixels.shape[2:])),
        *label_agreement(class_scores(*ours), class_scores(*theirs).argmax(dim=1)),
        class_difference=differences[0],
        mask_difference=differences[1],
    )
    if decisions:
        found.decisions, found.turned, found.farthest = decisions.count, decisions.turned, decisions.farthest
    return found


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


def compare_pictures(
    model: Any, processor: Any, session: onnxruntime.InferenceSession, seed: int, decisions: Decisions | None
) -> list[Comparison]:
    """Three pictures, upright, wide, and larger than the network's size: the network's logits, and the label maps.

    The logits are those of the picture as the file has resized it. The processor's resize differs from that by one of
    255 here and there, so label maps, made by each on its own, may differ where two classes are close.
    """
    edge = processor.size["shortest_edge"] or processor.size["height"] or 64
    comparisons = []
    sizes = [(edge, edge * 3 // 4), (edge * 2 // 3, edge), (edge * 5 // 4, edge * 3 // 2)]
    for index, (height, width) in enumerate(sizes):
        picture = drawn_picture(height, width, seed + index)
        found = Comparison("", 0.0, 0)
        if decisions is not None:
            pixels, *logits = decisions.read({PICTURE: picture}, (INPUT, CLASSES, MASKS))
            found = compare_logits(model, pixels, logits, decisions)
        labels = torch.from_numpy(session.run([LABELS], {PICTURE: picture})[0].astype(np.int64))
        found.equal_labels = float((eager_labels(model, processor, picture) == labels).float().mean())
        found.size = f"picture of {height} x {width}"
        comparisons.append(found)
    return comparisons


# ---- speed ----------------------------------------------------------------------------------------------------------


def median_times(eager: Callable[[], Any], exported: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Medians of both in seconds, in turns, after one round that does not count."""
    times: dict[Callable[[], Any], list[float]] = {eager: [], exported: []}
    for _ in range(runs + 1):
        for call in times:
            start = time.perf_counter()
            call()
            times[call].append(time.perf_counter() - start)
    return statistics.median(times[eager][1:]), statistics.median(times[exported][1:])
