"""The first label maps of a split, looked at before anything is built on them: which values and classes they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from image_processing.label_maps import unique_ids
from scripts.data.id_pieces import IdPieces
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.label_encodings import SegmentForm, id_map, segment_ids
from scripts.data.samples import BadSample, RowFormat, decode_label, sample_name
from scripts.data.sources import readable
from scripts.models.tasks import SEMANTIC


BACKGROUND = "background"
LEAST_MAPS = 64  # looked at
MOST_MAPS = 1024  # looked at while one class of several alone occurs


@dataclass
class FirstLook:
    """What was seen.

    Args:
        maps: label maps that could be read.
        whole: whether the split has no more.
        stored: ids as the maps hold them -> maps with them.
        classes: classes 0..K-1 that `--class_map` and `--do_reduce_labels` make of them -> maps with them.
        instances: the ids of maps of instances of one class.
    """

    maps: int = 0
    whole: bool = False
    stored: Counter[int] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    instances: IdPieces = field(default_factory=IdPieces)

    def enough_for(self, num_labels: int) -> bool:
        """Whether so many classes were seen, in all maps together, that each of this many could have come."""
        return self.classes.total() >= num_labels

    def listed(self) -> str:
        """The stored ids, the first few."""
        ids = sorted(self.stored)
        return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")


def first_look(rows: Iterable[dict[str, Any]], form: RowFormat, most: int = MOST_MAPS) -> FirstLook:
    """What the first `LEAST_MAPS` label maps hold; up to `most` are read while fewer than two classes occur, or
    none where segments are of one class.

    Raises:
        UserError: a map that holds no ids, or ids that `--class_map` gives to no class.
    """
    look, wanted = FirstLook(), 1 if form.segments is not None and len(form.segments.classes.id2label) == 1 else 2
    for index, row in enumerate(readable(rows)):
        if index >= most or (index >= LEAST_MAPS and len(look.classes) >= wanted):
            return look
        name = sample_name(row, form.image_column, index)
        try:
            if form.segments is not None:
                look_at_segments(look, form.segments, row, form, name)
                continue
            label = decode_label(row.get(form.label_column), name, form.bounds, form.colours)
        except BadSample:
            continue  # the run will name it
        look.maps += 1
        look.stored.update(unique_ids(label.numpy()).tolist())
        if form.class_map is not None:
            label = form.class_map.apply(label, name)
        look.classes.update(classes_in(label.numpy(), form.do_reduce_labels))
    look.whole = True
    return look


def look_at_segments(look: FirstLook, segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> None:
    """Counts the classes that a model of their task learns from the segments of a row; no crowds but of a semantic
    one."""
    if segments.task == SEMANTIC:
        painted = segments.painted(row, form, name).numpy()
        stored = set(unique_ids(painted).tolist()) - {IGNORE_INDEX}
        classes = set(classes_in(painted, form.do_reduce_labels))
    else:
        found = segments.decode(row, form, name)
        stored = classes = set(found.classes[~found.crowd].tolist())
    if segments.encoding == "instances" and segments.class_column is None:
        look.instances.add(segment_ids(id_map(row, form.label_column, form, name, "map of instances"), name))
    look.maps += 1
    look.stored.update(stored)
    look.classes.update(classes)


def classes_in(label: np.ndarray, do_reduce_labels: bool) -> list[int]:
    """The classes of a decoded label map `(H, W)`, ignored pixels left out."""
    first = int(do_reduce_labels)
    return [index - first for index in unique_ids(label).tolist() if index != IGNORE_INDEX and index >= first]


def only_foreground_named(look: FirstLook) -> bool:
    """Whether maps hold 0 and 1, with 255 perhaps, so that one named class leaves out what surrounds it."""
    return set(look.stored) - {IGNORE_INDEX} == {0, 1}
