"""Results files: what was measured, on what, with which weights."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from scripts.cli.parser import IS_CHECKOUT, PROJECT_ROOT, program
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC
from scripts.storage.atomic import atomic_file
from scripts.storage.digests import sha256
from scripts.storage.outputs import MARK
from scripts.storage.shared_text import without_credentials


PACKAGES = (
    "faseg-transformers",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
)
METRICS = {  # by task
    SEMANTIC: "mIoU, mean over classes present in the ground truth, ignored pixels left out",
    "instance": "mask AP by COCO's rules, mean over IoU 0.5 to 0.95 and the classes with reference segments",
    "panoptic": "PQ by panopticapi's rules, mean over the classes that occur or are found; AP by COCO's of the things",
}
MAIN_NAMES = {SEMANTIC: "mean IoU", INSTANCE: "AP", PANOPTIC: "PQ"}  # of the figure with an interval, by task
COLUMNS = {  # of tasks with segments
    "panoptic_quality": "PQ",
    "segmentation_quality": "SQ",
    "recognition_quality": "RQ",
    "average_precision": "AP",
    "average_precision_50": "AP50",
}


def weights_sha256(name: str) -> str | None:
    """SHA-256 over the safetensors files of a checkpoint in the order of their names; None without any.

    Args:
        name: its folder, or the Hub id of one that has been loaded.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # most figures are of a folder, and this takes a second
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(name, allow_patterns="*.safetensors", local_files_only=True))
        except (HFValidationError, OSError):  # neither a folder nor in the cache
            return None
    files = sorted(folder.glob("*.safetensors"))
    return sha256(*files) if files else None


def package_versions(*others: str) -> dict[str, str]:
    """Installed versions of what computes a figure, and of `others`."""
    found = {"python": sys.version.split()[0]}
    for package in (*PACKAGES, *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the project itself may run from a checkout
            continue
    return found


def command_line() -> str:
    """The command as it was given, the script's place as seen from the project, URLs without user and password.

    In a program or a notebook of somebody else's, whose command line says nothing of it, a comment that says so.
    """
    words = program()
    if words[0] == "python":
        script = Path(sys.argv[0]).resolve()  # `python -m` gives the whole path
        if not (PROJECT_ROOT / "scripts" / script.name).is_file():
            return "# called from Python"
        place = script.relative_to(PROJECT_ROOT) if script.is_relative_to(PROJECT_ROOT) else Path(script.name)
        words = ["python", place.as_posix()]
    return shlex.join([*words, *map(without_credentials, sys.argv[1:])])


def percent(value: float) -> float | None:
    """Fraction -> percent with two decimals; None for nan, which JSON has not."""
    return None if math.isnan(value) else round(100 * value, 2)


def in_percent(value: Any) -> Any:
    """`percent` of every float in lists and dictionaries."""
    if isinstance(value, dict):
        return {key: in_percent(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_percent(item) for item in value]
    return percent(value) if isinstance(value, float) else value


def build_results(
    scores: dict[str, Any], id2label: dict[int, str], metric: str = METRICS[SEMANTIC], **facts: Any
) -> dict[str, Any]:
    """Scores in percent, per class by name, and the facts that make them reproducible.

    Args:
        scores: such as those of `mean_iou.scores_from_counts`; a list `per_category_...` of K becomes a column of
            `per_class`.
        metric: what the main figure is.
    """
    names = distinct_names(id2label)
    columns = {key.removeprefix("per_category_"): scores[key] for key in scores if key.startswith("per_category_")}
    return {
        "metric": metric,
        **{key: percent(value) for key, value in scores.items() if not key.startswith("per_category_")},
        "per_class": {
            name: {column: percent(values[index]) for column, values in columns.items()}
            for index, name in enumerate(names)
        },
        **facts,
        "command": command_line(),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def distinct_names(id2label: dict[int, str]) -> list[str]:
    """Class names in the order of their ids; those that several classes share get their id, so that none is lost."""
    shared = [name for name, count in Counter(id2label.values()).items() if count > 1]
    return [f"{name} (id {index})" if name in shared else name for index, name in sorted(id2label.items())]


def write_results(results: dict[str, Any], file: Path) -> None:
    """Writes the file atomically."""
    text = json.dumps(results | {"written_by": MARK}, indent=2, ensure_ascii=False)
    with atomic_file(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def number(value: float | None) -> str:
    """A percentage in a column of nine."""
    return f"{'-' if value is None else f'{value:.2f}':>9}"


def results_table(results: dict[str, Any]) -> str:
    """Per-class IoU, accuracy and boundary IoU, and the means, as text; of other tasks their figures."""
    if results.get("task", SEMANTIC) != SEMANTIC:
        return segments_table(results)
    columns = ["iou", "accuracy", "boundary_iou"]
    columns = [column for column in columns if all(column in row for row in results["per_class"].values())]
    headings = {"iou": "IoU", "accuracy": "accuracy", "boundary_iou": "boundary"}
    rows = [(name, *(row[column] for column in columns)) for name, row in results["per_class"].items()]
    rows.append(("mean", *(results[f"mean_{column}"] for column in columns)))
    width = max(len("frequency weighted"), *(len(name) for name, *_ in rows))
    lines = [f"{'class':<{width}}" + "".join(f"{headings[column]:>9}" for column in columns)]
    lines += [f"{name:<{width}}" + "".join(map(number, values)) for name, *values in rows]
    lines.append(f"{'pixel accuracy':<{width}}{'':>9}{number(results['overall_accuracy'])}")
    lines.append(f"{'frequency weighted':<{width}}{number(results['frequency_weighted_iou'])}")
    lines.append(f"{'mean, mmseg rule':<{width}}{number(results['mmseg_mean_iou'])}")
    return "\n".join(lines)


def segments_table(results: dict[str, Any]) -> str:
    """Figures per class, their means, and precision and recall by area and number of detections, as text."""
    rows = results["per_class"]
    columns = [column for column in COLUMNS if all(column in row for row in rows.values())]
    of_all = [results[column] for column in columns]
    means = [("mean", of_all)]
    if "things" in results:
        things, stuff = (
            [results.get(f"{column}_{group}", results[column] if group == "things" else None) for column in columns]
            for group in ("things", "stuff")
        )
        of_all = [None if column.startswith("average") else value for column, value in zip(columns, of_all)]
        means = [("all", of_all), ("things", things), ("stuff", stuff)]
    width = max(map(len, ("class", "things", *rows)))
    lines = [f"{'class':<{width}}" + "".join(f"{COLUMNS[column]:>9}" for column in columns)]
    lines += [f"{name:<{width}}" + "".join(number(row[column]) for column in columns) for name, row in rows.items()]
    lines += [f"{name:<{width}}" + "".join(map(number, values)) for name, values in means]
    for title, key, endings in (
        ("AP", "average_precision", ("50", "75", "small", "medium", "large")),
        ("AR", "average_recall", ("1", "10", "100", "small", "medium", "large")),
    ):
        names = [f"{title}{ending}" if ending.isdigit() else f"{title} {ending}" for ending in endings]
        lines.append(
            "".join(
                f"{name:<9}" + number(results[f"{key}_{ending}"]) + "   " for name, ending in zip(names, endings)
            ).rstrip()
        )
    return "\n".join(lines)


def interval_text(interval: dict[str, Any]) -> str:
    """Both ends of an interval; they are None where no image had a class to find."""
    return " to ".join("-" if value is None else f"{value:.2f}" for value in (interval["low"], interval["high"]))


def focus_text(focus: dict[str, Any]) -> str:
    """Focus consistency by layer, see `scripts/explaining/focus.py`."""
    columns = ("inside", "even", "chance", "reaches")
    lines = [
        f"focus consistency over {focus['segments']} segments, % of a layer's focus in the final mask",
        f"{'layer':<6}{'reads':<10}" + "".join(f"{column:>9}" for column in columns),
    ]
    for row in focus["layers"]:
        lines.append(f"{row['layer']:<6}{row['reads']:<10}" + "".join(number(row[column]) for column in columns))
    return "\n".join(lines)


def details_text(results: dict[str, Any]) -> str:
    """Interval, sizes of segments and the protocol lens, as far as they were measured; else empty."""
    lines = []
    if interval := results.get("interval"):
        share = f"{100 * interval['confidence']:.0f}%"
        name = MAIN_NAMES[results.get("task", SEMANTIC)]
        lines.append(f"{share} interval of {name} over images: {interval_text(interval)}")
    for group in results.get("segment_sizes", []):
        area = "larger" if group["max_area"] is None else f"up to {group['max_area']} px"
        lines.append(f"segments {area:<18}{group['segments']:>9} segments, mean IoU{number(group['mean_iou'])}")
    if lens := results.get("protocol_lens"):
        width = max(len(row["habit"]) for row in lens)
        lines.append(f"{'the same weights under':<{width}}{'detectron2':>12}{'mmseg':>9}{'torchmetrics':>14}")
        for row in lens:
            figures = f"{number(row['detectron2']):>12}{number(row['mmseg'])}{number(row['torchmetrics_macro']):>14}"
            lines.append(f"{row['habit']:<{width}}{figures}")
    if focus := results.get("focus_consistency"):
        lines.append(focus_text(focus))
    if skipped := results.get("skipped"):
        lines += [f"skipped: {message}" for message in skipped]
    return "\n".join(lines)


def project_commit() -> dict[str, Any] | None:
    """`commit` of the checkout that runs, and whether it is `dirty`: a tracked file differs.

    Of an installed project the commit that pip fetched it at; None where it was installed from anything else.
    """
    if not IS_CHECKOUT:
        commit = installed_commit()
        return {"commit": commit, "dirty": False} if commit else None
    # Variables such as GIT_DIR, which git sets for its hooks, name a repository in place of the folder's own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PROJECT_ROOT:
            return None  # an unpacked archive below somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def installed_commit() -> str | None:
    """The commit that pip noted when it installed the project from a git repository (PEP 610), else None."""
    try:
        origin = json.loads(distribution("faseg-transformers").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    return origin.get("vcs_info", {}).get("commit_id")
