"""Whether the stored ids start where the class names do: told by the ids that occur, and by where they lie.

Sky lies at the top of images and roads at the bottom, in nearly every dataset of scenes. Where the pixels called
"floor" are at the top, and those one id lower, called "sky", would be too, the ids are off by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


TOP = {"sky", "ceiling"}
BOTTOM = {
    "carpet", "dirt", "earth", "field", "floor", "grass", "ground", "lawn", "path", "pavement", "playingfield",
    "railroad", "road", "rug", "runway", "sand", "sidewalk", "street", "terrain",
}  # fmt: skip
# Words that a name may have beside one of those.
BESIDE = {"and", "brick", "marble", "merged", "other", "stone", "stuff", "tile", "wood"}
HIGH, LOW = 0.4, 0.6  # mean height of the pixels: 0 is the top; what lies between tells nothing
LEAST_SHARE = 0.001  # of all pixels: less tells nothing either


@dataclass(frozen=True)
class Placement:
    """Where the pixels of some names lie if class 0 is stored as `first`: the names at home, and those out of place.

    Args:
        fitting, odd: name -> mean height.
    """

    first: int
    fitting: dict[str, float]
    odd: dict[str, float]


def expected_place(name: str) -> str | None:
    """ "top", "bottom" or None, where nothing is known of a class called `name`."""
    words = set(re.findall(r"[a-z]+", re.split(r"[,;/(]", name.lower())[0])) - BESIDE
    if len(words) != 1:
        return None
    return "top" if words <= TOP else "bottom" if words <= BOTTOM else None


def placement(heights: Mapping[int, np.ndarray], names: Mapping[int, str], first: int) -> Placement:
    """How the `names` fit the heights of the ids if class 0 is stored as `first`.

    Args:
        heights: id -> (pixels, sum of heights, ...).
    """
    total = sum(numbers[0] for numbers in heights.values())
    fitting: dict[str, float] = {}
    odd: dict[str, float] = {}
    for index, name in names.items():
        place, numbers = expected_place(name), heights.get(index + first)
        if place is None or numbers is None or numbers[0] < LEAST_SHARE * total:
            continue
        height = float(numbers[1] / numbers[0])
        if height < HIGH or height > LOW:
            (fitting if (place == "top") == (height < HIGH) else odd)[name] = height
    return Placement(first, fitting, odd)


def likely_first(heights: Mapping[int, np.ndarray], names: Mapping[int, str], first: int) -> Placement | None:
    """The placement with another `first` that fits clearly better than the one given; None if there is none."""
    given = placement(heights, names, first)
    if not given.odd:
        return None
    others = [placement(heights, names, other) for other in (first - 1, first + 1)]
    better = [
        other
        for other in others
        if not other.odd and len(other.fitting) >= 2 and len(other.fitting) > len(given.fitting)
    ]
    return max(better, key=lambda other: len(other.fitting), default=None)


def in_words(heights: Mapping[str, float]) -> str:
    """`'sky' 0.21, 'road' 0.78`."""
    return ", ".join(f"{name!r} {height:.2f}" for name, height in sorted(heights.items())[:4])
