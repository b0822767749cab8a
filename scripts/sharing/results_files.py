"""Results files of `scripts/eval.py`, as cards and tables read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import start_of
from scripts.models.tasks import SEMANTIC
from scripts.storage.json_files import object_fault, read_json


# By task: results key -> name in the card, type in the card's metadata. The first has the interval.
AVERAGE_PRECISION = {
    "average_precision": ("mask AP", "average_precision"),
    "average_precision_50": ("mask AP at IoU 0.5", "average_precision_50"),
    "average_precision_75": ("mask AP at IoU 0.75", "average_precision_75"),
}
FIGURES = {
    "semantic": {
        "mean_iou": ("mean IoU", "mean_iou"),
        "mean_accuracy": ("mean accuracy", "mean_accuracy"),
        "overall_accuracy": ("pixel accuracy", "accuracy"),
        "mean_boundary_iou": ("mean boundary IoU", "mean_boundary_iou"),
    },
    "instance": AVERAGE_PRECISION,
    "panoptic": {
        "panoptic_quality": ("PQ", "panoptic_quality"),
        "segmentation_quality": ("SQ", "segmentation_quality"),
        "recognition_quality": ("RQ", "recognition_quality"),
        "panoptic_quality_things": ("PQ of things", "panoptic_quality_things"),
        "panoptic_quality_stuff": ("PQ of stuff", "panoptic_quality_stuff"),
        **AVERAGE_PRECISION,
    },
}
# By task: column of `per_class` -> title in the card; the first says which classes are found worst.
PER_CLASS = {
    "semantic": {"iou": "IoU", "accuracy": "accuracy"},
    "instance": {"average_precision": "AP", "average_precision_50": "AP50"},
    "panoptic": {"panoptic_quality": "PQ", "segmentation_quality": "SQ", "recognition_quality": "RQ"},
}
NEEDED = ("dataset", "split", "images", "protocol", "command", "per_class")
FIGURE = float | int | None
# Of what kind is what a card takes from a results file, and what its parts have to hold.
RESULTS: dict[str, Any] = {
    "dataset": str,
    "split": str,
    "images": int,
    "protocol": dict[str, Any],
    "command": str,
    "per_class": dict[str, dict[str, FIGURE]],
    "metric": str,
    "task": str,
    "parameters": int,
    "interval": dict[str, Any],
    "segment_sizes": list[dict[str, Any]],
    "protocol_lens": list[dict[str, Any]],
    "project": dict[str, Any],
    "dataset_revision": dict[str, Any],
    "weights_sha256": str,
    **{key: FIGURE for figures in FIGURES.values() for key in figures},
}
INSIDE: dict[str, dict[str, Any]] = {
    "protocol": {"name": str},
    "interval": {"confidence": float | int, "low": FIGURE, "high": FIGURE},
    "segment_sizes": {"max_area": int | None, "mean_iou": FIGURE},
    "protocol_lens": {"habit": str, "detectron2": FIGURE},
    "project": {"commit": str},
    "dataset_revision": {"hub_commit": str, "sha256": str},
}
NEEDED_INSIDE = {
    "interval": ("confidence", "low", "high"),
    "segment_sizes": ("max_area", "mean_iou"),
    "protocol_lens": ("habit",),
}
MOST = 2**53  # of what is counted; beyond it a float is no longer exact


def read_results(file: Path) -> dict[str, Any]:
    """A results file of `scripts/eval.py`.

    Raises:
        UserError: it is not there or is something else.
    """
    name = f"--results {file}"
    try:
        found = read_json(file, name)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{name}: no such file: write it with {start_of('eval')} --output_file {file}") from error
        raise
    if fault := results_fault(found):
        raise UserError(f"{name} is no results file: it {fault}")
    return found


def results_fault(found: Any) -> str | None:
    """What keeps `found` from being the content of a results file: the first part that lacks or is of another kind."""
    if fault := object_fault(found, RESULTS, NEEDED):
        return fault
    if task_of_results(found) not in FIGURES:
        return f"has a wrong field: 'task' is {task_of_results(found)[:20]!r}, need {', '.join(FIGURES)}"
    for key, kinds in INSIDE.items():
        for part in parts_of(found, key):
            if fault := object_fault(part, kinds, NEEDED_INSIDE.get(key, ())):
                return f"has a wrong field: {key!r} {fault}"
    for name, value, most in figures_of(found):
        if value is not None and not 0 <= value <= most:  # nan is not either
            return f"has a wrong field: {name} is {str(value)[:20]}, need 0 to {most}"
    return None


def task_of_results(results: dict[str, Any]) -> str:
    """What the model of a results file is for; files from before there were others do not say."""
    return results.get("task") or SEMANTIC


def parts_of(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The mappings that a field of a results file holds: one, several, or none where it was not measured."""
    value = found.get(key) or []
    return [value] if isinstance(value, dict) else value


def figures_of(found: dict[str, Any]) -> Iterator[tuple[str, float | None, int]]:
    """`(name, value, the most that it can be)` of all figures of a results file that a card shows."""
    figures = dict.fromkeys(FIGURES[task_of_results(found)], 100)
    for key, most in {**figures, "images": MOST, "parameters": MOST}.items():
        yield repr(key), found.get(key), most
    for label, row in found["per_class"].items():
        for column in PER_CLASS[task_of_results(found)]:
            yield f"{column!r} of class {label!r}", row.get(column), 100
    inside = {
        "interval": {"low": 100, "high": 100, "confidence": 1},
        "segment_sizes": {"mean_iou": 100, "max_area": MOST},
        "protocol_lens": {"detectron2": 100},
    }
    for key, bounds in inside.items():
        for part in parts_of(found, key):
            for column, most in bounds.items():
                yield f"{column!r} of {key!r}", part.get(column), most
