"""The transformer decoder with DFPQ (`dfpq_faseg.py`) and HRCA (`hrca_faseg.py`), the two ideas of FASeg.

Notation: B batch, Q queries, C channels, M mask channels, L = H*W tokens of a level, W kept windows (HRCA).
Levels run from coarse to fine: 0 = 1/32, 1 = 1/16, 2 = 1/8, 3 = 1/4 of the image. Layer i attends to level i mod 4.
Valid masks are `True` on the image and `False` on padding; blocked masks are `True` where a query may not look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import FASegAttention
from .configuration_faseg import FASegConfig
from .decisions import Decisions
from .dfpq_faseg import POOLING_THRESHOLD, FASegFocusQueries, initial_attention
from .embeddings import all_rows
from .hrca_faseg import HIGH_RESOLUTION_LEVEL, FASegCrossAttention, FASegWindows


@dataclass
class FASegLevel:
    """A coarse level as the queries see it.

    `keys` with positions and `values` without, `positions`, all `(B, L, C)`; `mask_features` `(B, M, L)`; `valid`
    `(B, 1, L)` or None; `size`: height and width.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    mask_features: Tensor
    valid: Tensor | None
    size: Sequence[int]

    def mask_probs(self, mask_embeddings: Tensor) -> Tensor:
        """`(B, Q, M)` to probabilities `(B, Q, L)` that decisions read: no gradient flows through a decision."""
        return torch.matmul(mask_embeddings.detach(), self.mask_features).float().sigmoid()

    def focus_map(self, attention: Tensor) -> Tensor:
        """`(B, Q, L)` as `(B, Q, H/s, W/s)`."""
        return attention.unflatten(2, self.size)


@dataclass
class FASegFocus:
    """Where the queries looked, layer by layer (`output_focus=True`).

    `focus_maps`: per layer `(B, Q, H/s, W/s)` attention averaged over heads, on the level that the layer attended to;
    each sums to one, but those of an HRCA layer that keeps no window, which are zero, as they are outside of windows.
    `positional_queries`: per layer `(B, Q, C)` positional queries in use after it.
    `hrca_windows`: per layer None, or for an HRCA layer its kept windows `(B, W)`, best first (indices of level-0
    tokens; -1 where a padded image keeps fewer than W), and the windows' side in pixels of level 3. W may be 0.
    """

    focus_maps: list[Tensor] = field(default_factory=list)
    positional_queries: list[Tensor] = field(default_factory=list)
    hrca_windows: list[tuple[Tensor, int] | None] = field(default_factory=list)

    def record(self, attended: FASegLevel | FASegWindows, attention: Tensor, positional_queries: Tensor) -> None:
        """Add a layer: what it attended to, how, and the positional queries after it."""
        self.focus_maps.append(attended.focus_map(attention))
        self.positional_queries.append(positional_queries)
        self.hrca_windows.append(attended.reported() if isinstance(attended, FASegWindows) else None)


@dataclass
class FASegTransformerDecoderOutput:
    """
    `hidden_states`: `(B, Q, C)` per prediction, the initial queries first (decoder_layers + 1 of them);
    `intermediate_states`: the same after the final layer norm, what class and mask heads read;
    `masks_queries_logits`: `(B, Q, H/4, W/4)` for every prediction, or for the last alone; `mask_embeddings`: likewise
    `(B, Q, M)`, whose product with the mask features they are; `focus`: if asked for.
    """

    hidden_states: list[Tensor]
    intermediate_states: list[Tensor]
    masks_queries_logits: list[Tensor]
    mask_embeddings: list[Tensor]
    focus: FASegFocus | None = None


class FASegMLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(width, after) for width, after in zip(widths, widths[1:]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            hidden_states = nn.functional.relu(layer(hidden_states))
        return self.layers[-1](hidden_states)


class FASegTransformerDecoderLayer(GradientCheckpointingLayer):
    """Cross-attention, self-attention, feed-forward: all post-norm, in this order."""

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.dropout = config.dropout
        self.cross_attn = FASegCrossAttention(config, config.num_attention_heads)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.self_attn = FASegAttention(config, config.num_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.fc1 = nn.Linear(config.hidden_dim, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, config.hidden_dim)
        self.final_layer_norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        hidden_states: Tensor,
        cross_position: Tensor,
        self_position: Tensor,
        keys: Tensor,
        values: Tensor,
        blocked: Tensor | None = None,
        need_attention: bool = True,
        in_windows: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states: `(B, Q, C)`.
            cross_position: `(B or 1, Q, C)`, added to the queries of the cross-attention.
            self_position: `(B or 1, Q, C)`, added to queries and keys of the self-attention.
            keys: `(B, L, C)` with positions; `values`: `(B, L, C)` without.
            blocked: `(B, 1, Q or 1, L)` mask of the cross-attention.
            need_attention: whether the second result is wanted.
            in_windows: whether the keys are those of HRCA's windows.
        Returns:
            `(B, Q, C)` and the cross-attention averaged over heads `(B, Q, L)`, float32; None if not wanted.
        """
        queries = hidden_states + cross_position
        update, weights = self.cross_attn(queries, keys, values, blocked, need_attention, in_windows)
        hidden_states = self.cross_attn_layer_norm(hidden_states + self._drop(update))
        positioned = hidden_states + self_position
        update, _ = self.self_attn(positioned, positioned, hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(update))
        update = self.fc2(self._drop(nn.functional.relu(self.fc1(hidden_states))))
        hidden_states = self.final_layer_norm(hidden_states + self._drop(update))
        return hidden_states, weights.float().mean(1) if need_attention and weights is not None else None

    def _drop(self, update: Tensor) -> Tensor:
        return nn.functional.dropout(update, self.dropout, self.training)


class FASegTransformerDecoder(nn.Module):
    """Queries that look at one level per layer, where their own mask of one layer ago allows it (paper Sec. 3).

    Level 3 is read by HRCA: only the windows under the level-0 tokens that got most attention in the same round.
    `decisions` takes what is decided by thresholds and ranks.
    """

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.config = config
        self.decisions = Decisions()
        self.num_levels = 4 if config.use_high_resolution_cross_attention else 3
        self.queries_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.queries_embedder = nn.Embedding(config.num_queries, config.hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, config.hidden_dim)
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, config.hidden_dim, kernel_size=1)
            for _ in range(self.num_levels if config.enforce_input_projection else 0)
        )
        # A layer that runs another's weights has none of its own, so that each tensor is there and is saved once; its
        # place stays, so that a name means the same layer however weights are shared.
        self.layer_weights = config.decoder_layer_weights
        self.layers = nn.ModuleList(
            FASegTransformerDecoderLayer(config) if number == index else nn.Identity()
            for index, number in enumerate(self.layer_weights)
        )
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.focus_queries = FASegFocusQueries(config.hidden_dim) if config.use_dynamic_positional_queries else None
        self.mask_embedder = FASegMLP(config.hidden_dim, config.hidden_dim, config.mask_feature_size, num_layers=3)

    def forward(
        self,
        feature_maps: list[Tensor],
        positions: list[Tensor],
        mask_features: Tensor,
        valid: list[Tensor] | None = None,
        output_all_masks: bool = False,
        output_focus: bool = False,
        output_all_embeddings: bool = False,
    ) -> FASegTransformerDecoderOutput:
        """
        Args:
            feature_maps: four decoded maps `(B, C, H/s, W/s)`, coarse to fine.
            positions: their positional encodings, same shapes (three suffice without HRCA).
            mask_features: `(B, M, H/4, W/4)`.
            valid: per level a `(B, 1, H/s, W/s)` mask, or None to treat padding as image.
            output_all_masks: whether the masks of every layer are returned, not only the last.
            output_focus: whether to return where the queries looked.
            output_all_embeddings: whether the mask embeddings of every layer are returned, not only the last.
        """
        if self.config.enforce_input_projection:
            feature_maps = [project(level) for project, level in zip(self.input_projections, feature_maps)]
        level_embed = all_rows(self.level_embed, mask_features)
        levels = self._coarse_levels(feature_maps, positions, mask_features, level_embed, valid)
        learned = all_rows(self.queries_embedder, mask_features)
        hidden_states = all_rows(self.queries_features, mask_features).expand(mask_features.shape[0], -1, -1)
        output = FASegTransformerDecoderOutput([], [], [], [], FASegFocus() if output_focus else None)

        mask_embeddings = self._predict(hidden_states, output)
        positional_queries = self._initial_queries(learned, mask_embeddings, levels[0])
        coarse_attention: Tensor | None = None
        attended: FASegLevel | FASegWindows
        for index, weights in enumerate(self.layer_weights):
            layer = self.layers[weights]
            number = index % self.num_levels
            if number == HIGH_RESOLUTION_LEVEL:  # HRCA: the windows that got most of the coarse attention
                attended = FASegWindows(
                    self.config, cast(Tensor, coarse_attention), feature_maps, valid, self.decisions
                )
                keys, values = attended.read(feature_maps[number], positions[number], level_embed[number])
                blocked = attended.blocked()
                hidden_states, attention = layer(
                    hidden_states,
                    learned[None],
                    positional_queries,
                    keys,
                    values,
                    blocked,
                    output_focus,
                    in_windows=True,
                )
            else:  # masked attention, whose focus becomes the next positional queries: DFPQ
                attended = levels[number]
                blocked = self._blocked(attended.mask_probs(mask_embeddings), attended.valid)
                hidden_states, attention = layer(
                    hidden_states, positional_queries, positional_queries, attended.keys, attended.values, blocked
                )
                if self.focus_queries is not None:
                    positional_queries = self.focus_queries(attention, attended.positions, learned)
            if number == 0:
                coarse_attention = attention
            mask_embeddings = self._predict(hidden_states, output)
            if output.focus is not None:
                output.focus.record(attended, attention, positional_queries)

        with_masks = output.mask_embeddings if output_all_masks else [mask_embeddings]
        output.masks_queries_logits = [_masks(each, mask_features) for each in with_masks]
        if not output_all_embeddings:
            output.mask_embeddings = [mask_embeddings]
        return output

    def _coarse_levels(
        self,
        feature_maps: list[Tensor],
        positions: list[Tensor],
        mask_features: Tensor,
        level_embed: Tensor,
        valid: list[Tensor] | None,
    ) -> list[FASegLevel]:
        """Levels 0, 1 and 2. Resizing is linear: resizing the mask features once per level equals resizing the masks
        in every layer."""
        levels = []
        for index in range(HIGH_RESOLUTION_LEVEL):
            size = feature_maps[index].shape[-2:]
            values = feature_maps[index].flatten(2).transpose(1, 2) + level_embed[index]
            position = positions[index].flatten(2).transpose(1, 2)
            resized = nn.functional.interpolate(mask_features.detach(), size, mode="bilinear", align_corners=False)
            level_valid = None if valid is None else valid[index].flatten(2)
            levels.append(FASegLevel(values + position, values, position, resized.flatten(2), level_valid, size))
        return levels

    def _predict(self, hidden_states: Tensor, output: FASegTransformerDecoderOutput) -> Tensor:
        """Append a prediction of these queries to `output`; returns its mask embeddings."""
        normalised = self.layernorm(hidden_states)
        output.hidden_states.append(hidden_states)
        output.intermediate_states.append(normalised)
        output.mask_embeddings.append(self.mask_embedder(normalised))
        return output.mask_embeddings[-1]

    def _initial_queries(self, learned: Tensor, mask_embeddings: Tensor, level: FASegLevel) -> Tensor:
        """`(B, Q, C)` positional queries of the first layer, by its mask."""
        if self.focus_queries is None:
            return learned.expand(mask_embeddings.shape[0], -1, -1)
        outside = self.decisions.below(level.mask_probs(mask_embeddings), POOLING_THRESHOLD)
        return self.focus_queries(initial_attention(outside, level.valid), level.positions, learned)

    def _blocked(self, probs: Tensor, valid: Tensor | None) -> Tensor:
        """`(B, Q, L)` mask probabilities to the blocked mask `(B, 1, Q, L)` of masked attention.

        A query whose mask is empty on this level looks everywhere.
        """
        blocked = self.decisions.below(probs, self.config.attention_mask_threshold)
        if valid is not None:
            blocked = blocked | ~valid
        blocked = blocked & ~blocked.all(-1, keepdim=True)
        if valid is not None:
            blocked = blocked | ~valid
        return blocked[:, None]


def _masks(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """`(B, Q, M)` and `(B, M, H/4, W/4)` to mask logits `(B, Q, H/4, W/4)`."""
    return torch.matmul(mask_embeddings, mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])
