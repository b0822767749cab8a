"""What `eval.py` refuses of models and data of segments: flags of class maps, and other classes than the model's."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.processes import say_once
from scripts.data.first_look import BACKGROUND
from scripts.data.labelled_dataset import LabelledDataset
from scripts.evaluation.degenerate import no_class_names, refuse_other_numbers
from scripts.models.tasks import INSTANCE, SEMANTIC


AVERAGED = "averages class scores, and masks of queries cannot be averaged"
OF_CLASS_MAPS = "is about the ids of class maps"
# Why each flag has no meaning for a model of instances or panoptic segments.
SEMANTIC_FLAGS = {
    "tta": AVERAGED,
    "tta_shortest_edges": AVERAGED,
    "tta_longest_edge": AVERAGED,
    "sliding_window": AVERAGED,
    "crop_size": AVERAGED,
    "stride": AVERAGED,
    "protocol": "is a benchmark of class maps",
    "protocol_lens": "compares habits of mean IoU",
    "label_ids": OF_CLASS_MAPS,
    "do_reduce_labels": OF_CLASS_MAPS,
    "focus": "measures masks of class maps",
    "report": "shows errors of class maps",
}
IDS_OF_CLASS_MAPS = ("protocol", "label_ids")


def given(arguments: Any, names: Any) -> list[str]:
    """Those of the flags whose value is not the default."""
    defaults = {each.name: each.default for each in fields(arguments) if each.default is not MISSING}
    return [name for name in names if getattr(arguments, name) != defaults[name]]


def refuse_semantic_flags(arguments: Any, task: str) -> None:
    """Refuses flags that have no meaning for an instance or a panoptic model.

    Raises:
        UserError: names the first, and why.
    """
    for name in given(arguments, SEMANTIC_FLAGS):
        raise UserError(f"--{name} {SEMANTIC_FLAGS[name]}, but the model is for --task {task}: leave it out")


def refuse_class_map_flags(arguments: Any) -> None:
    """Refuses, for a semantic model on data of segments, flags about ids that these do not have.

    Raises:
        UserError: names the first, and why.
    """
    for name in given(arguments, IDS_OF_CLASS_MAPS):
        raise UserError(f"--{name} {SEMANTIC_FLAGS[name]}, but these label maps hold segments: leave it out")


def check_segment_classes(data: LabelledDataset, of_model: dict[int, str]) -> None:
    """Compares the classes of segments with the model's; data without names of their own get the model's.

    Names that the other does not have are said: the numbers may be meant alike.

    Raises:
        UserError: there are more or fewer, a class has another number in the model, or instances of one class are of
            any of several.
    """
    if data.class_names is None and data.class_map is None:
        data.class_names = dict(of_model)
        if data.holds_instances_of_one_class:
            learnt = [name for name in of_model.values() if data.task != SEMANTIC or name.lower() != BACKGROUND]
            if len(learnt) != 1:
                raise no_class_names(data)
            data.class_names = {0: learnt[0]}
        elif data.task == INSTANCE and (data.encoding == "segments" or data.holds_class_maps):
            raise UserError(
                "no class names: an instance model numbers the things alone, and nothing tells which ids of the data "
                "are things: give --id2label, and --thing_classes unless all are"
            )
    names = data.id2label or {}
    refuse_other_numbers(names, of_model)
    if len(names) != len(of_model):
        fix = "--class_map makes them alike"
        if data.task == INSTANCE and len(names) > len(of_model):
            fix = "--thing_classes names those with instances, " + fix
        raise UserError(f"classes of the data's segments: {len(names)}, of the model: {len(of_model)}: {fix}")
    other = [index for index in names if names[index] != of_model[index]]
    if other:
        listed = ", ".join(f"{names[index]!r} is {of_model[index]!r}" for index in other[:6])
        say_once(f"warning: classes of the data have other names in the model: {listed}{', ...' * (len(other) > 6)}")
