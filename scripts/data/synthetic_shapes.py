"""A small generated data set with instances: discs and boxes that touch and hide each other, before wall and floor.

`python -m scripts.data.synthetic_shapes --output_dir shapes` writes parquet shards that `load_dataset` streams, in the
form of COCO's panoptic sets: a map of the segments' ids and the list of their classes beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_at_least, flag, parse_arguments, run_command
from scripts.data.synthetic_scenes import encoded, write_beside, write_shards


CLASSES = ("wall", "floor", "disc", "box")
WALL, FLOOR, DISC, BOX = range(len(CLASSES))
THINGS = (DISC, BOX)
SIZE = (64, 80)
GROUNDS = ((176, 190, 204), (150, 128, 104))
COLOURS = {DISC: ((206, 70, 60), (226, 128, 52), (190, 60, 110)), BOX: ((52, 104, 178), (60, 140, 90), (70, 70, 90))}
MOST_SHAPES = 5  # in an image
LEAST_PIXELS = 12  # that can be seen of a shape

Segment = dict[str, int]


def draw_sample(
    rng: np.random.Generator, size: tuple[int, int] = SIZE
) -> tuple[Image.Image, Image.Image, list[Segment]]:
    """An image of `size` (height, width), its map of segment ids from 1 on, and the id and class of each segment.

    Wall and floor are a segment each; about half of the shapes are drawn beside or over the one before, of its class.
    """
    height, width = size
    horizon = round(height * rng.uniform(0.4, 0.6))
    pixels = np.empty((height, width, 3))
    pixels[:horizon], pixels[horizon:] = GROUNDS
    ids = np.full(size, WALL + 1, dtype=np.uint8)
    ids[horizon:] = FLOOR + 1
    classes = {WALL + 1: WALL, FLOOR + 1: FLOOR}
    shape, x, y, radius = DISC, 0.0, 0.0, 0.0
    for number in range(rng.integers(1, MOST_SHAPES + 1)):
        if number and rng.random() < 0.5:
            angle, apart = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.2, 2)
            x, y = x + apart * np.cos(angle), y + apart * np.sin(angle)
        else:
            shape = THINGS[rng.integers(len(THINGS))]
            x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
            radius = rng.uniform(0.08, 0.18) * height
        inside = Image.new("1", (width, height))
        draw = ImageDraw.Draw(inside).ellipse if shape == DISC else ImageDraw.Draw(inside).rectangle
        draw((x - radius, y - radius, x + radius, y + radius), fill=1)
        mask = np.asarray(inside)
        ids[mask] = id_ = len(classes) + 1
        classes[id_] = shape
        pixels[mask] = np.array(COLOURS[shape][rng.integers(3)]) + rng.normal(0, 12, 3)
    pixels += rng.normal(0, 4, size=(height, width, 1))
    seen = {id_: int((ids == id_).sum()) for id_ in classes}
    ids[np.isin(ids, [id_ for id_, count in seen.items() if count < LEAST_PIXELS])] = 0
    listed = [
        {"id": id_, "category_id": index, "iscrowd": 0, "area": seen[id_]}
        for id_, index in classes.items()
        if seen[id_] >= LEAST_PIXELS
    ]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(ids), listed


def write_dataset(folder: Path, sizes: dict[str, int], shards: int = 2, seed: int = 0) -> None:
    """Writes `data/<split>-0000i-of-0000n.parquet`, `id2label.json` and `thing_ids.json`.

    A sample depends on seed, split and index alone.
    """
    integer = datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Image(),
            "image_id": datasets.Value("string"),
            "segments_info": [{"id": integer, "category_id": integer, "iscrowd": integer, "area": integer}],
        }
    )
    for number, (split, size) in enumerate(sizes.items()):
        rows: list[dict[str, Any]] = []
        for index in range(size):
            image, ids, segments = draw_sample(np.random.default_rng([seed, number, index]))
            row = {"image": encoded(image, "PNG"), "label": encoded(ids, "PNG"), "segments_info": segments}
            rows.append({**row, "image_id": f"{split}_{index:05d}"})
        write_shards(folder, split, rows, features, shards)
    write_beside(folder, {"id2label.json": dict(enumerate(CLASSES)), "thing_ids.json": list(THINGS)})


@dataclass
class ShapesArguments:
    """Write a small data set of shapes with instances, to train on and to try the commands with."""

    output_dir: str | None = flag(None, "Folder that gets the data set.")
    train_samples: int = flag(128, "Images of the training split.")
    validation_samples: int = flag(32, "Images of the validation split.")
    seed: int = flag(0, "Seed of the images.")


def main() -> int:
    """Entry point."""
    arguments = parse_arguments(ShapesArguments)
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    check_at_least(arguments, 1, "train_samples", "validation_samples")
    check_at_least(arguments, 0, "seed")
    sizes = {"train": arguments.train_samples, "validation": arguments.validation_samples}
    folder = Path(arguments.output_dir)
    with errors_explained(f"--output_dir {folder}", OSError):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--output_dir {folder} is not empty: name another folder")
        write_dataset(folder, sizes, shards=1, seed=arguments.seed)
    print(f"{sizes['train']} + {sizes['validation']} images with their segments in {folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
