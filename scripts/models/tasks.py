"""What a model was trained for: a class for each pixel, instances, or panoptic segments."""

from __future__ import annotations

from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import flag


SEMANTIC, INSTANCE, PANOPTIC = TASKS = ("semantic", "instance", "panoptic")
# Least score of an instance; class probability above which a panoptic segment is kept.
DEFAULT_THRESHOLDS = {INSTANCE: 0.5, PANOPTIC: 0.8}


def task_of(config: Any) -> str:
    """The task of a model by its configuration; that of a model without one is semantic."""
    return getattr(config, "task", None) or SEMANTIC


def check_task(processor: Any, config: Any, where: str) -> None:
    """Refuses an image processor of another task than its model's, whose answers would be no one's.

    Raises:
        UserError: with both tasks.
    """
    task, found = task_of(config), getattr(processor, "task", None)
    if found not in (None, task):
        raise UserError(
            f"{where}: preprocessor_config.json says task {found}, but config.json says {task}: make them the same"
        )


def refuse_other_task(config: Any, what: str, reason: str, task: str = SEMANTIC) -> None:
    """Raises `UserError` unless the model is of the one task that something can be done for.

    Args:
        what: the command or flag that needs it.
        reason: why it needs it, and what to do.
    """
    if task_of(config) != task:
        article = "an" if task_of(config) == INSTANCE else "a"
        raise UserError(f"{what} is for {task} models, and this is {article} {task_of(config)} model: {reason}")


def threshold_flag() -> Any:
    """The flag of the score from which on segments are found."""
    return flag(
        None,
        "Least score of what an instance model finds, from 0 (all) to 1, by default "
        f"{DEFAULT_THRESHOLDS[INSTANCE]}; of a panoptic model the class probability above which a segment is kept, by "
        f"default {DEFAULT_THRESHOLDS[PANOPTIC]}.",
    )


def check_threshold(threshold: float | None, task: str) -> None:
    """Raises `UserError` at a threshold that is none, or that a model of this task has no use for."""
    if threshold is None:
        return
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: give 0 to 1")
    if task == SEMANTIC:
        raise UserError(
            f"--threshold {threshold:g} is for instance and panoptic models, and this is a semantic model, which "
            "gives every pixel a class: leave it out"
        )


def threshold_of(threshold: float | None, task: str) -> float:
    """The threshold given, or that of the task."""
    return DEFAULT_THRESHOLDS[task] if threshold is None else threshold


def stuff_of(processor: Any) -> list[int] | None:
    """Classes without instances; None where a panoptic model does not say which."""
    if processor.task != PANOPTIC:
        return []
    return None if processor.label_ids_to_fuse is None else sorted(map(int, processor.label_ids_to_fuse))
