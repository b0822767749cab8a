"""Data on which a score cannot fail, or means another thing than it seems: classes that never occur."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.cli.parser import start_of
from scripts.cli.processes import say_once
from scripts.data.arguments import CLASSES
from scripts.data.first_look import BACKGROUND, FirstLook, first_look
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC


CHECK = f"{start_of('check_dataset')} tells what became of the others"
LEAST_CLASSES = {SEMANTIC: 2, INSTANCE: 1, PANOPTIC: 1}  # of which a score can fail: segments can be missed
MOST_CLASSES = 100  # values without names: more are rather numbers of instances
AS_CLASSES = "--task semantic --label_encoding classes reads them so; instances need an id for each object"
GO_ON = "--allow_absent_classes goes on as it is"


def refuse_one_class(names: Mapping[Any, str]) -> None:
    """Refuses a model of a single class, which can call no pixel anything else.

    Raises:
        UserError: says how such data are labelled.
    """
    if len(names) < 2:
        name = next(iter(names.values()), "")
        raise UserError(
            f"there is one class, {name!r}: every pixel is that or ignored, so no score can fail: label what "
            f'surrounds it as a class too, {{"0": "background", "1": "{name}"}}'
        )


def refuse_other_numbers(names: Mapping[int, str], of_model: Mapping[int, str]) -> None:
    """Refuses classes of label maps that the model has under other numbers, so that each would be taken for another.

    Args:
        names: by id, as the data or the flags have them.
    Raises:
        UserError: names the first, with both numbers.
    """
    numbers = {name: index for index, name in of_model.items()}
    for index, name in names.items():
        if numbers.get(name, index) != index:
            raise UserError(
                f"class {name!r} is number {index} by the data or the flags of the label maps (--class_map, "
                f"--mask_values or --mask_colors), but {numbers[name]} in the model: give the classes in the model's "
                f"order, {', '.join(of_model.values())}"
            )


def look_at_classes(data: LabelledDataset, names: Mapping[int, str], trained: FirstLook | None = None) -> FirstLook:
    """What the first label maps of a split hold, if a model of these classes can be trained on them and be scored.

    Args:
        names: of the model's classes, by id.
        trained: what those of the training split hold, where this is another: a class that occurs there may be absent
            here, which is said.
    Raises:
        UserError: they hold one class alone or none, or never one that is named, or are maps of class ids where maps
            of instances are expected; says what they hold and the fix.
    """
    look = first_look(data.stream, data.row_format)
    if data.arguments.allow_absent_classes or not look.maps:
        return look
    if look.instances.seem_classes():
        seen = f"split {data.split!r}: {look.instances.described()} {AS_CLASSES}"
        if look.instances.are_classes():
            raise UserError(f"{seen}; {GO_ON}")
        say_once(f"warning: {seen}")
    if trained is not None and len(look.classes) >= LEAST_CLASSES[data.task]:
        absent = [index for index in names if not look.classes[index]]
        if look.whole and absent and all(trained.classes[index] for index in absent):
            listed = ", ".join(repr(names[index]) for index in absent)
            print(f"warning: split {data.split!r} lacks {listed}, left out of the mean", file=sys.stderr)
            return look
    if fault := fault_of(look, data, names):
        raise UserError(f"split {data.split!r}: {fault}")
    return look


def fault_of(look: FirstLook, data: LabelledDataset, names: Mapping[int, str]) -> str | None:
    """What is wrong with the classes in the first label maps, and the fix; None if nothing is."""
    read = f"{'its' if look.whole else 'the first'} {look.maps} label map{'s' * (look.maps > 1)}"
    ids, absent = set(look.stored), [index for index in names if not look.classes[index]]
    if data.task != SEMANTIC:
        if not look.classes:
            return f"{read} hold no segment of any class, so there is nothing to learn or to score: {CHECK}"
        whole = absent and look.whole and look.enough_for(len(names))
        return absent_classes(absent, names, read) if whole else None
    as_stored = data.class_map is None and not data.do_reduce_labels
    if as_stored and (absent or len(names) == 1) and ids == {0, IGNORE_INDEX}:
        return (
            f"{read} hold 0 and 255, and 255 is ignored, so one class is left: {values_flag(names)} makes it a class"
        )
    if any(index >= len(names) for index in look.classes):
        return None  # ids of no class: the sample that has them is named, with their likely cause
    enough = look.enough_for(len(names))
    if data.do_reduce_labels and data.class_map is None and 0 in ids and enough and len(names) not in ids:
        return (
            "labels are reduced (--do_reduce_labels, which the recipe or the checkpoint may set), so 0 is ignored and "
            f"1 is {names[0]!r}, but {read} hold {look.listed()} and never {len(names)}, so {names[0]!r} seems to be "
            f"stored as 0: take another recipe, such as finetune; {GO_ON}"
        )
    if not look.classes and data.encoding != CLASSES:
        return f"{read} hold no segments of these classes, so there is nothing to learn or to score: {CHECK}"
    if not look.classes:
        return f"{read} hold {look.listed()}, all of them ignored, so there is nothing to learn or to score: {CHECK}"
    if len(look.classes) < LEAST_CLASSES[SEMANTIC]:
        only = names[next(iter(look.classes))]
        return f"{read} hold {look.listed()}, which is {only!r} alone, so no score can fail: {CHECK}; {GO_ON}"
    if absent and look.whole and enough:
        return absent_classes(absent, names, f"{read}, which hold {look.listed()}")
    return None


def values_flag(names: Mapping[int, str]) -> str:
    """`--mask_values` for maps of 0 and 255."""
    if len(names) > 2:
        return "--mask_values 0=NAME 255=NAME"
    first, last = (BACKGROUND, *names.values()) if len(names) == 1 else names.values()
    return shlex.join(["--mask_values", f"0={first}", f"255={last}"])


def absent_classes(absent: list[int], names: Mapping[int, str], where: str) -> str:
    """What is said of named classes that never occur `where`."""
    listed = ", ".join(repr(names[index]) for index in absent[:6])
    more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
    never = f"never occur{'s' * (len(absent) == 1)}"
    return (
        f"{listed}{more} of the {len(names)} named classes {never} in {where}: are their pixels stored under another "
        f"value? {CHECK}; {GO_ON}, leaving them out of the mean"
    )


def refuse_absent_classes(valid: np.ndarray, names: Mapping[int, str], data: LabelledDataset) -> None:
    """Refuses a whole split, evaluated, in which a named class never occurred.

    Args:
        valid: `(K, ...)` counts of each class, such as a `mean_iou.valid_part`.
    Raises:
        UserError: says which, and the fix.
    """
    absent = [index for index in names if not valid[index].any()]
    if absent and not data.arguments.allow_absent_classes:
        raise UserError(f"split {data.split!r}: {absent_classes(absent, names, 'all of its label maps')}")


def no_class_names(data: LabelledDataset) -> UserError:
    """What is said where classes have no names: the ids that the maps hold, and how to name them."""
    if data.holds_instances_of_one_class:
        return UserError("no class name: the label maps hold instances of one class: name it by --thing_classes NAME")
    if data.encoding == "yolo":
        return UserError(
            "no class names: YOLO's text files number their classes from 0: write the names in that order, as a list "
            "called names, into data.yaml beside the data, or give --id2label"
        )
    if data.encoding != CLASSES:
        return UserError("no class names: give --id2label, or put id2label.json beside the data")
    look = first_look(data.stream, data.own_row_format)
    flags = " ".join(f"{index}=NAME" for index in sorted(look.stored)[:8]) or "0=NAME 1=NAME"
    held = look.listed() or "nothing that can be read"
    if len(look.stored) > MOST_CLASSES or max(look.stored, default=0) > IGNORE_INDEX:
        return UserError(
            f"no class names: the label maps hold {held}, {len(look.stored)} values in {look.maps} maps: ids of "
            "instances? --task instance --label_encoding instances --thing_classes NAME reads them; else name the "
            "values by --mask_values or --id2label"
        )
    return UserError(
        f"no class names: the label maps hold {held}: name them by --mask_values {flags}, or give --id2label, or put "
        "id2label.json beside the data"
    )


def why_it_says_nothing(valid: np.ndarray, names: Mapping[int, str]) -> str | None:
    """Why there is no mean IoU on these references, or one that cannot fail; None where it can.

    Args:
        valid: see `mean_iou.valid_part`.
    """
    present = np.flatnonzero(valid.sum(axis=1))
    if len(present) > 1:
        return None
    if not len(present):
        return f"all pixels of the label maps are ignored, so there is no score: see {start_of('check_dataset')}"
    name = names[int(present[0])]
    return f"only {name!r} occurs in the label maps: a model that sees nothing else scores 100, so this says nothing"
