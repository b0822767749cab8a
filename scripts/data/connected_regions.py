"""Instances from class maps: each connected region of a class becomes a segment of its own.

`python -m scripts.data.connected_regions --dataset_name DATA --instance_classes car --output_dir SEGMENTS` is for data
whose objects seldom touch and whose label maps know classes alone. Objects that touch stay one segment, and one that
something hides in the middle becomes two: look at the result before trusting a figure on it. A split is held in memory
as encoded images until it is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_at_least, flag, parse_arguments, run_command
from scripts.data.arguments import CLASSES, DatasetArguments, check_dataset_flags
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import (
    BadSample,
    BadSamples,
    RowFormat,
    decode_sample,
    read_or_bad,
    reduced_labels,
    with_bytes,
)
from scripts.data.sources import readable
from scripts.data.synthetic_scenes import encoded, write_beside, write_shards


NEIGHBOURS = np.ones((3, 3))  # pixels that touch at a corner are connected
FEATURES = {
    "image": datasets.Image(),
    "label": datasets.Image(),
    "image_id": datasets.Value("string"),
    "segments_info": [{name: datasets.Value("int64") for name in ("id", "category_id", "iscrowd", "area")}],
}


def segments_of_classes(
    classes: np.ndarray, instance_classes: Collection[int], min_area: int
) -> tuple[np.ndarray, list[dict[str, int]]]:
    """Segment ids `(H, W)` uint16 of a class map `(H, W)`, and id, class and area of each segment.

    A class without instances is one segment. Regions of fewer than `min_area` pixels of the others have id 0, which
    is neither learnt nor counted, as has everything that is ignored.

    Raises:
        ValueError: there are more segments than 16 bits number.
    """
    ids = np.zeros(classes.shape, dtype=np.int64)
    listed: list[dict[str, int]] = []
    for index in np.unique(classes[classes != IGNORE_INDEX]).tolist():
        inside = classes == index
        regions = ndimage.label(inside, NEIGHBOURS)[0] if index in instance_classes else inside.astype(np.int64)
        areas = np.bincount(regions.ravel())
        numbers = np.zeros(len(areas), dtype=np.int64)  # of each region, 0 for those left out and what is outside
        for region in range(1, len(areas)):
            if index in instance_classes and areas[region] < min_area:
                continue
            listed.append({"id": len(listed) + 1, "category_id": index, "iscrowd": 0, "area": int(areas[region])})
            numbers[region] = len(listed)
        ids += numbers[regions]
    if len(listed) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(listed)} regions in one image: raise --min_area {min_area}")
    return ids.astype(np.uint16), listed


def image_bytes(row: dict[str, Any], form: RowFormat, name: str) -> dict[str, Any]:
    """The image of a row with its bytes, so that the data set is whole wherever it is moved.

    Raises:
        BadSample: it cannot be read.
    """
    with read_or_bad(f"image of sample {name}"):
        image = with_bytes(form.bounds.checked_value(row[form.image_column], f"image of sample {name}"))
        if image.get("bytes") is None:
            image = {"bytes": Path(image["path"]).read_bytes(), "path": Path(image["path"]).name}
    return image


def rows_of_segments(
    dataset: LabelledDataset, instance_classes: Collection[int], min_area: int
) -> Iterator[dict[str, Any]]:
    """Rows in the form of COCO's panoptic sets, images as they are. Samples that cannot be read are skipped and said.

    Raises:
        UserError: too many of them, or more regions in an image than ids.
    """
    form, names = dataset.row_format, dataset.id2label or {}
    bad = BadSamples(dataset.arguments.max_bad_samples, dataset.num_examples)
    stream = tqdm(readable(dataset.stream), dataset.split, dataset.num_examples, dynamic_ncols=True)
    for index, row in enumerate(stream):
        try:
            _, label_map, name = decode_sample(row, form, len(names), index)
            image = image_bytes(row, form, name)
        except BadSample as error:
            bad.add([str(error)], 1)
            continue
        bad.add([], 1)
        classes = label_map.numpy()
        if form.do_reduce_labels:
            classes = reduced_labels(classes)
        with errors_explained(f"sample {name}", ValueError):
            ids, listed = segments_of_classes(classes, instance_classes, min_area)
        label = encoded(Image.fromarray(ids), "PNG")
        yield {"image": image, "label": label, "image_id": name, "segments_info": listed}


@dataclass
class RegionsArguments(DatasetArguments):
    """Write a data set whose segments are the connected regions of another one's class maps."""

    instance_classes: list[str] | None = flag(None, "Names of the classes whose connected regions are instances.")
    splits: list[str] | None = flag(None, "Splits to write; by default train and validation.")
    min_area: int = flag(16, "Pixels of the smallest region that is an instance; smaller ones are ignored.")
    output_dir: str | None = flag(None, "Folder that gets the data set.")


def main() -> int:
    """Entry point."""
    arguments = parse_arguments(RegionsArguments)
    check_dataset_flags(arguments)
    check_at_least(arguments, 1, "min_area")
    if not arguments.output_dir or not arguments.instance_classes:
        raise UserError("give --output_dir and --instance_classes, names of classes whose regions are instances")
    folder = Path(arguments.output_dir)
    with errors_explained(f"--output_dir {folder}", OSError):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--output_dir {folder} is not empty: name another folder")
    opened = [LabelledDataset(arguments, split) for split in arguments.splits or ["train", "validation"]]
    for dataset in opened:
        names, split = dataset.id2label or {}, dataset.split
        if dataset.encoding != CLASSES:
            raise UserError(f"the labels are {dataset.encoding} already: this command is for class maps")
        if not names:
            raise UserError("no class names: give --id2label, or put id2label.json beside the data")
        if unknown := sorted(set(arguments.instance_classes) - set(names.values())):
            raise UserError(f"--instance_classes {unknown[0]} is no class: choose of {', '.join(names.values())}")
        things = {index for index, name in names.items() if name in arguments.instance_classes}
        rows = list(rows_of_segments(dataset, things, arguments.min_area))
        with errors_explained(f"--output_dir {folder}", OSError):
            write_shards(folder, split, rows, datasets.Features(FEATURES), shards=1)
            write_beside(folder, {"id2label.json": names, "thing_ids.json": sorted(things)})
        count = sum(segment["category_id"] in things for row in rows for segment in row["segments_info"])
        print(f"{split}: {len(rows)} images with {count} instances in {folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
