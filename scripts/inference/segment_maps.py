"""What an instance or panoptic model found, as files hold it: maps of ids with their lists, COCO results, overlays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from scripts.drawing.segments import DrawnSegment, with_segments
from scripts.drawing.visualization import Palette
from scripts.inference.found_segments import FoundSegments, Instance


@dataclass(frozen=True)
class SegmentMap:
    """A map `(H, W)` int32 of ids, 0 where there is no segment, and its segments, with ids from 1."""

    ids: np.ndarray
    segments: list[DrawnSegment]

    def info(self, things_known: bool = True) -> list[dict[str, Any]]:
        """The list beside the map, as COCO's panoptic annotations have it, with scores; segments of which another
        covers all are left out.

        Args:
            things_known: whether the list says which segments are things.
        """
        boxes = ndimage.find_objects(self.ids, max_label=max((each.id for each in self.segments), default=0) or 1)
        areas = np.bincount(self.ids.ravel())
        listed = []
        for each in self.segments:
            box = boxes[each.id - 1]
            if box is None:
                continue
            about = {
                "id": each.id,
                "category_id": each.label,
                **({"isthing": int(each.is_thing)} if things_known else {}),
            }
            rows, columns = box
            corner = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            listed.append(about | {"area": int(areas[each.id]), "bbox": corner, "iscrowd": 0, "score": each.score})
        return listed

    def coloured(self) -> Image.Image:
        """The map in colours, id = R + 256 G + 65536 B, as COCO stores panoptic segments."""
        channels = [(self.ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
        return Image.fromarray(np.dstack(channels))

    def of_16_bits(self) -> Image.Image:
        """The map as it is, of 16 bits."""
        return Image.fromarray(self.ids.astype(np.uint16))

    def drawn(self, image: Image.Image, names: dict[int, str], palette: Palette | None) -> Image.Image:
        """The image under its segments, with a legend."""
        return with_segments(image, self.ids, self.segments, names, palette)


def segment_map(found: FoundSegments, stuff: Collection[int] = (), small_on_top: bool = False) -> SegmentMap:
    """The segments of an image as a map: a panoptic model's as they are, instances with the better one on top.

    Args:
        stuff: classes whose segments are no things.
        small_on_top: whether of two instances the smaller one lies on top instead, for readers' eyes.
    """
    if found.panoptic is not None:
        segments = [
            DrawnSegment(each["id"], each["label_id"], each["score"], each["label_id"] not in stuff)
            for each in found.panoptic.segments
        ]
        return SegmentMap(found.panoptic.ids, segments)
    ids = np.zeros(found.size, dtype=np.int32)
    order = list(range(len(found.instances)))[::-1]
    if small_on_top:
        order.sort(key=lambda index: -int(found.instances[index].mask.pixels.count_nonzero()))
    for index in order:
        mask = found.instances[index].mask
        ids[mask.rows, mask.columns][mask.pixels.numpy()] = index + 1
    segments = [
        DrawnSegment(number, each.label, round(each.score, 6), True) for number, each in enumerate(found.instances, 1)
    ]
    return SegmentMap(ids, segments)


def coco_results(instances: Sequence[Instance], category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """COCO results of an image without its name, best first: masks as compressed run lengths, column by column.

    Args:
        category_ids: the data's own id of each class; None where that is the class.

    There is no `bbox`: from it COCO's tools would take the areas, and AP by size would be wrong.
    """
    return [
        {
            "category_id": category_ids[each.label] if category_ids else each.label,
            "score": round(each.score, 6),
            "segmentation": each.run_lengths(),
        }
        for each in instances
    ]
