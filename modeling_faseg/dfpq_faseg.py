"""DFPQ: dynamic focus-aware positional queries (paper Sec. 3.2).

Notation: B batch, Q queries, C channels, L tokens of a level.
"""

import torch
from torch import Tensor, nn


POOLING_THRESHOLD = 0.5


class FASegFocusQueries(nn.Module):
    """Positional queries that point where each query looked one layer ago."""

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


def initial_attention(outside: Tensor, valid: Tensor | None) -> Tensor:
    """What stands for the attention `(B, Q, L)` of the layer before the first, when none exists yet.

    Its queries average the positions `outside`, where the first mask is *below* `POOLING_THRESHOLD`: the reference
    inverts the paper's mask, and the released weights were trained so (spec oddity 1).
    """
    if valid is not None:
        outside = outside & valid
    return outside.float() / (outside.sum(-1, keepdim=True) + 1e-6)
