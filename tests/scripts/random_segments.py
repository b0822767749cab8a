"""Random images with segments, and what a model might have found in them."""

import json

import datasets
import numpy as np
import torch
from random_splits import png

from image_processing.segments import BoxedMask
from scripts.data.segments import segments_of_ids, segments_of_masks
from scripts.inference.found_segments import FoundSegments, Instance, PanopticMap


SIZE = (120, 130)  # large enough for objects of all three ranges of area


def boxed(mask):
    """A mask in its bounding box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    rows, columns = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return BoxedMask(mask.shape, rows, columns, torch.from_numpy(mask[rows, columns].copy()))


def rectangle(rng, least, largest):
    mask = np.zeros(SIZE, dtype=bool)
    height, width = rng.integers(least, largest, 2)
    top, left = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
    mask[top : top + height, left : left + width] = True
    return mask


def random_instances(rng, num_labels, empty=False):
    """Overlapping objects, crowds among them, and detections: shifted copies and false ones, with scores that tie."""
    count = 0 if empty else int(rng.integers(1, 9))
    masks = [rectangle(rng, *((3, 30), (34, 60), (97, 118))[rng.integers(3)]) for _ in range(count)]
    classes, crowd = rng.integers(0, num_labels, count), rng.random(count) < 0.2
    found = []
    for mask, label in zip(masks, classes):
        for _ in range(int(rng.integers(0, 4))):
            moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            found.append((int(label) if rng.random() < 0.9 else int(rng.integers(num_labels)), moved))
    found += [(int(rng.integers(num_labels)), rectangle(rng, 3, 50)) for _ in range(int(rng.integers(0, 5)))]
    instances = [Instance(label, float(rng.integers(1, 12) / 12), boxed(mask)) for label, mask in found]
    instances.sort(key=lambda each: -each.score)
    return segments_of_masks(masks, classes, crowd, SIZE), instances


def instances_of(rng, panoptic):
    """The segments of a map as instances, with scores that tie."""
    found = [
        Instance(each["label_id"], float(rng.integers(1, 6) / 6), boxed(panoptic.ids == each["id"]))
        for each in panoptic.segments
    ]
    return sorted(found, key=lambda each: -each.score)


def random_panoptic(rng, num_labels, void=True, crowds=True):
    """A map of segments and a predicted one, whose segments are the same or their neighbours'."""
    cells = rng.integers(0, 9, (8, 8))
    ids = np.kron(cells, np.ones((6, 6), dtype=np.int64))
    moved = np.roll(ids, rng.integers(-1, 2, 2), (0, 1))
    moved[rng.random(moved.shape) < 0.1 * rng.random()] = int(rng.integers(0, 9))
    if not void:
        ids, moved = ids + 1, moved + 1
    present = np.unique(ids[ids > 0]).tolist()
    classes = {id_: int(rng.integers(num_labels)) for id_ in range(1, 10)}
    crowd = {id_ for id_ in present if rng.random() < 0.25} if crowds else set()
    crowd = {id_ for id_ in crowd if sum(classes[id_] == classes[other] for other in crowd) == 1}  # one of a class
    labels = {id_: classes[id_] if rng.random() < 0.85 else int(rng.integers(num_labels)) for id_ in classes}
    found = [{"id": id_, "label_id": labels[id_]} for id_ in np.unique(moved[moved > 0]).tolist()]
    return segments_of_ids(ids, classes, crowd), PanopticMap(moved.astype(np.int32), found)


class Answers:
    """A predictor that knows what is found in each image of `write_segments`."""

    def __init__(self, found):
        self.found = found

    def __call__(self, image):
        panoptic, instances = self.found[image.getpixel((0, 0))[0]]
        return FoundSegments((image.height, image.width), instances, panoptic)


def write_segments(folder, references, names=None):
    """A validation split of maps of ids and lists of their segments; the red of an image's first pixel numbers it.

    Args:
        references: in one layer each.
        names: of the classes, written beside it.
    """
    rows = []
    for index, reference in enumerate(references):
        ids = reference.layers[0].numpy()
        infos = [
            {"id": number, "category_id": label, "iscrowd": crowd}
            for number, (label, crowd) in enumerate(zip(reference.classes.tolist(), reference.crowd.tolist()), 1)
        ]
        image = np.random.default_rng(index).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
        image[0, 0, 0] = index
        rows.append({"image": png(image), "label": png(ids.astype(np.uint8)), "segments_info": infos})
    info = {"id": datasets.Value("int32"), "category_id": datasets.Value("int32"), "iscrowd": datasets.Value("bool")}
    kinds = {"image": datasets.Image(), "label": datasets.Image(), "segments_info": datasets.List(info)}
    folder.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    data.to_parquet(folder / "validation-00000-of-00001.parquet")
    if names:
        (folder / "id2label.json").write_text(json.dumps({str(index): name for index, name in enumerate(names)}))
    return folder
