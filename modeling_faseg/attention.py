"""Multi-head attention through transformers' attention interface.

Notation: B batch, N heads, C channels, Q queries, L keys.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attention_weights(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """`(B, N, Q, L)` weights in the dtype of `query`; rows sum to one."""
    scores = torch.matmul(query, key.transpose(2, 3)).mul_(scaling)  # the largest tensors of the decoder: in place
    if attention_mask is not None:
        scores.add_(attention_mask)
    return nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention by two matrix products; returns its weights, which DFPQ needs."""
    weights = attention_weights(query, key, attention_mask, scaling)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), weights


class FASegAttention(nn.Module):
    """Attention with separate query, key and value inputs.

    Args:
        config: the model's, with `hidden_dim`, `dropout` and the attention implementation.
    """

    def __init__(self, config: Any, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = config.hidden_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.k_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.v_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.o_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        blocked: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            queries: `(B, Q, C)`, with their positions added.
            keys: `(B, L, C)`, with their positions added.
            values: `(B, L, C)`.
            blocked: `(B, 1, Q or 1, L)`, `True` where a query may not look; None blocks nothing.
            need_weights: whether the model computes with the weights, which only eager attention gives.
        Returns:
            `(B, Q, C)` and the weights `(B, N, Q, L)`, None if they are not asked for and the attention implementation
            gives none.
        """
        query, key, value = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        output, weights = self.attend(query, key, value, blocked, need_weights)
        return self.o_proj(output), weights

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` without its projections: the three inputs have been through theirs, the output has not."""
        attention = eager_attention_forward
        if not need_weights:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        output, weights = attention(
            self,
            self._split_heads(query),
            self._split_heads(key),
            self._split_heads(value),
            additive_mask(blocked, query.dtype),
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return output.flatten(2), weights

    def weights(self, query: Tensor, key: Tensor, blocked: Tensor | None) -> Tensor:
        """The weights `(B, N, Q, L)` of `attend`, whatever implementation computes its output."""
        mask = additive_mask(blocked, query.dtype)
        return attention_weights(self._split_heads(query), self._split_heads(key), mask, self.scaling)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """`(B, L, C)` to `(B, N, L, C / N)`."""
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def additive_mask(blocked: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores: 0, or where blocked a number so low that nothing of the key is left."""
    if blocked is None:
        return None
    # Finite, with room for the score it is added to: a row without any key left stays finite too.
    return torch.zeros_like(blocked, dtype=dtype).masked_fill(blocked, torch.finfo(dtype).min / 2)
