"""The splits of a dataset on their way through the check: opened, named, inspected row by row, counted."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.data.class_map import named_twice
from scripts.data.class_names import read_names
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import NO_SUCH_SPLIT, LabelledDataset
from scripts.data.sources import readable
from scripts.dataset_check.counts import SplitCounts
from scripts.dataset_check.finding import Finding
from scripts.dataset_check.label_rule import LabelRule
from scripts.dataset_check.sample import inspect
from scripts.dataset_check.sample_facts import SampleFacts
from scripts.dataset_check.segment_rule import SegmentRule
from scripts.dataset_check.similarity import SeenImages
from scripts.evaluation.degenerate import no_class_names
from scripts.models.warm_start import start_of
from scripts.training.arguments import TrainArguments


def open_splits(arguments: TrainArguments) -> tuple[dict[str, LabelledDataset], list[Finding]]:
    """The splits that can be read, the smaller one, of validation, first; and what is wrong with one that cannot.

    Raises:
        UserError: neither can be read.
    """
    opened, failed = {}, {}
    for split in dict.fromkeys((arguments.eval_split_name, arguments.train_split_name)):
        try:
            opened[split] = LabelledDataset(arguments, split)
        except UserError as error:
            failed[split] = error
    if not opened:
        raise failed[arguments.train_split_name]
    return opened, [split_not_read(split, " ".join(str(error).split())) for split, error in failed.items()]


def split_not_read(split: str, reason: str) -> Finding:
    """A note where there is no such split, an error where it is there but wrong."""
    if NO_SUCH_SPLIT.search(reason):
        other = "give both folders" if "give both folders" in reason else "name another split"
        fix = f"{other}, or go without; --train_val_split 0.15 holds some of the training split back"
        return Finding("note", "split-not-read", (split,), reason, fix)
    return Finding("error", "split-not-read", (split,), reason, "put right what it says")


def read_classes(
    arguments: TrainArguments, data: LabelledDataset
) -> tuple[dict[int, str] | None, str | None, list[Finding]]:
    """Class names by id 0..K-1, what id 255 is called if it is, and findings about the file of names.

    Raises:
        UserError: a file or `--class_map` that cannot be read.
    """
    if data.arguments.mask_values and data.class_map:
        return data.class_map.id2label, None, []
    if data.classes_file is None:
        names = data.names_given
    else:  # also one that the trainer refuses, so that its fault is told with the others
        names = read_names(data.classes_file)
    if names is None and (arguments.model_name_or_path or arguments.warm_start):
        config = start_of(arguments).config()
        names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if names is not None and list(names) == [0] and (both := data.class_names) and len(both) == 2:
        found = f"the maps hold 0 and 1, but only {names[0]!r} is named: 0 is taken for {both[0]!r}"
        fix = f"nothing; {values_of(both)} says the same"
        return both, None, [Finding("note", "background-added", (), found, fix)]
    if names is None and data.class_map:  # of the values of the maps alone
        return data.class_map.id2label, None, []
    if not names:
        message, _, fix = str(no_class_names(data)).rpartition(": ")
        return None, None, [Finding("error", "no-class-names", (), message.replace(": ", "; ", 1), fix)]
    name_of_255 = names.pop(IGNORE_INDEX, None)
    if sorted(names) != list(range(len(names))):
        listed = ", ".join(map(str, list(names)[:5]))
        message = f"{len(names)} class names have ids {listed}, ... in place of 0..{len(names) - 1}"
        fix = f"number the classes from 0 without gaps, or name the values that the maps hold: {values_of(names)}"
        if len(names) >= IGNORE_INDEX:
            fix = f"at most {IGNORE_INDEX} classes fit, for id {IGNORE_INDEX} is ignored: merge some by --class_map"
        elif sorted(names) == list(range(1, len(names) + 1)):
            fix += ", and add --do_reduce_labels: maps whose classes start at 1 are read so"
        known = {index: names.get(index, f"id {index}") for index in range(max([0, *names]) + 1)}
        return known, name_of_255, [Finding("error", "class-names", (), message, fix)]
    if twice := named_twice(names):
        what, _, fix = twice.partition(": ")
        return names, name_of_255, [Finding("error", "class-names", (), what, fix)]
    if name_of_255 is None and data.class_map:
        names = data.class_map.id2label
    return names, name_of_255, []


def values_of(names: Mapping[int, str]) -> str:
    """`--mask_values` for these names, the first few."""
    values = [f"{index}={name}" for index, name in list(names.items())[:8]]
    return shlex.join(["--mask_values", *values]) + (" ..." if len(names) > 8 else "")


def facts_of_split(
    data: LabelledDataset,
    arguments: TrainArguments,
    rule: LabelRule,
    segments: SegmentRule | None,
    max_samples: int | None,
    total: int | None,
) -> Iterator[tuple[dict[str, Any], SampleFacts]]:
    """Undecoded rows and what they show, in order, under a progress bar; threads decode."""

    workers = max(1, arguments.dataloader_num_workers)
    # The rule knows the classes.
    form = replace(data.own_row_format, do_reduce_labels=False)
    waiting: deque[tuple[dict[str, Any], Future[SampleFacts]]] = deque()
    rows = islice(readable(data.stream), max_samples)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc=f"check {data.split}", unit="sample", dynamic_ncols=True) as bar,
    ):
        for index, row in enumerate(rows):
            waiting.append((row, pool.submit(inspect, row, form, rule, index, segments)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
                bar.update()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
            bar.update()


def count_splits(
    opened: dict[str, LabelledDataset],
    arguments: TrainArguments,
    rule: LabelRule,
    segments: SegmentRule | None,
    max_samples: int | None,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, SplitCounts]:
    """Counts every split, and looks for the images of the first in the others.

    Args:
        segments: of labels that hold segments.
        keep: gets the rows of the training split, or of the only one, that show no fault.
    """
    splits: dict[str, SplitCounts] = {}
    seen = SeenImages()
    for number, (split, data) in enumerate(opened.items()):
        counts = splits[split] = SplitCounts(split)
        examples = data.num_examples
        limits = [limit for limit in (examples, max_samples) if limit is not None]
        total = min(limits, default=None)
        for row, facts in facts_of_split(data, arguments, rule, segments, max_samples, total):
            counts.add(facts)
            if number:
                counts.compare(facts, seen)
            elif len(opened) > 1 and facts.hashed is not None and facts.image is not None:
                seen.add(facts.name, facts.hashed, facts.image)
            if not facts.faults and number == len(opened) - 1:
                keep(row)
        stopped = counts.samples == max_samples
        counts.complete = not stopped or counts.samples == examples
    return dict(reversed(splits.items()))
