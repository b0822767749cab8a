"""The pixel decoder: four backbone maps to four decoded maps, their positional encodings and the mask features.

Notation: B batch, C channels, H and W of the (padded) image, L = H*W tokens of the levels taken together.
Levels run from coarse to fine: 0 = 1/32, 1 = 1/16, 2 = 1/8, 3 = 1/4 of the image.
Valid masks are `True` on the image and `False` on padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_faseg import FASegConfig
from .deformable_attention import FASegDeformableSelfAttention, SampledLevels, sampled_levels
from .forms_faseg import feed_forward_form, map_form
from .position_encoding import build_position_encoding


NUM_ENCODER_LEVELS = 3  # the deformable encoder works on 1/32, 1/16 and 1/8


@dataclass
class FASegPixelDecoderOutput:
    """What the transformer decoder reads.

    `feature_maps` and `positions`: four maps `(B, C, H/s, W/s)` for s = 32, 16, 8, 4; `mask_features`:
    `(B, mask_feature_size, H/4, W/4)`, whose product with a query's embedding is its mask.
    """

    feature_maps: list[Tensor]
    positions: list[Tensor]
    mask_features: Tensor


class FASegGroupNorm(nn.GroupNorm):
    """Group norm that can leave padding out of its statistics.

    A group of a single value (a narrow model, an image of 32 x 32 pixels) becomes zero before scale and bias, as with
    padding, where torch's own module refuses it.
    """

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)` features, with `valid` `(B, 1, H, W)` or None for all."""
        if valid is None:
            return torch.group_norm(features, self.num_groups, self.weight, self.bias, self.eps)
        batch_size, channels, height, width = features.shape
        grouped = features.float().view(batch_size, self.num_groups, channels // self.num_groups, height, width)
        weights = valid[:, :, None].to(grouped.dtype)
        count = (weights.sum((2, 3, 4), keepdim=True) * grouped.shape[2]).clamp(min=1)
        mean = (grouped * weights).sum((2, 3, 4), keepdim=True) / count
        variance = ((grouped - mean).square() * weights).sum((2, 3, 4), keepdim=True) / count
        normalised = ((grouped - mean) * torch.rsqrt(variance + self.eps)).view(features.shape)
        return normalised.to(features.dtype) * self.weight[:, None, None] + self.bias[:, None, None]


class FASegConvNorm(nn.Module):
    """A convolution, a group norm of 32 groups, and optionally a ReLU; padding comes out as zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool, relu: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = FASegGroupNorm(32, out_channels)
        self.relu = relu

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        features = self.norm(self.conv(features), valid)
        if self.relu:
            features = nn.functional.relu(features, inplace=True)  # nothing needs the norm's output for its gradient
        return features if valid is None else features * valid


class FASegPixelDecoderLayer(GradientCheckpointingLayer):
    """One layer of the deformable encoder: deformable self-attention, then a feed-forward, both post-norm."""

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn = FASegDeformableSelfAttention(
            config.feature_size, config.num_attention_heads, NUM_ENCODER_LEVELS
        )
        self.self_attn_layer_norm = nn.LayerNorm(config.feature_size)
        self.fc1 = nn.Linear(config.feature_size, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, config.feature_size)
        self.final_layer_norm = nn.LayerNorm(config.feature_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        levels: SampledLevels,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`(B, L, C)` tokens to `(B, L, C)`; arguments as in `FASegDeformableSelfAttention`."""
        update = self.self_attn(hidden_states, position_embeddings, levels, valid)
        update = nn.functional.dropout(update, self.dropout, self.training)
        hidden_states = self.self_attn_layer_norm(hidden_states + update)
        return feed_forward_form(hidden_states.device)(self, hidden_states)

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """`(B, L, C)` tokens to what is added to them."""
        update = nn.functional.relu(self.fc1(hidden_states), inplace=True)  # no gradient needs its input
        update = self.fc2(nn.functional.dropout(update, self.dropout, self.training))
        return nn.functional.dropout(update, self.dropout, self.training)


class FASegPixelDecoder(nn.Module):
    """Mask2Former's pixel decoder with a positional encoding K_p for each of four levels (paper Sec. 3.2).

    Args:
        config: the model's configuration.
        in_channels: channels of the backbone's maps, fine to coarse (strides 4, 8, 16, 32).
    """

    def __init__(self, config: FASegConfig, in_channels: list[int]):
        super().__init__()
        channels = config.feature_size
        num_position_levels = 4 if config.reads_high_resolution_level else NUM_ENCODER_LEVELS
        # The conditional encoding of a level reads the projected features; the finest level has no other use for them.
        projects_finest = config.positional_encoding_type == "conditional" and num_position_levels == 4
        num_projections = 4 if projects_finest else NUM_ENCODER_LEVELS
        self.input_projections = nn.ModuleList(
            FASegConvNorm(width, channels, kernel_size=1, bias=True) for width in in_channels[::-1][:num_projections]
        )
        self.position_encodings = nn.ModuleList(
            build_position_encoding(config.positional_encoding_type, channels) for _ in range(num_position_levels)
        )
        self.level_embed = nn.Parameter(torch.empty(NUM_ENCODER_LEVELS, channels))
        self.layers = nn.ModuleList(FASegPixelDecoderLayer(config) for _ in range(config.encoder_layers))
        self.num_heads = config.num_attention_heads
        self.lateral_projection = FASegConvNorm(in_channels[0], channels, kernel_size=1, bias=False)
        self.output_projection = FASegConvNorm(channels, channels, kernel_size=3, bias=False, relu=True)
        self.mask_projection = nn.Conv2d(channels, config.mask_feature_size, kernel_size=1)

    def forward(self, backbone_maps: list[Tensor], valid: list[Tensor] | None = None) -> FASegPixelDecoderOutput:
        """
        Args:
            backbone_maps: four maps of strides 4, 8, 16, 32, any float dtype. The list is emptied: without gradients
                a map's memory is free again once it has been read.
            valid: per level (coarse to fine) a `(B, 1, H/s, W/s)` mask, or None to treat padding as image.
        """
        # fp32 island: the reference runs this module outside of autocast, inputs included (spec oddities 2 and 3).
        device_type = backbone_maps[0].device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._decode(backbone_maps, valid)
        return self._decode(backbone_maps, valid)

    def _decode(self, backbone_maps: list[Tensor], valid: list[Tensor] | None) -> FASegPixelDecoderOutput:
        dtype = self.level_embed.dtype
        levels = [feature_map.to(dtype) for feature_map in reversed(backbone_maps)]
        backbone_maps.clear()
        masks = valid if valid is not None else [None] * len(levels)

        coarse = list(zip(levels[:NUM_ENCODER_LEVELS], masks))
        sources = [project(level, mask) for project, (level, mask) in zip(self.input_projections, coarse)]
        positions = [encode(level, mask) for encode, level, mask in zip(self.position_encodings, sources, masks)]
        del coarse, levels[:NUM_ENCODER_LEVELS]
        feature_maps = self._encode(sources, positions, masks)
        del sources

        # As large as all the rest together: made after the encoder, and let go once it is read.
        finest, finest_mask = levels.pop(), masks[-1]
        if len(self.position_encodings) > NUM_ENCODER_LEVELS:
            # The sine and learned encodings only ask the finest level for its size.
            project = self.input_projections[NUM_ENCODER_LEVELS:]
            source = project[0](finest, finest_mask) if project else finest
            positions.append(self.position_encodings[NUM_ENCODER_LEVELS](source, finest_mask))
            del source
        merged = self.lateral_projection(finest, finest_mask)
        del finest
        merged += _upsample(feature_maps[-1], merged.shape[-2:], masks[NUM_ENCODER_LEVELS - 1], finest_mask)
        finest = self.output_projection(merged, finest_mask)
        return FASegPixelDecoderOutput([*feature_maps, finest], positions, self.mask_projection(finest))

    def _encode(self, sources: list[Tensor], positions: list[Tensor], masks: list) -> list[Tensor]:
        """Three maps, coarse to fine, to the same three after the deformable encoder."""
        shapes = [(source.shape[-2], source.shape[-1]) for source in sources]
        hidden_states = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)
        position_embeddings = torch.cat(
            [
                position.flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, position in enumerate(positions[: len(sources)])
            ],
            dim=1,
        )
        levels = sampled_levels(shapes, self.num_heads, sources[0].device)
        valid = None if masks[0] is None else torch.cat([mask.flatten(1) for mask in masks[: len(sources)]], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, levels, valid)
        tokens = hidden_states.split([height * width for height, width in shapes], dim=1)
        maps = [map_form(level)(level, shape) for level, shape in zip(tokens, shapes)]
        return maps if valid is None else [level * mask for level, mask in zip(maps, masks)]


def _upsample(features: Tensor, size: tuple[int, int], valid: Tensor | None, target_valid: Tensor | None) -> Tensor:
    """Bilinear resize to `size`; with masks, as if the map ended where the image ends."""
    resized = nn.functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
    if valid is None or target_valid is None:
        return resized
    share = nn.functional.interpolate(valid.to(features.dtype), size=size, mode="bilinear", align_corners=False)
    return torch.where(target_valid, resized / share.clamp(min=torch.finfo(share.dtype).tiny), 0)
