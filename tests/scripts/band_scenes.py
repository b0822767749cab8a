"""Generated images of many bands, of which one alone tells the class, as pairs of folders that the commands read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def scene(rng, bands, telling, size=48):
    """`(bands, size, size)` uint8 of grain and shapes that mean nothing, and a label map of three classes.

    Args:
        telling: the band that holds 60, 120 or 180 by class; None for an image that tells nothing.
    """
    blocks = rng.integers(0, 3, (size // 16, size // 16)).astype(np.uint8)
    label = blocks.repeat(16, 0).repeat(16, 1)
    coarse = rng.integers(40, 200, (bands, size // 8, size // 8)).astype(np.float64)
    image = coarse.repeat(8, 1).repeat(8, 2)
    if telling is not None:
        image[telling] = 60 + 60.0 * label
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8), label


def write_scenes(folder: Path, bands, telling, save, train=24, evaluated=8, seed=0):
    """Folders of images and maps, `train_images` and so on; `save(file without ending, image)` writes an image."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("eval", evaluated)):
        images, masks = folder / f"{split}_images", folder / f"{split}_masks"
        images.mkdir(parents=True)
        masks.mkdir()
        for index in range(count):
            image, label = scene(rng, bands, telling)
            save(images / f"{index:03}", image)
            Image.fromarray(label).save(masks / f"{index:03}.png")
    (folder / "id2label.json").write_text(json.dumps({"0": "low", "1": "middle", "2": "high"}))
    return folder


def save_npy(file: Path, image):
    """`(H, W, C)` of 8 bits."""
    np.save(f"{file}.npy", image.transpose(1, 2, 0))


def save_png(file: Path, image):
    """RGB or grey of 8 bits."""
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(f"{file}.png")


def folders(folder: Path):
    """The flags that name the data."""
    return [
        part
        for name in ("train_images", "train_masks", "eval_images", "eval_masks")
        for part in (f"--{name}", str(folder / name))
    ]
