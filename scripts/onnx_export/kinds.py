"""What each type of model exports: the images it takes, its outputs and their tolerances, and where it decides.

Notation: B batch, Q queries, K classes, H and W of the (padded) image, S side of a QLSeg window.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from image_processing.post_processing import FASegPostProcessing
from image_processing.semantic_labels import ImageScores
from modeling_faseg.windows_qlseg import class_scores
from scripts.cli.errors import UserError


CLASSES, MASKS, LOGITS = "class_queries_logits", "masks_queries_logits", "logits"
CLASS_TOLERANCE = 1e-4  # those of the golden tests of whole models at full size
MASK_TOLERANCE = 1e-3
LARGEST_SIDE = 8192

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Output:
    """An output of the network: its name in file and model, in words, what may differ, and its axes of any size."""

    name: str
    words: str
    tolerance: float
    axes: dict[int, str] = field(default_factory=dict)


class Kind:
    """A model that takes images of any size, and its dynamic file those whose sides are multiples of `step`."""

    outputs: Sequence[Output]
    step = 32  # the coarsest stride
    fixed: Size | None = None  # the only size that the network takes

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def least_side(self) -> int:
        """Least height and width of a dynamic graph: a size of one is a constant to torch.export, so there have to be
        two rows of the coarsest map."""
        return 2 * self.step

    @property
    def static_step(self) -> int:
        """What the sides of a static graph are multiples of."""
        return self.step

    @property
    def tolerances(self) -> str:
        """What may differ, in words."""
        return " and ".join(f"{output.tolerance:g} of {output.words}" for output in self.outputs)

    def check(self, size: Size | None, with_processing: bool) -> None:
        """Raises `UserError` for what the graph cannot follow."""
        for name, side in zip(("height", "width"), size or ()):
            if side < self.static_step or side % self.static_step:
                fit = max(1, round(side / self.static_step)) * self.static_step
                raise UserError(f"--{name} {side}: give a multiple of {self.static_step}, {fit} for instance")

    def processor_settings(self, size: Size | None) -> dict[str, Any]:
        """What a processor for the file has set. A static graph gets every image on a canvas of its size; what does
        not fit is resized until it does."""
        return {"pad_size": {"height": size[0], "width": size[1]}} if size else {}

    def sizes(self, size: Size | None) -> dict[str, int]:
        """Of the images that the file takes, for its metadata."""
        if size:
            return {"height": size[0], "width": size[1], "batch": 1}
        if self.fixed:
            return {"height": self.fixed[0], "width": self.fixed[1]}
        return {"height": self.least_side, "width": self.least_side, "multiple_of": self.step}

    def accepted(self, size: Size | None) -> str:
        """The images that the file takes, in words."""
        if size:
            return f"images of {size[0]} x {size[1]}, one at a time"
        if self.fixed:
            return f"images of {self.fixed[0]} x {self.fixed[1]}, any batch"
        return f"height and width from {self.least_side} on in steps of {self.step}, any batch"

    def sizes_to_check(self, processor: Any, size: Size | None) -> list[tuple[int, int, int]]:
        """Three times batch, height and width: the static size, or from the least up to about the processor's own."""
        if size:
            return [(1, *size)] * 3
        if self.fixed:
            return [(1, *self.fixed), (2, *self.fixed), (1, *self.fixed)]
        least, step = self.least_side, self.step
        own = processor.size["shortest_edge"] or processor.size["height"] or least
        own = max(least, step * math.ceil(own / step))
        return [(1, least, least + step), (2, least + 2 * step, least), (1, own, step * math.ceil(own * 4 / 3 / step))]

    def facts(self) -> dict[str, Any]:
        """What only files of this kind say of themselves."""
        return {"thresholds": self.thresholds()}

    def thresholds(self) -> dict[str, float]:
        """Those inside the graph, and those of post-processing by default."""
        return {}

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """`(B, K, h, w)`, whose largest per pixel is the label."""
        raise NotImplementedError

    def as_outputs(self, outputs: Sequence[Tensor], size: Size) -> SimpleNamespace:
        """What the processor's post-processing takes, of the file's outputs for images of this padded size."""
        return SimpleNamespace(**dict(zip((output.name for output in self.outputs), outputs, strict=True)))

    def decider(self, model: Any) -> Any:
        """The module whose `decisions` the model takes; None if it takes none."""
        return None


class MaskKind(Kind):
    """A model of queries, each with a class and a mask."""

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """`(B, Q, K+1)` and `(B, Q, h, w)` to sums over queries of class times mask probability."""
        classes, masks = outputs
        size = (masks.shape[-2], masks.shape[-1])
        images = [ImageScores(maps, size, class_logits=logits) for logits, maps in zip(classes, masks)]
        return torch.stack([scores.stacked() for scores in images])


class FASeg(MaskKind):
    """FASeg, on any backbone."""

    outputs = (
        Output(CLASSES, "class logits", CLASS_TOLERANCE),
        Output(MASKS, "mask logits", MASK_TOLERANCE, {2: "height / 4", 3: "width / 4"}),
    )

    @property
    def least_side(self) -> int:
        """There have to be two HRCA windows too."""
        rows = 2
        if getattr(self.config, "reads_high_resolution_level", False):
            rows = max(rows, math.isqrt(2 * self.config.high_resolution_reduction - 1) + 1)
        return self.step * rows

    def check(self, size: Size | None, with_processing: bool) -> None:
        super().check(size, with_processing)
        if self.config.mask_padding:
            raise UserError(
                "the model has mask_padding=True, but a file takes images without pixel_mask and treats padding as "
                "image: accept that with --config_overrides mask_padding=false"
            )

    def thresholds(self) -> dict[str, float]:
        found = {"attention_mask_threshold": float(self.config.attention_mask_threshold)}
        for kind in ("instance", "panoptic"):
            method = vars(FASegPostProcessing)[f"post_process_{kind}_segmentation"].function
            for name, parameter in inspect.signature(method).parameters.items():
                if name.endswith("threshold"):
                    found[f"{kind}.{name}"] = parameter.default
        return found

    def decider(self, model: Any) -> Any:
        return model.model.transformer_decoder


class SeMask(Kind):
    """SeMask-FPN. It decides nothing before its logits.

    The model takes images as they are, and attends to padding like to anything else. So does a static file of their
    size; a dynamic one gets them padded to its steps.
    """

    outputs = (Output(LOGITS, "logits", 1e-4, {2: "height / 4", 3: "width / 4"}),)
    static_step = 4  # a pixel of the logits

    def processor_settings(self, size: Size | None) -> dict[str, Any]:
        return super().processor_settings(size) or {"size_divisor": self.step, "do_pad": True}

    def accepted(self, size: Size | None) -> str:
        said = super().accepted(size)
        if size:
            return said
        return f"{said}; images between are padded, other than for the model: --height and --width give its labels"

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        return outputs[0]


class QLSeg(MaskKind):
    """QLSeg: one window, or with `use_windows=False` any rectangle of patches."""

    outputs = (
        Output(CLASSES, "class logits", 1e-4),
        Output(MASKS, "mask logits", 1e-4, {2: "rows", 3: "columns"}),
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.step = config.patch_size
        self.fixed = (config.image_size, config.image_size) if config.use_windows else None

    def as_outputs(self, outputs: Sequence[Tensor], size: Size) -> SimpleNamespace:
        classes, masks = outputs
        return SimpleNamespace(semantic_scores=class_scores(classes, masks, size))

    @property
    def least_side(self) -> int:
        return 3 * self.step

    def check(self, size: Size | None, with_processing: bool) -> None:
        if with_processing:
            raise UserError(
                "--with_processing: a QLSeg file takes windows, not images: leave it out, examples/onnx_runtime.py "
                "processes images and reads them through windows"
            )
        if self.fixed and size and size != self.fixed:
            side = self.fixed[0]
            raise UserError(
                f"--height {size[0]} --width {size[1]}: the model reads windows of {side} x {side}: leave both out, "
                "or read images whole with --config_overrides use_windows=false"
            )
        super().check(size, with_processing)

    def processor_settings(self, size: Size | None) -> dict[str, Any]:
        """Images that go through windows keep their size."""
        return {} if self.fixed else super().processor_settings(size)

    def thresholds(self) -> dict[str, float]:
        return {"attention_mask_threshold": float(self.config.attention_mask_threshold)}

    def facts(self) -> dict[str, Any]:
        if not self.fixed:
            return super().facts()
        windows = {"side": self.config.image_size, "stride": self.config.window_stride}
        return super().facts() | {
            "windows": windows,
            "windows_rule": "an image of another size is read through windows: side and step in pixels, the last one "
            "shifted back to the border, zeros where the image is smaller; class scores are averaged",
        }

    def decider(self, model: Any) -> Any:
        return model.model.decoder


KINDS: dict[str, type[Kind]] = {"faseg": FASeg, "semask": SeMask, "qlseg": QLSeg}


def kind_of(config: Any, name: str = "") -> Kind:
    """How a model of this configuration is exported.

    Raises:
        UserError: no ONNX files are made of its type; `name` is the checkpoint's.
    """
    if config.model_type not in KINDS:
        types = ", ".join(KINDS)
        raise UserError(f"--model_name_or_path {name}: this is {config.model_type}, ONNX files are made of {types}")
    return KINDS[config.model_type](config)
