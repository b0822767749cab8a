"""Flags that contradict what labels hold, see `--label_encoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets

from scripts.cli.errors import UserError
from scripts.data.arguments import OUTLINES
from scripts.models.tasks import SEMANTIC


if TYPE_CHECKING:
    from scripts.data.labelled_dataset import LabelledDataset


def refuse_other_labels(data: LabelledDataset, given: str) -> None:
    """Raises a `UserError` where the labels cannot be of the `--label_encoding` given."""
    kind, column = "train", data.arguments.segments_column_name
    if data.split not in ("train", data.arguments.train_split_name):
        kind = "eval"
    masks, columns = getattr(data.arguments, f"{kind}_masks"), data.stream.column_names
    feature = (data.stream.features or {}).get(data.arguments.label_column_name)
    if given in OUTLINES and (masks or (given == "coco" and isinstance(feature, datasets.Image))):
        place = f"--{kind}_masks {masks}" if masks else f"column {data.arguments.label_column_name!r}"
        what = "COCO's json" if given == "coco" else "the folder of YOLO's .txt files"
        raise UserError(
            f"--label_encoding {given}: {place} holds images, no outlines: give {what} by --{kind}_annotations in "
            "its place, or the encoding of the maps"
        )
    if given == "segments" and columns is not None and column not in columns:
        raise UserError(
            f"--label_encoding segments: no column {column!r} lists the segments of each map: name it by "
            f"--segments_column_name, or give COCO's panoptic json by --{kind}_annotations"
        )


def refuse_flags_of_class_maps(data: LabelledDataset, encoding: str) -> None:
    """Raises a `UserError` for flags that say what classes or class maps are, where that is told otherwise."""
    arguments = data.arguments
    one_class = encoding == "instances" and data.class_column is None
    with_class_maps = encoding in ("instances", "class_and_instance") and not one_class
    refused: dict[str, Any] = {"--mask_colors": (arguments.mask_colors, "no colours of classes")}
    if not with_class_maps and encoding != "segments":
        fix = "no class ids: --thing_classes names the class" if one_class else "no class ids: see --class_map"
        refused["--mask_values"] = (arguments.mask_values and " ".join(arguments.mask_values), fix)
    if not with_class_maps and (encoding != "segments" or data.task != SEMANTIC):
        fix = "no class 0 that means ignored: give --do_reduce_labels false"
        refused["--do_reduce_labels"] = (arguments.do_reduce_labels, fix)
    if one_class:
        refused["--class_map"] = (arguments.class_map, "instances of one class: --thing_classes names it")
    if data.categories is not None:
        refused["--id2label"] = (arguments.id2label, "names of their own: --class_map renames and merges")
    for flag, (value, reason) in refused.items():
        if value:
            given = flag if value is True else f"{flag} {value}"
            raise UserError(f"{given}: labels of --label_encoding {encoding} have {reason}")
