"""Whether ids look like classes or like instances: the connected pieces that they lie in, over several maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage


SPECK = 4  # pixels: a smaller piece is none
MOST_CLASSES = 50  # distinct ids in all maps: more are hardly classes
MANY = 0.5  # share: of ids in several pieces, of maps that hold an id
CERTAIN, ENOUGH_MAPS = 0.8, 8  # the shares, and the maps, that leave no doubt
LONGEST_SIDE = 320  # pixels, of the maps in which pieces are counted


@dataclass
class IdPieces:
    """The ids of instances in several maps, and how many of them lie in one piece.

    Args:
        maps: read.
        stored: id -> maps that hold it.
        ids, whole: ids of all maps together, and those of them in one piece.
    """

    maps: int = 0
    stored: Counter[int] = field(default_factory=Counter)
    ids: int = 0
    whole: int = 0

    def add(self, ids: np.ndarray) -> None:
        """Counts a map `(H, W)` of ids, 0 for none, in a map as small as `thinned` makes it."""
        present, small = np.unique(thinned(ids, LONGEST_SIDE), return_inverse=True)
        places = small.reshape(thinned(ids, LONGEST_SIDE).shape)
        boxes = ndimage.find_objects(places + 1)
        self.maps += 1
        for place, id_ in enumerate(present.tolist()):
            if id_:
                self.stored[id_] += 1
                self.ids += 1
                self.whole += len(pieces_of(places[boxes[place]] == place)[0]) <= 1

    @property
    def in_several(self) -> float:
        """The share of ids that lie in several pieces."""
        return 1 - self.whole / self.ids

    @property
    def shared(self) -> float:
        """The share of maps that an id is in, on average."""
        return self.stored.total() / len(self.stored) / self.maps

    def seem_classes(self) -> bool:
        """Whether they are few, the same in most maps, and mostly in several pieces."""
        if self.maps < 2 or not self.ids or not 0 < len(self.stored) <= MOST_CLASSES:
            return False
        return self.in_several >= MANY and self.shared >= MANY

    def are_classes(self) -> bool:
        """Whether that is beyond doubt."""
        certain = self.seem_classes() and self.maps >= ENOUGH_MAPS
        return certain and self.in_several >= CERTAIN and self.shared >= CERTAIN

    def described(self) -> str:
        """What was seen."""
        ids = f"{len(self.stored)} distinct id{'s' * (len(self.stored) > 1)}"
        return (
            f"all {self.maps} maps hold {ids}, each in {100 * self.shared:.0f} % of them, and "
            f"{100 * self.in_several:.0f} % lie in several pieces: are they classes?"
        )


def pieces_of(mask: np.ndarray) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """Areas `(n,)` and boxes of the connected pieces of a mask `(H, W)`, specks left out."""
    labelled, count = ndimage.label(mask)
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labelled)
    kept = np.flatnonzero(areas >= SPECK)
    return areas[kept], [boxes[index] for index in kept]


def thinned(maps: np.ndarray, side: int) -> np.ndarray:
    """Every so many pixels of `(..., H, W)` maps that `side` of them remain at most, across and down."""
    step = max(1, -(-max(maps.shape[-2:]) // side))
    small = maps[..., step // 2 :: step, step // 2 :: step]
    return small if small.size else maps
