"""An ONNX file against the model it was made from, run by onnxruntime: numbers, labels, speed.

Notation: B batch, K classes, (h, w) logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional as F

from image_processing.semantic_labels import LOGITS_STRIDE
from scripts.cli.errors import UserError
from scripts.data.bands import PLAIN, ImageForm, form_of
from scripts.models.input_channels import RGB, num_channels
from scripts.onnx_export.decisions import FileDecisions, not_nan
from scripts.onnx_export.kinds import Kind, Output
from scripts.onnx_export.network import IMAGE, INPUT, LABELS


DECIDED = 1e-3  # where the best two scores of a pixel are further apart, labels have to be equal


@dataclass
class Comparison:
    """One input through both.

    `equal_labels` is a share of pixels, `decided_otherwise` counts pixels of other labels though the best two scores
    are `DECIDED` apart. Of exact files also: `differences`, maximal and absolute, of each output; `decisions`, how
    many; `turned`, those that the model alone takes otherwise; `farthest`, the largest distance of these from their
    threshold, in logits, for which the last output's tolerance holds.
    """

    size: str
    equal_labels: float
    decided_otherwise: int
    differences: list[tuple[Output, float]] = field(default_factory=list)
    decisions: int = 0
    turned: int = 0
    farthest: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        near = not self.turned or self.farthest <= self.differences[-1][0].tolerance
        equal = all(difference <= output.tolerance for output, difference in self.differences)
        return near and equal and not self.decided_otherwise

    def __str__(self) -> str:
        text = f"{self.size}: {100 * self.equal_labels:.3f} % of labels equal"
        if self.decided_otherwise:
            text += f" ({self.decided_otherwise} others though the best two scores are {DECIDED:g} apart)"
        for output, difference in self.differences:
            text += f", {output.words} within {difference:.1e}"
        if self.decisions:
            text += f"; {self.turned} of {self.decisions:,} decisions differ"
        if self.turned:
            text += f", at most {self.farthest:.1e} from their threshold"
        return text


# ---- logits, with the file's decisions ------------------------------------------------------------------------------


def compare_network(
    kind: Kind,
    model: Any,
    session: onnxruntime.InferenceSession,
    sizes: Sequence[tuple[int, int, int]],
    seed: int,
    decisions: FileDecisions | None,
) -> list[Comparison]:
    """Outputs of images of these sizes; `decisions` of files whose weights are exact, None for others."""
    comparisons = []
    for index, size in enumerate(sizes):
        pixels = drawn_images(*size, seed + 100 * index, num_channels(kind.config))
        inputs = {INPUT: pixels.numpy()}
        if decisions is not None:
            decisions.read(inputs)
        found = session.run([output.name for output in kind.outputs], inputs)
        refuse_other_sizes(kind, pixels, found)
        comparisons.append(compare_outputs(kind, model, pixels, list(map(torch.from_numpy, found)), decisions))
    return comparisons


def refuse_other_sizes(kind: Kind, pixels: Tensor, found: Sequence[np.ndarray]) -> None:
    """Raises `UserError` unless maps at a quarter of the images' size have it: what a size was traced with may have
    become a constant of the file."""
    size = (pixels.shape[2] // LOGITS_STRIDE, pixels.shape[3] // LOGITS_STRIDE)
    for output, values in zip(kind.outputs, found, strict=True):
        if output.axes.get(2) == f"height / {LOGITS_STRIDE}" and values.shape[2:] != size:
            raise UserError(
                f"the file gives {output.words} of {values.shape[2:]} for images of {tuple(pixels.shape[2:])}, need "
                f"{size}: this model has no file of any size, give --height and --width. Nothing was written"
            )


def drawn_images(batch_size: int, height: int, width: int, seed: int, channels: int = RGB) -> Tensor:
    """`(B, C, H, W)` normalised images: large smooth patches and a little grain."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch_size, channels, -(-height // 48), -(-width // 48), generator=generator)
    smooth = F.interpolate(patches, size=(height, width), mode="bicubic", align_corners=False)
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


@torch.no_grad()
def compare_outputs(
    kind: Kind, model: Any, pixels: Tensor, theirs: Sequence[Tensor], decisions: FileDecisions | None
) -> Comparison:
    """The file's outputs for normalised images, and the decisions behind them, with the model's."""
    with decisions.repeated_by(model) if decisions else nullcontext():
        outputs = model(pixel_values=pixels)
    ours = [outputs[output.name] for output in kind.outputs]
    found = Comparison(
        " x ".join(str(side) for side in (len(pixels), *pixels.shape[2:])),
        *label_agreement(kind.scores(ours), kind.scores(theirs).argmax(dim=1)),
    )
    if decisions:
        found.differences = [
            (output, not_nan(float((one - other).abs().max())))
            for output, one, other in zip(kind.outputs, ours, theirs, strict=True)
        ]
        found.decisions, found.turned, found.farthest = decisions.count, decisions.turned, decisions.farthest
    return found


def label_agreement(scores: Tensor, labels: Tensor) -> tuple[float, int]:
    """Share of pixels whose label is the best of the scores `(B, K, h, w)`; how many differ where that is decided."""
    best = scores.topk(min(2, scores.shape[1]), dim=1)
    equal = best.indices[:, 0] == labels
    decided = best.values[:, 0] - best.values[:, -1] > DECIDED
    return float(equal.float().mean()), int((decided & ~equal).sum())


# ---- with pre- and post-processing ----------------------------------------------------------------------------------


def drawn_image(height: int, width: int, seed: int, form: ImageForm = PLAIN) -> np.ndarray:
    """`(height, width, C)` of this form: uint8, or float32 that fills the range of intensities."""
    pixels = drawn_images(1, height, width, seed, form.num_bands)[0].permute(1, 2, 0)
    image = (pixels * 55 + 120).clamp(0, 255)
    if form.intensity_range is None:
        return image.to(torch.uint8).numpy()
    low, high = form.intensity_range
    return (low + (high - low) * (image.double() / 255)).float().numpy()


@torch.no_grad()
def eager_labels(model: Any, processor: Any, image: np.ndarray) -> Tensor:
    """`(H, W)` label map of processor and model, as users get it."""
    inputs = processor(image, return_tensors="pt", input_data_format="channels_last")
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    sizes = {"target_sizes": [image.shape[:2]], "input_sizes": inputs["input_sizes"]}
    return processor.post_process_semantic_segmentation(outputs, **sizes)[0]


def compare_images(
    kind: Kind,
    model: Any,
    processor: Any,
    session: onnxruntime.InferenceSession,
    seed: int,
    decisions: FileDecisions | None,
) -> list[Comparison]:
    """Three images, upright, wide, and larger than the network's size: the network's outputs, and the label maps.

    The outputs are those of the image as the file has resized it. The processor's resize differs from that by one of
    255 here and there, so label maps, made by each on its own, may differ where two classes are close.
    """
    edge = processor.size["shortest_edge"] or processor.size["height"] or 64
    comparisons, form = [], form_of(kind.config, processor)
    sizes = [(edge, edge * 3 // 4), (edge * 2 // 3, edge), (edge * 5 // 4, edge * 3 // 2)]
    for index, (height, width) in enumerate(sizes):
        image = drawn_image(height, width, seed + index, form)
        found = Comparison("", 0.0, 0)
        if decisions is not None:
            names = [output.name for output in kind.outputs]
            pixels, *theirs = decisions.read({IMAGE: image}, (INPUT, *names))
            found = compare_outputs(kind, model, pixels, theirs, decisions)
        labels = torch.from_numpy(session.run([LABELS], {IMAGE: image})[0].astype(np.int64))
        found.equal_labels = float((eager_labels(model, processor, image) == labels).float().mean())
        found.size = f"image of {height} x {width}"
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
