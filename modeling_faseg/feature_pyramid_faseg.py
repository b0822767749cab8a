"""The simple feature pyramid of ViTDet: the last map of a plain vision transformer to maps of four strides.

Notation: B batch, C channels of the transformer, F channels of the pyramid, H and W of the (padded) image.
"""

import torch
from torch import Tensor, nn


PATCH = 16  # the stride of the map that the pyramid is built on
PATCHES = (PATCH, 14)  # strides of the transformers that can give it


class FASegChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of `(B, C, H, W)` maps."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FASegSimpleFeaturePyramid(nn.Module):
    """Four maps from one ("Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527,
    Sec. 3 and appendix A.2).

    Stride 4 comes of two transposed convolutions with a layer norm and a GELU between them, 8 of one, 16 is the map
    itself and 32 its maximum over 2 x 2. Each then goes through convolutions of 1 x 1 and 3 x 3, a layer norm after
    either.

    Args:
        in_channels: C, of the transformer's map.
        out_channels: F, of all four maps.
        patch: stride of the transformer's map: 16, or 14, which sees images at 14/16 of their size.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int = PATCH):
        super().__init__()
        self.patch = patch
        half, quarter = in_channels // 2, in_channels // 4
        four = [
            nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
            FASegChannelLayerNorm(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
        ]
        eight = [nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2)]
        resized: list[tuple[list[nn.Module], int]] = [
            (four, quarter), (eight, half), ([], in_channels), ([nn.MaxPool2d(kernel_size=2)], in_channels),
        ]  # fmt: skip
        self.levels = nn.ModuleList(
            nn.Sequential(*resize, *_projection(width, out_channels)) for resize, width in resized
        )

    def images(self, pixel_values: Tensor) -> Tensor:
        """`(B, 3, H, W)` images as the transformer takes them, so that its map is `(B, C, H/16, W/16)`."""
        return pixel_values if self.patch == PATCH else seven_eighths(pixel_values)

    def forward(self, features: Tensor) -> list[Tensor]:
        """`(B, C, H/16, W/16)` to four maps `(B, F, H/s, W/s)` for s = 4, 8, 16, 32."""
        return [level(features) for level in self.levels]


def seven_eighths(images: Tensor) -> Tensor:
    """`(B, 3, H, W)` images at 14/16 of their size, bilinear: `(B, 3, 7H/8, 7W/8)`; H and W multiples of 8.

    Without antialiasing, which so small a change hardly needs. Then 8 pixels give 7 that lie between them, and a
    product is exact in every runtime, where coordinates in a large image are not.
    """
    unit = torch.eye(8, dtype=images.dtype, device=images.device)
    weights = nn.functional.interpolate(unit[None], size=7, mode="linear", align_corners=False)[0]
    wide = (images.unflatten(3, (-1, 8)) @ weights).flatten(3).transpose(2, 3)
    return (wide.unflatten(3, (-1, 8)) @ weights).flatten(3).transpose(2, 3)


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    """What every level ends with."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        FASegChannelLayerNorm(out_channels, eps=1e-6),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        FASegChannelLayerNorm(out_channels, eps=1e-6),
    ]
