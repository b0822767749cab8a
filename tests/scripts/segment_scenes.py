"""The same segments in the forms that people keep them in, for tests.

Rectangles of three classes, whose polygons with whole corners are exactly their pixels.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample, decode_segments


SIZE = (40, 60)
NAMES = ("disc", "bar", "sky")
CATEGORIES = {3: "disc", 7: "bar", 90: "sky"}  # COCO's ids have gaps
TRAIN = [f"a{index}" for index in range(6)]
VALIDATION = ["v0", "v1"]


@dataclass(frozen=True)
class Box:
    """A segment: class and sides in pixels; `crowd` as COCO's iscrowd."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    crowd: bool = False

    def mask(self):
        inside = np.zeros(SIZE, dtype=bool)
        inside[self.top : self.bottom, self.left : self.right] = True
        return inside

    def polygon(self):
        corners = [(self.left, self.top), (self.right, self.top), (self.right, self.bottom), (self.left, self.bottom)]
        return [side for corner in corners for side in corner]


def scene(name, overlap=False):
    """Boxes of an image in four columns, which its name tells; an image that ends in 5 has none."""
    rng = np.random.default_rng(sum(name.encode()))
    if name.endswith("5"):
        return []
    boxes = []
    for column in range(4):
        top, height = int(rng.integers(0, 25)), int(rng.integers(2, 15))
        width = int(rng.integers(3, 15)) + (20 if overlap and column < 2 else 0)
        left = 15 * column
        boxes.append(Box(int(rng.integers(0, 3)), left, top, left + width, top + height))
    return boxes


def write_image(file: Path, name: str):
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(name.encode()))
    Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(file)


def id_map(boxes, ids=None):
    """`(H, W)` int64: n + 1, or the given ids, on box n."""
    painted = np.zeros(SIZE, dtype=np.int64)
    for index, box in enumerate(boxes):
        painted[box.mask()] = ids[index] if ids else index + 1
    return painted


def class_map(boxes, none=255):
    """`(H, W)` uint8 classes."""
    painted = np.full(SIZE, none, dtype=np.uint8)
    for box in boxes:
        painted[box.mask()] = box.label
    return painted


def colours(ids):
    """`(H, W, 3)` uint8: R + 256 G + 65536 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def plain_code(mask):
    """Uncompressed run-length code."""
    flat = mask.T.ravel().astype(np.uint8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(SIZE), "counts": counts if not flat[0] else [0, *counts]}


def segmentation_of(box, kind):
    """As COCO's json has it: `polygon`, `code` or `packed`."""
    if kind == "polygon":
        return [box.polygon()]
    if kind == "code":
        return plain_code(box.mask())
    from pycocotools import mask

    packed = mask.encode(np.asfortranarray(box.mask().astype(np.uint8)))
    return {"size": list(SIZE), "counts": packed["counts"].decode()}


def coco(scenes, kind="polygon", ending=".png"):
    """COCO's json of instances of `{name: boxes}`."""
    ids = list(CATEGORIES)
    images = [
        {"id": 100 + at, "file_name": name + ending, "height": SIZE[0], "width": SIZE[1]}
        for at, name in enumerate(scenes)
    ]
    annotations = [
        {"image_id": 100 + at, "category_id": ids[box.label], "iscrowd": int(box.crowd)}
        | {"segmentation": segmentation_of(box, kind)}
        for at, boxes in enumerate(scenes.values())
        for box in boxes
    ]
    annotations = [{"id": at, **each} for at, each in enumerate(annotations, 1)]
    return {"images": images, "annotations": annotations, "categories": listed()}


def listed():
    return [{"id": index, "name": name, "isthing": int(name != "sky")} for index, name in CATEGORIES.items()]


def write_coco(folder, names, images="images", file="instances.json", **kwargs):
    """Images and the json beside them; returns both places."""
    overlap = kwargs.pop("overlap", False)
    scenes = {name: scene(name, overlap) for name in names}
    for name in names:
        write_image(folder / images / f"{name}.png", name)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(coco(scenes, **kwargs)))
    return folder / images, folder / file


def write_yolo(images, labels, names):
    """Images, and a text file for each that has segments."""
    labels.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_image(images / f"{name}.png", name)
        lines = []
        for box in scene(name):
            sides = np.array(box.polygon()) / np.array([SIZE[1], SIZE[0]] * 4)
            lines.append(" ".join(map(str, [box.label, *sides.tolist()])))
        if lines:
            (labels / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_panoptic(folder, names, images="images", maps="maps", file="panoptic.json"):
    """Images, maps in colours and the json beside them."""
    ids = list(CATEGORIES)
    written = coco({name: [] for name in names})
    (folder / maps).mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(names):
        boxes = scene(name)
        write_image(folder / images / f"{name}.png", name)
        numbers = [1000 * (index + 1) + 70000 for index in range(len(boxes))]
        Image.fromarray(colours(id_map(boxes, numbers))).save(folder / maps / f"{name}.png")
        infos = [{"id": number, "category_id": ids[box.label]} for number, box in zip(numbers, boxes, strict=True)]
        written["annotations"].append(
            {
                "image_id": 100 + at,
                "file_name": f"{name}.png",
                "segments_info": [{**each, "iscrowd": 0} for each in infos],
            }
        )
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(written))


# ---- what is read of them


def opened(task="panoptic", split="train", **flags):
    """A data set for a task."""
    data = LabelledDataset(
        DatasetArguments(
            **{
                key: str(value) if key.endswith(("images", "masks", "annotations", "name")) else value
                for key, value in flags.items()
            }
        ),
        split,
    )
    data.task = task
    return data


def found_in(data):
    """`{name: {(class name, pixels of the mask, crowd)}}` of all samples."""
    names, found = data.id2label, {}
    for index, row in enumerate(data.stream):
        image, segments, name = decode_segments(row, data.row_format, index)
        assert image.shape[1:] == segments.size == SIZE
        parts = zip(segments.classes.tolist(), segments.masks().numpy(), segments.crowd.tolist(), strict=True)
        found[name] = {(names[label], mask.tobytes(), crowd) for label, mask, crowd in parts}
    return found


def expected(names, overlap=False, label_of=lambda label: NAMES[label]):
    return {
        name: {(label_of(box.label), box.mask().tobytes(), box.crowd) for box in scene(name, overlap)}
        for name in names
    }


def painted(data):
    """`{name: (H, W) map}` as a semantic model learns it."""
    rows = enumerate(data.stream)
    samples = [decode_sample(row, data.row_format, len(data.id2label), index) for index, row in rows]
    return {name: label.numpy() for _, label, name in samples}


def write_maps(folder, names, of_boxes, ending=".png", mode=None):
    """Images, and what `of_boxes` makes of each image's boxes."""
    (folder / "masks").mkdir(parents=True)
    for name in names:
        write_image(folder / "images" / f"{name}.png", name)
        image = Image.fromarray(of_boxes(scene(name)))
        (image.convert(mode) if mode else image).save(folder / "masks" / f"{name}{ending}")
    return {"train_images": folder / "images", "train_masks": folder / "masks"}
