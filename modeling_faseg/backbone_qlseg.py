"""The plain vision transformer of QLSeg: timm's, under timm's names, tapped at several depths.

Notation: B batch, d channels, h and w patches along the sides, n = h*w patches of the square window.
"""

from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_qlseg import QLSegConfig


try:
    from timm.models.vision_transformer import Block, VisionTransformer
except ImportError as error:
    raise ImportError("QLSeg's backbone is timm's vision transformer: pip install timm") from error


class QLSegBlock(GradientCheckpointingLayer, Block):
    """timm's block; stochastic depth drops its feed-forward only, as mmsegmentation 0.30 builds it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop_path1 = nn.Identity()


class QLSegVisionTransformer(VisionTransformer):
    """Blocks over patches without the class token and without a final norm.

    The class token and its position are learned weights that nothing reads: the reference adds the token before the
    first block and takes it away again. They are kept because checkpoints and timm's pretrained weights hold them.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, config: QLSegConfig):
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            num_classes=0,
            global_pool="",
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path_rate,
            final_norm=False,
            weight_init="skip",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            block_fn=QLSegBlock,
        )
        self.grid_size = config.image_size // config.patch_size
        self.out_indices = list(config.out_indices)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:  # type: ignore[override]
        """`(B, 3, H, W)` images, sides multiples of the patch, to the taps `(B, d, h, w)`, shallow to deep."""
        patches = self.patch_embed.proj(pixel_values)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        tokens = (tokens + self.positions(grid))[:, 1:]
        maps = []
        for index, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            tokens = block(tokens)
            if index in self.out_indices:
                maps.append(tokens.transpose(1, 2).unflatten(2, grid))
        return maps

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """`(1, 1 + h*w, d)` position embeddings of the class token and a grid of patches."""
        if grid == (self.grid_size, self.grid_size):
            return self.pos_embed
        return resize_positions(self.pos_embed, grid)

    def fit_pretrained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under timm's names, with position embeddings brought to this model's grid."""
        table = weights.get("pos_embed")
        if table is None or table.shape[1] == self.pos_embed.shape[1]:
            return weights
        return {**weights, "pos_embed": resize_positions(table, (self.grid_size, self.grid_size))}


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """`(1, 1 + n, d)` position embeddings of a square grid, the class token's first, to `(1, 1 + h*w, d)`.

    Bicubic without antialiasing, as in the reference; timm smooths where it shrinks.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    patches = nn.functional.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)
