"""What the segments of a data set are held against: the task, their classes, the model's queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from configuration import FASegConfig
from scripts.cli.errors import UserError
from scripts.data.arguments import CLASSES
from scripts.data.class_names import thing_ids_file
from scripts.data.label_encodings import SegmentClasses, SegmentForm
from scripts.data.labelled_dataset import LabelledDataset
from scripts.dataset_check.finding import Finding
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC, task_of
from scripts.models.warm_start import start_of
from scripts.storage.json_files import read_json
from scripts.training.arguments import TrainArguments, with_task


Arguments = TypeVar("Arguments", bound=TrainArguments)


@dataclass(frozen=True)
class SegmentRule:
    """What segments are held against.

    Args:
        form: how they are read, with their classes.
        task: what is to be trained on them.
        queries: of the model.
        one_piece: classes whose segments are one object each.
    """

    form: SegmentForm
    task: str
    queries: int
    one_piece: frozenset[int]


def settle_task(arguments: Arguments, opened: dict[str, LabelledDataset]) -> tuple[Arguments, bool]:
    """Tells the splits what they are for: as `--task` or the model says, else what their labels allow.

    Returns:
        the arguments, whose model is of that task; and whether the task was only guessed.
    Raises:
        UserError: the task needs segments, and nothing tells whether there are any.
    """
    task, data, arguments = arguments.task, next(iter(opened.values())), with_task(arguments)
    if arguments.recipe or arguments.config_name or arguments.model_name_or_path or arguments.warm_start:
        task = task_of(start_of(arguments).config())
    data.task = task or SEMANTIC
    if guessed := task is None and data.encoding != CLASSES:
        data.task = PANOPTIC if data.encoding == "segments" else INSTANCE
    for each in opened.values():
        each.task, each.encoding = data.task, data.encoding
    return arguments, guessed


def settled(
    opened: dict[str, LabelledDataset], names: dict[int, str] | None, refused: bool, guessed: bool
) -> tuple[SegmentRule | None, list[Finding]]:
    """What segments are held against, with the queries that models have by default; None for maps of class ids.

    Args:
        refused: whether the trainer would refuse the `names`.
        guessed: whether the task was.
    Raises:
        UserError: see `read_segment_classes`.
    """
    data = next(iter(opened.values()))
    if data.encoding == CLASSES:
        return None, []
    findings = []
    classes, fault = read_segment_classes(data, (names or {}) if refused else None)
    if fault:
        what, _, fix = fault.rpartition(": ")
        findings.append(Finding("error", "thing-ids", (), what or fix, fix))
    for each in opened.values():
        each.segment_classes = classes
    untold = data.task == PANOPTIC and not data.arguments.thing_classes and thing_ids_file(data.arguments) is None
    untold = untold and classes.things == classes.id2label.keys()
    if untold:
        message = f"nothing tells which classes are things: all {len(classes.things)} are taken for such"
        fix = "name them by --thing_classes, or write their ids into thing_ids.json beside the data"
        findings.append(Finding("note", "thing-ids", (), message, fix))
    if guessed:
        message = f"labels hold segments (--label_encoding {data.encoding}), checked as for --task {data.task}"
        fix = "give --task, also --task semantic, which learns the classes of segments"
        findings.append(Finding("note", "panoptic-maps", tuple(opened), message, fix))
    form = data.row_format.segments
    assert form is not None
    return SegmentRule(form, data.task, FASegConfig().num_queries, frozenset() if untold else classes.things), findings


def read_segment_classes(data: LabelledDataset, names: dict[int, str] | None) -> tuple[SegmentClasses, str | None]:
    """The classes of segments, and what is wrong with the file of things, if anything is.

    Args:
        names: those to be taken where the trainer would refuse the data set's; None where it would not.
    Raises:
        UserError: `--thing_classes` names a class that there is not.
    """
    if names is not None:
        return SegmentClasses(names, {index: index for index in names}, frozenset(names)), None
    own = data.class_names or {}
    try:
        return data.segment_classes or SegmentClasses({}), None
    except UserError as error:
        if data.arguments.thing_classes:
            raise
        known = [own[index] for index in ids_in(thing_ids_file(data.arguments)) if index in own]
        if data.class_map is not None or not known:
            known = list((data.class_map.id2label if data.class_map else own).values())
        data.arguments = replace(data.arguments, thing_classes=known)
        return data.segment_classes or SegmentClasses({}), str(error)


def ids_in(file: Path | None) -> list[int]:
    """The whole numbers in a list that may hold anything."""
    try:
        stored = read_json(file) if file else []
    except UserError:
        return []
    return [index for index in stored if type(index) is int] if isinstance(stored, list) else []
