"""What a model was trained for: a class for each pixel, instances, or panoptic segments."""

from __future__ import annotations

from typing import Any

from scripts.cli.errors import UserError


SEMANTIC, INSTANCE, PANOPTIC = "semantic", "instance", "panoptic"


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
