"""Small street scenes, and faults to plant into them or into a copy of a real data set."""

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from scripts.data.synthetic_scenes import encoded


NAMES = ["building", "road", "sky", "tree", "pavement", "car"]
HEIGHT, WIDTH = 96, 128


@dataclass(frozen=True)
class Row:
    """A sample: the image's file, the map's pixels, its name, further columns."""

    image: bytes
    label: np.ndarray
    name: str
    label_kind: str = "PNG"


@dataclass(frozen=True)
class Copy:
    """A data set that faults are planted into.

    Args:
        first: stored id of class 0; 1: `--do_reduce_labels` belongs to it.
    """

    splits: dict[str, list[Row]]
    names: dict[int, str]
    first: int = 0

    @property
    def flags(self) -> list[str]:
        """What the commands need to read it rightly."""
        return ["--do_reduce_labels"] if self.first else []

    def write(self, folder: Path) -> Path:
        """Writes `data/<split>-00000-of-00001.parquet` and `id2label.json`."""
        (folder / "data").mkdir(parents=True)
        columns = {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
        for split, rows in self.splits.items():
            content = [
                {
                    "image": {"bytes": row.image},
                    "label": encoded(Image.fromarray(row.label), row.label_kind),
                    "image_id": row.name,
                }
                for row in rows
            ]
            data = datasets.Dataset.from_list(content, features=datasets.Features(columns))
            data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        (folder / "id2label.json").write_text(json.dumps({str(index): name for index, name in self.names.items()}))
        return folder

    def with_labels(self, change) -> "Copy":
        """The copy with `change(map)` in place of every map."""
        splits = {
            split: [replace(row, label=change(row.label)) for row in rows] for split, rows in self.splits.items()
        }
        return replace(self, splits=splits)

    def with_row(self, split: str, number: int, **changes) -> "Copy":
        """The copy with one row changed."""
        rows = list(self.splits[split])
        rows[number] = replace(rows[number], **changes)
        return replace(self, splits={**self.splits, split: rows})


def texture(rng: np.random.Generator) -> Image.Image:
    """Smooth colours under stripes."""
    coarse = rng.integers(40, 216, size=(4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((160, 128), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, dtype=np.float32)
    rows, columns = np.mgrid[:128, :160]
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 24)
    stripes = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    return Image.fromarray((pixels + 18 * stripes[..., None]).clip(0, 255).astype(np.uint8))


def street(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """An image with sky above buildings, trees and cars above a road, and its map; a void stripe is ignored."""
    horizon, kerb = rng.integers(25, 40), rng.integers(55, 70)
    label = np.empty((HEIGHT, WIDTH), dtype=np.uint8)
    label[:horizon], label[horizon:kerb], label[kerb:] = 2, 0, 1
    label[kerb:, : rng.integers(20, 50)] = 4
    left = rng.integers(0, 80)
    label[horizon - 10 : kerb, left : left + 30] = 3
    left = rng.integers(0, 90)
    label[kerb - 12 : kerb + 8, left : left + 25] = 5
    label[kerb - 1 : kerb + 1] = 255
    colours = np.array([[150, 120, 100], [90, 90, 95], [120, 160, 220], [50, 110, 50], [160, 150, 150], [180, 40, 40]])
    ground = np.asarray(texture(rng).resize((WIDTH, HEIGHT)), dtype=np.float64)
    pixels = 0.4 * colours[np.where(label == 255, 1, label)] + 0.6 * ground
    return Image.fromarray(pixels.astype(np.uint8)), label


def generated(train: int = 8, validation: int = 4) -> Copy:
    """Street scenes without a fault."""
    splits = {}
    for number, (split, size) in enumerate({"train": train, "validation": validation}.items()):
        splits[split] = []
        for index in range(size):
            image, label = street(np.random.default_rng([number, index]))
            splits[split].append(Row(encoded(image, "JPEG")["bytes"], label, f"{split}_{index}"))
    return Copy(splits, dict(enumerate(NAMES)))


def copy_of(folder: Path, first: int = 0, every: int = 1) -> Copy:
    """A copy of a data set on disk; `every`: of how many rows one is taken."""
    splits = {}
    for split in ("train", "validation"):
        rows = []
        for file in sorted((folder / "data").glob(f"{split}-*.parquet")):
            for row in pq.read_table(file).to_pylist():
                label = np.asarray(Image.open(io.BytesIO(row["label"]["bytes"])))
                rows.append(Row(row["image"]["bytes"], label, row["image_id"]))
        if rows:
            splits[split] = rows[::every]
    names = json.loads((folder / "id2label.json").read_text())
    return Copy(splits, {int(index): name for index, name in names.items()}, first)


# ---- faults ---------------------------------------------------------------------------------------------------------


def shifted(copy: Copy) -> Copy:
    """Every id one too high."""
    keep = {255} if not copy.first else set()
    return copy.with_labels(lambda label: np.where(np.isin(label, list(keep)), label, label + 1).astype(np.uint8))


def not_reduced(copy: Copy) -> Copy:
    """0 for ignored pixels, classes from 1 on, and no flag that says so."""
    if copy.first:
        return replace(copy, first=0)
    return copy.with_labels(lambda label: np.where(label == 255, 0, label + 1).astype(np.uint8))


def class_as_255(copy: Copy) -> Copy:
    """The most frequent class stored as 255."""
    counts = sum(np.bincount(row.label.ravel(), minlength=256)[:255] for rows in copy.splits.values() for row in rows)
    counts[: copy.first] = 0
    common = int(counts.argmax())
    return copy.with_labels(lambda label: np.where(label == common, 255, label).astype(np.uint8))


def in_colours(copy: Copy) -> Copy:
    """Maps in colours."""
    palette = np.random.default_rng(0).integers(0, 256, size=(256, 3), dtype=np.uint8)
    return copy.with_labels(lambda label: palette[label])


def swapped_size(copy: Copy) -> Copy:
    """One map lies on its side."""
    row = copy.splits["validation"][0]
    return copy.with_row("validation", 0, label=np.ascontiguousarray(row.label.T))


def leaked(copy: Copy) -> Copy:
    """A validation image, encoded anew at another size, is in the training split as well."""
    row = copy.splits["validation"][-1]
    original = Image.open(io.BytesIO(row.image))
    size = original.width * 3 // 4, original.height * 3 // 4
    image = encoded(original.resize(size, Image.Resampling.BICUBIC), "JPEG")["bytes"]
    label = np.asarray(Image.fromarray(row.label).resize(size, Image.Resampling.NEAREST))
    train = [*copy.splits.get("train", []), Row(image, label, "leaked")]
    return replace(copy, splits={"train": train, **{k: v for k, v in copy.splits.items() if k != "train"}})


def with_empty_class(copy: Copy) -> Copy:
    """The classes that occur and one more, without a gap."""
    present = sorted({int(k) for rows in copy.splits.values() for row in rows for k in np.unique(row.label)} - {255})
    classes = [k for k in present if k >= copy.first]
    table = np.arange(256)
    table[classes] = np.arange(len(classes)) + copy.first
    names = [copy.names[k - copy.first] for k in classes]
    compact = copy.with_labels(lambda label: table[label].astype(np.uint8))
    return replace(compact, names=dict(enumerate([*names, "unicorn"])))


FAULTS = {
    "shifted-by-one": shifted,
    "labels-not-reduced": not_reduced,
    "255-as-class": class_as_255,
    "rgb-maps": in_colours,
    "swapped-size": swapped_size,
    "near-duplicate": leaked,
    "empty-class": with_empty_class,
}
