"""Sliding windows: an image read in overlapping crops, as mmsegmentation's `slide_inference` lays them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Square windows of `crop` pixels every `stride` pixels; smaller where the image is smaller."""

    crop: int
    stride: int

    def mean_scores(self, image: Image.Image, scores_of: Callable[[Image.Image], Tensor]) -> Tensor:
        """`(K, height, width)` class scores, averaged where windows overlap.

        Args:
            scores_of: crop -> its `(K, h, w)` scores; called on one crop at a time.
        """
        # The protocols of benchmarks name their windows, and --help names the protocols: it must not wait for torch.
        import torch

        from modeling_faseg.windows_qlseg import window_starts

        total = torch.zeros(())
        for top in window_starts(image.height, self.crop, self.stride):
            for left in window_starts(image.width, self.crop, self.stride):
                bottom, right = min(top + self.crop, image.height), min(left + self.crop, image.width)
                scores = scores_of(image.crop((left, top, right, bottom)))
                if total.ndim == 0:
                    total = scores.new_zeros(len(scores), image.height, image.width)
                    count = scores.new_zeros(image.height, image.width)
                total[:, top:bottom, left:right] += scores
                count[top:bottom, left:right] += 1
        return total.div_(count)
