"""What a model decides by thresholds and ranks. No gradient flows through a decision, and float noise may turn one.

Notation: B batch, Q queries, L tokens of a level, W kept windows (HRCA).
"""

from torch import Tensor


class Decisions:
    """Takes every decision of a decoder. Put another in its place (`decoder.decisions`) to watch or repeat some."""

    def below(self, probs: Tensor, threshold: float) -> Tensor:
        """`(B, Q, L)` mask probabilities to `True` where they are below the threshold."""
        return probs < threshold

    def best(self, scores: Tensor, count: int) -> Tensor:
        """`(B, W)` indices of the `count` largest scores `(B, L)`, the largest first."""
        return scores.topk(count, dim=-1).indices
