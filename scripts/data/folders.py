"""Folders of image files and of label maps: which files there are, which map is whose, and their stream.

Files are known by their path below the folder without ending, their stem: `town1/0001`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.cli.errors import UserError


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MAP_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")
ENDINGS = tuple(dict.fromkeys(IMAGE_ENDINGS + MAP_ENDINGS))
# What label maps have behind the names of their images, in any case, if they have something.
MASK_SUFFIX = re.compile(
    r"[_\-. ](?:gt(?:fine|coarse)_)?(?:masks?|labels?|label(?:train)?ids|lbl|gt|seg|segs|segmentation|annotations?)$",
    re.IGNORECASE,
)
# What images have there themselves, so that it is left out of their names where all have it.
IMAGE_SUFFIX = re.compile(r"_(?:leftimg8bit|images?|imgs?|rgb|photo|sat)$", re.IGNORECASE)


class Pair(NamedTuple):
    """An image and its labels; files by their absolute paths, "" for none.

    Args:
        label: a label map, or a text file of polygons.
        class_map: beside a map of instances.
    """

    name: str
    image: str
    label: str
    class_map: str = ""

    @property
    def files(self) -> list[str]:
        """Those that there are."""
        return [file for file in self[1:] if file]


def visible_files(root: Path) -> list[Path]:
    """Files of a folder and the folders in it, in order of names; none hidden.

    Folders that are links are followed, but for those that lead back to a folder around them.

    Raises:
        UserError: a folder cannot be read.
    """
    found = []
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        # Nothing hidden, nor in a hidden folder: editors and file managers keep copies and previews there.
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX")) and not loops(place, name)]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def with_endings(files: list[Path], endings: tuple[str, ...]) -> list[Path]:
    """Those of `files` whose names end so, in capitals or not."""
    return [file for file in files if file.suffix.lower() in endings]


def refuse(error: OSError) -> None:
    """Raises the error of a folder that cannot be read as the user's."""
    raise UserError(f"folder {error.filename} cannot be read: {error.strerror}") from error


def loops(place: str, name: str) -> bool:
    """Whether a folder in `place` is a link to one of those that it lies in."""
    folder = Path(place, name)
    return folder.is_symlink() and Path(place).resolve().is_relative_to(folder.resolve())


def by_stem(what: str, root: Path, files: list[Path], endings: tuple[str, ...]) -> dict[str, Path]:
    """Those of `files` with one of the endings by their stems below `root`.

    Raises:
        UserError: two of one stem, a pipe or a broken link; begins with `what` is read.
    """
    found: dict[str, Path] = {}
    for file in with_endings(files, endings):
        if not file.is_file():
            raise UserError(f"{what}: {file.name} is no regular file: remove it")
        stem = file.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise UserError(
                f"{what}: {found[stem].name} and {file.name} have one stem: remove one, or keep label maps "
                "in a folder of their own"
            )
        found[stem] = file
    return found


@dataclass(frozen=True)
class Matched:
    """Images and their label maps.

    Args:
        pairs: in order of the images' names.
        mask_suffix: what stands behind the images' names in those of the maps, such as `_mask`; often nothing.
        left_out: how many files of a further suffix lie beside them, by that suffix.
    """

    pairs: list[Pair]
    mask_suffix: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


def shared_suffix(stems: dict[str, Path], pattern: re.Pattern[str]) -> str:
    """What the pattern finds at the end of all stems, as it is written there; else nothing."""
    found = pattern.search(next(iter(stems), ""))
    return found[0] if found and all(stem.endswith(found[0]) for stem in stems) else ""


def matched(images: dict[str, Path], maps: dict[str, Path], suffix: str) -> dict[str, tuple[Path, Path]] | None:
    """Image and map by name, where every map is called as an image with `suffix` behind it; None where it is not so.

    A suffix that all images have is no part of the name, unless the maps have it before theirs.
    """
    names_of_maps = {stem.removesuffix(suffix): file for stem, file in maps.items() if stem.endswith(suffix)}
    for image_suffix in dict.fromkeys(("", shared_suffix(images, IMAGE_SUFFIX))):
        named = {stem.removesuffix(image_suffix): file for stem, file in images.items()}
        if len(names_of_maps) == len(maps) and named.keys() == names_of_maps.keys():
            return {name: (file, names_of_maps[name]) for name, file in named.items()}
    return None


def pairs_of(named: dict[str, tuple[Path, Path]]) -> list[Pair]:
    """Pairs by their absolute paths.

    Raises:
        UserError: a file that is both an image and a map, by whatever link.
    """
    images = {identity_of(image) for image, _ in named.values()}
    for name, (image, label) in named.items():
        if identity_of(label) in images:
            raise UserError(
                f"label map {label} of image {image}: it is an image itself, by another name or a link: "
                f"give {name!r} a label map of its own"
            )
    return [Pair(name, str(image.absolute()), str(label.absolute())) for name, (image, label) in named.items()]


def identity_of(file: Path) -> tuple[int, int]:
    """The same for all names of one file."""
    status = file.stat()
    return status.st_dev, status.st_ino


def match_two_folders(
    images: dict[str, Path], maps: dict[str, Path], images_place: str, maps_place: str, mask_suffix: str | None = None
) -> Matched:
    """Pairs of images and maps by their stems, or by those without a suffix of the maps.

    Args:
        images_place: flag and folder of the images, as errors name them; `maps_place` of the maps.
        mask_suffix: of the maps; None where it is to be found out.
    Raises:
        UserError: an image without a map or the other way round.
    """
    found = other_suffixes(images, maps)
    for suffix in ["", *found] if mask_suffix is None else [mask_suffix]:
        if named := matched(images, maps, suffix):
            return Matched(pairs_of(named), suffix)
    suffix = mask_suffix or ""
    own = {stem.removesuffix(suffix): file for stem, file in maps.items()}
    place, stems, files = maps_place, [stem for stem in images if stem not in own], images
    if not stems:
        place, stems, files = images_place, [stem for stem in own if stem not in images], own
    raise UserError(
        f"{place}: nothing of the stem {stems[0] + (suffix if files is images else '')!r} of {files[stems[0]].name}"
        + (f" and {len(stems) - 1} more" if stems[1:] else "")
        + ": images and maps are matched by their names without ending"
        + (f"; there are maps with {', '.join(found)}: give one as --mask_suffix" if 0 < len(found) <= 5 else "")
    )


def other_suffixes(images: dict[str, Path], maps: dict[str, Path]) -> list[str]:
    """What maps have behind the name of the first image, such as `_mask`."""
    first = next(iter(images))
    first = first.removesuffix(shared_suffix(images, IMAGE_SUFFIX))
    return sorted({stem[len(first) :] for stem in maps if re.match(rf"{re.escape(first)}[_\-. ][^/]*$", stem)})


def with_suffix(place: str, files: list[Path], mask_suffix: str | None) -> list[Path]:
    """The maps that are meant: those with `--mask_suffix`, if it is given.

    Raises:
        UserError: none has it.
    """
    chosen = [file for file in files if mask_suffix is None or file.stem.endswith(mask_suffix)]
    if files and not chosen:
        raise UserError(f"{place}: no name ends in --mask_suffix {mask_suffix}, such as that of {files[0].name}")
    return chosen


def match_one_folder(root: Path, files: list[Path], place: str, mask_suffix: str | None = None) -> Matched | None:
    """Pairs of images and maps side by side, told apart by a suffix of the maps.

    Args:
        place: flag and folder, as errors name them.
        mask_suffix: of the maps; None where it is to be found out.
    Returns:
        None if no file has such a suffix.
    Raises:
        UserError: no suffix gives every image one map and every map an image, or several do.
    """
    files = with_endings(files, ENDINGS)
    found = {match[0] for file in files if (match := MASK_SUFFIX.search(file.stem))}
    suffixes = sorted(found) if mask_suffix is None else [mask_suffix]
    fitting, reasons = [], []
    for suffix in suffixes:
        maps = by_stem(place, root, [file for file in files if file.stem.endswith(suffix)], MAP_ENDINGS)
        images = by_stem(place, root, [file for file in files if not file.stem.endswith(suffix)], IMAGE_ENDINGS)
        others = {} if mask_suffix is None else further_suffixes(images, maps, suffix)
        images = {stem: file for stem, file in images.items() if not stem.endswith(tuple(others))}
        if images and maps and (named := matched(images, maps, suffix)):
            fitting.append(Matched(pairs_of(named), suffix, others))
        else:
            reasons.append(why_not(images, maps, suffix))
    if len(fitting) == 1:
        return fitting[0]
    if not suffixes:
        return None
    if fitting or len(suffixes) > 1:
        counts = [f"{sum(file.stem.endswith(suffix) for file in files)} end in {suffix}" for suffix in suffixes]
        reason = f"of {len(files)} files {', '.join(counts)}: give one as --mask_suffix, without the others beside it"
    else:
        reason = reasons[0]
    raise UserError(
        f"{place}: {reason}; every image needs one label map beside it, or give a folder of each by --train_images "
        "and --train_masks"
    )


def further_suffixes(images: dict[str, Path], maps: dict[str, Path], mask_suffix: str) -> dict[str, int]:
    """What further files of the images that have maps are called, such as `_edge` of `a_edge.png`, and how many there
    are: suffixes that label maps have, and those that every such image has."""
    named = [name for stem in maps if (name := stem.removesuffix(mask_suffix)) in images]
    found: dict[str, int] = {}
    for name in named:
        for stem in images:
            if re.match(rf"{re.escape(name)}[_\-. ][^/]*$", stem) and stem + mask_suffix not in maps:
                suffix = stem[len(name) :]
                found[suffix] = found.get(suffix, 0) + 1
    return {suffix: count for suffix, count in found.items() if count == len(named) or MASK_SUFFIX.search(suffix)}


def counted(count: int, noun: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def why_not(images: dict[str, Path], maps: dict[str, Path], suffix: str) -> str:
    """What is wrong with images and maps side by side that do not match."""
    counts = f"{counted(len(images), 'image')} and {counted(len(maps), 'label map')} *{suffix}"
    if not maps or not images:
        return f"{counts} ending in {', '.join(MAP_ENDINGS)}"
    names = {stem.removesuffix(suffix) for stem in maps}
    if lone := sorted(images.keys() - names):
        return f"{counts}: {lone[0]!r} has no {lone[0] + suffix!r}"
    return f"{counts}: {sorted(names - images.keys())[0] + suffix!r} has no image"


def matched_pairs(
    images_flag: str, images: str, masks_flag: str, masks: str, mask_suffix: str | None = None
) -> Matched:
    """Pairs of two folders, or of one that holds images and maps side by side.

    Raises:
        UserError: no such folder, no image or map in it, an image without a map or the other way round, two of one
            stem, or images and maps that cannot be told apart.
    """
    places = f"{images_flag} {images}", f"{masks_flag} {masks}"
    for place, folder in zip(places, (images, masks), strict=True):
        if not Path(folder).is_dir():
            raise UserError(f"{place}: no such folder")
    if Path(images).samefile(masks):
        both = f"{places[0]} and {places[1]} are one folder"
        if found := match_one_folder(Path(images), visible_files(Path(images)), both, mask_suffix):
            return found
        raise UserError(f"{both}, and no suffix tells its label maps: give --mask_suffix, or a folder of each")
    image_stems = by_stem(places[0], Path(images), visible_files(Path(images)), IMAGE_ENDINGS)
    maps = with_suffix(places[1], with_endings(visible_files(Path(masks)), MAP_ENDINGS), mask_suffix)
    map_stems = by_stem(places[1], Path(masks), maps, MAP_ENDINGS)
    for place, stems, endings in ((places[0], image_stems, IMAGE_ENDINGS), (places[1], map_stems, MAP_ENDINGS)):
        if not stems:
            raise UserError(f"{place}: no file ending in {', '.join(endings)}")
    return match_two_folders(image_stems, map_stems, *places, mask_suffix)
