"""Images that are given as files and folders, without labels; folders with all that is below them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.data.bands import PLAIN, ImageForm, as_image
from scripts.data.folders import MASK_SUFFIX, counted
from scripts.data.image_files import bands_of_file
from scripts.storage.outputs import bears_mark


DRAWN_ENDINGS = (".png", ".tif", ".npy")  # of images that this project writes


class FoundImage(NamedTuple):
    """An image, and its folder below the one that was named: `.` in that itself, and for an image named by itself."""

    path: Path
    folder: PurePath


def find_images(names: list[str]) -> list[FoundImage]:
    """The images named, and those in the folders named and all folders below, folder by folder and by name, but for
    hidden files and folders and what this project drew.

    Raises:
        UserError: a name that does not exist, a folder that cannot be read, or no image at all.
    """
    endings = {*Image.registered_extensions(), ".npy"}
    images: list[FoundImage] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = [(folder, file) for folder, files in shown_files(path) for file in files]
            found = [(folder, file) for folder, file in below if file.suffix.lower() in endings]
            kept = [FoundImage(file, folder.relative_to(path)) for folder, file in found if not is_drawn_here(file)]
            if len(kept) < len(found):
                count = len(found) - len(kept)
                drawn = f"{counted(count, 'image')} that this project wrote {'is' if count == 1 else 'are'}"
                print(f"{path}: {drawn} left out", file=sys.stderr)
            masks = label_maps_beside(kept)
            if masks:
                of_images = "beside its image is" if len(masks) == 1 else "beside their images are"
                print(f"{path}: {counted(len(masks), 'label map')} {of_images} left out", file=sys.stderr)
            images += [image for image in kept if image not in masks]
        elif path.is_file():
            images.append(FoundImage(path, PurePath()))
        else:
            raise UserError(f"{name}: no such file or folder")
    if not images:
        raise UserError("no image: name images or a folder of them")
    return images


def label_maps_beside(images: list[FoundImage]) -> set[FoundImage]:
    """Those that are called as another image of their folder with `_mask` or its like behind the name."""
    stems = {image.path.with_suffix("") for image in images}
    found = {image: MASK_SUFFIX.search(image.path.stem) for image in images}
    return {
        image
        for image, suffix in found.items()
        if suffix and image.path.with_name(image.path.stem[: suffix.start()]) in stems
    }


def shown_files(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and all below it that are not hidden, each with its files that are not hidden, by name. Of links that
    lead back to a folder each is read once.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from error

    seen: set[str] = set()
    for folder, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), [Path(folder) / name for name in sorted(files) if not name.startswith(".")]


def is_drawn_here(file: Path) -> bool:
    """Whether this project wrote an image; one that cannot be read is left to `read_image`."""
    try:
        return file.suffix in DRAWN_ENDINGS and file.is_file() and bears_mark(file)
    except OSError:
        return False


def what_was_found(images: list[FoundImage]) -> str:
    """How many images there are, and in how many folders below those named."""
    below = len({folder for _, folder in images if folder != PurePath()})
    where = f", in the folder named and {below} below it" if below else ""
    return f"{len(images)} image{'s' if len(images) > 1 else ''} found{where}"


def output_names(images: list[Path]) -> list[str]:
    """A distinct name per image: its stem, with its ending or a number where stems collide."""
    names: dict[str, None] = {}
    for image in images:
        numbered = (f"{image.stem}_{number}" for number in count(len(names)))
        candidates = chain([image.stem, image.name.replace(".", "_")], numbered)
        names[next(candidate for candidate in candidates if candidate not in names)] = None
    return list(names)


def mirrored_names(images: list[FoundImage]) -> list[PurePath]:
    """Where the outputs of each image go, below the folder of outputs and without an ending: the folder of the image
    below the one that was named, and a name that is distinct there."""
    paths_of: dict[PurePath, list[Path]] = {}
    for path, folder in images:
        paths_of.setdefault(folder, []).append(path)
    names = {folder: iter(output_names(paths)) for folder, paths in paths_of.items()}
    return [folder / next(names[folder]) for _, folder in images]


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
