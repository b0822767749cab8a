"""HRCA: high-resolution cross-attention reads level 3 only under the best-attended tokens of level 0 (paper Sec. 3.3).

Notation: B batch, Q queries, C channels, L = H*W tokens of a level, W kept windows, P = W * side * side their pixels.
Valid masks are `True` on the image and `False` on padding; blocked masks are `True` where a query may not look.
"""

from typing import cast

import torch
from torch import Tensor

from .attention import FASegAttention
from .configuration_faseg import FASegConfig
from .decisions import Decisions


HIGH_RESOLUTION_LEVEL = 3


class FASegWindows:
    """Windows of level 3, each under a level-0 token, that all queries together attended to most.

    Args:
        attention: `(B, Q, L)` of the last layer that attended to level 0, averaged over heads.
        feature_maps: four maps `(B, C, H/s, W/s)`, coarse to fine.
        valid: per level a `(B, 1, H/s, W/s)` mask, or None to treat padding as image.
    Attributes:
        tokens: `(B, W)` level-0 tokens, best first. W may be 0.
        side: pixels of level 3 along a window.
        kept: `(B, W)`, which of the windows each image keeps: as many as it would without its padding. None: all.
        pixels: `(B, P)` level-3 tokens of the windows, row by row within each.
    """

    def __init__(
        self,
        config: FASegConfig,
        attention: Tensor,
        feature_maps: list[Tensor],
        valid: list[Tensor] | None,
        decisions: Decisions,
    ):
        self.reduction, self.minimum = config.high_resolution_reduction, config.high_resolution_min_windows
        rows, self.columns = feature_maps[0].shape[-2:]
        self.fine_size = feature_maps[HIGH_RESOLUTION_LEVEL].shape[-2:]
        self.side = self.fine_size[1] // self.columns
        self.valid = valid
        num_tokens = rows * self.columns
        scores = attention.sum(1)
        if valid is not None:
            scores = scores.masked_fill(~valid[0].flatten(1), -1.0)
        num_windows = max(num_tokens // self.reduction, self.minimum)
        self.tokens = decisions.best(scores, min(num_windows, num_tokens))
        self.kept = self._kept()
        self.pixels = self._pixels()

    def read(self, feature_map: Tensor, positions: Tensor, level_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, P, C)` from level 3 and its positional encoding, both `(B, C, H/4, W/4)`, and the
        level's embedding `(C,)`."""
        values = self.gather(feature_map) + level_embed
        return values + self.gather(positions), values

    def blocked(self) -> Tensor | None:
        """`(B, 1, 1, P)` pixels that are padding or of windows that the image does not keep. None: no padding."""
        if self.valid is None:
            return None
        pixels = self.gather(self.valid[HIGH_RESOLUTION_LEVEL])[..., 0]
        kept = cast(Tensor, self.kept).repeat_interleave(self.side * self.side, dim=1)
        return ~(pixels & kept)[:, None, None, :]

    def gather(self, level_map: Tensor) -> Tensor:
        """`(B, C, H/4, W/4)` at the windows' pixels as `(B, P, C)`."""
        index = self.pixels[:, None].expand(-1, level_map.shape[1], -1)
        return level_map.flatten(2).gather(2, index).transpose(1, 2)

    def focus_map(self, attention: Tensor) -> Tensor:
        """`(B, Q, P)` as `(B, Q, H/4, W/4)`, zero outside of the windows."""
        height, width = self.fine_size
        focus_map = attention.new_zeros((*attention.shape[:2], height * width))
        index = self.pixels[:, None].expand(-1, attention.shape[1], -1)
        return focus_map.scatter(2, index, attention).unflatten(2, (height, width))

    def reported(self) -> tuple[Tensor, int]:
        """The windows `(B, W)`, -1 for those that an image does not keep, and their side."""
        return self.tokens if self.kept is None else self.tokens.masked_fill(~self.kept, -1), self.side

    def _kept(self) -> Tensor | None:
        if self.valid is None:
            return None
        num_tokens = self.valid[0].flatten(1).sum(1, keepdim=True)
        num_windows = torch.minimum((num_tokens // self.reduction).clamp(min=self.minimum), num_tokens)
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < num_windows

    def _pixels(self) -> Tensor:
        offsets = torch.arange(self.side, device=self.tokens.device)
        rows = (self.tokens // self.columns)[..., None, None] * self.side + offsets[:, None]
        columns = (self.tokens % self.columns)[..., None, None] * self.side + offsets
        return (rows * self.fine_size[1] + columns).flatten(1)


class FASegCrossAttention(FASegAttention):
    """Attention to all positions of a level, or to the pixels of windows, by the same weights."""

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        blocked: Tensor | None = None,
        need_weights: bool = False,
        in_windows: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `FASegAttention`, and with `in_windows` as `to_windows`."""
        if in_windows:
            return self.to_windows(queries, keys, values, blocked, need_weights)
        return super().forward(queries, keys, values, blocked, need_weights)

    def to_windows(
        self, queries: Tensor, keys: Tensor, values: Tensor, blocked: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `FASegAttention`, but with `blocked` `(B, 1, 1, L)`, and an image may keep no window: nothing is attended
        to then, and the output is the bias of the output projection, as torch's multi-head attention has it without
        keys.

        Nothing is computed with the weights, so that any attention implementation will do: the output is the same bit
        for bit whether they are asked for or not; those of images of which nothing is attended to are zero.
        """
        if keys.shape[1] == 0:
            none = queries.new_zeros((queries.shape[0], self.num_heads, queries.shape[1], 0))
            return self.o_proj(torch.zeros_like(queries)), none if need_weights else None
        query, key, value = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        output, _ = self.attend(query, key, value, blocked)
        weights = self.weights(query, key, blocked) if need_weights else None
        if blocked is not None:
            share = attended_share(blocked).to(output.dtype)
            output = output * share
            weights = weights * share[..., None] if weights is not None else None
        return self.o_proj(output), weights


def attended_share(blocked: Tensor) -> Tensor:
    """`(B, 1, 1, P)` to `(B, 1, 1)`: `False` for images of which nothing is attended to."""
    return ~blocked.all(-1)
