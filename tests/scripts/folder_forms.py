"""The same images and label maps in the forms that people keep them in, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


TRAIN = [f"seq{video}_{frame:04d}" for video in range(3) for frame in range(5)]
VALIDATION = ["seq9_0000", "seq9_0001"]
# Where images and label maps of a split lie, "{split}" being its name there and "{name}" the sample's.
FORMS = {
    "train/images + train/masks": ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
    "images/train + masks/train": ("images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
    "Imgs/train + Annotations/train": ("Imgs/{split}/{name}.jpg", "Annotations/{split}/{name}.png"),
    "JPEGImages + SegmentationClass": ("JPEGImages/{split}/{name}.jpg", "SegmentationClass/{split}/{name}.png"),
    "train + trainannot": ("{split}/{name}.jpg", "{split}annot/{name}.png"),
    "train + train_labels, _L": ("{split}/{name}.jpg", "{split}_labels/{name}_L.png"),
    "side by side in each split": ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
    "side by side among images": ("images/{split}/{name}.jpg", "images/{split}/{name}-label.png"),
    "Cityscapes": ("leftImg8bit/{split}/{name}_leftImg8bit.jpg", "gtFine/{split}/{name}_gtFine_labelIds.png"),
    "in a folder of its own": ("camvid/{split}/image/{name}.jpg", "camvid/{split}/gt/{name}.png"),
}
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("val", "valid", "validation")}


def write_pair(image: Path, label: Path, index: int) -> None:
    """An image and a label map, which `index` tells from others."""
    rng = np.random.default_rng(index)
    for file, shape, largest in ((image, (48, 64, 3), 255), (label, (48, 64), 3)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, largest, shape, dtype=np.uint8)).save(file, quality=95)


def write_form(root: Path, form: str, names: dict[str, list[str]] | None = None, alias: int = 0) -> Path:
    """Writes all pairs of a form and `id2label.json`; returns the folder."""
    image, label = FORMS[form]
    for split, stems in (names or {"train": TRAIN, "validation": VALIDATION}).items():
        for index, stem in enumerate(stems):
            place = {"split": SPLIT_NAMES[split][alias], "name": stem}
            seed = index + 1000 * (split == "validation")
            write_pair(root / image.format(**place), root / label.format(**place), seed)
    (root / "id2label.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    return root


def write_files(root: Path, names: list[str]) -> Path:
    """Small images at these places, grey where they end in .png or .gif; any other file holds a letter."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".jpg":
            Image.new("RGB", (8, 6)).save(file)
        elif file.suffix in (".png", ".gif"):
            Image.new("L", (8, 6)).save(file)
        else:
            file.write_text("x")
    return root


def pairs(images: str, masks: str, names: str = "a1 a2 b1", ending: str = ".png") -> list[str]:
    """Names of images in one folder and of label maps in another."""
    return [file for name in names.split() for file in (f"{images}/{name}.jpg", f"{masks}/{name}{ending}")]
