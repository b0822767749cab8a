"""What label maps hold: a class per pixel, or segments, in the forms that data sets have them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.samples import BadSample, RowFormat, decoded
from scripts.data.segments import IGNORED, Segments, segments_of_ids


@dataclass(frozen=True)
class SegmentClasses:
    """The classes of a data set's segments.

    Args:
        id2label: names of the classes 0..K-1.
        table: class of each category id as the data has them, `IGNORED` for one whose segments are left out.
        things: classes that have instances; the others are stuff, one segment of each per image.
    """

    id2label: dict[int, str]
    table: dict[int, int] = field(default_factory=dict)
    things: frozenset[int] = frozenset()

    def class_of(self, category: int, name: str) -> int:
        """The class of a category.

        Raises:
            UserError: it has none, in sample `name`.
        """
        if category not in self.table:
            known = f"{min(self.table)} to {max(self.table)}" if self.table else "none"
            raise UserError(
                f"category {category} of a segment in image {name} is none of the {len(self.table)} that are named "
                f"({known}): check --id2label; --class_map with `ignore: [{category}]` drops it"
            )
        return self.table[category]


@dataclass(frozen=True)
class SegmentForm:
    """How the segments of a data set are read.

    Args:
        encoding: a key of `DECODERS`.
        classes: of the segments; `--class_map` is part of them.
        segments_column: of the list of each map's segments, for `segments`.
        class_column: of the class maps that lie beside maps of instances; None where all are of one class.
    """

    encoding: str
    classes: SegmentClasses
    segments_column: str = "segments_info"
    class_column: str | None = None

    def decode(self, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
        """The segments of an undecoded row, those of ignored classes left out.

        Raises:
            BadSample: they cannot be read.
            UserError: they are not of the encoding, or of no class; other samples will not be either.
        """
        found = DECODERS[self.encoding](self, row, form, name)
        return found.chosen(found.classes != IGNORED) if bool((found.classes == IGNORED).any()) else found


def id_map(row: dict[str, Any], column: str, form: RowFormat, name: str, what: str) -> np.ndarray:
    """A map as it is stored, `(H, W)` or `(H, W, channels)` integers."""
    if row.get(column) is None:
        raise BadSample(f"{what} of sample {name}: there is none")
    ids = decoded(row[column], f"{what} of sample {name}", form.bounds, np.asarray)
    if ids.dtype.kind not in "uib":
        raise UserError(f"{what} of sample {name} holds {ids.dtype}: need integers")
    if ids.size and ids.min() < 0:
        raise UserError(f"{what} of sample {name} holds {ids.min()}: ids are 0 or larger")
    return ids


def segment_ids(ids: np.ndarray, name: str) -> np.ndarray:
    """`(H, W)` int64 ids of segments, of a map of one channel or in colours, R + 256 G + 65536 B."""
    if ids.ndim == 2:
        return ids.astype(np.int64)
    if ids.shape[2] < 3:
        raise UserError(f"map of segments of sample {name} has {ids.shape[2]} channels: need one, or colours")
    return ids[..., :3].astype(np.int64) @ np.array([1, 256, 65536])


def decode_listed(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """A map of ids and the list of their categories beside it."""
    ids = segment_ids(id_map(row, form.label_column, form, name, "map of segments"), name)
    listed = row.get(segments.segments_column)
    try:
        infos = {int(each["id"]): each for each in listed or []}
        categories = {id_: int(each["category_id"]) for id_, each in infos.items()}
    except (TypeError, KeyError, ValueError) as error:
        raise BadSample(f"{segments.segments_column} of sample {name}: no list of id and category_id") from error
    if len(infos) != len(listed or []):
        raise BadSample(f"{segments.segments_column} of sample {name}: an id is listed twice")
    unknown = sorted(set(np.unique(ids).tolist()) - set(infos) - {0})
    if unknown:
        raise BadSample(f"segment {unknown[0]} in the map of sample {name} is not in its {segments.segments_column}")
    classes = {id_: segments.classes.class_of(category, name) for id_, category in categories.items()}
    crowd = {id_ for id_, each in infos.items() if each.get("iscrowd")}
    return segments_of_ids(ids, classes, crowd)


def decode_instances(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """A map of instance ids, 0 where there is none, all of one class."""
    ids = segment_ids(id_map(row, form.label_column, form, name, "map of instances"), name)
    only = segments.classes.class_of(0, name)
    return segments_of_ids(ids, {int(id_): only for id_ in np.unique(ids) if id_})


# What a map holds, by --label_encoding; class maps are read by `samples.decode_label`.
DECODERS: dict[str, Callable[[SegmentForm, dict[str, Any], RowFormat, str], Segments]] = {
    "segments": decode_listed,
    "instances": decode_instances,
}
