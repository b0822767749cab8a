"""Which samples of a training split are held back to evaluate on (`--train_val_split`).

The choice follows from the names of the samples alone, else from their order: it is the same in every process and at
every start. Neighbours, such as frames of one video, stay together, for a model knows an image whose neighbour it saw.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.arguments import HELD_BACK, SPLITS
from scripts.data.folders import counted


LAST_NUMBER = re.compile(r"[_\-. ]*\d+(?=\D*$)")
TOLERANCE = 0.5  # whole groups may make a share that is so much larger or smaller than the one asked for
SHOWN = 5  # groups in a line


@dataclass(frozen=True)
class HeldBack:
    """Samples that are evaluated on in place of being trained on.

    Args:
        chosen: `(N,)` bool, whether each sample of the split as it is stored is held back.
        how: by what they were chosen, in words.
    """

    chosen: np.ndarray
    how: str

    def kept(self, split: str) -> np.ndarray:
        """`(N,)` bool: the samples of `validation`, or those of any other name, which are trained on."""
        return self.chosen if SPLITS.get(split, split) == HELD_BACK else ~self.chosen

    def digest(self) -> str:
        """The same for the same choice."""
        return hashlib.sha256(np.packbits(self.chosen).tobytes()).hexdigest()

    def described(self, share: float) -> str:
        """The choice in one line."""
        held, total = int(self.chosen.sum()), len(self.chosen)
        return f"{HELD_BACK}: {held} of {total} images held back (--train_val_split {share:g}), {self.how}"


def held_back(share: float, count: int, names: Sequence[Any] | None = None) -> HeldBack:
    """The samples to hold back of `count`.

    Whole groups by folder where some make about the share, else by what names have before their last number, else the
    last names of each group. Without names, the last rows.

    Args:
        names: of the samples, as paths without endings where they are files.
    Raises:
        UserError: fewer than two samples.
    """
    if count < 2:
        raise UserError(
            f"--train_val_split {share:g}: the training split has {counted(count, 'image')}, which cannot be shared"
        )
    wanted = min(max(share * count, 1), count - 1)
    chosen = np.zeros(count, dtype=bool)
    if names is None:
        chosen[count - round(wanted) :] = True
        return HeldBack(chosen, "the last rows")
    stems = [str(name) for name in names]
    for group_of in (folder_of, series_of):
        groups: dict[str, list[int]] = defaultdict(list)
        for index, stem in enumerate(stems):
            groups[group_of(stem)].append(index)
        if taken := whole_groups({name: len(members) for name, members in groups.items()}, wanted):
            chosen[[index for name in taken for index in groups[name]]] = True
            return HeldBack(chosen, f"whole groups: {listed(taken)}")
    ends = last_of_groups(groups, stems, wanted)
    chosen[ends] = True
    if len(groups) == 1:
        return HeldBack(chosen, f"the last by name, from {stems[ends[0]]} on")
    return HeldBack(chosen, f"the last by name of each group: {listed(groups)}")


def listed(groups: Iterable[str]) -> str:
    """The first names of groups, and how many there are more."""
    names = sorted(groups, key=natural)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def folder_of(stem: str) -> str:
    """The folder of a sample, "" without one."""
    return stem.rpartition("/")[0]


def series_of(stem: str) -> str:
    """What a name has before its last number, with its folder: `seq1` of `seq1_0005`."""
    folder, slash, name = stem.rpartition("/")
    return folder + slash + LAST_NUMBER.sub("", name)


def natural(name: str) -> tuple[Any, ...]:
    """Sorts names so that `frame_9` comes before `frame_10`."""
    parts = re.split(r"(\d+)", name)
    return (tuple((int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)), name)


def whole_groups(sizes: dict[str, int], wanted: float) -> list[str]:
    """Names of the groups that together come closest to `wanted` samples, one more at a time in an order that their
    names' digests give; none where they come not close enough.
    """
    taken: list[str] = []
    total = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()):
        if abs(total + sizes[name] - wanted) < abs(total - wanted):
            taken.append(name)
            total += sizes[name]
    close = abs(total - wanted) <= TOLERANCE * wanted and total < sum(sizes.values())
    return taken if close else []


def last_of_groups(groups: dict[str, list[int]], stems: list[str], wanted: float) -> list[int]:
    """The last samples by name of every group, about the same share of each, `wanted` in all."""
    share, ends, passed = wanted / len(stems), [], 0
    for name in sorted(groups, key=natural):
        members = sorted(groups[name], key=lambda index: natural(stems[index]))
        count = round((passed + len(members)) * share) - round(passed * share)
        passed += len(members)
        ends += members[len(members) - count :]
    return ends
