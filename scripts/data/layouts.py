"""Folders of images and label maps as people keep them: which files are the images and the maps of which split.

own/train/images + own/train/masks      own/images/train + own/masks/train      own/train + own/train_labels
own/images + own/masks                  own/a.jpg + own/a_mask.png

and PASCAL VOC's, whose splits are the lists of names in ImageSets/Segmentation.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import SPLITS
from scripts.data.folders import (
    ENDINGS,
    IMAGE_ENDINGS,
    MAP_ENDINGS,
    Pair,
    by_stem,
    counted,
    identity_of,
    match_one_folder,
    match_two_folders,
    pairs_of,
    visible_files,
    with_endings,
    with_suffix,
)


SPLIT = rf"(?P<split>{'|'.join(sorted(SPLITS, key=len, reverse=True))})(?:\d{{4}})?"  # train2017
KIND = (
    r"(?:(?P<images>images?|imgs?|photos?|jpegimages|leftimg8bit)"
    r"|(?P<masks>masks?|labels?|annotations?|annot|gts?|gtfine|segmentationclass))"
)
FOLDER = (re.compile(rf"(?:{SPLIT})?(?:[_\-. ]?{KIND})?"), re.compile(rf"{KIND}[_\-. ]{SPLIT}"))
FORMS = (
    "train/images + train/masks, images/train + masks/train, images + masks, or a.jpg + a_mask.png side by side "
    "(--mask_suffix); any others by --train_images and --train_masks"
)
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")  # images, label maps, lists of names
DATA_ENDINGS = (".parquet", ".arrow")
TABLE_ENDINGS = (".csv", ".jsonl")

Part = tuple[str, str]  # split; images, masks or "" for a folder whose name does not tell


@dataclass
class FolderSplit:
    """One split of a folder.

    Args:
        pairs: in order of the images' names; with maps that are "" where none has one.
        place: where they were found, in words.
    """

    pairs: list[Pair]
    place: str

    @property
    def has_masks(self) -> bool:
        """Whether its images have label maps."""
        return bool(self.pairs[0].label)


@dataclass
class Layout:
    """What was recognised in the folder of `--dataset_name`.

    Args:
        name: the folder as the user gave it.
        splits: train, validation and test, those that there are, in this order.
        left_out: folders with images that are of no split, and how many.
    """

    name: str
    splits: dict[str, FolderSplit] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def described(self) -> str:
        """All of it in one line."""
        splits = [
            f"{split} {counted(len(found.pairs), 'pair' if found.has_masks else 'image')}"
            f"{'' if found.has_masks else ' without masks'} ({found.place})"
            for split, found in self.splits.items()
        ]
        left_out = [f"{folder} ({counted(count, 'file')})" for folder, count in self.left_out.items()]
        return f"--dataset_name {self.name}: {'; '.join(splits)}" + (
            f"; left out: {', '.join(left_out)}" if left_out else ""
        )

    def pairs(self, split: str, with_labels: bool) -> list[Pair]:
        """Images and maps of a split, which may be called `val` or `training` as well.

        Raises:
            UserError: there is no such split, or it has no maps where they are needed.
        """
        found = self.splits.get(SPLITS.get(split, split))
        if found is None:
            raise UserError(f"--dataset_name {self.name}, split {split!r}: the folder holds {', '.join(self.splits)}")
        if with_labels and not found.has_masks:
            images = f"{counted(len(found.pairs), 'image')} in {found.place}"
            raise UserError(
                f"--dataset_name {self.name}, split {split!r}: {images}, but no label maps: understood are {FORMS}"
            )
        return found.pairs

    def trained_on(self, split: str) -> int:
        """How many images of a split are images of `train` as well, by whatever link."""
        if split == "train" or not {"train", split} <= self.splits.keys():
            return 0
        train, other = (
            {identity_of(Path(pair.image)) for pair in self.splits[each].pairs} for each in ("train", split)
        )
        return len(train & other)


def folder_layout(
    name: str, mask_suffix: str | None = None, with_labels: bool = True, allow_links: bool = False
) -> Layout | None:
    """What there is in a local folder of images that `datasets` would take for a folder of classes.

    Args:
        with_labels: whether label maps are needed.
        allow_links: whether folders in it may be links that lead out of it.
    Returns:
        None for whatever is no such folder, and, where no maps are needed, for images without any.
    Raises:
        UserError: images whose label maps cannot be told, in one line that says what was found.
    """
    root = Path(name)
    if not name or not root.is_dir() or is_described(root):
        return None
    root = root.resolve()  # of links, for what the rows may name is told by where it really is
    everything = visible_files(root)
    files, tables = with_endings(everything, ENDINGS), with_endings(everything, TABLE_ENDINGS)
    stored = with_endings(everything, DATA_ENDINGS) + [file for file in tables if file.stem == "metadata"]
    if stored or len(files) <= len(tables):
        return None
    for folder in dict.fromkeys(file.parent for file in files):
        if not allow_links and not folder.resolve().is_relative_to(root):
            raise UserError(
                f"--dataset_name {name}: {shown(root, folder)} is a link that leads out of it: give --allow_links if "
                "you made the link"
            )
    layout = recognised(name, root, files, mask_suffix)
    if not any(split.has_masks for split in layout.splits.values()):
        if not with_labels:
            return None
        held = "; ".join(f"{counted(len(split.pairs), 'image')} in {split.place}" for split in layout.splits.values())
        others = ", ".join(layout.left_out)
        raise UserError(
            f"--dataset_name {name}: {held}{f', others in {others}' if others else ''}, but nothing that says which "
            f"files are label maps: understood are {FORMS}"
        )
    return layout


def is_described(root: Path) -> bool:
    """Whether a file of the folder says how `datasets` is to read it."""
    if any((root / file).is_file() for file in ("dataset_dict.json", "state.json", ".huggingface.yaml")):
        return True
    card = root / "README.md"
    if not card.is_file() or not (text := card.read_text(encoding="utf-8", errors="replace")).startswith("---"):
        return False
    try:
        facts = yaml.safe_load(text.split("---")[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return True  # its fault is explained where cards are read
    return isinstance(facts, dict) and "configs" in facts


def recognised(name: str, root: Path, files: list[Path], mask_suffix: str | None) -> Layout:
    """The splits of a folder by the names of the folders in it, and what has no place in them."""
    tops = {file.relative_to(root).parts[0] for file in files}
    base = root
    if len(tops) == 1 and (top := root / tops.pop()).is_dir() and part_of(top.name) is None:
        base = top  # a folder around all, as archives have it
    if listed := listed_splits(name, root, base):
        layout = Layout(name, listed)
        used = {file for split in listed.values() for pair in split.pairs for file in pair.files}
        for file in files:
            if str(file) not in used:
                place = shown(root, file.parent)
                layout.left_out[place] = layout.left_out.get(place, 0) + 1
        return layout
    parts: dict[Part, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
    others: list[Path] = []
    for file in files:
        told = place_of(file.relative_to(base))
        if told is None:
            others.append(file)
        else:
            folder, part = told
            parts[part][base / folder].append(file)
    if not parts:
        parts["train", ""][base], others = others, []
    layout = Layout(name)
    for split in dict.fromkeys(SPLITS.values()):
        loose = [file for file in others if file.parent == base] if split == "train" else []
        folders = {kind: dict(parts.get((split, kind), {})) for kind in ("images", "masks", "")}
        if loose and folders["masks"] and not folders["images"] and not folders[""]:  # own/a.jpg + own/masks/a.png
            folders[""] = {base: loose}
            others = [file for file in others if file.parent != base]
        if found := split_of(name, root, split, folders, mask_suffix, layout.left_out):
            layout.splits[split] = found
    for file in others:
        place = shown(root, base if file.parent == base else base / file.relative_to(base).parts[0])
        layout.left_out[place] = layout.left_out.get(place, 0) + 1
    return layout


def listed_splits(name: str, root: Path, base: Path) -> dict[str, FolderSplit]:
    """The splits of a folder in the form of PASCAL VOC, by its lists of names; empty where there are no such lists.

    Raises:
        UserError: a list names an image or a label map that is not there, or no image.
    """
    images, masks, lists = (base / folder for folder in VOC_FOLDERS)
    if not (images.is_dir() and masks.is_dir()):
        return {}
    splits: dict[str, FolderSplit] = {}
    for split in dict.fromkeys(SPLITS.values()):
        file = lists / f"{'val' if split == 'validation' else split}.txt"
        if not file.is_file():
            continue
        place = f"--dataset_name {name}, {shown(root, file)}"
        with errors_explained(place, OSError, UnicodeDecodeError):
            names = list(dict.fromkeys(file.read_text(encoding="utf-8").split()))
        found = {each: (one_of(images, each, IMAGE_ENDINGS), one_of(masks, each, MAP_ENDINGS)) for each in names}
        if without := next((each for each, (image, _) in found.items() if image is None), None):
            raise UserError(f"{place}: names {without!r}, but {shown(root, images)} has no such image")
        pairs = {each: (image, label) for each, (image, label) in found.items() if image and label}
        if not names or (pairs and len(pairs) < len(names)):
            without = next((each for each in names if each not in pairs), None)
            raise UserError(
                f"{place}: names {without!r}, but {shown(root, masks)} has no label map of it"
                if names
                else f"{place}: names no image"
            )
        unlabelled = [Pair(each, str(image.absolute()), "") for each, (image, _) in found.items() if image]
        where = f"{shown(root, images)} + {shown(root, masks)}" if pairs else shown(root, images)
        splits[split] = FolderSplit(pairs_of(pairs) if pairs else unlabelled, f"{where}, by {shown(root, file)}")
    return splits


def one_of(folder: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    """The file of a name and one of the endings; None without one."""
    return next((file for ending in endings if (file := folder / f"{name}{ending}").is_file()), None)


def part_of(folder: str) -> Part | None:
    """Split and kind that a folder's name tells, "" for what it does not; None if it tells nothing."""
    for form in FOLDER:
        if found := form.fullmatch(folder.lower()):
            groups = found.groupdict()
            kind = "images" if groups["images"] else "masks" if groups["masks"] else ""
            split = SPLITS.get(groups["split"] or "", "")
            return (split, kind) if split or kind else None
    return None


def place_of(file: Path) -> tuple[Path, Part] | None:
    """The folder below the root that tells split and kind of a file, and what it tells; None if none does."""
    split = kind = ""
    depth = 0
    for folder in file.parts[:-1][:2]:
        told = part_of(folder)
        if told is None or (told[0] and split) or (told[1] and kind):
            break
        split, kind = split or told[0], kind or told[1]
        depth += 1
    return (Path(*file.parts[:depth]), (split or "train", kind)) if depth else None


def split_of(
    name: str,
    root: Path,
    split: str,
    folders: dict[str, dict[Path, list[Path]]],
    mask_suffix: str | None,
    left_out: dict[str, int],
) -> FolderSplit | None:
    """One split of the files of its folders of images, of masks and of both; None without any.

    Raises:
        UserError: several folders of a kind, masks without images, or images and masks that do not match.
    """
    images, masks, mixed = folders["images"], folders["masks"], folders[""]
    if images and masks:  # what lies beside them
        left_out |= {shown(root, folder): len(files) for folder, files in mixed.items()}
        mixed = {}
    for kind, found in (("images", images | mixed), ("masks", masks)):
        if len(found) > 1:
            flags = "--eval_images and --eval_masks" if split == "validation" else "--train_images and --train_masks"
            listed = " and ".join(
                f"{shown(root, folder)} ({counted(len(files), 'file')})" for folder, files in found.items()
            )
            raise UserError(f"--dataset_name {name}, split {split!r}: {kind} in {listed}: name two folders by {flags}")
    image_folder, image_list = next(iter((images | mixed).items()), (root, []))
    place = f"--dataset_name {name}" + (f", {shown(root, image_folder)}" if image_folder != root else "")
    if not masks:
        if not image_list:
            return None
        if side_by_side := match_one_folder(image_folder, image_list, place, mask_suffix):
            left_out |= {
                f"{shown(root, image_folder)} *{suffix}": count for suffix, count in side_by_side.left_out.items()
            }
            return FolderSplit(
                side_by_side.pairs, f"side by side in {shown(root, image_folder)}, masks *{side_by_side.mask_suffix}"
            )
        stems = by_stem(place, image_folder, image_list, IMAGE_ENDINGS)
        unmatched = [Pair(stem, str(file), "") for stem, file in stems.items()]
        return FolderSplit(unmatched, shown(root, image_folder)) if unmatched else None
    mask_folder, mask_list = next(iter(masks.items()))
    masks_place = f"--dataset_name {name}, {shown(root, mask_folder)}"
    stems = by_stem(place, image_folder, image_list, IMAGE_ENDINGS)
    maps = by_stem(masks_place, mask_folder, with_suffix(masks_place, mask_list, mask_suffix), MAP_ENDINGS)
    if not maps:
        raise UserError(f"{masks_place}: no file ending in {', '.join(MAP_ENDINGS)}, as label maps need it")
    if not stems:
        raise UserError(f"{masks_place}: {counted(len(maps), 'label map')} of split {split!r}, but no images for them")
    matched = match_two_folders(stems, maps, place, masks_place, mask_suffix)
    if len(maps) < len(mask_list):
        left_out[f"{shown(root, mask_folder)} without {mask_suffix}"] = len(mask_list) - len(maps)
    where = f"{shown(root, image_folder)} + {shown(root, mask_folder)}"
    return FolderSplit(matched.pairs, where + (f", masks *{matched.mask_suffix}" if matched.mask_suffix else ""))


def shown(root: Path, folder: Path) -> str:
    """A folder as messages name it, below the root."""
    return "." if folder == root else folder.relative_to(root).as_posix()
