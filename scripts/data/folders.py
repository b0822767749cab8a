"""The commonest private form of a dataset: a folder of images beside a folder of label PNGs, matched by stem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from scripts.cli.errors import UserError


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MAP_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")
MAX_SHARDS = 256


def files_by_stem(flag: str, folder: str, endings: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder and the folders in it, by their path below it without ending, in order of names; none hidden.

    Raises:
        UserError: no such folder, no file with one of the endings, two of one stem, a pipe or a broken link.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{flag} {folder}: no such folder")
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*")):
        below = file.relative_to(root)
        # Nothing hidden, nor in a hidden folder: editors and file managers keep copies and previews there.
        if file.suffix.lower() in endings and not any(part.startswith(".") for part in below.parts):
            if file.is_dir():
                continue
            if not file.is_file():
                raise UserError(f"{flag} {folder}: {file.name} is no regular file: remove it")
            stem = below.with_suffix("").as_posix()
            if stem in found:
                raise UserError(f"{flag} {folder}: {found[stem].name} and {file.name} have one stem: remove one")
            found[stem] = file
    if not found:
        raise UserError(f"{flag} {folder}: no file ending in {', '.join(endings)}")
    return found


def matched_pairs(images_flag: str, images: str, masks_flag: str, masks: str) -> list[tuple[str, str, str]]:
    """`(stem, image, map)` of two folders, by stem; the files by their absolute paths.

    Raises:
        UserError: an image without a map or the other way round.
    """
    image_files = files_by_stem(images_flag, images, IMAGE_ENDINGS)
    maps = files_by_stem(masks_flag, masks, MAP_ENDINGS)
    for one, other, flag, folder in ((image_files, maps, masks_flag, masks), (maps, image_files, images_flag, images)):
        alone = [stem for stem in one if stem not in other]
        if alone:
            raise UserError(
                f"{flag} {folder}: nothing of the stem {alone[0]!r} of {one[alone[0]].name}"
                + (f" and {len(alone) - 1} more" if alone[1:] else "")
                + ": images and maps are matched by their names without ending"
            )
    return [(stem, str(file.absolute()), str(maps[stem].absolute())) for stem, file in image_files.items()]


def check_map_mode(file: Path) -> None:
    """Refuses a label map in colours; palette PNGs hold ids and are fine.

    Raises:
        UserError: more than one channel. A map that cannot be read is left to the reader of samples.
    """
    try:
        with Image.open(file) as image:
            mode, channels = image.mode, len(image.getbands())
    except (OSError, ValueError, SyntaxError):
        return
    if channels > 1:
        raise UserError(f"label map {file.name} has mode {mode}: need one channel of class ids (grey or palette)")


def pair_rows(shards: list[list[tuple[str, str, str]]]) -> Iterator[dict[str, Any]]:
    """Rows whose images stay on disk until a worker decodes them."""
    for shard in shards:
        for stem, image, label in shard:
            yield {"image": {"path": image, "bytes": None}, "label": {"path": label, "bytes": None}, "image_id": stem}


def folder_stream(
    pairs: list[tuple[str, str, str]], image_column: str, label_column: str, split: str
) -> datasets.IterableDataset:
    """Undecoded stream of `pairs` in up to `MAX_SHARDS` shards, which shuffle like the files of a dataset."""
    count = min(MAX_SHARDS, len(pairs))
    shards = [pairs[len(pairs) * at // count : len(pairs) * (at + 1) // count] for at in range(count)]
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.Image(decode=False),
            "image_id": datasets.Value("string"),
        }
    )
    data = datasets.IterableDataset.from_generator(pair_rows, features=features, gen_kwargs={"shards": shards})
    wanted = {"image": image_column, "label": label_column}
    if renamed := {old: new for old, new in wanted.items() if old != new}:
        data = data.rename_columns(renamed)
    data.info.splits = datasets.SplitDict({split: datasets.SplitInfo(name=split, num_examples=len(pairs))})
    return data
