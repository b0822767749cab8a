"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021).

Notation: B batch, L = sum of H*W tokens over levels, N heads, C channels, P points per level and head.
Valid masks are `True` on the image and `False` on padding.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.integrations import use_kernel_forward_from_hub

from .deformable_choice import check_form
from .deformable_sampling import sample_maps


class SampledLevels(NamedTuple):
    """The maps that tokens gather from, as `sampled_levels` prepares them for all layers.

    `shapes`: height and width of each; `sizes`: the same as a tensor `(levels, 2)`; `starts`: `(levels,)` first token
    of each; `scales`: `(N * levels * P * 2,)` width and height of the level of each sampling point of a token,
    float32; `centres`: `(L, N * levels * P * 2)` centres of the tokens as shares of width and height, once for each of
    its sampling points, float32.
    """

    shapes: list[tuple[int, int]]
    sizes: Tensor
    starts: Tensor
    scales: Tensor
    centres: Tensor


def sampled_levels(
    shapes: list[tuple[int, int]], num_heads: int, device: torch.device, num_points: int = 4
) -> SampledLevels:
    """Levels of these heights and widths. Numbers are filled in on the device: a copy would wait for it."""
    sizes = torch.stack([torch.full((), side, device=device) for shape in shapes for side in shape]).view(-1, 2)
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    scales = sizes.flip(-1).float()[:, None].expand(-1, num_points, -1).flatten().repeat(num_heads)
    centres = torch.cat([pixel_centres(height, width, device) for height, width in shapes])
    return SampledLevels(shapes, sizes, starts, scales, centres.repeat(1, len(scales) // 2))


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class FASegMultiScaleDeformableAttention(nn.Module):
    """Bilinear samples of `value` at `sampling_locations`, summed with `attention_weights`.

    The signature is the one transformers' other deformable models use, so that the same Hub kernel can take over.
    Sampling runs in float32 whatever the dtype of `value`.
    """

    form: str | None = None  # see `set_sampling_form`

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """
        Args:
            value: `(B, L, N, C / N)` projected tokens, levels one after another.
            value_spatial_shapes: `(levels, 2)` heights and widths; a kernel's form of the next argument.
            value_spatial_shapes_list: height and width of each level.
            level_start_index: `(levels,)` first token of each level, for kernels.
            sampling_locations: `(B, L, N, levels, P, 2)` x and y as shares of the level's width and height.
            attention_weights: `(B, L, N, levels, P)`; they sum to 1 over levels and points.
            im2col_step: images per kernel launch, for kernels.
        Returns:
            `(B, L, C)` in the dtype of `value`.
        """
        return sample_maps(value, value_spatial_shapes_list, sampling_locations, attention_weights, self.form)


class FASegDeformableSelfAttention(nn.Module):
    """Each token gathers from a few learned places around itself, on every level."""

    def __init__(self, hidden_dim: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(hidden_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.attn = FASegMultiScaleDeformableAttention()

    def reset_parameters(self) -> None:
        """Start with zero queries' influence: head n looks along direction n, point p at distance p + 1."""
        init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().max(-1, keepdim=True)[0]
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[None, None, :, None]
        init.copy_(self.sampling_offsets.bias, offsets.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        levels: SampledLevels,
        valid: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            hidden_states: `(B, L, C)` tokens; values come from them alone.
            position_embeddings: `(B, L, C)`, added where offsets and weights are predicted.
            levels: the maps that the tokens are of.
            valid: `(B, L)`; padding gives no value. None: all tokens are image.
        Returns:
            `(B, L, C)`.
        """
        batch_size, num_tokens, hidden_dim = hidden_states.shape
        queries = hidden_states + position_embeddings
        value = self.value_proj(hidden_states)
        if valid is not None:
            value = value * valid[..., None]
        value = value.view(batch_size, num_tokens, self.num_heads, hidden_dim // self.num_heads)
        grouped = (batch_size, num_tokens, self.num_heads, self.num_levels * self.num_points)
        weights = self.attention_weights(queries).view(grouped).softmax(-1)
        weights = weights.view(*grouped[:-1], self.num_levels, self.num_points)
        offsets = self.sampling_offsets(queries).float()
        locations = torch.addcdiv(levels.centres, offsets, levels.scales).view(*weights.shape, 2)
        output = self.attn(value, levels.sizes, levels.shapes, levels.starts, locations, weights, 64)
        return self.output_proj(output)


def set_sampling_form(model: nn.Module, form: str | None) -> None:
    """Has every deformable attention of `model` sample in one form, for comparisons and where the choice was wrong.

    The setting is not saved with the model.

    Args:
        form: a name of `deformable_choice.FORMS`; None: what suits the device, as without this call.
    Raises:
        ValueError: no such form, or a model without deformable attention.
    """
    check_form(form)
    # By name: a model loaded as remote code has classes of its own.
    name = FASegMultiScaleDeformableAttention.__name__
    modules: list[Any] = [module for module in model.modules() if type(module).__name__ == name]
    if not modules:
        raise ValueError(f"{type(model).__name__} has no deformable attention whose form could be set")
    for module in modules:
        module.form = form


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """`(H*W, 2)` x and y of the pixel centres as shares of width and height, row by row, float32."""
    rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    grid_rows, grid_columns = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((grid_columns.flatten(), grid_rows.flatten()), dim=-1)
