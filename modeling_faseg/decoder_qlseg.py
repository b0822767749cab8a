"""QLSeg's decoder: class queries whose attention to the image is their mask, one set per level, fused.

Notation: B batch, K classes (one query each), d channels of the encoder, D channels of the queries, L = h*w tokens of
a level, N heads. Levels run from deep to shallow. Blocked masks are `True` where a query may not look.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import FASegAttention
from .configuration_qlseg import QLSegConfig
from .decisions import Decisions
from .embeddings import all_rows


@dataclass
class QLSegDecoderOutput:
    """Per stage: fused queries `(B, K, D)` and mask logits `(B, K, h, w)`."""

    fused_queries: list[Tensor]
    masks_queries_logits: list[Tensor]


class QLSegAttention(FASegAttention):
    """Multi-head attention that can tell how much each query agrees with each token."""

    def __init__(self, config: QLSegConfig):
        super().__init__(config, config.decoder_attention_heads)

    def forward(  # type: ignore[override]
        self, queries: Tensor, tokens: Tensor, blocked: Tensor | None = None, need_similarity: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            queries: `(B, K, D)`.
            tokens: `(B, L, D)`, keys and values.
            blocked: `(B, 1, K, L)`; None blocks nothing.
            need_similarity: whether the third result is wanted.
        Returns:
            `(B, K, D)`; the weights `(B, N, K, L)`, None if the attention implementation gives none; and `(B, K, L)`,
            the scores before mask and softmax, averaged over heads: that average is a product over all channels.
        """
        query, key = self.q_proj(queries), self.k_proj(tokens)
        output, weights = self.attend(query, key, self.v_proj(tokens), blocked)
        similarity = None
        if need_similarity:
            similarity = torch.matmul(query * (self.scaling / self.num_heads), key.transpose(1, 2))
        return self.o_proj(output), weights, similarity


class QLSegDecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, cross-attention to a level, feed-forward of four widths; post-norm.

    Args:
        predicts: whether this is the last layer of its level, whose similarities are masks.
    """

    def __init__(self, config: QLSegConfig, predicts: bool):
        super().__init__()
        width = config.hidden_dim
        self.predicts = predicts
        self.dropout = config.dropout
        self.self_attn = QLSegAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.cross_attn = QLSegAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, tokens: Tensor, blocked: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(B, K, D)` queries and `(B, L, D)` tokens to queries and, from the last layer, similarities `(B, K, L)`."""
        update = self.self_attn(queries, queries)[0]
        queries = self.self_attn_layer_norm(queries + self._dropped(update))
        update, _, similarity = self.cross_attn(queries, tokens, blocked, need_similarity=self.predicts)
        queries = self.cross_attn_layer_norm(queries + self._dropped(update))
        update = self.fc2(self._dropped(nn.functional.relu(self.fc1(queries))))
        return self.final_layer_norm(queries + self._dropped(update)), similarity

    def _dropped(self, update: Tensor) -> Tensor:
        return nn.functional.dropout(update, self.dropout, self.training)


class QLSegQueryFusion(nn.Module):
    """One query per class from those of all levels, by weights per channel.

    Each level's queries are pooled by their maximum over groups of consecutive classes. `torch.chunk` makes fewer than
    `fusion_chunks` groups of some numbers of classes (11, 12 or 21 for instance).

    Deviation: the reference then reads memory that was never written; here the missing groups are zero
    (guarded by tests/modeling_qlseg/test_qlseg_fusion.py).
    """

    def __init__(self, config: QLSegConfig):
        super().__init__()
        levels = len(config.out_indices)
        self.num_chunks = config.fusion_chunks
        self.weights = nn.Linear(levels * config.fusion_chunks, levels)

    def forward(self, queries: list[Tensor]) -> Tensor:
        """`(B, K, D)` queries per level to `(B, K, D)`."""
        pooled = torch.cat([self._pool(each) for each in queries], dim=-1)
        weights = self.weights(pooled).softmax(dim=-1)  # (B, D, levels)
        return sum(each * weight[:, None] for each, weight in zip(queries, weights.unbind(-1)))

    def _pool(self, queries: Tensor) -> Tensor:
        """`(B, K, D)` to `(B, D, chunks)`."""
        groups = [group.amax(dim=1) for group in queries.chunk(self.num_chunks, dim=1)]
        return nn.functional.pad(torch.stack(groups, dim=-1), (0, self.num_chunks - len(groups)))


class QLSegDecoderStage(nn.Module):
    """Decodes the queries of every level once, sums their masks and fuses them."""

    def __init__(self, config: QLSegConfig):
        super().__init__()
        last = config.decoder_layers - 1
        self.levels = nn.ModuleList(
            nn.ModuleList(QLSegDecoderLayer(config, layer == last) for layer in range(config.decoder_layers))
            for _ in config.out_indices
        )
        self.fusion = QLSegQueryFusion(config)

    def forward(
        self, queries: list[Tensor], levels: list[Tensor], blocked: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Queries `(B, K, D)` and tokens `(B, L, D)` per level to the queries, masks `(B, K, L)`, fused queries."""
        decoded, masks = [], []
        for layers, state, tokens in zip(self.levels, queries, levels):
            for layer in cast(nn.ModuleList, layers):
                state, similarity = layer(state, tokens, blocked)
            decoded.append(state)
            masks.append(similarity)
        return decoded, sum(masks), self.fusion(decoded)


class QLSegDecoder(nn.Module):
    """Learned class queries through all stages; the masks of one stage tell the next where not to look."""

    def __init__(self, config: QLSegConfig):
        super().__init__()
        width, levels = config.hidden_dim, len(config.out_indices)
        self.threshold = config.attention_mask_threshold
        self.decisions = Decisions()
        self.input_projections = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in range(levels))
        self.input_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels))
        self.queries = nn.ModuleList(nn.Embedding(config.num_queries, width) for _ in range(levels))
        self.stages = nn.ModuleList(QLSegDecoderStage(config) for _ in range(config.decoder_stages))

    def forward(self, maps: list[Tensor]) -> QLSegDecoderOutput:
        """Maps `(B, d, h, w)` of one size, deep to shallow."""
        shape = (maps[0].shape[-2], maps[0].shape[-1])
        levels = [
            norm(project(each.flatten(2).transpose(1, 2)))
            for norm, project, each in zip(self.input_norms, self.input_projections, maps)
        ]
        queries = [
            all_rows(embedding, maps[0]).expand(maps[0].shape[0], -1, -1)
            for embedding in cast(list[nn.Embedding], self.queries)
        ]
        output = QLSegDecoderOutput([], [])
        masks = None
        for stage in self.stages:
            blocked = None if masks is None else self._blocked(masks)
            queries, masks, fused = stage(queries, levels, blocked)
            output.fused_queries.append(fused)
            output.masks_queries_logits.append(masks.unflatten(2, shape))
        return output

    def _blocked(self, masks: Tensor) -> Tensor:
        """`(B, 1, K, L)` positions of too little mask probability; a query that would see none sees all."""
        blocked = self.decisions.below(masks.detach().sigmoid(), self.threshold)
        return (blocked & ~blocked.all(dim=-1, keepdim=True))[:, None]
