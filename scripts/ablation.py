"""Tests the paper's central claim: trains a recipe with and without DFPQ and HRCA, some seeds each, and compares mIoU.

`python scripts/ablation.py --train_recipe faseg-mobilenetv2-camvid --dataset_name DATA --output_dir outputs/ablation
--output_file results/ablation/faseg-mobilenetv2-camvid.json` runs `scripts/train.py` and `scripts/eval.py` once per
variant and seed. Runs that are finished are not repeated, so the command can be stopped and given again.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import statistics
import subprocess
from dataclasses import dataclass
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, check_folder, flag, parse_arguments, run_command
from scripts.evaluation.results import command_line, package_versions, write_results
from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import read_json
from scripts.storage.outputs import check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials


# Name -> (use_dynamic_positional_queries, use_high_resolution_cross_attention).
VARIANTS = {
    "DFPQ and HRCA": (True, True),
    "DFPQ alone": (True, False),
    "HRCA alone": (False, True),
    "neither (Mask2Former's decoder)": (False, False),
}


@dataclass
class AblationArguments:
    """Train and evaluate a recipe with and without DFPQ and HRCA."""

    train_recipe: str | None = flag(None, "Recipe of scripts/train.py, such as faseg-mobilenetv2-camvid.")
    dataset_name: str | None = flag(None, "Dataset that all runs are trained and evaluated on.")
    output_dir: str | None = flag(None, "Folder that gets a folder for each run.")
    output_file: str | None = flag(
        None, "JSON file for the mean IoU of each run, their means and standard deviations."
    )
    overwrite: bool = overwrite_flag()
    seeds: list[int] = flag([0, 1, 2], "Seeds; each variant is trained once with each.")
    train_flags: str = flag("", "Further flags of scripts/train.py, all in one string: '--max_train_steps 1000'.")


def run_name(variant: str, seed: int) -> str:
    """Folder of one run."""
    dynamic, high_resolution = VARIANTS[variant]
    return f"dfpq{int(dynamic)}-hrca{int(high_resolution)}-seed{seed}"


def check_flags(file: Path, arguments: AblationArguments) -> None:
    """Keeps in `file` what a run is made with.

    Raises:
        UserError: it was made with something else.
    """
    names = ("train_recipe", "dataset_name", "train_flags")
    flags = {name: without_credentials(str(getattr(arguments, name))) for name in names}
    if file.is_file():
        earlier = read_json(file, kinds=dict.fromkeys(names, str), needed=names)
        for name in names:
            if earlier[name] != flags[name]:
                raise UserError(
                    f"{file.parent} was made with --{name} {earlier[name]!r}, not {flags[name]!r}: "
                    "name another --output_dir"
                )
        return
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(flags) + "\n", encoding="utf-8")


def run_once(arguments: AblationArguments, variant: str, seed: int) -> dict[str, Any]:
    """Results of one run, trained and evaluated unless its results file is there.

    Raises:
        UserError: one of the two commands failed, what it printed stands above; or the folder is of other flags.
    """
    from scripts.training.checkpointing import checkpoints

    folder = Path(arguments.output_dir or "") / run_name(variant, seed)
    results = folder / "results.json"
    check_flags(folder / "ablation.json", arguments)
    if not results.is_file():
        dynamic, high_resolution = VARIANTS[variant]
        data = ["--dataset_name", str(arguments.dataset_name)]
        train = ["train.py", str(arguments.train_recipe), *data, "--output_dir", str(folder), "--seed", str(seed)]
        if checkpoints(folder):  # of a run that was stopped
            train += ["--resume_from_checkpoint", "latest"]
        train += ["--config_overrides", f"use_dynamic_positional_queries={dynamic}"]
        train += [f"use_high_resolution_cross_attention={high_resolution}", *arguments.train_flags.split()]
        evaluate = ["eval.py", "--model_name_or_path", str(folder), *data, "--output_file", str(results)]
        for script, *flags in (train, evaluate):
            done = subprocess.run([sys.executable, str(PROJECT_ROOT / "scripts" / script), *flags], check=False)
            if done.returncode:
                raise UserError(f"{script} of {folder.name} left with exit code {done.returncode}")
    return read_json(results, kinds={"mean_iou": float | int}, needed=["mean_iou"])


def summary(scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Per variant: mIoU in percent of each seed, their mean, and their sample standard deviation."""
    return {
        variant: {
            "mean_iou_by_seed": {str(seed): value for seed, value in by_seed.items()},
            "mean": round(statistics.mean(by_seed.values()), 2),
            "standard_deviation": round(statistics.stdev(by_seed.values()), 2) if len(by_seed) > 1 else None,
        }
        for variant, by_seed in scores.items()
        if by_seed
    }


def summary_table(variants: dict[str, Any]) -> str:
    """The summary as text."""
    width = max(len(name) for name in variants)
    lines = [f"{'':<{width}}  mean mIoU  std   seeds"]
    for name, row in variants.items():
        spread = "-" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2f}"
        seeds = ", ".join(f"{value:.2f}" for value in row["mean_iou_by_seed"].values())
        lines.append(f"{name:<{width}}  {row['mean']:>9.2f}  {spread:<4}  {seeds}")
    return "\n".join(lines)


def ablation(arguments: AblationArguments) -> dict[str, Any]:
    """All runs, seed by seed; returns what is written to the output file after each."""
    for name in ("train_recipe", "dataset_name", "output_dir", "output_file"):
        if not getattr(arguments, name):
            raise UserError(f"no {name.replace('_', ' ')}: give --{name}")
    check_folder("--output_dir", Path(str(arguments.output_dir)))
    check_output_file("--output_file", Path(str(arguments.output_file)), arguments.overwrite)
    scores: dict[str, dict[int, float]] = {variant: {} for variant in VARIANTS}
    results: dict[str, Any] = {}
    for seed in arguments.seeds:
        for variant in VARIANTS:
            run = run_once(arguments, variant, seed)
            scores[variant][seed] = run["mean_iou"]
            results = {
                "recipe": arguments.train_recipe,
                "train_flags": without_credentials(arguments.train_flags),
                **{key: run[key] for key in ("metric", "dataset", "split", "images", "protocol")},
                "variants": summary(scores),
                "command": command_line(),
                "versions": package_versions(),
            }
            write_results(results, Path(str(arguments.output_file)))
    print(summary_table(results["variants"]))
    return results


def main() -> None:
    ablation(parse_arguments(AblationArguments))


if __name__ == "__main__":
    run_command(main)
