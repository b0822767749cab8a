"""Tests the paper's central claim: trains a recipe with and without DFPQ and HRCA, some seeds each, and compares mIoU.

`python scripts/ablation.py --train_recipe faseg-mobilenetv2-camvid --dataset_name DATA --output_dir outputs/ablation
--output_file results/ablation/faseg-mobilenetv2-camvid.json` runs `scripts/train.py` and `scripts/eval.py` once per
variant and seed. Runs that are finished are not repeated, so the command can be stopped and given again. Variants and
seeds that the output file has already stay in it, so that some may be added later.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import re
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, check_folder, flag, parse_arguments, read_recipe, run_command
from scripts.evaluation.results import command_line, package_versions, write_results
from scripts.models.tasks import SEMANTIC
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
    "neither": Variant("neither of the two", ideas(False, False)),
    "mask2former": Variant(
        "Mask2Former as published: 9 layers, sine positions, threshold 0.5",
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
    "shared": Variant(
        "DFPQ and HRCA, one shared high-resolution layer", (*ideas(True, True), "high_resolution_sharing=shared")
    ),
    "reused": Variant(
        "DFPQ and HRCA, the layer before reused", (*ideas(True, True), "high_resolution_sharing=reused")
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
        f"What is compared, of {', '.join(VARIANTS)}. equal-time trains both ideas for the time of CPUs that "
        "mask2former took, warm-start trains them from the trained mask2former for a quarter of the steps; what these "
        "two need is trained too, unless it is a time that the output file has.",
    )
    seeds: list[int] = flag([0, 1, 2], "Seeds; each variant is trained once with each.")
    backbone_weights: str | None = flag(
        None, "Backbone weights that all runs start from but warm-start, as for scripts/train.py."
    )
    train_flags: str = flag("", "Further flags of scripts/train.py, all in one string: '--crop_height 160'.")


# Arguments that all runs of a folder and of an output file have in common.
MADE_WITH = ("train_recipe", "dataset_name", "backbone_weights", "train_flags")
TRAINED = {"steps": int, "processor_minutes": float | int | None}  # null where that is not known
RUN = {"mean_iou": float | int, **TRAINED}
Runs = dict[str, dict[int, dict[str, Any]]]  # variant -> seed -> run


def run_folder(arguments: AblationArguments, variant: str, seed: int) -> Path:
    """Folder of one run."""
    return Path(str(arguments.output_dir)) / f"{variant}-seed{seed}"


def made_with(arguments: AblationArguments) -> dict[str, str]:
    """The flags that decide what a run is."""
    return {name: without_credentials(str(getattr(arguments, name) or "")) for name in MADE_WITH}


def check_made_with(earlier: Any, arguments: AblationArguments, what: str) -> None:
    """Refuses what was made with other flags.

    Args:
        earlier: the flags that it was made with.
        what: its place.
    Raises:
        UserError: names the flag that differs.
    """
    for name, value in made_with(arguments).items():
        if earlier[name] != value:
            raise UserError(f"{what} was made with --{name} {earlier[name]!r}, not {value!r}")


def check_flags(file: Path, arguments: AblationArguments) -> None:
    """Keeps in `file` what a run is made with.

    Raises:
        UserError: it was made with something else.
    """
    if file.is_file():
        earlier = read_json(file, kinds=dict.fromkeys(MADE_WITH, str), needed=MADE_WITH)
        try:
            check_made_with(earlier, arguments, str(file.parent))
        except UserError as error:
            raise UserError(f"{error}: name another --output_dir") from error
    else:
        write_object(made_with(arguments), file)


def write_object(values: dict[str, Any], file: Path) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(values) + "\n", encoding="utf-8")


def run_script(script: str, run: str, *flags: str) -> None:
    """Runs a command of `scripts/`.

    Raises:
        UserError: it failed, what it printed stands above.
    """
    done = subprocess.run([sys.executable, str(PROJECT_ROOT / "scripts" / script), *flags], check=False)
    if done.returncode:
        raise UserError(f"{script} of {run} left with exit code {done.returncode}")


@contextmanager
def timed(file: Path, resumed: bool) -> Iterator[None]:
    """Adds the processor time of the commands run inside to those of earlier attempts, also of one that fails.

    Args:
        file: a list of seconds; null where an attempt was stopped together with this process, so that nobody knows.
        resumed: whether there was an attempt before.
    """
    attempts = read_json(file)["seconds"] if file.is_file() else [None] if resumed else []
    before = os.times()
    write_object({"seconds": [*attempts, None]}, file)
    try:
        yield
    finally:
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        write_object({"seconds": [*attempts, round(seconds, 1)]}, file)


def train_once(arguments: AblationArguments, name: str, seed: int, runs: Runs) -> dict[str, Any]:
    """Trains a variant unless it is trained; returns its steps and the processor time that they took.

    Args:
        runs: of the variants before it.
    """
    from scripts.training.checkpointing import checkpoints
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
            both, other = runs["both"][seed], runs[variant.time_of][seed]
            if not both["processor_minutes"] or not other["processor_minutes"]:
                raise UserError(
                    f"{folder.name}: how long both-seed{seed} and {variant.time_of}-seed{seed} took is not known, as "
                    "one was stopped: delete its folder to train it again, or leave equal-time out of --variants"
                )
            share = other["processor_minutes"] / both["processor_minutes"]
            flags += ["--max_train_steps", str(max(round(share * both["steps"]), 1))]
        if variant.overrides:
            flags += ["--config_overrides", *variant.overrides]
        if resumed := bool(checkpoints(folder)):  # of a run that was stopped
            flags += ["--resume_from_checkpoint", "latest"]
        (folder / "results.json").unlink(missing_ok=True)  # of other weights
        attempts = folder / "processor_time.json"
        with timed(attempts, resumed):
            run_script("train.py", folder.name, *flags)
        steps, seconds = read_log(folder / "train_log.jsonl")[-1]["step"], read_json(attempts)["seconds"]
        minutes = None if None in seconds else round(sum(seconds) / 60, 2)
        write_object({"steps": steps, "processor_minutes": minutes}, trained)
    return read_json(trained, kinds=TRAINED, needed=["steps"])


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
    try:
        return runs_of(file, arguments)
    except UserError as error:
        if arguments.overwrite:
            return {}
        raise UserError(f"{error}: name another --output_file, or add --overwrite") from error


def runs_of(file: Path, arguments: AblationArguments) -> Runs:
    """Runs in a results file of this command; errors say nothing of a fix."""
    kinds = {**dict.fromkeys(MADE_WITH, str), "runs": dict[str, dict[str, dict[str, Any]]]}
    found = read_json(file)
    if fault := object_fault(found, kinds, kinds):
        raise UserError(f"{file} {fault}")
    check_made_with(found, arguments, str(file))
    runs: Runs = {}
    for name, by_seed in found["runs"].items():
        for seed, run in by_seed.items():
            whole = re.fullmatch(r"\d{1,10}", seed, re.ASCII)
            if name not in VARIANTS or not whole or object_fault(run, RUN, ["mean_iou", "steps"]):
                raise UserError(f"{file} has an odd run, {name} of seed {seed}")
            runs.setdefault(name, {})[int(seed)] = run
    return runs


def summary(runs: Runs) -> dict[str, Any]:
    """Per variant, by its label: mIoU in percent of each seed, mean, sample standard deviation, steps and time."""
    return {variant.label: summary_of(runs[name]) for name, variant in VARIANTS.items() if runs.get(name)}


def summary_of(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One variant's part of the summary."""
    scores, steps = ([run[field] for run in by_seed.values()] for field in ("mean_iou", "steps"))
    minutes = [run["processor_minutes"] for run in by_seed.values() if run["processor_minutes"]]
    return {
        "mean_iou_by_seed": {str(seed): run["mean_iou"] for seed, run in sorted(by_seed.items())},
        "mean": round(statistics.mean(scores), 2),
        "standard_deviation": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
        "steps": round(statistics.mean(steps)),
        "processor_minutes": round(statistics.mean(minutes), 1) if minutes else None,
    }


def summary_table(variants: dict[str, Any]) -> str:
    """The summary as text."""
    width = max(len(name) for name in variants)
    lines = [f"{'':<{width}}  mean mIoU  std   steps  minutes  seeds"]
    for name, row in variants.items():
        spread = "-" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2f}"
        seeds = ", ".join(f"{value:.2f}" for value in row["mean_iou_by_seed"].values())
        minutes = "-" if row["processor_minutes"] is None else f"{row['processor_minutes']:.1f}"
        lines.append(f"{name:<{width}}  {row['mean']:>9.2f}  {spread:<4}  {row['steps']:>5}  {minutes:>7}  {seeds}")
    return "\n".join(lines)


def asked_for(names: list[str]) -> list[str]:
    """Variants in the order in which they are run, with those that they need.

    Raises:
        UserError: there is none of a name.
    """
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise UserError(f"--variants {unknown[0]}: not one of {', '.join(VARIANTS)}")
    needed = {name for each in names for name in (VARIANTS[each].warm_start, *timed_by(each)) if name}
    return [name for name in VARIANTS if name in needed | set(names)]


def timed_by(name: str) -> tuple[str, ...]:
    """Variants whose steps and time decide how long this one is trained."""
    return ("both", VARIANTS[name].time_of) if VARIANTS[name].time_of else ()  # type: ignore[return-value]


def needed_for_time_alone(names: list[str]) -> set[str]:
    """Variants of which the others need nothing but how long they took, so that a line in the output file will do."""
    starts = {VARIANTS[name].warm_start for name in names}
    return {timed for name in names for timed in timed_by(name)} - {*names, *starts}


def refuse_segments(arguments: AblationArguments) -> None:
    """Raises `UserError` where the recipe or its further flags train for instances or panoptic segments."""
    from scripts.training.arguments import TrainArguments

    recipe = read_recipe(str(arguments.train_recipe), [field.name for field in fields(TrainArguments)])
    overrides = recipe.get("config_overrides") or []
    if isinstance(overrides, dict):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    stated = [f"task={recipe.get('task') or SEMANTIC}", *map(str, overrides), arguments.train_flags]
    for task in re.findall(r"\btask[ =](\w+)", " ".join(stated)):
        if task != SEMANTIC:
            raise UserError(
                f"--train_recipe or --train_flags trains for the task {task}, and what is compared here is the mean "
                "IoU of semantic models: take a semantic recipe"
            )


def check_warm_start(arguments: AblationArguments) -> None:
    """Raises `UserError` where the recipe or its further flags name weights or an architecture beside a warm start."""
    from scripts.training.arguments import TrainArguments

    recipe = read_recipe(str(arguments.train_recipe), [field.name for field in fields(TrainArguments)])
    given = {*recipe, *re.findall(r"--(\w+)", arguments.train_flags)}
    for name in ("config_name", "model_name_or_path", "backbone_weights"):
        if name in given:
            fix = "give --backbone_weights to this command" if name == "backbone_weights" else "take another recipe"
            raise UserError(
                f"--variants warm-start: --train_recipe or --train_flags has {name}, which train.py does not take "
                f"beside --warm_start: {fix}, or leave warm-start out"
            )


def ablation(arguments: AblationArguments) -> dict[str, Any]:
    """All runs, seed by seed; returns what is written to the output file after each."""
    for name in ("train_recipe", "dataset_name", "output_dir", "output_file"):
        if not getattr(arguments, name):
            raise UserError(f"no {name.replace('_', ' ')}: give --{name}")
    names = asked_for(arguments.variants)
    refuse_segments(arguments)
    if any(VARIANTS[name].warm_start for name in names):
        check_warm_start(arguments)
    check_folder("--output_dir", Path(str(arguments.output_dir)))
    output_file = Path(str(arguments.output_file))
    check_output_file("--output_file", output_file, arguments.overwrite)
    known, time_alone = earlier_runs(arguments), needed_for_time_alone(arguments.variants)
    own: Runs = {}
    for seed in arguments.seeds:
        for name in names:
            before = known.get(name, {}).get(seed)
            if name in time_alone and before and before["processor_minutes"]:
                own.setdefault(name, {})[seed] = before
                continue
            run = run_once(arguments, name, seed, own)
            own.setdefault(name, {})[seed] = {field: run.get(field) for field in RUN}
            runs = earlier_runs(arguments)  # with those that a command beside this one has added since
            for each, by_seed in own.items():
                runs.setdefault(each, {}).update(by_seed)
            results = {
                **made_with(arguments),
                **{key: run[key] for key in ("metric", "dataset", "split", "images", "protocol")},
                "variants": summary(runs),
                "runs": {name: runs[name] for name in VARIANTS if name in runs},
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
