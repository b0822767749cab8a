"""Findings about ids: out of range, off by one, reduced or not, 255 as a class.

Whether the stored ids start where the class names do is told by the ids that occur, and by where they lie: sky lies at
the top of images and roads at the bottom, in nearly every dataset of scenes. Where the pixels called "floor" are at
the top, and those one id lower, called "sky", would be too, the ids are off by one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scripts.data.ignored import IGNORE_INDEX
from scripts.data.samples import likely_cause
from scripts.dataset_check.finding import Evidence, Finding
from scripts.dataset_check.label_rule import OUTSIDE
from scripts.evaluation.degenerate import values_flag


TOP = {"sky", "ceiling"}
BOTTOM = {
    "carpet", "dirt", "earth", "field", "floor", "grass", "ground", "lawn", "path", "pavement", "playingfield",
    "railroad", "road", "rug", "runway", "sand", "sidewalk", "street", "terrain",
}  # fmt: skip
# Words that a name may have beside one of those.
BESIDE = {"and", "brick", "marble", "merged", "other", "stone", "stuff", "tile", "wood"}
HIGH, LOW = 0.4, 0.6  # mean height of the pixels: 0 is the top; what lies between tells nothing
LEAST_SHARE = 0.001  # of all pixels: less tells nothing either
# Ids of instances: how many tell something; the share of them, and of maps, that is nearly all; ids beyond the classes
# that are more than a slip; the share of maps that hold an id, above which it is rather a class.
LEAST_IDS, ONE_PIECE, FEW_IDS, MOST_SHARED = 10, 0.9, 3, 0.5
AND_NAME = "; --thing_classes NAME names them"
SOLID = 0.75  # share of 255's pixels away from edges, above which they cover things rather than border them


def id_findings(evidence: Evidence) -> list[Finding]:
    """What the ids that occur tell: out of range, off by one, reduced or not, 255 as a class."""
    if evidence.name_of_255 is not None:
        share, where = evidence.share(IGNORE_INDEX), evidence.where({IGNORE_INDEX})
        named = f"the class names give id 255 to {evidence.name_of_255!r}, and 255 is ignored"
        message = f"{named}: {share:.1f} % of pixels would teach nothing"
        values = {**(evidence.names or {}), IGNORE_INDEX: evidence.name_of_255}
        names = shlex.join(f"{index}={name}" for index, name in list(values.items())[-8:])
        fix = f"--mask_values {names} makes it a class; if it is none, take it out of id2label"
        details = {"percent": round(share, 3)}
        return [Finding("error", "255-as-class", where, message, fix, details, evidence.examples())]
    if not evidence.ids or evidence.segments is not None:
        return []
    instances = instances_as_classes(evidence)
    if instances or not evidence.names:
        return [instances] if instances else []
    numbering = numbering_finding(evidence) if evidence.rule.table is None else None
    out_of_range = [] if numbering or not evidence.class_pixels[OUTSIDE] else [range_finding(evidence)]
    as_class = None if numbering or out_of_range else ignored_class(evidence)
    return [finding for finding in (numbering, *out_of_range, as_class) if finding is not None]


def instances_as_classes(evidence: Evidence) -> Finding | None:
    """Ids that number the objects of each image where classes are expected; None if nothing tells so.

    Each such id lies in one piece. They are 1, 2, ... in each image, more of them in one than in another; or few
    images share an id. Where all of them are classes as well, only a suspicion is left.
    """
    ids, whole, in_a_row = evidence.pieces.tolist()
    if evidence.maps < 2 or ids < LEAST_IDS or whole < ONE_PIECE * ids:
        return None
    numbers = {number for counts in evidence.splits.values() for number in counts.ids_per_map}
    numbered = in_a_row >= ONE_PIECE * evidence.maps and len(numbers) > 2
    outside = outside_ids(evidence)
    if outside:
        shared = sum(evidence.maps_with[index] for index in outside) / len(outside) / evidence.maps
        if len(outside) < FEW_IDS or not (numbered or shared <= MOST_SHARED):
            return None
    elif not numbered or len(numbers) <= FEW_IDS or max(numbers) < 2 * FEW_IDS:
        return None
    known = [index for index in evidence.ids if index not in (0, IGNORE_INDEX)]
    held = f"ids up to {max(known)}, {100 * whole / ids:.0f} % of them in one piece" + (
        " and 1, 2, ... in each map" if numbered else ""
    )
    classes = f"for {len(evidence.names)} classes" if evidence.names else "and no class is named"
    message = f"in {evidence.maps} maps lie {held}, {classes}: are they instances?"
    level, details = "error" if outside else "warning", {"maps": evidence.maps, "ids": len(known)}
    fix = "--task instance --label_encoding instances reads them so" + ("" if evidence.names else AND_NAME)
    return Finding(level, "instances-as-classes", tuple(evidence.splits), message, fix, details, evidence.examples())


def outside_ids(evidence: Evidence) -> set[int]:
    """Stored ids of no class."""
    rule = evidence.rule
    return {index for index, count in evidence.ids.items() if count and rule.classes(np.array([index])) == OUTSIDE}


def numbering_finding(evidence: Evidence) -> Finding | None:
    """Off by one in one of its forms, with what tells so; None if nothing does."""
    names, first = evidence.names or {}, evidence.rule.first
    last = first + len(names) - 1
    present = {index for index in evidence.ids if index != IGNORE_INDEX}
    outside = {index for index in present if not first <= index <= last and not (first == 1 and index == 0)}
    fitting = likely_first(evidence.heights, names, first)
    as_given = placement(evidence.heights, names, first)
    span = f"ids {min(present, default=0)}..{max(present, default=0)} occur, names are for {first}..{last}"
    zero = f"0 covers {evidence.share(0):.1f} % of pixels in {evidence.maps_with[0]} of {evidence.maps} maps"
    if outside == {last + 1}:
        if len(as_given.fitting) >= 2 and not as_given.odd:
            return None  # the others lie where they belong: the one id beyond the classes may mark unlabelled pixels
        if 0 not in present:
            return _numbering(evidence, "shifted-by-one", f"{span}, and 0 never", fitting, as_given, first + 1)
        if first == 0:
            return _numbering(evidence, "labels-not-reduced", f"{span}, and {zero}", fitting, as_given, 1)
        return None
    if outside or fitting is None:
        return reduced_twice(evidence, present, last) if first == 1 and not outside and not as_given.fitting else None
    if first == 1 and fitting.first == 0:
        return _numbering(evidence, "labels-reduced-twice", span, fitting, as_given, 0)
    if fitting.first == 1 and 0 in present:
        return _numbering(evidence, "labels-not-reduced", zero, fitting, as_given, 1)
    return _numbering(evidence, "shifted-by-one", span, fitting, as_given, fitting.first)


def reduced_twice(evidence: Evidence, present: set[int], last: int) -> Finding | None:
    """The suspicion that classes start at 0 although 0 is said to be unlabelled; None without one."""
    if not (0 in present and evidence.ids[IGNORE_INDEX] and last not in present and evidence.enough()):
        return None
    found = f"--do_reduce_labels takes 0 for unlabelled, but 255 occurs as well and {last}, the last class, never"
    message, where = f"{found}: do the classes start at 0 already?", evidence.where({0, IGNORE_INDEX})
    fix = "look at the overlays; if so, leave --do_reduce_labels out"
    return Finding("warning", "labels-reduced-twice", where, message, fix, {}, evidence.examples())


def _numbering(
    evidence: Evidence, name: str, seen: str, fitting: Placement | None, as_given: Placement, first: int
) -> Finding:
    """A finding about the first id. `fitting` is the better placement if heights tell one."""
    fixes = {
        "labels-not-reduced": "add --do_reduce_labels, which ignores 0 and lets the classes start at 1",
        "labels-reduced-twice": "leave --do_reduce_labels out",
        "shifted-by-one": "subtract 1 from every id but 255"
        + ("" if evidence.rule.first else ", or add --do_reduce_labels, which does the same")
        if first > evidence.rule.first
        else "add 1 to every id but 255 (and look whether 255 stands for class 0 that went below zero)",
    }
    message = seen
    if fitting is not None and as_given.odd:
        message += (
            f"; as they are, {in_words(as_given.odd)} lie where they do not belong (0: top of an image, 1: bottom); "
            f"with class 0 stored as {fitting.first}, {in_words(fitting.fitting)} lie where they do"
        )
    details = {
        "first id given": evidence.rule.first,
        "first id found": first,
        "heights as given": {**as_given.fitting, **as_given.odd},
        "heights as found": fitting.fitting if fitting else {},
    }
    return Finding("error", name, tuple(evidence.splits), message, fixes[name], details, evidence.examples())


def range_finding(evidence: Evidence) -> Finding:
    """Ids that belong to no class, and their likely cause."""
    names, rule = evidence.names or {}, evidence.rule
    outside = outside_ids(evidence)
    last, reduced = rule.first + len(names) - 1, rule.first == 1
    ids = sorted(index for index in evidence.ids if index != IGNORE_INDEX and not (reduced and index == 0))
    if rule.table is not None:
        fix = f"name them in --class_map, `ignore: {sorted(outside)[:5]}` if they are to be left out"
    elif outside == {last + 1} and not reduced:
        fix = f"{last + 1} may mark unlabelled pixels: a --class_map with `ignore: [{last + 1}]` leaves them out"
    else:
        fix = likely_cause(ids, sorted(outside), len(names), reduced)
    faults = [counts.faults["ids-out-of-range"] for counts in evidence.splits.values() if counts.class_maps[OUTSIDE]]
    listed = ", ".join(map(str, sorted(outside)[:8])) + (", ..." if len(outside) > 8 else "")
    maps = evidence.class_maps[OUTSIDE]
    seen = f"in {maps} of {evidence.maps} maps, such as {', '.join(faults[0].names[:3])}"
    message = f"ids {listed} belong to no class ({rule.first}..{last}), {seen}"
    examples = [example for fault in faults for example in fault.examples][:3]
    details = {"ids": sorted(outside)[:100], "maps": maps}
    return Finding("error", "ids-out-of-range", evidence.where(outside), message, fix, details, examples)


def ignored_class(evidence: Evidence) -> Finding | None:
    """255 where a class should be: certain for masks of 0 and 255, else a suspicion; None without one."""
    share = evidence.share(IGNORE_INDEX)
    numbers = evidence.heights.get(IGNORE_INDEX, np.zeros(3))
    solid = numbers[2] / max(1.0, numbers[0])
    details = {"percent": round(share, 3), "solid": round(float(solid), 3)}
    others = set(evidence.ids) - {IGNORE_INDEX}
    where, absent = evidence.where({IGNORE_INDEX}), evidence.absent()
    if others == {0} and share and absent and evidence.rule.table is None:
        message = f"maps hold 0 and 255 only, and 255 is ignored: {evidence.called(absent)} would never be trained"
        fix = f"{values_flag(evidence.names or {})}, or store 1 in place of 255"
        return Finding("error", "255-as-class", where, message, fix, details, evidence.examples())
    if evidence.rule.first == 1 and evidence.ids[0] and share >= 0.1 and solid >= SOLID / 1.25:
        reason = "0 marks unlabelled pixels already"
    elif absent and evidence.enough() and share >= 1 and solid >= SOLID:
        reason = f"{evidence.called(absent)} never occurs"
    else:
        return None
    message = f"255, which is ignored, covers {share:.1f} % of pixels in solid areas, and {reason}: is it a class?"
    fix = (
        "look at the black areas of the overlays; if they are a class, name it: --mask_values 255=NAME with the others"
    )
    return Finding("warning", "255-as-class", where, message, fix, details, evidence.examples())


# ---- where class names expect their pixels


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
