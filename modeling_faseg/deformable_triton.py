"""Deformable sampling in Triton: one kernel over all levels and its backward pass, neither of which keeps a sample.

Notation: B batch, T query tokens, L = sum of H*W tokens over levels, N heads of D channels, P points per level. A row
is one of B * T * N pairs of a token and a head; a program takes a block of rows and all D channels.

The same values, borders and kinks as `sample_by_grid`, in whose arithmetic coordinates are reckoned. Maps are read in
their own dtype; coordinates, sums and the gradient of the maps are float32 (float64 where the maps are).

The backward pass adds to the maps' gradient by atomic adds, whose order, and so last digits, change from run to run.
Under `torch.use_deterministic_algorithms(True)` it adds whole numbers, whose sum no order changes: contributions in
units of the bound on a pixel's sum / 2^62, finer than float32, in a buffer of int64.

This file is only imported where Triton is; `deformable_choice.py` asks `trial` whether it works.
"""

import contextlib
import functools
import math
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, library


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("deformable sampling by Triton needs the package triton, part of CUDA's torch") from error

MAX_LEVELS = 4
BLOCK_SIZE = 1024  # values of a program's output: eight for each thread of four warps
# A kernel is compiled anew for integers that are 1 or divisible by 16, unless they are named here.
SIDES = [f"{side}_{level}" for level in range(MAX_LEVELS) for side in ("height", "width")]
SIZES = ["rows", "rows_per_image", "length", *SIDES]
# Installed and as remote code, this file may be loaded twice in a process; each has operators of its own.
NAMESPACE = re.sub(r"\W", "_", __name__)


def sample_by_triton(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample_maps`, for up to `MAX_LEVELS` levels; any strides, any float dtypes, which need not be the same."""
    return _sample(value, [side for shape in shapes for side in shape], locations, weights)


@functools.cache
def trial(device: torch.device) -> str | None:
    """Why the kernels cannot be used on the device, or None: a small case must give what `grid_sample` gives.

    Triton compiles when it is first called, which fails without a C compiler, or on GPUs that it does not know. Runs
    once per device and process; a failure on a GPU warns.
    """
    if device.type != "cuda":
        return None if _interprets() else "Triton runs on CUDA, and on a CPU only with TRITON_INTERPRET=1"
    try:
        error = _error_apart(device)
    except Exception as failure:  # whatever Triton, its compilers or the driver raise
        obstacle = f"the Triton kernel failed on {device}: {' '.join(str(failure).split())[:200]}"
    else:
        if error < 1e-4:
            return None
        obstacle = f"the Triton kernel was wrong by {error:.1e} on {device}"
    warnings.warn(f"{obstacle}; deformable attention runs by grid_sample", stacklevel=2)
    return obstacle


def _error_apart(device: torch.device) -> float:
    """`_error_of_small_case` whatever the caller does: the answer of a trial holds for all calls.

    A thread of its own has none of the caller's modes: inference, autocast, tensors without data, hooks on what is
    saved for a backward pass, the recording of a checkpoint. Deterministic algorithms, under which `grid_sample` on
    CUDA refuses to have a backward pass, are switched off meanwhile, as they are one switch for all threads.
    """
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(_error_of_small_case, device).result()
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)


def _error_of_small_case(device: torch.device) -> float:
    """The largest difference of values and gradients from those of `grid_sample`."""
    from .deformable_sampling import sample_by_grid

    shapes = [(3, 4), (2, 3)]
    ramp = functools.partial(torch.arange, dtype=torch.float32, device=device)
    value = torch.sin(ramp(18 * 2 * 8)).view(1, 18, 2, 8)
    locations = torch.cos(1.7 * ramp(5 * 2 * 2 * 3 * 2)).view(1, 5, 2, 2, 3, 2) * 0.8 + 0.5
    weights = torch.sin(0.3 * ramp(5 * 2 * 2 * 3)).view(1, 5, 2, 2, 3)
    found = []
    for sample in (sample_by_triton, sample_by_grid):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        output = sample(leaves[0], shapes, leaves[1], leaves[2])
        found.append([output.detach(), *torch.autograd.grad(output.cos().sum(), leaves)])
    return max((ours - theirs).abs().max().item() for ours, theirs in zip(*found))


def _interprets() -> bool:
    """Whether Triton runs its kernels on the CPU, step by step, as it does under `TRITON_INTERPRET=1`."""
    return not isinstance(_forward_kernel, triton.runtime.JITFunction)


# ---- operators: opaque to torch.compile, which finds shapes and gradients registered ----


@library.custom_op(f"{NAMESPACE}::sample", mutates_args=())
def _sample(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`(B, T, N * D)` in the dtype of `value`; `sizes` are height and width of each level."""
    output = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    arguments = (value.contiguous(), locations.contiguous(), weights.contiguous())
    _launch(_forward_kernel, value, sizes, locations, (*arguments, output))
    return output


@_sample.register_fake
def _(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@library.custom_op(f"{NAMESPACE}::sample_backward", mutates_args=())
def _sample_backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights from that of the output."""
    sum_dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    value_gradient = torch.zeros_like(
        value, dtype=torch.int64 if deterministic else sum_dtype, memory_format=torch.contiguous_format
    )
    location_gradient = torch.empty_like(locations, memory_format=torch.contiguous_format)
    weight_gradient = torch.empty_like(weights, memory_format=torch.contiguous_format)
    scale = _units(gradient, locations, weights, sum_dtype) if deterministic else gradient.new_ones(1, dtype=sum_dtype)
    arguments = (value.contiguous(), locations.contiguous(), weights.contiguous(), gradient.contiguous())
    results = (value_gradient, location_gradient, weight_gradient, scale)
    _launch(_backward_kernel, value, sizes, locations, (*arguments, *results), DETERMINISTIC=deterministic)
    if deterministic:
        value_gradient = value_gradient.double() / scale.double()
    return value_gradient.to(value.dtype), location_gradient, weight_gradient


@_sample_backward.register_fake
def _(gradient, value, sizes, locations, weights, deterministic):
    return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in (value, locations, weights))


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    found = _sample_backward(gradient, value, ctx.sizes, locations, weights, deterministic)
    return found[0], None, found[1], found[2]


_sample.register_autograd(_gradients, setup_context=_remember)


def _units(gradient: Tensor, locations: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """`(1,)`: how many units of the deterministic sum make 1, a power of two; 0 or NaN, which makes the gradient NaN,
    where gradient or weights are not finite.

    A point gives one pixel at most its weight times the gradient, and a pixel of one level and head is read by at most
    T * P points: no sum leaves int64.
    """
    points = max(1, locations.shape[1] * locations.shape[4])
    bits = 62 - math.ceil(math.log2(points))
    if gradient.numel() == 0:
        return gradient.new_ones(1, dtype=dtype)
    bound = gradient.abs().amax().double() * weights.abs().amax().double()
    # The floor keeps the scale of vanishing gradients within float32.
    exponent = bound.clamp(min=2.0**-60).log2().ceil()
    return torch.exp2(bits - exponent).to(dtype).view(1)


def _launch(kernel: Any, value: Tensor, sizes: list[int], locations: Tensor, tensors: tuple, **constants: Any) -> None:
    """Runs a kernel over all rows; Triton launches on the current device, which need not be the tensors'."""
    batch_size, num_tokens, num_heads, num_levels, num_points, _ = locations.shape
    rows = batch_size * num_tokens * num_heads
    if rows == 0 or value.shape[-1] == 0:
        return
    block_dim = triton.next_power_of_2(value.shape[-1])
    block_rows = max(1, BLOCK_SIZE // block_dim)
    padded = [*sizes, *[0] * (2 * MAX_LEVELS - len(sizes))]
    is_cuda = value.device.type == "cuda"
    with torch.cuda.device(value.device) if is_cuda else contextlib.nullcontext():
        kernel[(triton.cdiv(rows, block_rows),)](
            *tensors,
            rows,
            num_tokens * num_heads,
            value.shape[1],
            *padded,
            HEADS=num_heads,
            DIM=value.shape[-1],
            LEVELS=num_levels,
            POINTS=num_points,
            BLOCK_ROWS=block_rows,
            BLOCK_DIM=block_dim,
            SUM=tl.float64 if value.dtype == torch.float64 else tl.float32,
            **constants,
        )


# ---- kernels; tensors are contiguous, `value` (B, L, N, D), rows in the order (B, T, N) ----


@triton.jit
def _coordinate(share, size, SUM: tl.constexpr):
    """A share of a side as a position among its pixels, as `grid_sample` reckons it.

    Positions further out are moved to two pixels beside the map, where all is zero; NaN stays.
    """
    position = ((share.to(SUM) * 2 - 1 + 1) * size - 1) / 2
    position = tl.where(position < -2, -2.0, position)
    return tl.where(position > size + 1, size + 1.0, position).to(SUM)


@triton.jit
def _corner(value, image, start, x, y, width, height, is_row, HEADS: tl.constexpr, DIM: tl.constexpr,
            BLOCK_DIM: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """`(rows, D)` values of one pixel for each row, zero outside the map, where they lie, and which are within."""
    is_inside = is_row & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    channel = tl.arange(0, BLOCK_DIM)
    pixel = (start + y * width + x).to(tl.int64)
    offset = (image + pixel * (HEADS * DIM))[:, None] + channel[None, :]
    mask = is_inside[:, None] & (channel < DIM)[None, :]
    return tl.load(value + offset, mask=mask, other=0.0).to(SUM), offset, mask


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    value, locations, weights, output, rows, rows_per_image, length,
    height_0, width_0, height_1, width_1, height_2, width_2, height_3, width_3,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    heights = (height_0, height_1, height_2, height_3)
    widths = (width_0, width_1, width_2, width_3)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    image = (row // rows_per_image * length * HEADS + row % HEADS) * DIM  # of the row's image and head, first pixel
    total = tl.zeros((BLOCK_ROWS, BLOCK_DIM), SUM)
    start = 0
    for level in tl.static_range(LEVELS):
        height, width = heights[level], widths[level]
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + place, mask=is_row, other=0.0).to(SUM)
            x = _coordinate(tl.load(locations + 2 * place, mask=is_row, other=0.0), width, SUM)
            y = _coordinate(tl.load(locations + 2 * place + 1, mask=is_row, other=0.0), height, SUM)
            left, top = tl.floor(x), tl.floor(y)
            right, lower = x - left, y - top
            for corner in tl.static_range(4):
                share_x = right if corner % 2 == 1 else 1 - right
                share_y = lower if corner // 2 == 1 else 1 - lower
                column, line = left.to(tl.int32) + corner % 2, top.to(tl.int32) + corner // 2
                pixels, _, _ = _corner(
                    value, image, start, column, line, width, height, is_row, HEADS, DIM, BLOCK_DIM, SUM
                )
                total += pixels * (weight * share_x * share_y)[:, None]
        start += height * width
    channel = tl.arange(0, BLOCK_DIM)
    offset = (row * DIM)[:, None] + channel[None, :]
    mask = is_row[:, None] & (channel < DIM)[None, :]
    tl.store(output + offset, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _add(sums, offset, mask, addend, scale, DETERMINISTIC: tl.constexpr):
    """Adds to the maps' gradient; whole numbers of units where no order may matter."""
    if DETERMINISTIC:
        addend = tl.floor(addend * scale + 0.5).to(tl.int64)
    tl.atomic_add(sums + offset, addend, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def _backward_kernel(
    value, locations, weights, gradient, value_gradient, location_gradient, weight_gradient, units,
    rows, rows_per_image, length,
    height_0, width_0, height_1, width_1, height_2, width_2, height_3, width_3,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, SUM: tl.constexpr, DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    heights = (height_0, height_1, height_2, height_3)
    widths = (width_0, width_1, width_2, width_3)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    image = (row // rows_per_image * length * HEADS + row % HEADS) * DIM
    channel = tl.arange(0, BLOCK_DIM)
    mask = is_row[:, None] & (channel < DIM)[None, :]
    wanted = tl.load(gradient + (row * DIM)[:, None] + channel[None, :], mask=mask, other=0.0).to(SUM)
    scale = tl.load(units)
    start = 0
    for level in tl.static_range(LEVELS):
        height, width = heights[level], widths[level]
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + place, mask=is_row, other=0.0).to(SUM)
            x = _coordinate(tl.load(locations + 2 * place, mask=is_row, other=0.0), width, SUM)
            y = _coordinate(tl.load(locations + 2 * place + 1, mask=is_row, other=0.0), height, SUM)
            left, top = tl.floor(x), tl.floor(y)
            right, lower = (x - left)[:, None], (y - top)[:, None]
            weighted = wanted * weight[:, None]
            sample = tl.zeros((BLOCK_ROWS, BLOCK_DIM), SUM)
            across = tl.zeros((BLOCK_ROWS, BLOCK_DIM), SUM)
            down = tl.zeros((BLOCK_ROWS, BLOCK_DIM), SUM)
            for corner in tl.static_range(4):
                share_x = right if corner % 2 == 1 else 1 - right
                share_y = lower if corner // 2 == 1 else 1 - lower
                column, line = left.to(tl.int32) + corner % 2, top.to(tl.int32) + corner // 2
                pixels, offset, is_inside = _corner(
                    value, image, start, column, line, width, height, is_row, HEADS, DIM, BLOCK_DIM, SUM
                )
                sample += pixels * (share_x * share_y)
                across += pixels * (share_y if corner % 2 == 1 else -share_y)
                down += pixels * (share_x if corner // 2 == 1 else -share_x)
                _add(value_gradient, offset, is_inside, weighted * (share_x * share_y), scale, DETERMINISTIC)
            across_sum, down_sum = tl.sum(across * weighted, 1) * width, tl.sum(down * weighted, 1) * height
            sample_sum = tl.sum(sample * wanted, 1)
            tl.store(weight_gradient + place, sample_sum.to(weight_gradient.dtype.element_ty), mask=is_row)
            kind = location_gradient.dtype.element_ty
            tl.store(location_gradient + 2 * place, across_sum.to(kind), mask=is_row)
            tl.store(location_gradient + 2 * place + 1, down_sum.to(kind), mask=is_row)
        start += height * width
