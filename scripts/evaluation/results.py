"""Results files: what was measured, on what, with which weights."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


PACKAGES = (
    "faseg-transformers",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "numpy",
)


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 over the safetensors files of a checkpoint folder in the order of their names; None without any."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of what computes a figure."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the project itself may run from a checkout
            continue
    return found


def command_line() -> str:
    """The command as it was given."""
    return "python " + shlex.join(sys.argv)


def percent(value: float) -> float | None:
    """Fraction -> percent with two decimals; None for nan, which JSON has not."""
    return None if math.isnan(value) else round(100 * value, 2)


def build_results(scores: dict[str, Any], id2label: dict[int, str], **facts: Any) -> dict[str, Any]:
    """Scores in percent, per class by name, and the facts that make them reproducible."""
    names = [id2label[index] for index in sorted(id2label)]
    return {
        "metric": "mIoU, mean over classes present in the ground truth, ignored pixels left out",
        "mean_iou": percent(scores["mean_iou"]),
        "mean_accuracy": percent(scores["mean_accuracy"]),
        "overall_accuracy": percent(scores["overall_accuracy"]),
        "per_class": {
            name: {"iou": percent(iou), "accuracy": percent(accuracy)}
            for name, iou, accuracy in zip(
                names, scores["per_category_iou"], scores["per_category_accuracy"], strict=True
            )
        },
        **facts,
        "command": command_line(),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(results: dict[str, Any], file: Path) -> None:
    """Writes the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def results_table(results: dict[str, Any]) -> str:
    """Per-class IoU and accuracy, and the means, as text."""
    rows = [(name, row["iou"], row["accuracy"]) for name, row in results["per_class"].items()]
    rows.append(("mean", results["mean_iou"], results["mean_accuracy"]))
    width = max(len("pixel accuracy"), *(len(name) for name, *_ in rows))

    def number(value: float | None) -> str:
        return f"{'-' if value is None else f'{value:.2f}':>9}"

    lines = [f"{'class':<{width}}{'IoU':>9}{'accuracy':>9}"]
    lines += [f"{name:<{width}}{number(iou)}{number(accuracy)}" for name, iou, accuracy in rows]
    lines.append(f"{'pixel accuracy':<{width}}{'':>9}{number(results['overall_accuracy'])}")
    return "\n".join(lines)
