"""The transformer decoder with DFPQ and HRCA, the two ideas of FASeg.

Notation: B batch, Q queries, C channels, L = H*W tokens of a level, N heads, W kept windows (HRCA).
Levels run from coarse to fine: 0 = 1/32, 1 = 1/16, 2 = 1/8, 3 = 1/4 of the image. Layer i attends to level i mod 4.
Valid masks are `True` on the image and `False` on padding; blocked masks are `True` where a query may not look.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import FASegAttention
from .configuration_faseg import FASegConfig


POOLING_THRESHOLD = 0.5
HIGH_RESOLUTION_LEVEL = 3


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


class FASegFocusQueries(nn.Module):
    """Positional queries that point where each query looked one layer ago (DFPQ, paper Sec. 3.2)."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, attention: Tensor, positions: Tensor, learned: Tensor) -> Tensor:
        """
        Args:
            attention: `(B, Q, L)` cross-attention of the previous layer, averaged over heads; rows sum to 1.
            positions: `(B, L, C)` positional encoding of the level that was attended to.
            learned: `(Q, C)` learned positional queries, added before the MLP.
        Returns:
            `(B, Q, C)` positional queries. Gradients flow through all three arguments.
        """
        focus = torch.matmul(attention.to(positions.dtype), positions)
        return self.fc2(nn.functional.relu(self.fc1(focus + learned)))


class FASegTransformerDecoderLayer(GradientCheckpointingLayer):
    """Cross-attention, self-attention, feed-forward: all post-norm, in this order."""

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.dropout = config.dropout
        self.cross_attn = FASegAttention(config, config.num_attention_heads)
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
        attended_share: Tensor | None = None,
        need_weights: bool = True,
        report_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states: `(B, Q, C)`.
            cross_position: `(B or 1, Q, C)`, added to the queries of the cross-attention.
            self_position: `(B or 1, Q, C)`, added to queries and keys of the self-attention.
            keys: `(B, L, C)` with positions; `values`: `(B, L, C)` without.
            blocked: `(B, 1, Q or 1, L)` mask of the cross-attention.
            attended_share: `(B, 1, 1)`, 0 for images of which nothing is attended to.
            need_weights: whether the model computes with the cross-attention's weights.
            report_weights: whether they are to be looked at, without a change of anything else.
        Returns:
            `(B, Q, C)` and the cross-attention averaged over heads `(B, Q, L)`, float32, or None.
        """
        update, weights = self.cross_attn(
            hidden_states + cross_position, keys, values, blocked, need_weights, attended_share, report_weights
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self._drop(update))
        positioned = hidden_states + self_position
        update, _ = self.self_attn(positioned, positioned, hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(update))
        update = self.fc2(self._drop(nn.functional.relu(self.fc1(hidden_states))))
        hidden_states = self.final_layer_norm(hidden_states + self._drop(update))
        if weights is None or not (need_weights or report_weights):
            return hidden_states, None
        return hidden_states, weights.float().mean(1)

    def _drop(self, update: Tensor) -> Tensor:
        return nn.functional.dropout(update, self.dropout, self.training)


class FASegTransformerDecoder(nn.Module):
    """Queries that look at one level per layer, where their own mask of one layer ago allows it (paper Sec. 3).

    Level 3 is read by HRCA: only the windows under the level-0 tokens that got most attention in the same round.
    """

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.config = config
        self.num_levels = 4 if config.use_high_resolution_cross_attention else 3
        self.queries_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.queries_embedder = nn.Embedding(config.num_queries, config.hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, config.hidden_dim)
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, config.hidden_dim, kernel_size=1)
            for _ in range(self.num_levels if config.enforce_input_projection else 0)
        )
        self.layers = nn.ModuleList(FASegTransformerDecoderLayer(config) for _ in range(config.decoder_layers))
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
        batch_size = mask_features.shape[0]
        if self.config.enforce_input_projection:
            feature_maps = [project(level) for project, level in zip(self.input_projections, feature_maps)]
        coarse_maps = feature_maps[:HIGH_RESOLUTION_LEVEL]
        # Only the decisions of masked attention read these, and no gradient flows through a decision.
        # Resizing is linear: resizing the mask features once per level equals resizing the masks in every layer.
        level_mask_features = [
            nn.functional.interpolate(
                mask_features.detach(), size=level.shape[-2:], mode="bilinear", align_corners=False
            ).flatten(2)
            for level in coarse_maps
        ]
        tokens = [
            level.flatten(2).transpose(1, 2) + self.level_embed.weight[index]
            for index, level in enumerate(coarse_maps)
        ]
        position_tokens = [position.flatten(2).transpose(1, 2) for position in positions[: len(tokens)]]
        keys = [level + position for level, position in zip(tokens, position_tokens)]

        learned = self.queries_embedder.weight
        hidden_states = self.queries_features.weight.expand(batch_size, -1, -1)
        positional_queries = learned.expand(batch_size, -1, -1)
        output = FASegTransformerDecoderOutput([], [], [], [], FASegFocus() if output_focus else None)
        coarse_attention = None

        for index, layer in enumerate(self.layers):
            level = index % self.num_levels
            normalised = self._record(hidden_states, output)
            if level != HIGH_RESOLUTION_LEVEL or output_all_masks or output_all_embeddings:
                mask_embeddings = self.mask_embedder(normalised)
            if output_all_masks:
                output.masks_queries_logits.append(_masks(mask_embeddings, mask_features))
            if output_all_embeddings:
                output.mask_embeddings.append(mask_embeddings)
            if level == HIGH_RESOLUTION_LEVEL:
                windows = self._keep_windows(cast(Tensor, coarse_attention), feature_maps, valid)
                key, value, blocked, attended_share = self._read_windows(windows, feature_maps, positions, valid)
                hidden_states, attention = layer(
                    hidden_states,
                    learned[None],
                    positional_queries,
                    key,
                    value,
                    blocked,
                    attended_share,
                    need_weights=False,
                    report_weights=output_focus,
                )
                if output.focus is not None:
                    if attention is not None and attended_share is not None:
                        attention = attention * attended_share
                    output.focus.focus_maps.append(self._window_focus(attention, windows, feature_maps))
                    output.focus.positional_queries.append(positional_queries)
                    kept = self._windows_kept(windows, valid)
                    reported = windows if kept is None else windows.masked_fill(~kept, -1)
                    output.focus.hrca_windows.append((reported, self._window_side(feature_maps)))
                continue

            probs = torch.matmul(mask_embeddings.detach(), level_mask_features[level]).float().sigmoid()
            level_valid = None if valid is None else valid[level].flatten(2)
            if index == 0 and self.focus_queries is not None:
                positional_queries = self._initial_queries(probs, position_tokens[0], level_valid)
            hidden_states, attention = layer(
                hidden_states,
                positional_queries,
                positional_queries,
                keys[level],
                tokens[level],
                self._blocked(probs, level_valid),
            )
            if level == 0:
                coarse_attention = attention
            is_last = index == len(self.layers) - 1
            if self.focus_queries is not None and (output_focus or not is_last):
                positional_queries = self.focus_queries(attention, position_tokens[level], learned)
            if output.focus is not None:
                output.focus.focus_maps.append(attention.unflatten(2, feature_maps[level].shape[-2:]))
                output.focus.positional_queries.append(positional_queries)
                output.focus.hrca_windows.append(None)

        mask_embeddings = self.mask_embedder(self._record(hidden_states, output))
        output.mask_embeddings.append(mask_embeddings)
        output.masks_queries_logits.append(_masks(mask_embeddings, mask_features))
        return output

    def _record(self, hidden_states: Tensor, output: FASegTransformerDecoderOutput) -> Tensor:
        """Append the queries to `output`; returns what the heads read of them."""
        normalised = self.layernorm(hidden_states)
        output.hidden_states.append(hidden_states)
        output.intermediate_states.append(normalised)
        return normalised

    def _blocked(self, probs: Tensor, valid: Tensor | None) -> Tensor:
        """`(B, Q, L)` mask probabilities to the blocked mask `(B, 1, Q, L)` of masked attention.

        A query whose mask is empty on this level looks everywhere.
        """
        blocked = probs < self.config.attention_mask_threshold
        padding = torch.zeros_like(blocked) if valid is None else ~valid.expand_as(blocked)
        blocked = blocked | padding
        return torch.where(blocked.all(-1, keepdim=True), padding, blocked)[:, None]

    def _initial_queries(self, probs: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """`(B, Q, C)` positional queries of the first layer, when no attention exists yet.

        They average the positions where the first mask is *below* one half: the reference inverts the paper's mask,
        and the released weights were trained so (spec oddity 1).
        """
        outside = probs < POOLING_THRESHOLD
        if valid is not None:
            outside = outside & valid
        shares = outside.float() / (outside.sum(-1, keepdim=True) + 1e-6)
        return cast(FASegFocusQueries, self.focus_queries)(shares, positions, self.queries_embedder.weight)

    def _keep_windows(self, attention: Tensor, feature_maps: list[Tensor], valid: list[Tensor] | None) -> Tensor:
        """`(B, W)` level-0 tokens that all queries together attended to most, best first."""
        num_tokens = feature_maps[0].shape[-2] * feature_maps[0].shape[-1]
        num_windows = max(num_tokens // self.config.high_resolution_reduction, self.config.high_resolution_min_windows)
        scores = attention.sum(1)
        if valid is not None:
            scores = scores.masked_fill(~valid[0].flatten(1), -1.0)
        return scores.topk(min(num_windows, num_tokens), dim=-1).indices

    def _read_windows(
        self, windows: Tensor, feature_maps: list[Tensor], positions: list[Tensor], valid: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys and values `(B, W * side * side, C)` of the kept windows, with the blocked mask and share if padded."""
        index = self._window_pixels(windows, feature_maps)
        values = _gather_pixels(feature_maps[HIGH_RESOLUTION_LEVEL], index)
        values = values + self.level_embed.weight[HIGH_RESOLUTION_LEVEL]
        keys = values + _gather_pixels(positions[HIGH_RESOLUTION_LEVEL], index)
        if valid is None:
            return keys, values, None, None
        kept = cast(Tensor, self._windows_kept(windows, valid))
        pixels = _gather_pixels(valid[HIGH_RESOLUTION_LEVEL], index)[..., 0]
        pixels = pixels & kept.repeat_interleave(index.shape[1] // max(windows.shape[1], 1), dim=1)
        return keys, values, ~pixels[:, None, None, :], pixels.any(1)[:, None, None].to(keys.dtype)

    def _windows_kept(self, windows: Tensor, valid: list[Tensor] | None) -> Tensor | None:
        """Which of `windows` `(B, W)` each image keeps: as many as it would without its padding. None: all."""
        if valid is None:
            return None
        num_tokens = valid[0].flatten(1).sum(1, keepdim=True)
        num_windows = (num_tokens // self.config.high_resolution_reduction).clamp(
            min=self.config.high_resolution_min_windows
        )
        return torch.arange(windows.shape[1], device=windows.device) < torch.minimum(num_windows, num_tokens)

    def _window_side(self, feature_maps: list[Tensor]) -> int:
        """Pixels of level 3 along a window, which lies under one token of level 0."""
        return feature_maps[HIGH_RESOLUTION_LEVEL].shape[-1] // feature_maps[0].shape[-1]

    def _window_pixels(self, windows: Tensor, feature_maps: list[Tensor]) -> Tensor:
        """`(B, W * side * side)` level-3 tokens of the windows `(B, W)`, row by row within each."""
        columns = feature_maps[0].shape[-1]
        fine_columns = feature_maps[HIGH_RESOLUTION_LEVEL].shape[-1]
        side = self._window_side(feature_maps)
        offsets = torch.arange(side, device=windows.device)
        rows = (windows // columns)[..., None, None] * side + offsets[:, None]
        pixels = rows * fine_columns + (windows % columns)[..., None, None] * side + offsets
        return pixels.flatten(1)

    def _window_focus(self, attention: Tensor | None, windows: Tensor, feature_maps: list[Tensor]) -> Tensor:
        """`(B, Q, W * side * side)` attention of an HRCA layer as `(B, Q, H/4, W/4)`, zero outside of its windows."""
        batch_size, num_queries = len(windows), self.config.num_queries
        height, width = feature_maps[HIGH_RESOLUTION_LEVEL].shape[-2:]
        focus_map = torch.zeros((batch_size, num_queries, height * width), device=windows.device)
        if attention is not None:
            index = self._window_pixels(windows, feature_maps)[:, None].expand(-1, num_queries, -1)
            focus_map = focus_map.scatter(2, index, attention)
        return focus_map.unflatten(2, (height, width))


def _masks(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """`(B, Q, M)` and `(B, M, H/4, W/4)` to mask logits `(B, Q, H/4, W/4)`."""
    return torch.matmul(mask_embeddings, mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])


def _gather_pixels(feature_map: Tensor, index: Tensor) -> Tensor:
    """`(B, C, H, W)` at the tokens `index` `(B, K)` as `(B, K, C)`."""
    channels = feature_map.shape[1]
    return feature_map.flatten(2).gather(2, index[:, None].expand(-1, channels, -1)).transpose(1, 2)
