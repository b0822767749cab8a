"""Checks a dataset before it is trained on: images, label maps, class names, splits; also what a recipe would need.

python scripts/check_dataset.py --dataset_name DATA --report check.html --json check.json

streams the training and the validation split once and prints one line for each finding: its name, which stays the
same from version to version, what was found, and how to mend it. It takes every flag of `scripts/train.py`, so that
the data of a training command are checked by changing the name of the script; with a recipe it also estimates memory
and time. Exit code 0: no error found; 1: at least one; 2: wrong usage.
Runs alike as `python -m scripts.check_dataset`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from dataclasses import dataclass, replace

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_at_least, flag, parse_arguments, run_command
from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK, check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials
from scripts.training.arguments import TrainArguments, check_values


@dataclass
class CheckArguments(TrainArguments):
    """Check a dataset before training on it. Takes all flags and recipes of train.py, and the flags --report, --json,
    --overwrite, --max_samples and --no_timing."""

    report: str | None = flag(None, "HTML file for a page with the findings, the classes and sample images.")
    json: str | None = flag(None, "JSON file for all that was found, to be read by programs.")
    overwrite: bool = overwrite_flag()
    max_samples: int | None = flag(None, "How many samples of each split are looked at; by default all.")
    no_timing: bool = flag(
        False,
        "With a recipe, run no training steps to take their time, which lasts up to a minute; count memory only.",
    )


def check_arguments(arguments: CheckArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is read."""
    check_at_least(arguments, 1, "max_samples")
    check_values(arguments)
    for name in ("report", "json"):
        if value := getattr(arguments, name):
            check_output_file(f"--{name}", Path(value), arguments.overwrite)


def check(arguments: CheckArguments) -> int:
    """Checks, prints and writes what the arguments ask for; returns the exit code."""
    check_arguments(arguments)
    import torch

    from scripts.data.ignored import IGNORE_INDEX
    from scripts.dataset_check import diagnosis, findings_page, image_numbers, segment_rule, splits, summary
    from scripts.dataset_check.cost import Cost, RecipeCost
    from scripts.dataset_check.finding import Evidence
    from scripts.dataset_check.label_rule import LabelRule
    from scripts.drawing.visualization import parse_palette
    from scripts.models.input_channels import RGB, num_channels
    from scripts.training.settings_from_data import settled

    # ---- classes
    opened, findings = splits.open_splits(arguments)
    data = next(iter(opened.values()))
    settles = True
    try:
        arguments = settled(arguments, "cuda" if torch.cuda.is_available() else "cpu")
    except UserError as error:
        settles = False
        print(f"the recipe is not weighed: {error}", file=sys.stderr)
    arguments, guessed = segment_rule.settle_task(arguments, opened)
    names, name_of_255, of_names = splits.read_classes(arguments, data)
    findings += of_names
    segments, of_segments = segment_rule.settled(opened, names, bool(of_names), guessed)
    findings += of_segments
    if segments:
        names = segments.form.classes.id2label or None
    table = data.class_map.table.numpy() if names and not of_names and data.class_map else None
    palette = data.palette
    rule = LabelRule(len(names) if names else IGNORE_INDEX, int(arguments.do_reduce_labels), table)
    if segments:  # whose classes are those to be learnt already
        rule = LabelRule(rule.num_labels)

    # ---- recipe, whose own faults come before the long reading
    has_model = arguments.recipe or arguments.config_name or arguments.model_name_or_path or arguments.warm_start
    weighed = has_model and names and not of_names and settles
    recipe = RecipeCost(arguments, data.row_format, names or {}) if weighed else None

    bands = num_channels(recipe.config) if recipe else arguments.num_channels or RGB
    limits = arguments.intensity_range or (recipe.stored_range() if recipe else None)
    form, image_facts = image_numbers.settled(arguments, opened, bands, limits)
    for each in opened.values():
        each.image_form = form
    if recipe:
        recipe.form = data.row_format
    if recipe and segments:
        segments = replace(segments, queries=getattr(recipe.config, "num_queries", segments.queries))

    # ---- samples
    keep = recipe.keep if recipe else lambda row: None
    counts = splits.count_splits(opened, arguments, rule, segments, arguments.max_samples, keep)
    split_names = arguments.train_split_name, arguments.eval_split_name
    evidence = Evidence(counts, names, rule, *split_names, name_of_255, segments)
    findings += diagnosis.diagnose(evidence)
    cost = Cost()
    if recipe:
        train = opened.get(arguments.train_split_name)
        cost = recipe.estimate(counts, train.num_examples if train else None, not arguments.no_timing)
        findings += cost.findings
    cost.facts = image_facts | cost.facts
    findings = diagnosis.in_order(findings)

    # ---- report
    source = arguments.dataset_name or arguments.train_images or arguments.eval_images or ""
    title = Path(without_credentials(source)).name
    print(summary.as_text(title, evidence, findings, cost))
    with errors_explained("report not written", OSError):
        if arguments.json:
            facts = summary.as_json(title, evidence, findings, cost) | {"written_by": MARK}
            content = json.dumps(facts, indent=1, ensure_ascii=False)
            with atomic_file(Path(arguments.json)) as file:
                file.write_text(content + "\n", encoding="utf-8")
            print(f"all figures in {arguments.json}")
        if arguments.report:
            findings_page.write_report(Path(arguments.report), title, evidence, findings, cost, parse_palette(palette))
            print(f"images and tables in {arguments.report}")
    return int(any(finding.level == "error" for finding in findings))


def main() -> int:
    return check(parse_arguments(CheckArguments))


if __name__ == "__main__":
    run_command(main)
