"""Images that are given as files and folders, without labels."""

from __future__ import annotations

import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.data.bands import PLAIN, ImageForm, as_image
from scripts.data.image_files import bands_of_file
from scripts.storage.outputs import bears_mark


def find_images(names: list[str]) -> list[Path]:
    """The images named, and those in the folders named, by name, but for hidden ones and what this project drew in
    these folders.

    Raises:
        UserError: a name that does not exist, or no image at all.
    """
    endings = {*Image.registered_extensions(), ".npy"}
    images: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            shown = (file for file in path.iterdir() if not file.name.startswith("."))
            found = sorted(file for file in shown if file.suffix.lower() in endings)
            own = {file for file in found if is_drawn_here(file)}
            if own:
                print(f"{path}: {len(own)} images that this project wrote are left out", file=sys.stderr)
            images += [file for file in found if file not in own]
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"{name}: no such file or folder")
    if not images:
        raise UserError("no image: name images or a folder of them")
    return images


def is_drawn_here(file: Path) -> bool:
    """Whether this project wrote an image; one that cannot be read is left to `read_image`."""
    try:
        return file.suffix == ".png" and file.is_file() and bears_mark(file)
    except OSError:
        return False


def output_names(images: list[Path]) -> list[str]:
    """A distinct name per image: its stem, with its ending or a number where stems collide."""
    names: dict[str, None] = {}
    for image in images:
        numbered = (f"{image.stem}_{number}" for number in count(len(names)))
        candidates = chain([image.stem, image.name.replace(".", "_")], numbered)
        names[next(candidate for candidate in candidates if candidate not in names)] = None
    return list(names)


def read_image(path: Path, form: ImageForm = PLAIN) -> Any:
    """An image that a model of this form reads, upright by its EXIF orientation: RGB, or a `BandImage`.

    Returns:
        None, and a line on standard error, if it cannot be read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for, a device read without end
            raise OSError("it is no regular file")
        if found := bands_of_file({"bytes": None, "path": str(path)}):
            pixels = form.pixels(*found)
        else:
            with Image.open(path) as image:
                pixels = form.pixels(ImageOps.exif_transpose(image))
        return as_image(torch.from_numpy(np.ascontiguousarray(pixels)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        tqdm.write(f"{path}: skipped, cannot be read: {error}", file=sys.stderr)
        return None
