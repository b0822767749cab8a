"""Small scenes with segments, and faults to plant into them."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from faulty_datasets import texture
from scripts.data.synthetic_scenes import encoded


NAMES = ["sky", "ground", "car", "person"]
SKY, GROUND, CAR, PERSON = range(4)
HEIGHT, WIDTH = 96, 128
PLACES = [(row, column) for row in (16, 40, 72) for column in (4, 36, 68, 100)]  # of objects, never touching

SEGMENT = {
    "id": datasets.Value("int32"),
    "category_id": datasets.Value("int32"),
    "iscrowd": datasets.Value("int32"),
    "area": datasets.Value("int32"),
    "bbox": datasets.Sequence(datasets.Value("int32")),
}


@dataclass
class Scene:
    """A sample: map `(H, W)` of ids and their list, as of COCO panoptic."""

    image: Image.Image
    ids: np.ndarray
    listed: list[dict]

    def add(self, mask: np.ndarray, category: int, iscrowd: int = 0) -> int:
        """Draws a segment, and returns its id."""
        id_ = max([0, *(each["id"] for each in self.listed)]) + 1
        self.ids[mask] = id_
        self.listed.append({"id": id_, "category_id": category, "iscrowd": iscrowd})
        return id_

    def measure(self) -> "Scene":
        """The scene with a list that tells areas and boxes as they are."""
        for each in self.listed:
            rows, columns = np.nonzero(self.ids == each["id"])
            if len(rows):
                left, top = int(columns.min()), int(rows.min())
                each["area"] = len(rows)
                each["bbox"] = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        return self

    def of(self, category: int) -> list[dict]:
        """The listed segments of a category."""
        return [each for each in self.listed if each["category_id"] == category]


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    """A mask of the size of the scenes."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def scene(rng: np.random.Generator) -> Scene:
    """Sky above ground, and on them three to eight cars and persons."""
    made = Scene(texture(rng).resize((WIDTH, HEIGHT)), np.zeros((HEIGHT, WIDTH), dtype=np.int64), [])
    horizon = int(rng.integers(30, 38))
    made.add(box(0, 0, horizon, WIDTH), SKY)
    made.add(box(horizon, 0, HEIGHT, WIDTH), GROUND)
    places = rng.permutation(len(PLACES))[: rng.integers(3, 9)]
    for number, place in enumerate(places):
        top, left = PLACES[place]
        height, width = rng.integers(8, 18, 2)
        made.add(box(top, left, height, width), (CAR, PERSON)[number % 2])
    return made.measure()


@dataclass
class Scenes:
    """A data set that faults are planted into.

    Args:
        encoding: `segments`, or `instances`: then the things alone, numbered in each image, without a list.
    """

    splits: dict[str, list[Scene]]
    names: list[str] = field(default_factory=lambda: list(NAMES))
    things: list[int] | None = field(default_factory=lambda: [CAR, PERSON])
    encoding: str = "segments"

    @property
    def first(self) -> Scene:
        """The first of the training split."""
        return self.splits["train"][0]

    @property
    def all(self) -> list[Scene]:
        return [each for scenes in self.splits.values() for each in scenes]

    def write(self, folder: Path) -> Path:
        """Writes parquet files, `id2label.json` and `thing_ids.json`."""
        (folder / "data").mkdir(parents=True)
        features = {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
        if self.encoding == "segments":
            features["segments_info"] = [SEGMENT]
        for split, scenes in self.splits.items():
            rows = [
                {
                    "image": encoded(each.image, "PNG"),
                    "label": encoded(self.map_of(each), "PNG"),
                    "image_id": f"{split}_{number}",
                    **({"segments_info": each.listed} if self.encoding == "segments" else {}),
                }
                for number, each in enumerate(scenes)
            ]
            data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
            data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(self.names))))
        if self.things is not None:
            (folder / "thing_ids.json").write_text(json.dumps(self.things))
        return folder

    def map_of(self, each: Scene) -> Image.Image:
        """The file of a map: in colours, or of 16 bits."""
        if self.encoding == "segments":
            shifts = np.array([0, 8, 16])
            return Image.fromarray((each.ids[..., None] >> shifts & 255).astype(np.uint8))
        return Image.fromarray(each.ids.astype(np.uint16))


def generated(train: int = 8, validation: int = 4) -> Scenes:
    """Scenes without a fault."""
    return Scenes(
        {
            split: [scene(np.random.default_rng([number, index])) for index in range(size)]
            for number, (split, size) in enumerate({"train": train, "validation": validation}.items())
        }
    )


def cells(train: int = 8, validation: int = 4) -> Scenes:
    """The things of such scenes, all of one class, as maps of ids of instances alone."""
    scenes = generated(train, validation)
    for each in scenes.all:
        numbers = {id_["id"]: number for number, id_ in enumerate(each.listed[2:], 1)}
        each.ids = np.vectorize(lambda id_, numbers=numbers: numbers.get(id_, 0))(each.ids)
    return Scenes(scenes.splits, ["cell"], None, "instances")


# ---- faults ---------------------------------------------------------------------------------------------------------


def class_of_none(scenes: Scenes) -> None:
    for each in scenes.first.of(CAR):
        each["category_id"] = 9


def not_listed(scenes: Scenes) -> None:
    del scenes.first.listed[-2:]


def not_in_map(scenes: Scenes) -> None:
    for each in scenes.all[:2]:
        each.listed.append({"id": 900, "category_id": CAR, "iscrowd": 0})


def listed_twice(scenes: Scenes) -> None:
    scenes.first.listed.append({**scenes.first.listed[2], "category_id": PERSON})


def listed_as_void(scenes: Scenes) -> None:
    scenes.first.listed.append({"id": 0, "category_id": PERSON, "iscrowd": 0})


def list_of_another_map(scenes: Scenes) -> None:
    scenes.first.listed[2]["area"] *= 4
    scenes.first.listed[3]["bbox"][0] += 9


def stuff_as_crowd(scenes: Scenes) -> None:
    scenes.first.listed[0]["iscrowd"] = 1


def crowd_in_regions(scenes: Scenes) -> None:
    for number in range(5):
        scenes.first.add(box(2, 5 + 20 * number, 6, 6), PERSON, iscrowd=1)
    scenes.first.measure()


def crowd_unmarked(scenes: Scenes) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for number in range(12):
        mask |= box(1 + 4 * (number % 3), 8 + 10 * number, 3, 3)
    scenes.first.add(mask, PERSON)
    scenes.first.measure()


def ground_in_two(scenes: Scenes) -> None:
    left = np.arange(WIDTH) < WIDTH // 2
    scenes.first.add((scenes.first.ids == scenes.first.listed[1]["id"]) & left, GROUND)
    scenes.first.measure()


def id_used_twice(scenes: Scenes) -> None:
    scenes.first.add(box(2, 4, 8, 8) | box(2, 104, 8, 8), CAR)
    scenes.first.measure()


def specks(scenes: Scenes) -> None:
    for number in range(3):
        scenes.first.add(box(2, 10 + 9 * number, 1, 2), PERSON)
    scenes.first.measure()


def no_segment(scenes: Scenes) -> None:
    for each in scenes.all[:2]:
        each.ids[:], each.listed = 0, []


def many_segments(scenes: Scenes) -> None:
    for number in range(120):
        scenes.first.add(box(1 + 4 * (number // 30), 2 + 4 * (number % 30), 3, 3), PERSON)
    scenes.first.measure()


def things_of_none(scenes: Scenes) -> None:
    scenes.things = [CAR, PERSON, 7]


def cars_as_crowds(scenes: Scenes) -> None:
    for each in scenes.all:
        for car in each.of(CAR):
            car["iscrowd"] = 1


def thing_that_never_occurs(scenes: Scenes) -> None:
    scenes.names, scenes.things = [*NAMES, "bus"], [CAR, PERSON, 4]


@dataclass(frozen=True)
class Fault:
    """A fault to plant.

    Args:
        plant: into scenes, which it changes.
        samples, times: how many samples show it, and how often in all; 0 where it is none of single samples.
    """

    plant: Callable[[Scenes], None]
    samples: int = 0
    times: int = 0

    def planted(self) -> Scenes:
        """Scenes with it."""
        scenes = deepcopy(generated())
        self.plant(scenes)
        return scenes


FAULTS = {
    "unknown-category": Fault(class_of_none, 1, len(generated().first.of(CAR))),
    "segments-mismatch": Fault(not_listed, 1, 2),
    "empty-segment": Fault(not_in_map, 2, 2),
    "void-segment": Fault(listed_as_void, 1, 1),
    "segment-listed-twice": Fault(listed_twice, 1, 1),
    "wrong-area-or-box": Fault(list_of_another_map, 1, 2),
    "crowd-stuff": Fault(stuff_as_crowd, 1, 1),
    "split-crowd": Fault(crowd_in_regions, 1, 1),
    "crowd-as-thing": Fault(crowd_unmarked, 1, 1),
    "stuff-in-segments": Fault(ground_in_two, 1, 1),
    "scattered-instance": Fault(id_used_twice, 1, 1),
    "tiny-segment": Fault(specks, 1, 3),
    "no-segment": Fault(no_segment, 2, 2),
    "more-segments-than-queries": Fault(many_segments, 1, 1),
    "thing-ids": Fault(things_of_none),
    "crowd-only": Fault(cars_as_crowds),
    "empty-class": Fault(thing_that_never_occurs),
}
