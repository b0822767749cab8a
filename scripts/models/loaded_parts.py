"""What pretrained weights filled of a network, part by part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


# A wrapper of the whole network, which says nothing, and the number of one of several alike.
WRAPPER = re.compile(r"^_backbone\.")
NUMBER = re.compile(r"_?\d+$")


def part_of(name: str) -> str:
    """What a tensor belongs to: the first part of its name, without a number."""
    first = WRAPPER.sub("", name).split(".", 1)[0]
    return NUMBER.sub("", first) or first


def table(loaded: Iterable[str], new: Iterable[str], left_out: Iterable[str]) -> str:
    """How many tensors of each part were loaded, are as the model began with them, and were left out of the weights.

    Returns:
        a heading and a line per part, in the order in which the parts come.
    """
    counts = [Counter(map(part_of, names)) for names in (loaded, new, left_out)]
    parts = list(dict.fromkeys(part for column in counts for part in column))
    width = max(len(part) for part in parts)
    rows = [("part", "loaded", "new", "left out"), *((part, *(column[part] for column in counts)) for part in parts)]
    return "\n".join(f"  {part:<{width}} {a:>8} {b:>8} {c:>8}" for part, a, b, c in rows)
