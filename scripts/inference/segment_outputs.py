"""What `predict.py` writes of each image with an instance or a panoptic model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from scipy import ndimage

from scripts.data.bands import for_eyes
from scripts.drawing.png import write_png
from scripts.drawing.visualization import class_colour
from scripts.inference.found_segments import FoundSegments, SegmentPredictor
from scripts.inference.image_outputs import OutputFiles
from scripts.inference.output_kinds import SEGMENT_ENDINGS
from scripts.inference.regions import Region, region_of_mask, write_geotiff
from scripts.inference.segment_maps import coco_results, segment_map
from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK


@dataclass
class SegmentOutputs(OutputFiles):
    """Writes what was asked for of each image.

    Args:
        stuff: classes that have no instances; None where the model does not say which.
        category_ids: the id of each class in the data that the model learnt from; None where that is the class.
    Attributes:
        empty: images in which nothing was found.
    """

    endings: ClassVar[dict[str, tuple[str, ...]]] = SEGMENT_ENDINGS
    stuff: Collection[int] | None = None
    category_ids: Sequence[int] | None = None
    empty: int = field(default=0, init=False)

    def write(self, path: Path, target: PurePath, image: Image.Image, predictor: SegmentPredictor) -> None:
        found = predictor(image)
        self.empty += not (found.instances if found.panoptic is None else found.panoptic.segments)
        about = {"file_name": (target.parent / path.name).as_posix(), "height": found.size[0], "width": found.size[1]}
        if "overlay" in self.kinds:
            drawn = segment_map(found, self.stuff or (), small_on_top=True).drawn(
                for_eyes(image), self.names, self.palette
            )
            write_png(drawn, self.file(target, "overlay"), self.overwrite)
        if {"ids", "segments"} & {*self.kinds}:
            segments = segment_map(found, self.stuff or ())
            if "ids" in self.kinds:
                write_png(segments.of_16_bits(), self.file(target, "ids"), self.overwrite)
            if "segments" in self.kinds:
                write_png(segments.coloured(), self.file(target, "segments"), self.overwrite)
                png = f"{target.as_posix()}{self.endings['segments'][0]}"
                info = segments.info(self.stuff is not None)
                info = [{**each, "category_id": self.category_of(each["category_id"])} for each in info]
                listed = {"file_name": png, "segments_info": info}
                self.of_images["segments"].append((about, [listed]))
        place = self.place_of(path, found.size)
        self.write_polygons(path, target, place, partial(self.regions, found))
        if place is not None and "geotiff" in self.kinds:
            ids = segment_map(found, self.stuff or ()).ids
            with atomic_file(self.file(target, "geotiff")) as file:
                write_geotiff(ids.astype(np.uint16), place, file)
        if "instances" in self.kinds:
            self.of_images["instances"].append((about, coco_results(found.instances, self.category_ids)))

    def regions(self, found: FoundSegments) -> Iterator[Region]:
        """The segments as polygons, instances best first and whole, though others may overlap them."""
        if found.panoptic is None:
            for number, each in enumerate(found.instances, 1):
                rows, columns = each.mask.rows, each.mask.columns
                about = {"id": number, "score": round(each.score, 6)}
                yield region_of_mask(each.mask.pixels.numpy(), rows.start, columns.start, each.label, about)
            return
        segments = segment_map(found, self.stuff or ())
        boxes = ndimage.find_objects(segments.ids)
        for listed in segments.info(self.stuff is not None):
            rows, columns = boxes[listed["id"] - 1]
            about = {key: listed[key] for key in ("id", "score", "isthing") if key in listed}
            mask = segments.ids[rows, columns] == listed["id"]
            yield region_of_mask(mask, rows.start, columns.start, listed["category_id"], about)

    def category_of(self, index: int) -> int:
        """The id of a class in the data that the model learnt from."""
        return self.category_ids[index] if self.category_ids else index

    def common_text(self, kind: str, images: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> str:
        images = sorted(images, key=lambda image: image[0]["file_name"])  # processes share them
        ids = image_ids([about["file_name"] for about, _ in images])
        if kind == "instances":
            results = [
                {"image_id": image_id, "file_name": about["file_name"], **result}
                for image_id, (about, found) in zip(ids, images, strict=True)
                for result in found
            ]
            if results:  # COCO's form is a list, which has no other place for the mark
                results[0] = {"written_by": MARK, **results[0]}
            return json.dumps(results) + "\n"
        content: dict[str, Any] = {
            "info": {"description": MARK},
            "images": [{"id": image_id, **about} for image_id, (about, _) in zip(ids, images, strict=True)],
            "annotations": [
                {"image_id": image_id, **listed}
                for image_id, (_, found) in zip(ids, images, strict=True)
                for listed in found
            ],
            "categories": [
                {"id": self.category_of(index), "name": name, "color": list(class_colour(index, self.palette))}
                | ({} if self.stuff is None else {"isthing": int(index not in self.stuff)})
                for index, name in sorted(self.names.items())
            ],
        }
        return json.dumps(content) + "\n"


def image_ids(file_names: Sequence[str]) -> list[int]:
    """COCO's ids of images: the numbers that they are named, as COCO's own are, else 1, 2, 3 in their order."""
    stems = [PurePath(name).stem for name in file_names]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({*map(int, stems)}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))
