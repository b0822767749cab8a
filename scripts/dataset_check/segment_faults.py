"""What the segments of one row show: every fault is noted by the name of its finding, and none hides the others."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from scripts.cli.errors import UserError
from scripts.data.id_pieces import SPECK, pieces_of
from scripts.data.label_encodings import VOID, SegmentClasses, SegmentForm, id_map, listed_segments, segment_ids
from scripts.data.samples import BadSample, RowFormat
from scripts.data.segments import IGNORED, Segments, segments_of_ids
from scripts.dataset_check.sample_facts import SampleFacts, SegmentFacts
from scripts.dataset_check.segment_rule import SegmentRule
from scripts.models.tasks import PANOPTIC, SEMANTIC


MAPS = ("segments", "instances", "class_and_instance")  # encodings whose labels are images
SIZES = {"small": 32**2, "medium": 96**2}  # COCO's: areas below these; others are large
SAME = 0.95  # IoU above which two segments are one object
MANY_CROWDS = 5  # crowd regions of one class: COCO has one
MANY_PIECES = 10  # of a thing, none of them half of it: so many objects rather than one
PIECE_SHARE = 0.1  # of a segment's area: a smaller piece that lies apart may be a slip of the brush
NEAR = 8  # pixels: a smaller gap between two pieces is what hides an object, not what parts two
AREA_SHARE, BOX_SIDE = 0.02, 2  # by which a list may differ from its map: share of the area, pixels of a box


@dataclass(frozen=True)
class NotedClasses(SegmentClasses):
    """Classes that note a category that is none of them instead of stopping at it; its segments are left out.

    Args:
        unknown: category -> how often it was asked for.
    """

    unknown: Counter[int] = field(default_factory=Counter)

    def class_of(self, category: int, name: str) -> int:
        if not self.id2label and 0 <= category < IGNORED:  # no names: every category is a class
            return category
        if category not in self.table:
            self.unknown[category] += 1
        return self.table.get(category, IGNORED)


def read_segments(row: dict[str, Any], form: RowFormat, rule: SegmentRule, facts: SampleFacts) -> Segments | None:
    """The segments of an undecoded row as far as they can be read, whose faults are noted; None if they cannot."""
    own = rule.form.classes
    classes = NotedClasses(own.id2label, own.table, own.things)
    segment_form = replace(rule.form, classes=classes, task=SEMANTIC)  # which leaves overlaps as they are
    facts.segments = SegmentFacts()
    try:
        if segment_form.encoding == "segments":
            found, ids = read_listed(row, form, segment_form, facts)
        else:
            stored = read_stored(row, form, segment_form, facts)
            found = segment_form.decode(stored.row, form, facts.name)
            ids = stored.ids if len(stored.ids) == len(found) else list(range(1, len(found) + 1))
    except BadSample as error:
        facts.note("unreadable-map", str(error))
        return None
    except UserError as error:
        facts.note("wrong-encoding", str(error))
        return None
    if classes.unknown:
        listed = ", ".join(map(str, sorted(classes.unknown)[:5]))
        facts.note("unknown-category", f"category {listed} is no class", classes.unknown.total())
    look_at(found, ids, rule, facts)
    return found


# ---- what the forms alone tell


def read_listed(
    row: dict[str, Any], form: RowFormat, segments: SegmentForm, facts: SampleFacts
) -> tuple[Segments, list[int]]:
    """Segments of a map of ids with a list beside it, and their ids."""
    ids = segment_ids(id_map(row, form.label_column, form, facts.name, "map of segments"), facts.name)
    column = segments.segments_column
    present = dict(zip(*(numbers.tolist() for numbers in np.unique(ids, return_counts=True))))
    infos: dict[int, Any] = {}
    for each in listed_in(row.get(column)):
        try:
            id_, category = int(each["id"]), int(each["category_id"])
        except (TypeError, KeyError, ValueError):
            facts.note("segments-mismatch", f"{column} is no list of id and category_id")
            continue
        if id_ == VOID:
            facts.note("void-segment", f"{column} lists id {VOID}")
            continue
        if id_ in infos:
            facts.note("segment-listed-twice", f"id {id_} is twice in {column}")
            continue
        infos[id_] = {**each, "class": segments.classes.class_of(category, facts.name)}
    unknown = [id_ for id_ in present if id_ != VOID and id_ not in infos]
    if unknown:
        facts.note("segments-mismatch", f"segment {unknown[0]} of the map is not in {column}", len(unknown))
    if lost := [id_ for id_ in infos if id_ not in present]:
        facts.note("empty-segment", f"segment {lost[0]} of {column} has no pixel in the map", len(lost))
    compare_with_map(ids, present, infos, facts)
    classes = {id_: info["class"] for id_, info in infos.items() if info["class"] != IGNORED}
    crowd = {id_ for id_, info in infos.items() if info.get("iscrowd")}
    return segments_of_ids(ids, classes, crowd), sorted(classes.keys() & present.keys())


def listed_in(value: Any) -> list[Any]:
    """The entries of a list of segments, see `listed_segments`; one that is none of what cannot be read."""
    try:
        return listed_segments(value)
    except (ValueError, RecursionError):
        return [None]


def compare_with_map(ids: np.ndarray, present: dict[int, int], infos: dict[int, Any], facts: SampleFacts) -> None:
    """Notes listed areas and boxes `[left, top, width, height]` that are not those of the pixels."""
    listed = [id_ for id_ in infos if id_ in present]
    order, has_boxes = sorted(present), any(infos[id_].get("bbox") for id_ in listed)
    boxes = ndimage.find_objects(np.searchsorted(order, ids) + 1) if has_boxes else []
    for id_ in listed:
        area, box = infos[id_].get("area"), infos[id_].get("bbox")
        if area is not None and differs([area], [present[id_]], max(SPECK, AREA_SHARE * present[id_])):
            facts.note("wrong-area-or-box", f"segment {id_} has {present[id_]} pixels, area {area} in the list")
        elif box and boxes:
            rows, columns = boxes[order.index(id_)]
            own = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            if differs(box, own, BOX_SIDE):
                facts.note("wrong-area-or-box", f"segment {id_} has the box {own}, bbox {box} in the list")


def differs(listed: Any, own: list[int], allowed: float) -> bool:
    """Whether numbers of a list are not those of the map; whatever is no number is not."""
    try:
        return not all(abs(float(one) - other) <= allowed for one, other in zip(listed, own, strict=True))
    except (TypeError, ValueError):
        return True


@dataclass(frozen=True)
class Stored:
    """A row whose segments can be read, and the ids of instances in its map, ascending; none where it has no such."""

    row: dict[str, Any]
    ids: list[int] = field(default_factory=list)


def read_stored(row: dict[str, Any], form: RowFormat, segments: SegmentForm, facts: SampleFacts) -> Stored:
    """Notes what ids of instances tell before they become segments; mends what would hide the other faults."""
    if segments.encoding not in ("instances", "class_and_instance"):
        return Stored(row)
    label = id_map(row, form.label_column, form, facts.name, "map of instances")
    column, both = segments.class_column, None
    if segments.encoding == "instances":
        ids = segment_ids(label, facts.name)
        if column is not None:
            both = id_map(row, column, form, facts.name, "class map")
        if both is not None and both.shape != ids.shape:  # which its decoder says
            both = None
    elif label.ndim == 3 and label.shape[2] > 1:
        column, both, ids = form.label_column, label, label[..., 1].astype(np.int64)
    else:
        return Stored(row)
    present = [id_ for id_ in np.unique(ids).tolist() if id_]
    assert facts.segments is not None
    facts.segments.ids = present
    if both is not None and (mended := with_one_class_each(ids, both, segments.classes, facts)) is not None:
        file = io.BytesIO()
        Image.fromarray(mended).save(file, "PNG")
        row = {**row, str(column): {"path": None, "bytes": file.getvalue()}}
    return Stored(row, present)


def with_one_class_each(
    ids: np.ndarray, both: np.ndarray, classes: SegmentClasses, facts: SampleFacts
) -> np.ndarray | None:
    """Notes instances that lie on several classes of things.

    Args:
        ids: `(H, W)` of instances.
        both: class map `(H, W)`, or `(H, W, channels)` with the classes in its first.
    Returns:
        `both` with one class for each instance; None where that is so.
    """
    categories = both if both.ndim == 2 else both[..., 0]
    things = [category for category, index in classes.table.items() if index in classes.things]
    inside = (ids > 0) & np.isin(categories, things)
    pairs = np.unique(np.stack([ids[inside], categories[inside].astype(np.int64)]), axis=1)
    owners, counts = np.unique(pairs[0], return_counts=True)
    several = owners[counts > 1].tolist()
    if not several:
        return None
    named = ", ".join(map(str, pairs[1][pairs[0] == several[0]].tolist()[:5]))
    facts.note("instance-of-several-classes", f"instance {several[0]} lies on classes {named}", len(several))
    mended = both.copy()
    for id_ in several:
        (mended if both.ndim == 2 else mended[..., 0])[inside & (ids == id_)] = pairs[1][pairs[0] == id_][0]
    return mended


# ---- what segments of any form tell


def look_at(found: Segments, ids: Sequence[int], rule: SegmentRule, facts: SampleFacts) -> None:
    """Counts segments by class and size, and notes what is odd about them.

    Args:
        ids: what each is called in evidence.
    """
    assert facts.segments is not None
    counts, classes = facts.segments, found.classes.tolist()
    areas, crowds, things = found.areas().tolist(), found.crowd.tolist(), rule.form.classes.things
    names = [f"segment {id_} ({rule.form.classes.id2label.get(k, k)})" for id_, k in zip(ids, classes)]
    for name, index, area, crowd in zip(names, classes, areas, crowds):
        (counts.crowds if crowd else counts.classes)[index] += 1
        if area < SPECK:
            facts.note("tiny-segment", f"{name} has {area} pixel{'s' * (area > 1)}")
        if crowd and index not in things:
            facts.note("crowd-stuff", f"{name} is a crowd, and its class is stuff")
        elif not crowd:
            size = next((size for size, limit in SIZES.items() if area < limit), "large")
            counts.sizes[size] += 1
    label = rule.form.classes.id2label
    for index, number in counts.crowds.items():
        if number >= MANY_CROWDS and index in things:
            facts.note("split-crowd", f"{number} crowd regions of {label.get(index, index)}")
    if rule.task != SEMANTIC:
        for index, number in counts.classes.items():
            if number > 1 and index not in things:
                facts.note("stuff-in-segments", f"{number} segments of {label.get(index, index)}")
        total = counts.classes.total()
        if total > rule.queries:
            facts.note("more-segments-than-queries", f"{total} segments, {rule.queries} queries")
    if not len(found) and not facts.faults.keys() & {"segments-mismatch", "unknown-category"}:  # which say why
        facts.note("no-segment", "no segment of any class")
    if rule.task == PANOPTIC and (layers := found.layers).shape[0] > 1:
        several = int(layers[:, (layers > 0).sum(0) > 1].unique().count_nonzero())
        facts.note("overlapping-segments", f"{several} segments, {len(found) - len(found.disjoint())} covered whole")
    look_at_layers(found, names, rule, facts)
    look_for_duplicates(found, areas, names, facts)


def look_at_layers(found: Segments, names: list[str], rule: SegmentRule, facts: SampleFacts) -> None:
    """Notes segments in pieces that can hardly be of one object, and counts those in one piece."""
    whole = total = 0
    classes, crowds = found.classes.tolist(), found.crowd.tolist()
    for layer in found.layers.numpy():
        for number, box in enumerate(ndimage.find_objects(layer)):
            if box is None or crowds[number] or classes[number] not in rule.one_piece:
                continue
            areas, boxes = pieces_of(layer[box] == number + 1)
            total, whole = total + 1, whole + (len(areas) <= 1)
            if len(areas) >= MANY_PIECES and areas.max() < areas.sum() / 2:
                facts.note("crowd-as-thing", f"{names[number]} lies in {len(areas)} pieces")
            elif gap := widest_gap(areas, boxes):
                facts.note("scattered-instance", f"{names[number]} has pieces {gap} pixels apart")
    facts.id_pieces = total, whole


def widest_gap(areas: np.ndarray, boxes: list[tuple[slice, slice]]) -> int:
    """Pixels between the largest piece and the farthest other that is no slip; 0 unless more than the largest's size.

    What stands before an object and hides its middle is smaller than that.
    """
    if len(areas) < 2:
        return 0
    largest = boxes[int(areas.argmax())]
    size = max(side.stop - side.start for side in largest)
    gaps = [
        max(max(a.start - b.stop, b.start - a.stop) for a, b in zip(largest, box))
        for area, box in zip(areas, boxes)
        if area >= PIECE_SHARE * areas.sum()
    ]
    return max(gaps) if max(gaps) > max(size, NEAR) else 0


def look_for_duplicates(found: Segments, areas: list[int], names: list[str], facts: SampleFacts) -> None:
    """Notes pairs of segments that cover the same pixels; two of one layer never do."""
    base = len(found) + 1
    for first, second in combinations(found.layers.numpy(), 2):
        both = (first > 0) & (second > 0)
        pairs, counts = np.unique(first[both].astype(np.int64) * base + second[both], return_counts=True)
        for pair, shared in zip(pairs.tolist(), counts.tolist()):
            a, b = pair // base - 1, pair % base - 1
            iou = shared / (areas[a] + areas[b] - shared)
            if iou > SAME:
                facts.note("duplicate-segment", f"{names[a]} and {names[b]} have an IoU of {iou:.2f}")
