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
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from scripts.cli.errors import UserError
from scripts.cli.parser import check_at_least, check_folder, flag, parse_arguments, run_command
from scripts.training.arguments import TrainArguments, check_values


if TYPE_CHECKING:
    import datasets

    from scripts.dataset_check.counts import SplitCounts
    from scripts.dataset_check.finding import Finding
    from scripts.dataset_check.label_rule import LabelRule
    from scripts.dataset_check.sample import SampleFacts


# As `load_split` and `datasets` say that a split does not exist.
NO_SUCH_SPLIT = re.compile(r"Bad split|[Uu]nknown split|the folder holds|no --(train|eval)_images: give both")


@dataclass
class CheckArguments(TrainArguments):
    """Check a dataset before training on it. Takes all flags and recipes of train.py, and the flags --report, --json
    and --max_samples."""

    report: str | None = flag(None, "HTML file for a page with the findings, the classes and sample images.")
    json: str | None = flag(None, "JSON file for all that was found, to be read by programs.")
    max_samples: int | None = flag(None, "How many samples of each split are looked at; by default all.")


def check_arguments(arguments: CheckArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is read."""
    check_at_least(arguments, 1, "max_samples")
    check_values(arguments)
    for name in ("report", "json"):
        if value := getattr(arguments, name):
            if Path(value).is_dir():
                raise UserError(f"--{name} {value} is a folder: name a file")
            check_folder(f"--{name}", Path(value).parent)


# ----------------------------------------------------------------------------------------------------------- data


def open_splits(arguments: CheckArguments) -> tuple[dict[str, datasets.IterableDataset], list[Finding]]:
    """The splits that can be read, the smaller one, of validation, first; and what is wrong with one that cannot.

    Raises:
        UserError: neither can be read.
    """
    from scripts.data.sources import load_split
    from scripts.dataset_check.sample import SEGMENTS_COLUMN

    opened, failed = {}, {}
    for split in dict.fromkeys((arguments.eval_split_name, arguments.train_split_name)):
        try:
            opened[split] = load_split(arguments, split, also=(SEGMENTS_COLUMN,))
        except UserError as error:
            failed[split] = error
    if not opened:
        raise failed[arguments.train_split_name]
    return opened, [split_not_read(split, " ".join(str(error).split())) for split, error in failed.items()]


def split_not_read(split: str, reason: str) -> Finding:
    """A note where there is no such split, an error where it is there but wrong."""
    from scripts.dataset_check.finding import Finding

    if NO_SUCH_SPLIT.search(reason):
        return Finding("note", "split-not-read", (split,), reason, "name another split, or go without")
    return Finding("error", "split-not-read", (split,), reason, "put right what it says")


def read_classes(
    arguments: CheckArguments, data: datasets.IterableDataset
) -> tuple[dict[int, str] | None, str | None, list[Finding]]:
    """Class names by id 0..K-1, what id 255 is called if it is, and findings about the file of names.

    Raises:
        UserError: a file or `--class_map` that cannot be read.
    """
    from scripts.data.sources import IGNORE_INDEX, dataset_classes
    from scripts.dataset_check.finding import Finding
    from scripts.dataset_check.label_rule import read_names
    from scripts.models.loading import build_config

    names = read_names(arguments)
    if names is None:
        names = dataset_classes(arguments, data)
    if names is None and arguments.model_name_or_path:
        names = {int(index): str(name) for index, name in (build_config(arguments).id2label or {}).items()}
    if not names:
        fix = 'write id2label.json beside the data, {"0": "name", ...}, or give --id2label'
        return None, None, [Finding("error", "no-class-names", (), "there are no class names", fix)]
    name_of_255 = names.pop(IGNORE_INDEX, None)
    if sorted(names) != list(range(len(names))):
        listed = ", ".join(map(str, list(names)[:5]))
        message = f"{len(names)} class names have ids {listed}, ... in place of 0..{len(names) - 1}"
        fix = "number the classes from 0 without gaps"
        if len(names) >= IGNORE_INDEX:
            fix = f"at most {IGNORE_INDEX} classes fit, for id {IGNORE_INDEX} is ignored: merge some by --class_map"
        elif sorted(names) == list(range(1, len(names) + 1)):
            fix += ", and add --do_reduce_labels: maps whose classes start at 1 are read so"
        known = {index: names.get(index, f"id {index}") for index in range(max([0, *names]) + 1)}
        return known, name_of_255, [Finding("error", "class-names", (), message, fix)]
    if name_of_255 is None and arguments.mapped_classes:
        names = arguments.mapped_classes.id2label
    return names, name_of_255, []


def facts_of_split(
    data: datasets.IterableDataset, split: str, arguments: CheckArguments, rule: LabelRule, total: int | None
) -> Iterator[tuple[dict[str, Any], SampleFacts]]:
    """Undecoded rows and what they show, in order, under a progress bar; threads decode."""
    from tqdm import tqdm

    from scripts.data.sources import readable
    from scripts.dataset_check.sample import inspect

    workers = max(1, arguments.dataloader_num_workers)
    waiting: deque[tuple[dict[str, Any], Future[SampleFacts]]] = deque()
    rows = islice(readable(data), arguments.max_samples)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc=f"check {split}", unit="sample", dynamic_ncols=True) as bar,
    ):
        for index, row in enumerate(rows):
            waiting.append((row, pool.submit(inspect, row, arguments, rule, index)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
                bar.update()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
            bar.update()


def count_splits(
    opened: dict[str, datasets.IterableDataset],
    arguments: CheckArguments,
    rule: LabelRule,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, SplitCounts]:
    """Counts every split, and looks for the images of the first in the others.

    Args:
        keep: gets the rows of the training split, or of the only one, that show no fault.
    """
    from scripts.data.sources import number_of_examples
    from scripts.dataset_check.counts import SplitCounts
    from scripts.dataset_check.similarity import SeenImages

    splits: dict[str, SplitCounts] = {}
    seen = SeenImages()
    for number, (split, data) in enumerate(opened.items()):
        counts = splits[split] = SplitCounts(split)
        examples = number_of_examples(data, split)
        limits = [limit for limit in (examples, arguments.max_samples) if limit is not None]
        for row, facts in facts_of_split(data, split, arguments, rule, min(limits, default=None)):
            counts.add(facts)
            if number:
                counts.compare(facts, seen)
            elif len(opened) > 1 and facts.hashed is not None and facts.image is not None:
                seen.add(facts.name, facts.hashed, facts.image)
            if not facts.faults and number == len(opened) - 1:
                keep(row)
        stopped = counts.samples == arguments.max_samples
        counts.complete = not stopped or counts.samples == examples
    return dict(reversed(splits.items()))


# --------------------------------------------------------------------------------------------------------- command


def check(arguments: CheckArguments) -> int:
    """Checks, prints and writes what the arguments ask for; returns the exit code."""
    check_arguments(arguments)
    from scripts.data.palette import load_palette
    from scripts.data.sources import IGNORE_INDEX, number_of_examples
    from scripts.dataset_check.cost import Cost, RecipeCost
    from scripts.dataset_check.diagnosis import diagnose, in_order
    from scripts.dataset_check.finding import Evidence
    from scripts.dataset_check.label_rule import LabelRule
    from scripts.dataset_check.report import as_json, as_text
    from scripts.dataset_check.report_page import write_report
    from scripts.drawing.visualization import parse_palette

    # ---- classes
    opened, findings = open_splits(arguments)
    names, name_of_255, of_names = read_classes(arguments, next(iter(opened.values())))
    findings += of_names
    table = arguments.mapped_classes.table.numpy() if names and not of_names and arguments.mapped_classes else None
    rule = LabelRule(len(names) if names else IGNORE_INDEX, int(arguments.do_reduce_labels), table)

    palette = load_palette(arguments)

    # ---- recipe, whose own faults come before the long reading
    has_model = arguments.recipe or arguments.config_name or arguments.model_name_or_path
    recipe = RecipeCost(arguments, names) if has_model and names and not of_names else None

    # ---- samples
    splits = count_splits(opened, arguments, rule, recipe.keep if recipe else lambda row: None)
    evidence = Evidence(splits, names, rule, arguments.train_split_name, arguments.eval_split_name, name_of_255)
    findings += diagnose(evidence)
    cost = Cost()
    if recipe:
        train = opened.get(arguments.train_split_name)
        examples = number_of_examples(train, arguments.train_split_name) if train is not None else None
        cost = recipe.estimate(splits, examples)
        findings += cost.findings
    findings = in_order(findings)

    # ---- report
    title = Path(arguments.dataset_name or arguments.train_images or arguments.eval_images or "").name
    print(as_text(title, evidence, findings, cost))
    try:
        if arguments.json:
            Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(as_json(title, evidence, findings, cost), indent=1, ensure_ascii=False)
            Path(arguments.json).write_text(content + "\n", encoding="utf-8")
            print(f"all figures in {arguments.json}")
        if arguments.report:
            Path(arguments.report).parent.mkdir(parents=True, exist_ok=True)
            write_report(Path(arguments.report), title, evidence, findings, cost, parse_palette(palette))
            print(f"images and tables in {arguments.report}")
    except OSError as error:
        raise UserError(f"report not written: {error}") from error
    return int(any(finding.level == "error" for finding in findings))


def main() -> int:
    """Entry point."""
    return check(parse_arguments(CheckArguments))


if __name__ == "__main__":
    run_command(main)
