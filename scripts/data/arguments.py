"""The flags that name a dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import flag, path_flag


# Names of splits as people write them, and as they are called here.
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
CLASSES = "classes"
# Of labels, see --label_encoding.
ENCODINGS = (CLASSES, "segments", "instances", "class_and_instance", "coco", "yolo")
OUTLINES = ("coco", "yolo")  # encodings whose segments may overlap
HELD_BACK = "validation"  # the split of the samples that --train_val_split holds back


def intensity_range_flag() -> Any:
    """The flag that says what the numbers of an image mean; see `parse_range`."""
    return flag(
        None,
        "Two numbers, LOW HIGH, that become 0 and 255, for images of more than 8 bits: 0 65535; or, in training, "
        "auto, which measures them. They are kept with the trained model.",
        nargs="+",
    )


def parse_range(given: Sequence[Any] | None) -> tuple[float, float] | str | None:
    """`auto`, LOW and HIGH, or None of `--intensity_range`; whole numbers as such.

    Raises:
        UserError: it is something else.
    """
    if given is None or list(given) == ["auto"]:
        return None if given is None else "auto"
    try:
        low, high = (plain_number(float(number)) for number in given)
    except ValueError:
        low, high = 0, 0
    if not -math.inf < low < high < math.inf:
        shown = " ".join(map(str, given))
        raise UserError(f"--intensity_range {shown}: give auto, or two numbers, the smaller first: 0 65535")
    return low, high


def plain_number(number: float) -> float:
    """A whole number as an int, so that it is written without a point."""
    return int(number) if math.isfinite(number) and number == int(number) else number


@dataclass
class DatasetArguments:
    """The flags that name a dataset, shared by the commands."""

    dataset_name: str | None = path_flag(
        "Dataset with a column of images and one of label maps: its name on the Hub, a folder (one written by "
        "save_to_disk as well), or a parquet file or the URL of one. Or a folder of image files and label PNGs, such "
        "as train/images and train/masks, images/train and masks/train, or a.jpg beside a_mask.png."
    )
    dataset_config_name: str | None = flag(None, "Name of the dataset's configuration, if it has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a dataset on the Hub; by default the newest.")
    train_images: str | None = path_flag("Folder of the training images, in place of --dataset_name.")
    train_masks: str | None = path_flag(
        "Folder of the training label maps: PNGs whose pixels are class ids, named as their images are."
    )
    eval_images: str | None = path_flag("Folder of the images to evaluate on, in place of --dataset_name.")
    eval_masks: str | None = path_flag("Folder of the label maps to evaluate on, named as their images are.")
    train_annotations: str | None = path_flag(
        "Segments of the training images, in place of --train_masks: COCO's json file of instances; COCO's panoptic "
        "one, with --train_masks of its maps; or a folder of YOLO's .txt files of polygons."
    )
    eval_annotations: str | None = path_flag("The same of the images to evaluate on.")
    train_class_masks: str | None = path_flag(
        "Folder of class maps of the training images, where --train_masks holds maps of instances."
    )
    eval_class_masks: str | None = path_flag("The same of the images to evaluate on.")
    mask_suffix: str | None = flag(
        None,
        "What names of label maps have behind those of their images, in folders: _mask of a_mask.png. By default it "
        "is found out.",
    )
    train_split_name: str = flag("train", "Split of the dataset that is trained on.")
    train_val_split: float | None = flag(
        None,
        "Share of the training split that is not trained on but becomes the validation split, 0.15, for data without "
        "one. Neighbours stay together: folders, or names that differ in their last number.",
    )
    image_column_name: str = flag("image", "Column of the dataset that holds the images.")
    label_column_name: str = flag("label", "Column of the dataset that holds the label maps, one class id per pixel.")
    label_encoding: str | None = flag(
        None,
        "What the labels hold: classes, the id of a class per pixel; segments, the id of a segment per pixel "
        "(R + 256 G + 65536 B in colours) with the segments' classes in a list beside each map; instances, the id "
        "of an instance per pixel, 0 where there is none, of one class or beside class maps; class_and_instance, the "
        "class of each pixel in the first channel, the instance in the second; coco, outlines as in COCO's json; "
        "yolo, lines of polygons. By default it is told by the data where that is certain.",
    )
    class_column_name: str | None = flag(
        None, "Column of class maps, where the label maps hold instances. Without one all are of one class."
    )
    segments_column_name: str = flag(
        "segments_info", "Column with a list of each map's segments, their id, category_id and iscrowd."
    )
    thing_classes: list[str] | None = flag(
        None,
        "Names of the classes that have instances; the others are stuff. By default those in thing_ids.json beside "
        "the data, else all. Of maps of instances of one class, the name of that class.",
    )
    do_reduce_labels: bool = flag(
        False, "Ignore label 0 and count the classes from label 1 on, as ADE20K's label maps need it."
    )
    streaming: bool = flag(True, "Stream instead of downloading and converting the whole dataset first.")
    allow_urls: bool = flag(
        False, "Let the data set name any URL; by default only files of its own, for a URL may be any server."
    )
    allow_links: bool = flag(
        False, "Let files of the data set be links that lead out of its folder; for links that you made yourself."
    )
    id2label: str | None = path_flag(
        'JSON file with the name of each class id, {"0": "road", "1": "car"}; by default id2label.json beside the '
        "data, or the names that the dataset itself holds."
    )
    class_map: str | None = path_flag(
        "YAML file that merges, renames or ignores classes, a line for each: road: [road, lane]"
    )
    mask_values: list[str] | None = flag(
        None,
        "Class of each value that the label maps hold, VALUE=NAME: 0=background 255=cell. The name ignore takes its "
        "pixels out. In place of --id2label.",
    )
    mask_colors: str | None = path_flag(
        'JSON file with the colour of each class, {"road": "#804080", "car": "#00008e"}, for label maps in colours; '
        "by default palette.json beside the data, which has ids in place of names."
    )
    allow_absent_classes: bool = flag(
        False,
        "Go on although the label maps never hold one of the named classes, hold one class alone, or seem to hold ids "
        "of classes where those of instances are expected.",
    )
    max_bad_samples: int | None = flag(
        None, "How many unreadable samples are skipped before the command stops; by default 1%% of the samples."
    )
    intensity_range: list[str] | None = intensity_range_flag()


def check_dataset_flags(arguments: DatasetArguments) -> None:
    """Refuses values that cannot work, before anything is read.

    Raises:
        UserError: names the flag and its value.
    """
    suffix, share, encoding = arguments.mask_suffix, arguments.train_val_split, arguments.label_encoding
    if encoding is not None and encoding not in ENCODINGS:
        raise UserError(f"--label_encoding {encoding}: choose one of {', '.join(ENCODINGS)}")
    if suffix is not None and (not suffix or "/" in suffix):
        raise UserError(f"--mask_suffix {suffix!r}: give what stands at the end of names, without ending: _mask")
    if arguments.class_column_name and encoding not in (None, "instances"):
        raise UserError(
            f"--class_column_name {arguments.class_column_name} is for maps of instances, not for --label_encoding "
            f"{encoding}"
        )
    for kind in ("train", "eval"):
        for part in ("annotations", "class_masks"):
            value = getattr(arguments, f"{kind}_{part}")
            if value and not getattr(arguments, f"{kind}_images"):
                raise UserError(
                    f"--{kind}_{part} {value} needs --{kind}_images, the folder of its images; beside --dataset_name "
                    "leave it out"
                )
    if share is None:
        return
    if not 0 < share < 1:
        raise UserError(f"--train_val_split {share:g}: give a share above 0 and below 1, such as 0.15")
    if arguments.eval_images or arguments.eval_masks or arguments.eval_annotations:
        raise UserError(f"--train_val_split {share:g}: --eval_images is the validation split: give one of both")
    if arguments.train_split_name == HELD_BACK:
        raise UserError(f"--train_val_split {share:g}: makes a split {HELD_BACK!r}: it cannot be trained on")
