"""Folders of images whose segments are in other files than maps of classes: COCO's json, YOLO's text files, maps of
instances beside maps of classes.

annotations/instances_train2017.json + train2017/     train/_annotations.coco.json + train/a.jpg
annotations/panoptic_train2017.json + annotations/panoptic_train2017/ + train2017/
images/train + labels/train (or train/images + train/labels, images + labels), labels being .txt files, with data.yaml
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import SPLITS, DatasetArguments
from scripts.data.coco import coco_file
from scripts.data.folders import IMAGE_ENDINGS, Pair, by_stem, matched_pairs, visible_files, with_endings
from scripts.data.layouts import SPLIT, counted, is_described, place_of, shown
from scripts.data.yolo import names_file, read_names


COCO_JSON = re.compile(rf"(?P<kind>instances|panoptic)_(?P<folder>{SPLIT})\.json")
ROBOFLOW_JSON = "_annotations.coco.json"
TEXT_ENDINGS = (".txt",)
LONGEST_LINE = 2**20  # bytes
LIST_OF_CLASSES = "classes"  # stem of a text file that many tools write among those of polygons


@dataclass(frozen=True)
class Annotations:
    """What is known of the segments of folders before any is read.

    Args:
        encoding: of the labels, see `--label_encoding`.
        source: flag and file that tell, for messages.
        categories: name by category id, ids in order; None where the classes are named elsewhere.
        things: category ids of the classes that have instances.
        json_file: COCO's, whose words rows carry.
    """

    encoding: str
    source: str
    categories: dict[int, str] | None = None
    things: frozenset[int] = frozenset()
    json_file: Path | None = None


class Annotated(NamedTuple):
    """Images of a split and what is known of their segments; `line` says what was found."""

    pairs: list[Pair]
    annotations: Annotations
    line: str


class Place(NamedTuple):
    """A file or folder, and how errors call it."""

    path: Path
    name: str


# ---- COCO


def of_coco(images: Place, json_file: Place, maps: Place | None = None) -> Annotated:
    """The images of a folder that a json of instances, or of panoptic with the folder of its maps, lists.

    Raises:
        UserError: it is no such file, the maps are lacking or not needed, or none of the images is there.
    """
    found = coco_file(json_file.path, json_file.name)
    if found.is_panoptic and maps is None:
        raise UserError(
            f"{json_file.name}: it is panoptic: give the folder of its maps by --train_masks or --eval_masks"
        )
    if maps is not None and not found.is_panoptic:
        raise UserError(f"{json_file.name}: it holds the segments' outlines itself: leave out {maps.name}")
    files = {file.relative_to(images.path).as_posix(): file for file in visible_files(images.path)}
    files = {name: file for name, file in files.items() if file.suffix.lower() in IMAGE_ENDINGS}
    encoding, pairs, segments, gone, of_gone, unlisted_maps = "segments" if maps else "coco", [], 0, 0, 0, 0
    for name, image in sorted(found.images.items()):
        if image.file_name not in files:
            gone, of_gone = gone + 1, of_gone + image.count
        elif image.text is None:
            unlisted_maps += 1
        else:
            label = str((maps.path / image.map_name).absolute()) if maps else ""
            pairs.append(Pair(name, str(files[image.file_name].absolute()), label))
            segments += image.count
    if not pairs:
        first = next(iter(found.images.values())).file_name
        raise UserError(f"{images.name}: none of the {len(found.images)} images of {json_file.name}, such as {first}")
    unlisted = len(files) - (len(found.images) - gone)
    left_out = [
        f"{counted(gone, 'image')} that {'is' if gone == 1 else 'are'} not there, with {counted(of_gone, 'segment')}"
        if gone
        else "",
        f"{counted(unlisted_maps, 'image')} without a list of segments" if unlisted_maps else "",
        f"{counted(found.orphans, 'annotation')} of images that it does not list" if found.orphans else "",
        f"{counted(unlisted, 'file')} of {images.path.name} that it does not list" if unlisted else "",
    ]
    line = (
        f"{json_file.name}: {counted(len(pairs), 'image')}, {counted(segments, 'segment')}, "
        f"{len(found.categories)} classes (--label_encoding {encoding})"
    )
    annotations = Annotations(encoding, json_file.name, found.categories, found.things, json_file.path)
    return Annotated(pairs, annotations, with_left_out(line, left_out))


def with_left_out(line: str, left_out: list[str]) -> str:
    """A line with what was left out behind it, if anything was."""
    told = "; ".join(filter(None, left_out))
    return f"{line}; left out: {told}" if told else line


# ---- YOLO


def of_yolo(images: Place, texts: Place, names: Mapping[int, str] | None) -> Annotated:
    """The images of a folder, each with the text file of its name, if there is one.

    Args:
        names: of the classes, where a YAML file names them.
    Raises:
        UserError: no image, or no text file is called as one.
    """
    stems = by_stem(images.name, images.path, visible_files(images.path), IMAGE_ENDINGS)
    polygons = by_stem(texts.name, texts.path, visible_files(texts.path), TEXT_ENDINGS)
    polygons.pop(LIST_OF_CLASSES, None)
    pairs = [
        Pair(name, str(file.absolute()), str(polygons[name].absolute()) if name in polygons else "")
        for name, file in stems.items()
    ]
    with_text = sum(bool(pair.label) for pair in pairs)
    if not with_text:
        raise UserError(
            f"{texts.name}: no .txt file is called as one of the {counted(len(pairs), 'image')} of {images.name}"
        )
    line = f"{texts.name}: {counted(len(pairs), 'image')}, {with_text} with polygons (--label_encoding yolo)"
    orphans = len(polygons) - with_text
    line = with_left_out(line, [f"{counted(orphans, 'text file')} of images that are not there" if orphans else ""])
    things = frozenset(names or {})
    return Annotated(pairs, Annotations("yolo", texts.name, dict(names) if names else None, things), line)


def yolo_names(*folders: Path) -> dict[int, str] | None:
    """Names by id in the first YAML file in one of the folders or two levels around them; None without one."""
    for folder in folders:
        for place in (folder, *folder.absolute().parents[:2]):
            if file := names_file(place):
                return read_names(file)
    return None


# ---- a folder of it all


def annotated_splits(arguments: DatasetArguments) -> dict[str, tuple[Place, Place, Place | None]] | None:
    """Images, json file or folder of text files, and maps of each split of the folder of `--dataset_name`.

    Returns:
        None where it is none of the forms above.
    Raises:
        UserError: files of a split that lie in several places, or in none.
    """
    name = arguments.dataset_name
    if not name or not Path(name).is_dir() or is_described(Path(name)):
        return None
    root = Path(name).resolve()

    def place(path: Path) -> Place:
        return Place(path, f"--dataset_name {name}, {shown(root, path)}")

    splits: dict[str, tuple[Place, Place, Place | None]] = {}
    for file in sorted(root.glob(f"*/{ROBOFLOW_JSON}")):
        if split := SPLITS.get(file.parent.name.lower()):
            splits[split] = (place(file.parent), place(file), None)
    found = [
        (file, told)
        for file in sorted((root / "annotations").glob("*.json"))
        if (told := COCO_JSON.fullmatch(file.name))
    ]
    kinds = {told["kind"] for _, told in found}
    if len(kinds) > 1:
        wanted = {"segments": "panoptic", "coco": "instances"}.get(arguments.label_encoding or "")
        if wanted is None:
            raise UserError(
                f"--dataset_name {name}: annotations holds files of instances and of panoptic: give --label_encoding "
                "coco for the instances, or segments"
            )
        kinds = {wanted}
    for file, told in found:
        if told["kind"] not in kinds:
            continue
        folders = (root / told["folder"], root / "images" / told["folder"])
        images = next((folder for folder in folders if folder.is_dir()), None)
        if images is None:
            raise UserError(f"{place(file).name}: no folder {told['folder']} or images/{told['folder']} of its images")
        maps = file.with_suffix("") if told["kind"] == "panoptic" else None
        splits[SPLITS[told["split"]]] = (place(images), place(file), place(maps) if maps else None)
    if not splits:
        found_folders = yolo_folders(name, root, named=names_file(root) is not None)
        splits = {split: (place(images), place(texts), None) for split, (images, texts) in found_folders.items()}
    return splits or None


def yolo_folders(name: str, root: Path, named: bool) -> dict[str, tuple[Path, Path]]:
    """Folders of the images and of the text files of each split that has text files.

    Args:
        named: whether a YAML file names classes, so that the text files are YOLO's; else they are where folders called
            labels hold nothing but text files, some of them called as images, and the first line is a polygon.
    Raises:
        UserError: several of a kind, or none.
    """
    images: dict[str, set[Path]] = defaultdict(set)
    texts: dict[str, set[Path]] = defaultdict(set)
    stems: dict[str, set[str]] = defaultdict(set)
    lines: list[bytes] = []
    for file in with_endings(visible_files(root), (*IMAGE_ENDINGS, *TEXT_ENDINGS)):
        if told := place_of(file.relative_to(root)):
            folder, (split, kind) = told
            if kind == "masks" and not named and "labels" not in map(str.lower, folder.parts):
                continue
            of_kind = texts if kind == "masks" else images
            if (file.suffix.lower() in TEXT_ENDINGS) == (kind == "masks"):
                of_kind[split].add(root / folder)
                stems[kind].add(file.stem)
                if kind == "masks":
                    lines += [] if lines else first_line(file)
            elif kind == "masks" and not named:
                return {}
    if not named and not (stems["masks"] & (stems["images"] | stems[""]) and lines and is_polygon(lines[0])):
        return {}
    for split in texts:
        for kind, folders in (("images", images[split]), ("text files", texts[split])):
            if len(folders) != 1:
                listed = " and ".join(sorted(shown(root, folder) for folder in folders)) or "no folder"
                raise UserError(
                    f"--dataset_name {name}, split {split!r}: {kind} in {listed}: name two folders by --train_images "
                    "and --train_annotations (--eval_images, --eval_annotations)"
                )
    return {split: (*images[split], *texts[split]) for split in dict.fromkeys(SPLITS.values()) if texts.get(split)}  # type: ignore[misc]


def first_line(file: Path) -> list[bytes]:
    """The first line of a file in a list, which is empty where there is none, or it is `LIST_OF_CLASSES`."""
    with errors_explained(str(file), OSError), file.open("rb") as stream:
        line = b"" if file.stem == LIST_OF_CLASSES else stream.readline(LONGEST_LINE)
    return [line] if line.strip() else []


def is_polygon(line: bytes) -> bool:
    """Whether a line holds a class, and x and y of three corners or more."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        return False
    return len(numbers) >= 7 and len(numbers) % 2 == 1


def of_split(images: Place, labels: Place, maps: Place | None) -> Annotated:
    """The images of a split by a json file, or by a folder of text files.

    Raises:
        UserError: see `of_coco` and `of_yolo`.
    """
    for place in (images, maps):
        if place is not None and not place.path.is_dir():
            raise UserError(f"{place.name}: no such folder")
    if not labels.path.is_dir():
        return of_coco(images, labels, maps)
    if maps is not None:
        raise UserError(f"{labels.name}: text files hold the segments' outlines: leave out {maps.name}")
    return of_yolo(images, labels, yolo_names(labels.path, images.path))


# ---- instances beside classes


def with_class_maps(pairs: list[Pair], images: str, class_flag: str, class_masks: str, images_flag: str) -> Annotated:
    """`pairs` of images and maps of instances, with the class map of each image.

    Raises:
        UserError: an image without a class map, or the other way round.
    """
    of_images = {pair.image: pair.label for pair in matched_pairs(images_flag, images, class_flag, class_masks).pairs}
    both = [pair._replace(class_map=of_images[pair.image]) for pair in pairs]
    source = f"{class_flag} {class_masks}"
    line = f"{source}: maps of classes beside maps of instances (--label_encoding instances)"
    return Annotated(both, Annotations("instances", source), line)
