"""A model as an ONNX graph: normalised images to what its kind exports.

Notation: B batch, H and W of the (padded) image.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import onnx
import torch
from onnxscript import opset18 as op
from onnxscript import rewriter
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.models.swin.modeling_swin import SwinLayer

from scripts.models.input_channels import num_channels
from scripts.onnx_export.kinds import LARGEST_SIDE, Kind, Size


RULES = "_DEFAULT_REWRITE_RULES"  # of onnxscript's rewriter
LARGEST_BATCH = 1024
INPUT = "pixel_values"
IMAGE, LABELS = "image", "labels"  # with processing in the graph


class Tensors(nn.Module):
    """The model with tensors in and tensors out, float32 at both ends whatever its weights are in.

    `step`: sides of a dynamic graph are multiples of it.
    """

    def __init__(self, model: PreTrainedModel, names: list[str], step: int | None) -> None:
        super().__init__()
        self.model, self.names, self.step = model, names, step

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """`(B, C, H, W)` to the outputs of these names."""
        if self.step:  # cuts nothing off, but torch.export sees that strides divide the sides
            height, width = (self.step * (side // self.step) for side in pixel_values.shape[2:])
            pixel_values = pixel_values[:, :, :height, :width]
        outputs = self.model(pixel_values=pixel_values.to(self.model.dtype))
        return tuple(outputs[name].float() for name in self.names)


def export_network(model: PreTrainedModel, kind: Kind, size: Size | None, half: bool = False) -> onnx.ModelProto:
    """The ONNX graph of `model`, which stays as it is.

    Args:
        size: height and width of a static graph with a batch of one; None for a graph of any batch, and of every
            height and width that `kind` takes.
        half: float16 weights; what the model computes in float32 by itself, positions and softmax, stays so.
    """
    twin = copy.deepcopy(model).eval().float()
    twin.set_attn_implementation("eager")
    if half:
        twin.half()
    names = [output.name for output in kind.outputs]
    any_side = not (size or kind.fixed)
    example, shapes = (torch.zeros(1, num_channels(kind.config), *size), None) if size else dynamic_input(kind)
    translations: dict[Any, Any] = {torch.ops.aten.remainder.Scalar: remainder} if any_side else {}
    with torch.no_grad(), quickly_traced():
        network = Tensors(twin, names, kind.step if any_side else None)
        traced = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[INPUT],
            output_names=names,
            custom_translation_table=translations,
            verbose=False,
        )
    graph = cast(torch.onnx.ONNXProgram, program).model_proto
    name_sizes(graph.graph, kind, any_batch=size is None, any_side=any_side)
    return graph


def dynamic_input(kind: Kind) -> tuple[Tensor, dict[str, Any]]:
    """Images to trace with, and what of their shape may be otherwise."""
    batch = Dim("batch", min=1, max=LARGEST_BATCH)
    if kind.fixed:
        return torch.zeros(2, num_channels(kind.config), *kind.fixed), {INPUT: {0: batch}}
    least, step = kind.least_side, kind.step
    rows, columns = (Dim(name, min=least // step, max=LARGEST_SIDE // step) for name in ("rows", "columns"))
    # So large that even coarse maps have several windows along each side: a number of one would pass for a constant.
    images = torch.zeros(2, num_channels(kind.config), least + 24 * step, least + 25 * step)
    return images, {INPUT: {0: batch, 2: step * rows, 3: step * columns}}


@contextmanager
def quickly_traced() -> Iterator[None]:
    """Inside the block, what would take hours to trace for any size, or come out wrong, is written otherwise."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(SwinLayer, "forward", swin_layer))
        stack.enter_context(mock.patch.object(rewriter, RULES, quick_rules(), create=True))
        stack.enter_context(mock.patch("timm.layers.padding.get_same_padding", same_padding))
        for module in [module for name, module in sys.modules.items() if name.startswith("transformers.models.")]:
            if "torch_int" in vars(module):
                stack.enter_context(mock.patch.object(module, "torch_int", whole))
        yield


def whole(number: Any) -> Any:
    """transformers' `torch_int`, which would make a constant of a size known only at run time, such as that of a
    vision transformer's resized positions. Guarded by tests/scripts/onnx_export/test_export_onnx_pyramid.py."""
    return number if isinstance(number, torch.SymInt) else int(number)


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's `get_same_padding`, for a size known only at run time a constant.

    Sides are multiples of 32, so each size is one of its layer's stride. timm's own formula grows in every layer,
    until nothing can be traced. Guarded by `test_same_padding_equals_timm`.
    """
    if isinstance(size, torch.SymInt):
        size = stride
    return max((-(-size // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0)


def quick_rules() -> tuple[Any, ...]:
    """onnxscript's rewrite rules without `SlicesSplit`, which lists the whole graph anew for every node: with it,
    Swin-T takes several times as long, and no runtime gains from it."""
    return tuple(rule for rule in getattr(rewriter, RULES, ()) if rule.name != "SlicesSplit")


def remainder(number: Any, divisor: Any) -> Any:
    """`aten::remainder` of whole numbers by one that is known only at run time, which torch 2.15 cannot translate."""
    return op.Mod(number, divisor)


def name_sizes(graph: onnx.GraphProto, kind: Kind, any_batch: bool, any_side: bool) -> None:
    """Gives dynamic sizes of inputs and outputs plain names; drops sizes in between, which runtimes find out."""
    del graph.value_info[:]
    sides = {INPUT: {2: "height", 3: "width"}} | {output.name: output.axes for output in kind.outputs}
    for value in (*graph.input, *graph.output):
        names = ({0: "batch"} if any_batch else {}) | (sides[value.name] if any_side else {})
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def swin_layer(
    layer: Any, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """`SwinLayer.forward` for evaluation, written so that a size known only at run time is divided once.

    Transformers' own form computes the padding by remainders of remainders, on which torch.export works for hours.
    Guarded by `test_swin_layer_equals_transformers`.
    """
    side, shift = layer.window_size, layer.shift_size
    height, width = input_dimensions
    batch_size = hidden_states.shape[0]
    rows, columns = (height + side - 1) // side, (width + side - 1) // side

    def windows(maps: Tensor) -> Tensor:
        """`(B, rows * side, columns * side, C)` to `(B * rows * columns, side * side, C)`."""
        split = maps.unflatten(1, (rows, side)).unflatten(3, (columns, side))
        return split.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def regions(length: int) -> Tensor:
        places = torch.arange(length, device=hidden_states.device)
        return (places >= length - side).long() + (places >= length - shift).long()

    maps = layer.layernorm_before(hidden_states).unflatten(1, (height, width))
    maps = nn.functional.pad(maps, (0, 0, 0, columns * side - width, 0, rows * side - height))
    mask = None
    if shift > 0:  # what the shift has brought together from opposite borders does not mix
        region = 3 * regions(rows * side)[:, None] + regions(columns * side)
        region = windows(region[None, :, :, None].expand(batch_size, -1, -1, -1))
        mask = torch.where(region == region.transpose(1, 2), 0.0, -100.0).to(hidden_states.dtype)
    update, weights = layer.attention(windows(layer.cyclic_shift(maps)), mask, **kwargs)
    update = update.unflatten(1, (side, side)).unflatten(0, (batch_size, rows, columns))
    update = layer.cyclic_shift(update.transpose(2, 3).flatten(3, 4).flatten(1, 2), reverse=True)
    hidden_states = hidden_states + update[:, :height, :width].flatten(1, 2)
    return hidden_states + layer.mlp(layer.layernorm_after(hidden_states)), weights


def in_eight_bits(graph: onnx.ModelProto) -> onnx.ModelProto:
    """`graph` with the constant weights of its matrix products in 8 bits, in blocks of 32 with a scale each."""
    # Imported here because it sets up the program's logging.
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(graph, bits=8, block_size=32, is_symmetric=True)
    quantizer.process()
    return quantizer.model.model
