"""Bilinear samples of maps by plain gathers and arithmetic, for engines that compile ONNX's `GridSample` wrongly.

TensorRT gives wrong results of deformable attention by `GridSample`, and no error (NVIDIA/TensorRT#4813). What stands
here in its place traces to `Pad`, `Gather` and arithmetic, of static or dynamic sizes.

Notation: B batch, T query tokens, L = sum of H*W tokens over levels, N heads of D channels, P points per level.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import onnx
import torch
from torch import Tensor, nn

from modeling_faseg import deformable_attention


@contextmanager
def gathered() -> Iterator[None]:
    """Inside the block, models sample maps without `grid_sample`."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(deformable_attention, "sample_maps", sample_maps))
        stack.enter_context(mock.patch.object(nn.functional, "grid_sample", grid_sample))
        yield


def sample_maps(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, form: str | None = None
) -> Tensor:
    """As `modeling_faseg.deformable_sampling.sample_maps`, which says what goes in and comes out, whatever `form`."""
    locations, weights = locations.float(), weights.float()
    levels = value.float().split([height * width for height, width in shapes], dim=1)
    output = value.new_zeros((), dtype=torch.float32)
    for level, (tokens, shape) in enumerate(zip(levels, shapes)):
        output = output + weighted_samples(
            tokens.unflatten(1, shape), locations[:, :, :, level], weights[:, :, :, level]
        )
    return output.flatten(2).to(value.dtype)


def weighted_samples(maps: Tensor, points: Tensor, weights: Tensor, outside: str = "zeros") -> Tensor:
    """Samples of each head's map, summed over its points.

    Args:
        maps: `(B, H, W, N, D)` float32.
        points: `(B, T, N, P, 2)` x and y as shares of width and height.
        weights: `(B, T, N, P)`.
        outside: what maps are there: `zeros`, or as on their `border`.
    Returns:
        `(B, T, N, D)`.
    """
    batch_size, height, width, num_heads, _ = maps.shape
    # A border of zeros: points further out are moved onto it, and all four pixels around every point exist.
    table = nn.functional.pad(maps, (0, 0, 0, 0, 1, 1, 1, 1)).flatten(0, 3)
    nearest = 0 if outside == "zeros" else 1
    columns = (points[..., 0] * width + 0.5).clamp(nearest, width + 1 - nearest)
    rows = (points[..., 1] * height + 0.5).clamp(nearest, height + 1 - nearest)
    left, upper = columns.floor().clamp(max=width), rows.floor().clamp(max=height)
    right_share, lower_share = columns - left, rows - upper
    line = (width + 2) * num_heads
    image = torch.arange(batch_size, device=maps.device)[:, None, None, None] * ((height + 2) * line)
    head = torch.arange(num_heads, device=maps.device)[:, None]
    first = image + upper.long() * line + left.long() * num_heads + head
    lower_weights = weights * lower_share
    upper_weights = weights - lower_weights
    upper_right, lower_right = upper_weights * right_share, lower_weights * right_share
    corners = (first, first + num_heads, first + line, first + line + num_heads)
    corner_weights = (upper_weights - upper_right, upper_right, lower_weights - lower_right, lower_right)
    pixels = nn.functional.embedding(torch.cat(corners, dim=-1), table)  # (B, T, N, 4P, D); to ONNX a plain Gather
    return (torch.cat(corner_weights, dim=-1)[..., None] * pixels).sum(-2)


def grid_sample(
    input: Tensor,  # torch's own names: callers give them by name
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """As `torch.nn.functional.grid_sample` of `(B, C, H, W)` maps at `(B, h, w, 2)`, bilinear and between corners.

    Raises:
        NotImplementedError: another mode.
    """
    if mode != "bilinear" or padding_mode not in ("zeros", "border") or align_corners:
        given = f"mode {mode}, padding_mode {padding_mode}, align_corners {align_corners}"
        raise NotImplementedError(f"grid_sample by gathers: {given}: only bilinear, zeros or border, False")
    maps = input.float().permute(0, 2, 3, 1).unsqueeze(3)
    points = ((grid.float() + 1) / 2).flatten(1, 2)[:, :, None, None]
    samples = weighted_samples(maps, points, torch.ones_like(points[..., 0]), padding_mode)
    return samples[:, :, 0].transpose(1, 2).unflatten(2, grid.shape[1:3]).to(input.dtype)


def grid_samples(model: onnx.ModelProto) -> list[str]:
    """Names of all `GridSample` nodes of a file: of its graph, its functions, and graphs inside nodes."""
    names, left = [], [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while left:
        node = left.pop()
        if node.op_type == "GridSample":
            names.append(node.name or node.output[0])
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                left.extend(inner.node)
    return names
