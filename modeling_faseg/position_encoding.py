"""The paper's three positional encodings K_p of an image feature map: conditional, sine and learned.

Notation: B batch, C channels. Valid masks are `True` on the image and `False` on padding.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init


class FASegConditionalPositionEncoding(nn.Conv2d):
    """A depthwise 3x3 convolution of the features themselves (the released models' K_p; no residual)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)` features, zero on padding, to their `(B, C, H, W)` encoding."""
        return super().forward(features)


class FASegSinePositionEncoding(nn.Module):
    """Mask2Former's sines and cosines of the relative row and column (half of the channels each)."""

    def __init__(self, channels: int, temperature: float = 10000.0):
        super().__init__()
        self.num_frequencies = channels // 2
        self.temperature = temperature

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)` features, looked at for their size alone, to a `(B, C, H, W)` encoding."""
        rows, columns = relative_coordinates(features, valid)
        exponents = torch.arange(self.num_frequencies, dtype=torch.float32, device=features.device)
        frequencies = self.temperature ** (2 * torch.div(exponents, 2, rounding_mode="floor") / self.num_frequencies)
        encodings = []
        for coordinates in (rows, columns):
            angles = 2 * math.pi * coordinates[..., None] / frequencies
            encodings.append(torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2))
        rows_part, columns_part = encodings
        height, width = features.shape[-2:]
        rows_part = rows_part[:, :, None].expand(-1, -1, width, -1)
        columns_part = columns_part[:, None].expand(-1, height, -1, -1)
        encoding = torch.cat((rows_part, columns_part), dim=-1).permute(0, 3, 1, 2)
        return encoding.expand(features.shape[0], -1, -1, -1).to(features.dtype)


class FASegLearnedPositionEncoding(nn.Module):
    """A learned `grid_size` x `grid_size` table, stretched over the image."""

    def __init__(self, channels: int, grid_size: int = 32):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, channels, grid_size, grid_size))

    def reset_parameters(self) -> None:
        """As torch initialises an embedding."""
        init.normal_(self.table)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)` features, looked at for their size alone, to a `(B, C, H, W)` encoding."""
        rows, columns = relative_coordinates(features, valid, centred=True)
        height, width = features.shape[-2:]
        grid = torch.stack((columns[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)), dim=-1)
        table = self.table.float().expand(grid.shape[0], -1, -1, -1)
        encoding = nn.functional.grid_sample(
            table, 2 * grid - 1, mode="bilinear", padding_mode="border", align_corners=False
        )
        return encoding.expand(features.shape[0], -1, -1, -1).to(features.dtype)


def relative_coordinates(features: Tensor, valid: Tensor | None, centred: bool = False) -> tuple[Tensor, Tensor]:
    """Rows `(B or 1, H)` and columns `(B or 1, W)` as shares of the image's height and width, float32.

    Row y of H is (y + 1) / H as in DETR, or its centre (y + 0.5) / H if `centred`. With `valid`, a `(B, 1, H, W)`
    mask whose image lies at the top left, H and W are those of the image without its padding.
    """
    height, width = features.shape[-2:]
    shift = 0.5 if centred else 1.0
    rows = torch.arange(height, dtype=torch.float32, device=features.device)[None] + shift
    columns = torch.arange(width, dtype=torch.float32, device=features.device)[None] + shift
    if valid is None:
        return rows / height, columns / width
    heights = valid[:, 0].any(2).sum(1, keepdim=True).clamp(min=1)
    widths = valid[:, 0].any(1).sum(1, keepdim=True).clamp(min=1)
    return rows / heights, columns / widths


def build_position_encoding(encoding_type: str, channels: int) -> nn.Module:
    """The K_p named by `FASegConfig.positional_encoding_type` for one level."""
    classes = {
        "conditional": FASegConditionalPositionEncoding,
        "sine": FASegSinePositionEncoding,
        "learned": FASegLearnedPositionEncoding,
    }
    return classes[encoding_type](channels)
