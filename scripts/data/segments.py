"""Segments of an image, instances or pieces of stuff, as a sample holds them: they may overlap, as polygons do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_processing.segments import BoxedMask


IGNORED = 255  # what stands for no class in a painted label map


@dataclass(frozen=True)
class Segments:
    """T segments of an image.

    Each lies in one of L layers, in which none overlaps another; where no two segments overlap there is one layer.

    Args:
        layers: `(L, H, W)` int32, L at least 1; n + 1 on segment n, 0 where the layer has none.
        classes: `(T,)` int64 classes 0..K-1.
        crowd: `(T,)` bool, which segments are a region of many objects that are not told apart (COCO's `iscrowd`).
            None of them is learnt; evaluation counts nothing there.
    """

    layers: Tensor
    classes: Tensor
    crowd: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the image."""
        return self.layers.shape[-2], self.layers.shape[-1]

    def masks(self) -> Tensor:
        """`(T, H, W)` bool."""
        masks = torch.zeros(len(self) + 1, *self.size, dtype=torch.bool)
        return masks.scatter_(0, self.layers.long(), True)[1:]  # one pass over the pixels, nothing else of T masks

    def areas(self) -> Tensor:
        """`(T,)` int64 pixels of each segment."""
        return self.layers.flatten().long().bincount(minlength=len(self) + 1)[1:]

    def chosen(self, wanted: Tensor) -> Segments:
        """Those segments where `wanted` `(T,)` is True; pixels of the others have none."""
        table = torch.zeros(len(self) + 1, dtype=self.layers.dtype)
        table[1:][wanted] = torch.arange(1, int(wanted.sum()) + 1, dtype=self.layers.dtype)
        layers = table[self.layers.long()]
        filled = layers.flatten(1).any(1)
        filled[0] |= not filled.any()
        return Segments(layers[filled], self.classes[wanted], self.crowd[wanted])

    def disjoint(self) -> Segments:
        """The same where no two overlap: the smaller one lies on top, and one that is covered whole is left out."""
        if len(self.layers) == 1:
            return self
        cut = Segments(self.on_top()[None].to(self.layers.dtype), self.classes, self.crowd)
        return cut.chosen(cut.areas() > 0)

    def label_map(self, background: int = IGNORED) -> Tensor:
        """`(H, W)` uint8 classes, `background` where no segment is; the smaller of two segments lies on top."""
        return torch.cat([torch.tensor([background]), self.classes]).to(torch.uint8)[self.on_top()]

    def on_top(self) -> Tensor:
        """`(H, W)` int64: n + 1 where segment n lies on top, the smaller of two; 0 where there is none."""
        if len(self.layers) == 1:
            return self.layers[0].long()
        order = 1 + self.areas().argsort(descending=True, stable=True)
        ranks = torch.zeros(len(self) + 1, dtype=torch.int64)
        ranks[order] = torch.arange(1, len(self) + 1)
        return torch.cat([torch.zeros(1, dtype=torch.int64), order])[ranks[self.layers.long()].amax(0)]


def segments_of_ids(ids: np.ndarray, classes: Mapping[int, int], crowd: Collection[int] = ()) -> Segments:
    """Segments of a map `(H, W)` of ids.

    Args:
        classes: class of each id that is a segment; all other ids are none.
        crowd: which of these ids are a crowd.
    Returns:
        the segments in ascending order of their ids, those without a pixel left out.
    """
    present = np.unique(ids)
    kept = [id_ for id_ in present.tolist() if id_ in classes]
    numbers = np.zeros(len(present), dtype=np.int32)
    numbers[np.isin(present, kept)] = np.arange(1, len(kept) + 1)
    return Segments(
        torch.from_numpy(numbers[np.searchsorted(present, ids)])[None],
        torch.tensor([classes[id_] for id_ in kept], dtype=torch.int64),
        torch.tensor([id_ in crowd for id_ in kept], dtype=torch.bool),
    )


def segments_of_masks(masks: Iterable[Any], classes: Sequence[int], crowd: Sequence[bool], size: Any) -> Segments:
    """Segments of binary masks, which may overlap.

    Args:
        masks: T arrays `(H, W)`, true or not zero inside, or `BoxedMask`s.
        classes, crowd: of each.
        size: `(H, W)`, for an image without segments.
    Returns:
        them in the same order, those without a pixel left out; each in the first layer that is free there.
    """
    layers: list[np.ndarray] = [np.zeros(size, dtype=np.int32)]
    taken: list[np.ndarray] = [np.zeros(size, dtype=bool)]  # pixels of each layer, which are quicker to compare
    kept: list[int] = []
    for index, mask in enumerate(masks):
        box: tuple[slice, ...] = (slice(None), slice(None))
        if isinstance(mask, BoxedMask):
            box, mask = (mask.rows, mask.columns), mask.pixels
        inside = np.asarray(mask, dtype=bool)
        if not inside.any():
            continue
        kept.append(index)
        free = next((at for at, pixels in enumerate(taken) if not (pixels[box] & inside).any()), len(layers))
        if free == len(layers):
            layers.append(np.zeros(size, dtype=np.int32))
            taken.append(np.zeros(size, dtype=bool))
        np.copyto(layers[free][box], len(kept), where=inside)
        taken[free][box] |= inside
    return Segments(
        torch.from_numpy(np.stack(layers)),
        torch.tensor([int(classes[index]) for index in kept], dtype=torch.int64),
        torch.tensor([bool(crowd[index]) for index in kept], dtype=torch.bool),
    )
