"""Tests the paper's central claim: trains a recipe with and without DFPQ and HRCA, some seeds each, and compares mIoU.

`python scripts/ablation.py --train_recipe faseg-mobilenetv2-camvid --dataset_name DATA --output_dir outputs/ablation
--output_file results/ablation/faseg-mobilenetv2-camvid.json` runs `scripts/train.py` and `scripts/eval.py` once per
variant and seed. Runs that are finished are not repeated, so the command can be stopped and given again; seeds that
the output file has already are kept beside the new ones.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import statistics
import subprocess
from dataclasses import dataclass
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, check_folder, flag, parse_arguments, run_command
from scripts.evaluation.results import command_line, package_versions, write_results
from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import object_fault, read_json
from scripts.storage.outputs import check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials


@dataclass(frozen=True)
class Variant:
    """What is trained under one name.

    Args:
        label: what tables call it.
        overrides: fields of the configuration, as `--config_overrides`.
        warm_start: variant whose model of the same seed it starts from, for a quarter of its steps.
        time_of: variant whose processor time it gets, in steps as long as those of `both`.
    """

    label: str
    overrides: tuple[str, ...] = ()
    warm_start: str | None = None
    time_of: str | None = None


def ideas(dynamic: bool, high_resolution: bool) -> tuple[str, ...]:
    """Overrides that switch DFPQ and HRCA."""
    return (
        f"use_dynamic_positional_queries={dynamic}",
        f"use_high_resolution_cross_attention={high_resolution}",
    )


# Those that are compared to "neither" differ in the two ideas alone; Mask2Former is as it was published.
VARIANTS = {
    "both": Variant("DFPQ and HRCA", ideas(True, True)),
    "dfpq": Variant("DFPQ alone", ideas(True, False)),
    "hrca": Variant("HRCA alone", ideas(False, True)),
    "neither": Variant("neither", ideas(False, False)),
    "mask2former": Variant(
        "Mask2Former: neither, 9 layers, sine positions, threshold 0.5",
        (
            *ideas(False, False),
            "decoder_layers=9",
            "positional_encoding_type=sine",
            "attention_mask_threshold=0.5",
        ),
    ),
    "equal-time": Variant("DFPQ and HRCA, in Mask2Former's time", ideas(True, True), time_of="mask2former"),
    "warm-start": Variant(
        "DFPQ and HRCA, started from that Mask2Former, a quarter of the steps", warm_start="mask2former"
    ),
}


@dataclass
class AblationArguments:
    """Train and evaluate a recipe with and without DFPQ and HRCA, or as Mask2Former."""

    train_recipe: str | None = flag(None, "Recipe of scripts/train.py, such as faseg-mobilenetv2-camvid.")
    dataset_name: str | None = flag(None, "Dataset that all runs are trained and evaluated on.")
    output_dir: str | None = flag(None, "Folder that gets a folder for each run.")
    output_file: str | None = flag(
        None, "JSON file for the mean IoU of each run, their means and standard deviations."
    )
    overwrite: bool = overwrite_flag()
    variants: list[str] = flag(
        ["both", "dfpq", "hrca", "neither"],
        f"What is compared, of {', '.join(VARIANTS)}. equal-time trains both ideas for the processor time that "
        "mask2former took, warm-start trains them from the trained mask2former for a quarter of the steps.",
    )
    seeds: list[int] = flag([0, 1, 2], "Seeds; each variant is trained once with each.")
    backbone_weights: str | None = flag(
        None, "Backbone weights that all runs start from but warm-start, as for scripts/train.py."
    )
    train_flags: str = flag("", "Further flags of scripts/train.py, all in one string: '--crop_height 160'.")


# Arguments that all runs of a folder and of an output file have in common.
MADE_WITH = ("train_recipe", "dataset_name", "backbone_weights", "train_flags")
TRAINED = {"steps": int, "processor_minutes": float | int}
RUN = {"mean_iou": float | int, **TRAINED}
Runs = dict[str, dict[int, dict[str, Any]]]  # variant -> seed -> run


def run_folder(arguments: AblationArguments, variant: str, seed: int) -> Path:
    """Folder of one run."""
    return Path(str(arguments.output_dir)) / f"{variant}-seed{seed}"


def made_with(arguments: AblationArguments) -> dict[str, str]:
    """The flags that decide what a run is."""
    return {name: without_credentials(str(getattr(arguments, name))) for name in MADE_WITH}


def check_made_with(earlier: Any, arguments: AblationArguments, what: str, flag_name: str) -> None:
    """Refuses what was made with other flags.

    Args:
        earlier: the flags that it was made with.
        what: its place.
        flag_name: the flag that named it.
    Raises:
        UserError: names the flag that differs.
    """
    for name, value in made_with(arguments).items():
        if earlier[name] != value:
            raise UserError(
                f"{what} was made with --{name} {earlier[name]!r}, not {value!r}: name another {flag_name}"
            )


def check_flags(file: Path, arguments: AblationArguments) -> None:
    """Keeps in `file` what a run is made with.

    Raises:
        UserError: it was made with something else.
    """
    if file.is_file():
        earlier = read_json(file, kinds=dict.fromkeys(MADE_WITH, str), needed=MADE_WITH)
        check_made_with(earlier, arguments, str(file.parent), "--output_dir")
    else:
        write_object(made_with(arguments), file)


def write_object(values: dict[str, Any], file: Path) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(values) + "\n", encoding="utf-8")


def run_script(script: str, run: str, *flags: str) -> float:
    """Runs a command of `scripts/`; returns the seconds of processor time that it and its children took.

    Raises:
        UserError: it failed, what it printed stands above.
    """
    before = os.times()
    done = subprocess.run([sys.executable, str(PROJECT_ROOT / "scripts" / script), *flags], check=False)
    after = os.times()
    if done.returncode:
        raise UserError(f"{script} of {run} left with exit code {done.returncode}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def train_once(arguments: AblationArguments, name: str, seed: int, runs: Runs) -> dict[str, Any]:
    """Trains a variant unless it is trained; returns its steps and the processor time that they took.

    Args:
        runs: of the variants before it.
    """
    from scripts.training.checkpointing import checkpoints, step_of
    from scripts.training.log import read_log

    variant, folder = VARIANTS[name], run_folder(arguments, name, seed)
    trained = folder / "trained.json"
    if not trained.is_file():
        flags = [str(arguments.train_recipe), "--dataset_name", str(arguments.dataset_name)]
        flags += ["--output_dir", str(folder), "--seed", str(seed), *arguments.train_flags.split()]
        if variant.warm_start:
            flags += ["--warm_start", str(run_folder(arguments, variant.warm_start, seed))]
            flags += ["--max_train_steps", str(max(runs[variant.warm_start][seed]["steps"] // 4, 1))]
        elif arguments.backbone_weights:
            flags += ["--backbone_weights", arguments.backbone_weights]
        if variant.time_of:
            both = runs["both"][seed]
            share = runs[variant.time_of][seed]["processor_minutes"] / both["processor_minutes"]
            flags += ["--max_train_steps", str(max(round(share * both["steps"]), 1))]
        if variant.overrides:
            flags += ["--config_overrides", *variant.overrides]
        at_step = 0
        if found := checkpoints(folder):  # of a run that was stopped
            flags += ["--resume_from_checkpoint", "latest"]
            at_step = step_of(found[-1])
        seconds = run_script("train.py", folder.name, *flags)
        steps = read_log(folder / "train_log.jsonl")[-1]["step"]
        minutes = seconds / max(steps - at_step, 1) * steps / 60
        write_object({"steps": steps, "processor_minutes": round(minutes, 2)}, trained)
    return read_json(trained, kinds=TRAINED, needed=TRAINED)


def run_once(arguments: AblationArguments, name: str, seed: int, runs: Runs) -> dict[str, Any]:
    """What one run's results file holds, and its steps and time; trained and evaluated unless the file is there.

    Raises:
        UserError: one of the two commands failed, what it printed stands above; or the folder is of other flags.
    """
    folder = run_folder(arguments, name, seed)
    check_flags(folder / "ablation.json", arguments)
    trained = train_once(arguments, name, seed, runs)
    results = folder / "results.json"
    if not results.is_file():
        flags = ["--dataset_name", str(arguments.dataset_name), "--output_file", str(results)]
        run_script("eval.py", folder.name, "--model_name_or_path", str(folder), *flags)
    return read_json(results, kinds={"mean_iou": float | int}, needed=["mean_iou"]) | trained


def earlier_runs(arguments: AblationArguments) -> Runs:
    """Runs that the output file has already.

    Raises:
        UserError: it is no file of this command, or was made with other flags.
    """
    file = Path(str(arguments.output_file))
    if not file.is_file():
        return {}
    kinds = {**dict.fromkeys(MADE_WITH, str), "runs": dict[str, dict[str, dict[str, Any]]]}
    found = read_json(file, kinds=kinds, needed=kinds)
    check_made_with(found, arguments, str(file), "--output_file")
    runs: Runs = {}
    for name, by_seed in found["runs"].items():
        for seed, run in by_seed.items():
            if name not in VARIANTS or not seed.isdigit() or object_fault(run, RUN, RUN):
                raise UserError(f"{file} has an odd run, {name} of seed {seed}: name another --output_file")
            runs.setdefault(name, {})[int(seed)] = run
    return runs


def summary(runs: Runs) -> dict[str, Any]:
    """Per variant, by its label: mIoU in percent of each seed, mean, sample standard deviation, steps and time."""
    return {
        variant.label: {
            "mean_iou_by_seed": {str(seed): run["mean_iou"] for seed, run in sorted(runs[name].items())},
            "mean": round(statistics.mean(scores), 2),
            "standard_deviation": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
            "steps": round(statistics.mean(run["steps"] for run in runs[name].values())),
            "processor_minutes": round(statistics.mean(run["processor_minutes"] for run in runs[name].values()), 1),
        }
        for name, variant in VARIANTS.items()
        if (scores := [run["mean_iou"] for run in runs.get(name, {}).values()])
    }


def summary_table(variants: dict[str, Any]) -> str:
    """The summary as text."""
    width = max(len(name) for name in variants)
    lines = [f"{'':<{width}}  mean mIoU  std   steps  minutes  seeds"]
    for name, row in variants.items():
        spread = "-" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2f}"
        seeds = ", ".join(f"{value:.2f}" for value in row["mean_iou_by_seed"].values())
        time = f"{row['steps']:>5}  {row['processor_minutes']:>7.1f}"
        lines.append(f"{name:<{width}}  {row['mean']:>9.2f}  {spread:<4}  {time}  {seeds}")
    return "\n".join(lines)


def asked_for(names: list[str]) -> list[str]:
    """Variants in the order in which they are run, with those that they need.

    Raises:
        UserError: there is none of a name.
    """
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise UserError(f"--variants {unknown[0]}: not one of {', '.join(VARIANTS)}")
    needed = {name for each in names for name in (VARIANTS[each].warm_start, VARIANTS[each].time_of) if name}
    if any(VARIANTS[name].time_of for name in names):
        needed.add("both")
    return [name for name in VARIANTS if name in needed | set(names)]


def ablation(arguments: AblationArguments) -> dict[str, Any]:
    """All runs, seed by seed; returns what is written to the output file after each."""
    for name in ("train_recipe", "dataset_name", "output_dir", "output_file"):
        if not getattr(arguments, name):
            raise UserError(f"no {name.replace('_', ' ')}: give --{name}")
    names = asked_for(arguments.variants)
    check_folder("--output_dir", Path(str(arguments.output_dir)))
    output_file = Path(str(arguments.output_file))
    check_output_file("--output_file", output_file, arguments.overwrite)
    earlier_runs(arguments)
    for seed in arguments.seeds:
        runs: Runs = {}
        for name in names:
            run = run_once(arguments, name, seed, runs)
            runs.setdefault(name, {})[seed] = {field: run[field] for field in RUN}
            together = earlier_runs(arguments)  # another process may have added its own
            together.setdefault(name, {})[seed] = runs[name][seed]
            results = {
                **made_with(arguments),
                **{key: run[key] for key in ("metric", "dataset", "split", "images", "protocol")},
                "variants": summary(together),
                "runs": {name: together[name] for name in VARIANTS if name in together},
                "command": command_line(),
                "versions": package_versions(),
            }
            write_results(results, output_file)
    print(summary_table(results["variants"]))
    return results


def main() -> None:
    ablation(parse_arguments(AblationArguments))


if __name__ == "__main__":
    run_command(main)
