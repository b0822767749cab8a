"""Class scores of an image that a model reads in overlapping pieces, a few rows at a time.

What is kept of a piece is what its scores follow from, such as logits at a quarter of its size, and only until the
last of its rows was asked for, of its upper rows until the pieces below are read: the memory that it takes grows with
the image's width, not with its height or, of masks of queries, with the classes. The Space has a copy of this file, so
it imports nothing of the project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The pixels [start, stop) of a piece along one side of the image.

    Attributes:
        weights: `(stop - start,)` float32, what each pixel of the piece counts; at every pixel of the image those of
            all pieces sum to 1.
    """

    start: int
    stop: int
    weights: Tensor


class Rows(Protocol):
    """Scores of a piece."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the piece, `(stop - start, width, K)`, in a tensor that nothing else uses."""


def spans(length: int, side: int, stride: int, falling: bool) -> list[Span]:
    """Pieces of `side` pixels every `stride` pixels; the last is shifted back to the border. A shorter length is one
    piece.

    Args:
        falling: whether a piece counts the less the nearer its border is, in what it shares with others; else all
            count alike.
    """
    places = [
        (start, min(start + side, length)) for start in (*range(0, length - side, stride), max(length - side, 0))
    ]
    total, shares = torch.zeros(length, dtype=torch.float64), []
    for start, stop in places:
        share = torch.ones(stop - start, dtype=torch.float64)
        if falling:
            share = share.cumsum(0) - 0.5
            share = torch.minimum(share, share.flip(0))
        total[start:stop] += share
        shares.append(share)
    return [
        Span(start, stop, (share / total[start:stop]).float())
        for (start, stop), share in zip(places, shares, strict=True)
    ]


class BlendedRows:
    """The scores of all pieces, each times its weights.

    Args:
        down, across: places of the pieces from top to bottom, and from left to right.
        read: runs the model on the piece at these places.
    """

    def __init__(self, down: list[Span], across: list[Span], read: Callable[[Span, Span], Rows]) -> None:
        self.down, self.across, self.read = down, across, read
        self._open: list[tuple[Span, list[Rows]]] = []  # rows of pieces that were read and may still be asked for
        self._next, self._asked = 0, 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the image, `(stop - start, width, K)` float32.

        Each call starts no higher up than the one before; one that does begins anew, with all pieces to be read again.
        """
        if start < self._asked:
            self._open, self._next = [], 0
        self._asked = start
        self._open = [(span, pieces) for span, pieces in self._open if span.stop > start]
        while self._next < len(self.down) and self.down[self._next].start < stop:
            span = self.down[self._next]
            if span.stop > start:
                for place, pieces in self._open:
                    for piece in pieces:
                        if hasattr(piece, "forget"):  # not that of models exported before there was one
                            piece.forget(start - place.start)
                self._open.append((span, [self.read(span, column) for column in self.across]))
            self._next += 1
        result: Tensor | None = None
        for span, pieces in self._open:
            first, last = max(start, span.start), min(stop, span.stop)
            for column, piece in zip(self.across, pieces, strict=True):
                scores = piece.rows(first - span.start, last - span.start)
                weights = span.weights[first - span.start : last - span.start, None] * column.weights
                scores.mul_(weights.to(scores.device)[..., None])
                if result is None:
                    result = scores.new_zeros(stop - start, self.across[-1].stop, scores.shape[-1])
                result[first - start : last - start, column.start : column.stop] += scores
        assert result is not None
        return result
