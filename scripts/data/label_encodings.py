"""What labels hold: a class per pixel, or segments, in the forms that data sets have them in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scripts.cli.errors import UserError
from scripts.data.image_files import check_size
from scripts.data.outlines import mask_of, mask_of_polygons, yolo_polygons
from scripts.data.samples import BadSample, RowFormat, decoded, image_size, read_or_bad
from scripts.data.segments import IGNORED, Segments, segments_of_ids, segments_of_masks
from scripts.models.tasks import PANOPTIC, SEMANTIC


MOST_BYTES = 2**26  # of a text file of polygons
VOID = 0  # id of the pixels of no segment, as in COCO's panoptic maps and panopticapi
WHY_VOID = "which is that of pixels without a segment: number segments from 1 on, in list and map"


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
            named = [index for index, own in self.table.items() if own != IGNORED]
            known = f"{min(named)} to {max(named)}" if named else "none"
            raise UserError(
                f"category {category} of a segment in image {name} is none of the {len(named)} that are named "
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
        background: in painted maps of classes, the class of pixels without a segment; `IGNORED` where they have none.
        task: what they are for: panoptic segments do not overlap, and a semantic model alone learns from crowds.
    """

    encoding: str
    classes: SegmentClasses
    segments_column: str = "segments_info"
    class_column: str | None = None
    background: int = IGNORED
    task: str = SEMANTIC

    def decode(self, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
        """The segments of an undecoded row, those of ignored classes left out; for a panoptic model `disjoint`.

        Raises:
            BadSample: they cannot be read.
            UserError: they are not of the encoding, or of no class; other samples will not be either.
        """
        found = DECODERS[self.encoding](self, row, form, name)
        if bool((found.classes == IGNORED).any()):
            found = found.chosen(found.classes != IGNORED)
        return found.disjoint() if self.task == PANOPTIC else found

    def painted(self, row: dict[str, Any], form: RowFormat, name: str) -> Tensor:
        """`(H, W)` uint8 classes of an undecoded row, as a map of class ids holds them.

        With `--do_reduce_labels` they start at 1 and 0 is ignored.

        Raises:
            BadSample, UserError: as `decode`.
        """
        painted = DECODERS[self.encoding](self, row, form, name).label_map(self.background)
        return painted + 1 if form.do_reduce_labels else painted  # what is ignored, 255, becomes 0


def listed_segments(value: Any) -> list[Any]:
    """The entries of a list of segments: JSON or not, or as `datasets` hands out a `Sequence` of dictionaries, a
    dictionary of lists; none for None.

    Raises:
        ValueError: it is no list.
    """
    value = json.loads(value) if isinstance(value, str) else value
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]
    if value is not None and not isinstance(value, list):
        raise ValueError(f"a list of segments is {type(value).__name__}")
    return value or []


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
    """A map of ids, 0 where there is no segment, and the list of their categories beside it."""
    ids = segment_ids(id_map(row, form.label_column, form, name, "map of segments"), name)
    try:
        listed = listed_segments(row.get(segments.segments_column))
        infos = {int(each["id"]): each for each in listed}
        categories = {id_: int(each["category_id"]) for id_, each in infos.items()}
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise BadSample(f"{segments.segments_column} of sample {name}: no list of id and category_id") from error
    if len(infos) != len(listed):
        raise BadSample(f"{segments.segments_column} of sample {name}: an id is listed twice")
    if VOID in infos:
        raise BadSample(f"{segments.segments_column} of sample {name}: lists id {VOID}, {WHY_VOID}")
    unknown = sorted(set(np.unique(ids).tolist()) - set(infos) - {VOID})
    if unknown:
        raise BadSample(f"segment {unknown[0]} in the map of sample {name} is not in its {segments.segments_column}")
    classes = {id_: segments.classes.class_of(category, name) for id_, category in categories.items()}
    crowd = {id_ for id_, each in infos.items() if each.get("iscrowd")}
    return segments_of_ids(ids, classes, crowd)


def decode_instances(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """A map of instance ids, 0 where there is none, all of one class or beside a class map."""
    ids = segment_ids(id_map(row, form.label_column, form, name, "map of instances"), name)
    if segments.class_column is None:
        only = segments.classes.class_of(0, name)
        return segments_of_ids(ids, {int(id_): only for id_ in np.unique(ids) if id_})
    categories = id_map(row, segments.class_column, form, name, "class map")
    if categories.ndim != 2:
        raise UserError(f"class map of sample {name} has shape {categories.shape}: need one channel of class ids")
    if categories.shape != ids.shape:
        raise BadSample(f"sample {name}: map of instances {ids.shape} but class map {categories.shape}")
    return instances_of_classes(segments.classes, ids, categories, name)


def decode_class_and_instance(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """An annotation image of transformers' `run_instance_segmentation`: class and instance in its first channels."""
    channels = id_map(row, form.label_column, form, name, "annotation image")
    if channels.ndim != 3 or channels.shape[2] < 2:
        raise UserError(
            f"annotation image of sample {name} has shape {channels.shape}: need the class in the first of two "
            "channels or more, the instance in the second; --label_encoding instances reads maps of one"
        )
    return instances_of_classes(segments.classes, channels[..., 1].astype(np.int64), channels[..., 0], name)


def instances_of_classes(classes: SegmentClasses, ids: np.ndarray, categories: np.ndarray, name: str) -> Segments:
    """Instances of things, and of stuff one segment for each class that occurs.

    Pixels of things without an instance belong to no segment, nor do those of ignored classes.

    Args:
        ids: `(H, W)` int64 instances, 0 for none.
        categories: `(H, W)` integers as the data has them.
    Raises:
        BadSample: an instance with pixels of two classes.
    """
    present, places = np.unique(categories, return_inverse=True)
    of_category = np.array([classes.class_of(int(category), name) for category in present], dtype=np.int64)
    painted = of_category[places.reshape(categories.shape)]
    is_thing = np.isin(of_category, list(classes.things))[places.reshape(categories.shape)]
    keys = np.where(is_thing, ids * (IGNORED + 1) + painted, painted)  # of instances above all of stuff
    found: dict[int, int] = {}
    first: dict[int, int] = {}
    for key in np.unique(keys).tolist():
        instance, index = divmod(key, IGNORED + 1)
        if index == IGNORED or (not instance and index in classes.things):
            continue
        if instance and first.setdefault(instance, index) != index:
            raise BadSample(
                f"instance {instance} of sample {name} lies on two classes of its class map, "
                f"{classes.id2label.get(first[instance], first[instance])} and {classes.id2label.get(index, index)}"
            )
        found[key] = index
    return segments_of_ids(keys, found)


def decode_coco(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """COCO's annotations of an image, JSON: `{"size": [H, W] or null, "annotations": [...]}`."""
    what = f"annotations of sample {name}"
    try:
        found = json.loads(row.get(form.label_column) or "")
        size, annotations = found["size"], found["annotations"]
        kinds = [(int(each["category_id"]), bool(each.get("iscrowd"))) for each in annotations]
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise BadSample(f"{what}: no JSON of COCO's annotations") from error
    with read_or_bad(what):
        height, width = size or image_size(row, form, name)
        check_size(width, height)
        if not (type(height) is type(width) is int and height > 0 and width > 0):
            raise ValueError(f"its image has size {[height, width]}")
    masks = (
        mask_of(each.get("segmentation"), (height, width), f"segment {each.get('id')} of sample {name}")
        for each in annotations
    )
    classes = [segments.classes.class_of(category, name) for category, _ in kinds]
    return segments_of_masks(masks, classes, [is_crowd for _, is_crowd in kinds], (height, width))


def decode_yolo(segments: SegmentForm, row: dict[str, Any], form: RowFormat, name: str) -> Segments:
    """A text file of polygons; none where an image has no segments."""
    what, value = f"polygons of sample {name}", row.get(form.label_column)
    content = b""
    with read_or_bad(what):
        height, width = image_size(row, form, name)
        if value is not None:
            checked = form.bounds.checked_value(value, what)
            content = checked.get("bytes") or b""
            if path := not content and checked.get("path"):
                if Path(path).stat().st_size > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
                content = Path(path).read_bytes()
    found = yolo_polygons(content, name)
    masks = (
        mask_of_polygons([corners * (width, height)], (height, width), f"a polygon of sample {name}")
        for _, corners in found
    )
    classes = [segments.classes.class_of(category, name) for category, _ in found]
    return segments_of_masks(masks, classes, [False] * len(found), (height, width))


# What a map holds, by --label_encoding; class maps are read by `samples.decode_label`.
DECODERS: dict[str, Callable[[SegmentForm, dict[str, Any], RowFormat, str], Segments]] = {
    "segments": decode_listed,
    "instances": decode_instances,
    "class_and_instance": decode_class_and_instance,
    "coco": decode_coco,
    "yolo": decode_yolo,
}
