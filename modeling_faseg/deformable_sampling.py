"""Bilinear samples of several maps, summed with weights: the core of deformable attention, in its exact forms.

Notation: B batch, T query tokens, L = sum of H*W tokens over levels, N heads of D channels, P points per level.

`sample_by_grid` runs `grid_sample` once per level: it exports, and runs everywhere. `sample_by_gather` reads the four
pixels around every point through `embedding_bag`, one bag per token and head, and never holds what it has read: on a
CPU it takes about a fifth of the time. GPUs have a kernel in `deformable_triton.py`. Maps are zero outside, in all.
"""

import warnings
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

from .deformable_choice import sampling_form


BAG_BYTES = 6 * 2**20  # of indices and weights at a time


def sample_maps(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, form: str | None = None
) -> Tensor:
    """
    Args:
        value: `(B, L, N, D)` maps, levels one after another, rows by rows.
        shapes: height and width of each level.
        locations: `(B, T, N, levels, P, 2)` x and y as shares of the level's width and height.
        weights: `(B, T, N, levels, P)`.
        form: one of `deformable_choice.FORMS`; None: what suits the device.
    Returns:
        `(B, T, N * D)` in the dtype of `value`, summed in float32: coordinates of large images need it.
    Raises:
        ValueError: the form cannot run here.
    """
    needs_gradient = torch.is_grad_enabled() and (
        value.requires_grad or locations.requires_grad or weights.requires_grad
    )
    form = sampling_form(value.device, value.dtype, needs_gradient, len(shapes), form).form
    if form == "triton":
        from .deformable_triton import sample_by_triton

        return sample_by_triton(value, shapes, locations, weights)
    sample = sample_by_grid
    if form == "gather":
        sample = _GatherWithGradient.apply if needs_gradient else sample_by_gather
    return sample(value.float(), shapes, locations.float(), weights.float()).to(value.dtype)


def sample_by_grid(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample_maps`, by `grid_sample`; float32 throughout."""
    batch_size, _, num_heads, head_dim = value.shape
    num_tokens = locations.shape[1]
    grids = 2 * locations - 1
    levels = value.split([height * width for height, width in shapes], dim=1)
    output = value.new_zeros(())
    for level, (height, width) in enumerate(shapes):
        feature_map = levels[level].permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples = nn.functional.grid_sample(
            feature_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        level_weights = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        output = output + (samples * level_weights).sum(-1)
    return output.view(batch_size, num_heads * head_dim, num_tokens).transpose(1, 2).contiguous()


def sample_by_gather(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample_maps`, by `embedding_bag`; float32 throughout. Its gradients would be slow: see below.

    Goes through the tokens a cache's worth at a time.
    """
    table = bordered_table(value, shapes)
    output = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    bytes_per_token = 16 * weights[:, :1].numel()  # of an index, and of a weight, at four corners
    step = locations.shape[1] if torch.compiler.is_compiling() else max(1, BAG_BYTES // bytes_per_token)
    for start in range(0, locations.shape[1], step):
        part = slice(start, start + step)
        corners = Corners(len(value), shapes, locations[:, part])
        row_weights = corners.row_weights(weights[:, part])
        samples = nn.functional.embedding_bag(corners.rows(), table, mode="sum", per_sample_weights=row_weights)
        output[:, part] = samples.view(len(value), -1, output.shape[2])
    return output


class _GatherWithGradient(torch.autograd.Function):
    """`sample_by_gather` that keeps nothing but its arguments for the backward pass.

    The output is a sparse matrix of the weights times the table. The table's gradient is that matrix transposed times
    the gradient of the output: scipy adds it up row by row, where `embedding_bag`'s own backward pass sorts all
    indices first and takes ten times as long. The weights' gradients are products of rows, of which torch samples
    those needed.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return sample_by_gather(value, shapes, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        gradient = gradient.reshape(-1, value.shape[-1])
        corners = Corners(len(value), ctx.shapes, locations)
        rows, row_weights = corners.rows(), corners.row_weights(weights)
        table = bordered_table(value, ctx.shapes)
        starts = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=rows.dtype)
        value_gradient = None
        if ctx.needs_input_grad[0]:
            table_gradient = _transposed_product(starts, rows, row_weights, gradient, len(table))
            value_gradient = _without_borders(table_gradient, ctx.shapes, value)
        row_gradient = _row_products(starts, rows, gradient, table)
        return value_gradient, None, *corners.gradients(weights, row_gradient)


def _row_products(starts: Tensor, rows: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """`(S, K)`: each row of `gradient` `(S, D)` times the rows of the table `(S, K)` it is a sum of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        sampled = torch.sparse_csr_tensor(
            starts, rows.flatten(), torch.zeros(rows.numel()), (len(rows), len(table)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(sampled, gradient, table.T, beta=0.0).values().view(rows.shape)


def _transposed_product(starts: Tensor, rows: Tensor, weights: Tensor, gradient: Tensor, num_rows: int) -> Tensor:
    """`(num_rows, D)`: each row of `gradient` `(S, D)` added to the rows `(S, K)` it came from, times `weights`."""
    matrix = sparse.csr_array(
        (weights.flatten().numpy(), rows.flatten().numpy(), starts.numpy()), shape=(len(rows), num_rows)
    )
    return torch.from_numpy(matrix.T @ gradient.numpy())


def bordered_table(value: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """`(B, L, N, D)` maps, each with a border of zeros, as `(B * L' * N, D)` rows."""
    levels = value.flatten(2).split([height * width for height, width in shapes], dim=1)
    bordered = [
        nn.functional.pad(level.unflatten(1, shape), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for level, shape in zip(levels, shapes)
    ]
    return torch.cat(bordered, dim=1).view(-1, value.shape[-1])


def _without_borders(table: Tensor, shapes: list[tuple[int, int]], value: Tensor) -> Tensor:
    """`(B * L' * N, D)` rows of the bordered maps to maps like `value`."""
    batch_size, _, num_heads, head_dim = value.shape
    sizes = [(height + 2) * (width + 2) for height, width in shapes]
    levels = table.view(batch_size, -1, num_heads * head_dim).split(sizes, dim=1)
    inner = [
        level.unflatten(1, (height + 2, width + 2))[:, 1:-1, 1:-1].flatten(1, 2)
        for level, (height, width) in zip(levels, shapes)
    ]
    return torch.cat(inner, dim=1).view(value.shape)


class Corners:
    """The four pixels around every point: which rows of the table they are, and how much each counts.

    Works on matrices of B * T rows and N * levels * P columns, without small inner dimensions. Points further out
    than the border are moved onto it, where the maps are zero. The corners of a bag are its upper left ones, upper
    right, lower left, lower right.
    """

    def __init__(self, batch_size: int, shapes: list[tuple[int, int]], locations: Tensor):
        _, _, num_heads, num_levels, num_points, _ = locations.shape
        self.shapes = shapes
        self.batch_size, self.num_heads = batch_size, num_heads
        self.bag = (-1, num_levels * num_points)
        sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
        self.sizes = self._per_column(sizes, num_points)
        points = (locations.reshape(-1, len(self.sizes)) * self.sizes).add_(0.5)
        self.points = torch.minimum(points.clamp_(min=0), self.sizes + 1)
        self.upper_left = torch.minimum(self.points.floor(), self.sizes)
        shares = (self.points - self.upper_left).view(len(points), -1, 2)
        self.right, self.lower = shares[..., 0].contiguous(), shares[..., 1].contiguous()

    def rows(self) -> Tensor:
        """`(B * T * N, 4 * levels * P)`; int32, which `embedding_bag` reads several times faster than int64."""
        num_points = self.bag[1] // len(self.shapes)
        lines = torch.tensor([width + 2 for _, width in self.shapes])
        table_sizes = torch.tensor([(height + 2) * (width + 2) for height, width in self.shapes])
        starts = self._per_column((table_sizes.cumsum(0) - table_sizes)[:, None], num_points)
        lines = self._per_column(lines[:, None], num_points) * self.num_heads
        heads = torch.arange(self.num_heads).repeat_interleave(self.bag[1])
        columns, rows = self.upper_left.int().view(len(self.points), -1, 2).unbind(-1)
        first = torch.add((starts * self.num_heads + heads).int(), columns, alpha=self.num_heads)
        first = torch.addcmul(first, rows, lines.int())
        images = torch.arange(self.batch_size, dtype=torch.int32) * (table_sizes.sum().int() * self.num_heads)
        first.view(self.batch_size, -1).add_(images[:, None])
        below = first + lines.int()
        corners = (first, first + self.num_heads, below, below + self.num_heads)
        return torch.cat([corner.view(self.bag) for corner in corners], dim=1)

    def row_weights(self, weights: Tensor) -> Tensor:
        """`(B * T * N, 4 * levels * P)` weights of the rows; `weights` are those of the points."""
        weights = weights.reshape(self.right.shape)
        lower = weights * self.lower
        upper = weights - lower
        lower_right, upper_right = lower * self.right, upper * self.right
        corners = (upper.sub_(upper_right), upper_right, lower.sub_(lower_right), lower_right)
        return torch.cat([corner.view(self.bag) for corner in corners], dim=1)

    def gradients(self, weights: Tensor, row_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the locations and of the points' weights from that of the rows' weights."""
        corners = [part.reshape(self.right.shape) for part in row_gradient.chunk(4, dim=1)]
        upper_left, upper_right, lower_left, lower_right = corners
        upper = torch.lerp(upper_left, upper_right, self.right)
        lower = torch.lerp(lower_left, lower_right, self.right)
        weight_gradient = torch.lerp(upper, lower, self.lower)
        across = torch.lerp(upper_right.sub_(upper_left), lower_right.sub_(lower_left), self.lower)
        down = lower.sub_(upper)
        points = torch.stack((across, down), dim=-1).mul_(weights.reshape(self.right.shape)[..., None])
        inside = (self.points > 0).logical_and_(self.points < self.sizes + 1)
        location_gradient = points.view(self.points.shape).mul_(self.sizes).mul_(inside)
        return location_gradient.view(*weights.shape, 2), weight_gradient.view(weights.shape)

    def _per_column(self, per_level: Tensor, num_points: int) -> Tensor:
        """`(levels, n)` to one entry for each head, level, point and n."""
        return per_level[:, None].expand(-1, num_points, -1).flatten().repeat(self.num_heads)
