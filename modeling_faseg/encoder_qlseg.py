"""QLSeg's multi-level encoder: deformable attention across maps of one size from several depths of the backbone.

Notation: B batch, d channels, h and w of a map, L = levels * h * w tokens.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_qlseg import QLSegConfig
from .deformable_attention import FASegDeformableSelfAttention, SampledLevels, sampled_levels
from .position_encoding import FASegSinePositionEncoding


class QLSegEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention, then a feed-forward, both post-norm."""

    def __init__(self, config: QLSegConfig):
        super().__init__()
        width, levels = config.hidden_size, len(config.out_indices)
        self.self_attn = FASegDeformableSelfAttention(width, config.encoder_attention_heads, levels)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, levels: SampledLevels) -> Tensor:
        """`(B, L, d)` tokens to `(B, L, d)`; arguments as in `FASegDeformableSelfAttention`."""
        update = self.self_attn(hidden_states, position_embeddings, levels)
        # Twice the tokens: the reference's attention adds them, and its layer adds them again.
        hidden_states = self.self_attn_layer_norm(2 * hidden_states + update)
        update = self.fc2(nn.functional.relu(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + update)


class QLSegEncoder(nn.Module):
    """Maps of the backbone to as many maps in which the levels have read each other."""

    def __init__(self, config: QLSegConfig):
        super().__init__()
        width, levels = config.hidden_size, len(config.out_indices)
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, kernel_size=1), nn.GroupNorm(32, width)) for _ in range(levels)
        )
        self.position_encoding = FASegSinePositionEncoding(width)
        self.level_embed = nn.Parameter(torch.empty(levels, width))
        self.layers = nn.ModuleList(QLSegEncoderLayer(config) for _ in range(config.encoder_layers))
        self.num_heads = config.encoder_attention_heads

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps `(B, d, h, w)` of one size, shallow to deep, to the same deep to shallow."""
        sources = [project(each) for project, each in zip(self.input_projections, maps)]
        shape = (sources[0].shape[-2], sources[0].shape[-1])
        hidden_states = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)
        position = self.position_encoding(sources[0]).flatten(2).transpose(1, 2)
        positions = torch.cat([position + embedding for embedding in self.level_embed], dim=1)
        levels = sampled_levels([shape] * len(sources), self.num_heads, hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions, levels)
        read = hidden_states.unflatten(1, (len(sources), *shape)).permute(0, 1, 4, 2, 3)
        return [read[:, level] for level in reversed(range(len(sources)))]
