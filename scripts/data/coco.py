"""COCO's json files, of instances and panoptic: what they say of each image, and which classes there are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.cli.errors import UserError, errors_explained
from scripts.data.class_map import HIGHEST_VALUE, named_twice


@dataclass(frozen=True)
class CocoImage:
    """What a json file says of an image.

    Args:
        file_name: of the image, below the folder of images.
        count: its segments.
        text: of instances `{"size": [H, W] or null, "annotations": [...]}`, of panoptic the list of its segments, in
            JSON; None where a panoptic file lists none.
        map_name: panoptic: the file of its map, below the folder of maps.
    """

    file_name: str
    count: int
    text: str | None
    map_name: str = ""


@dataclass(frozen=True)
class CocoFile:
    """What a json file says.

    Args:
        is_panoptic: segments are in maps, of which the file lists the ids.
        categories: name by category id, in the order of ids, which may have gaps.
        things: category ids of the classes that have instances.
        images: by name, their file name without ending.
        orphans: annotations of images that it does not list.
    """

    is_panoptic: bool
    categories: dict[int, str]
    things: frozenset[int]
    images: dict[str, CocoImage]
    orphans: int


def coco_file(file: Path, what: str) -> CocoFile:
    """What a file says; read once in a process unless it changes.

    Args:
        what: names it in errors, such as a flag and its value.
    Raises:
        UserError: it is no such file; or an image that lies outside of its folder, or two of one name.
    """
    with errors_explained(f"{what}: cannot be read", OSError):
        status = file.stat()
    return read_coco_file(file, what, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)  # the splits of a data set
def read_coco_file(file: Path, what: str, *_: int) -> CocoFile:
    """See `coco_file`."""
    # Not `read_json`, which looks at everything twice more: such files have hundreds of megabytes.
    with errors_explained(f"{what} is not a valid JSON file", OSError, ValueError, RecursionError):
        found = json.loads(file.read_bytes())
    lists: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        listed = found.get(key) if isinstance(found, dict) else None
        if not isinstance(listed, list):
            raise UserError(f"{what}: it has no list {key!r}, as COCO's files of instances and of panoptic do")
        lists[key] = listed
    with errors_explained(f"{what}: not of COCO's form", KeyError, TypeError, ValueError, AttributeError):
        categories = {int(each["id"]): str(each["name"]) for each in lists["categories"]}
        things = frozenset(int(each["id"]) for each in lists["categories"] if each.get("isthing", 1))
        check_categories(categories, len(lists["categories"]), what)
        is_panoptic = any("segments_info" in each for each in lists["annotations"])
        of_images: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for each in lists["annotations"]:
            of_images[each["image_id"]].append(each)
        images: dict[str, CocoImage] = {}
        for each in lists["images"]:
            name, image = image_entry(each, of_images.pop(each["id"], []), is_panoptic, categories, what)
            if name in images:
                raise UserError(f"{what}: images {images[name].file_name} and {image.file_name} have one name")
            images[name] = image
    if not images:
        raise UserError(f"{what}: it lists no images")
    return CocoFile(is_panoptic, dict(sorted(categories.items())), things, images, sum(map(len, of_images.values())))


def check_categories(categories: Mapping[int, str], listed: int, what: str) -> None:
    """Raises a `UserError` unless there are some, each with an id and a name of its own."""
    if not categories:
        raise UserError(f"{what}: it lists no categories")
    if len(categories) < listed:
        raise UserError(f"{what}: two categories have one id")
    if not 0 <= min(categories) <= max(categories) <= HIGHEST_VALUE:
        raise UserError(
            f"{what}: categories {min(categories)} to {max(categories)}: ids from 0 to {HIGHEST_VALUE} are read"
        )
    if twice := named_twice(dict(categories)):
        raise UserError(f"{what}: {twice}")


def image_entry(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    is_panoptic: bool,
    categories: Mapping[int, str],
    what: str,
) -> tuple[str, CocoImage]:
    """Name and what is kept of an image.

    Raises:
        UserError: a file outside of the folder, or a category that is not listed.
        KeyError, TypeError, ValueError: it is not of COCO's form.
    """
    file_name = inside_folder(image["file_name"], what)
    name = PurePosixPath(file_name).with_suffix("").as_posix()
    if is_panoptic:
        if len(annotations) > 1:
            raise UserError(f"{what}: image {name} has {len(annotations)} lists of segments")
        if not annotations:
            return name, CocoImage(file_name, 0, None)
        kept: list[dict[str, Any]] = [
            {"id": int(each["id"]), "category_id": int(each["category_id"]), "iscrowd": int(each.get("iscrowd") or 0)}
            for each in annotations[0]["segments_info"]
        ]
        content: Any = kept
        map_name = inside_folder(annotations[0]["file_name"], what)
    else:
        kept = [
            {
                "id": each.get("id"),
                "category_id": int(each["category_id"]),
                "iscrowd": int(each.get("iscrowd") or 0),
                "segmentation": each.get("segmentation"),
            }
            for each in annotations
        ]
        size: list[Any] = [image.get("height"), image.get("width")]
        content = {"size": None if None in size else [int(side) for side in size], "annotations": kept}
        map_name = ""
    if unknown := [each for each in kept if each["category_id"] not in categories]:
        raise UserError(
            f"{what}: segment {unknown[0]['id']} of image {name} has category {unknown[0]['category_id']}, which is "
            "none of its categories"
        )
    return name, CocoImage(file_name, len(kept), json.dumps(content, separators=(",", ":")), map_name)


def inside_folder(file_name: Any, what: str) -> str:
    """The name of a file of the folder beside the json.

    Raises:
        UserError: it is no name, or leads out of the folder.
    """
    if not isinstance(file_name, str) or not file_name or not file_name.isprintable():
        raise UserError(f"{what}: {file_name!r} is no name of a file")
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{what}: {file_name!r} leads out of the folder of its images: write names below it")
    return path.as_posix()
