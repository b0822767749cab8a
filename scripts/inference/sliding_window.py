"""How an image is cut into overlapping pieces: windows as mmsegmentation's `slide_inference` lays them, whose scores
are averaged, and tiles, whose scores are blended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from scripts.inference.tiles import Span


Grid = tuple[list["Span"], list["Span"]]  # from top to bottom, and from left to right


@dataclass(frozen=True)
class Windows:
    """Square windows of `crop` pixels every `stride` pixels; smaller where the image is smaller. All count alike."""

    crop: int
    stride: int

    def grid(self, height: int, width: int) -> Grid:
        """The windows over an image of this size."""
        # The protocols of benchmarks name their windows, and --help names the protocols: it must not wait for torch.
        from scripts.inference.tiles import spans

        down, across = (spans(length, self.crop, self.stride, falling=False) for length in (height, width))
        return down, across


@dataclass(frozen=True)
class Tiles:
    """Tiles of `height` x `width` pixels, of which neighbours share `overlap` (rows, columns) of pixels; smaller where
    the image is smaller. In what they share, a tile counts the less the nearer its border is."""

    height: int
    width: int
    overlap: tuple[int, int]

    def grid(self, height: int, width: int) -> Grid:
        """The tiles over an image of this size."""
        from scripts.inference.tiles import spans

        down = spans(height, self.height, self.height - self.overlap[0], falling=True)
        return down, spans(width, self.width, self.width - self.overlap[1], falling=True)
