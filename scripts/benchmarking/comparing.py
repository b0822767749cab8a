"""Measures a part of the benchmark: times its contestants in turn, weighs them, compares with floor and targets."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarking.contestants import Case
from scripts.benchmarking.floor import needed_multiply_adds, semantic_products
from scripts.benchmarking.measuring import Stages, in_child, interleave, matmul_rate, peak_of, quartiles
from scripts.benchmarking.parts import MASK2FORMER_HERE, ON_CUDA, Effort, Part, Target
from scripts.benchmarking.plain import DecoderWork, LossWork, MatcherWork
from scripts.benchmarking.workloads import (
    Counting,
    DataPath,
    Inference,
    PostProcessing,
    TrainingStep,
    random_images,
)
from scripts.cli.errors import UserError
from scripts.evaluation.results import command_line, package_versions


KINDS: dict[str, Any] = {
    "inference": Inference,
    "sizes": Inference,
    "post-processing": PostProcessing,
    "training": TrainingStep,
    "matcher": MatcherWork,
    "loss": LossWork,
    "decoder": DecoderWork,
    "data-path": DataPath,
    "counting": Counting,
}


def cases_of(part: Part, effort: Effort, contestants: Sequence[str] = ()) -> dict[str, Case]:
    """Contestant -> its case; on CUDA more variants of FASeg take part in inference."""
    names = list(contestants or part.contestants)
    if part.baseline not in names:
        names.append(part.baseline)
    variants = part.kind == "inference" and MASK2FORMER_HERE not in names
    if not contestants and effort.device == "cuda" and variants:
        names = list(dict.fromkeys((*ON_CUDA, *names)))
    setting = dict(part.setting)
    if effort.quick:
        small = {"height": 64, "width": 128 if setting["width"] > setting["height"] else 64, "classes": 5}
        setting |= {**small, "queries": 10, "quick": True}
    return {name: Case(name, device=effort.device, **setting) for name in names}


def measure_part(part: Part, effort: Effort, contestants: Sequence[str] = ()) -> dict[str, Any]:
    """Builds, times in turn and weighs the contestants of `part`; the record that goes into the results file."""
    cases = cases_of(part, effort, contestants)
    workloads, skipped = {}, {}
    for name, case in cases.items():
        try:
            workloads[name] = KINDS[part.kind](case)
        except UserError as error:
            skipped[name] = str(error)
    if part.baseline not in workloads:
        raise UserError(skipped[part.baseline])
    device = torch.device(effort.device)
    runs = {name: workload.run for name, workload in workloads.items()}
    differences = {}
    if part.kind == "inference" and MASK2FORMER_HERE in workloads:
        differences = outputs_apart(workloads[MASK2FORMER_HERE], workloads[part.baseline])
    measured, rates = interleave(runs, effort.repetitions, effort.seconds, lambda: matmul_rate(device))
    synchronisations = {}
    if effort.device == "cuda":
        synchronisations = {name: count_synchronisations(run) for name, run in runs.items()}
    del workloads, runs
    gc.collect()

    rate = statistics.median(rates)
    floor = floor_of(part.kind, cases.get(MASK2FORMER_HERE, cases[part.baseline]))
    record: dict[str, Any] = {
        "title": part.title(cases[part.baseline]),
        "kind": part.kind,
        "setting": part.setting,
        "baseline": part.baseline,
        "rounds": len(rates),
        "matmul_rate": quartiles(rates),
        "multiply_adds": floor,
        "floor_seconds": sum(floor.values()) / rate if floor else None,
        "outputs_apart": differences,
        "contestants": {},
        "skipped": skipped,
        **provenance(effort),
    }
    baseline_totals = [sum(stages.values()) for stages in measured[part.baseline]]
    for name, rounds in measured.items():
        own = floor_of(part.kind, cases[name]) if cases[name].has_own_floor else floor
        row = summary(rounds, baseline_totals, own, rate)
        row["images_per_second"] = cases[name].batch / row["total"][1]
        row["peak_memory"] = in_child(weigh, part.kind, cases[name]) if effort.memory and part.weighed else None
        if name in synchronisations:
            row["synchronisations"] = synchronisations[name]
        record["contestants"][name] = row
    baseline_memory = record["contestants"][part.baseline]["peak_memory"]
    for row in record["contestants"].values():
        row["memory_ratio"] = row["peak_memory"] / baseline_memory if row["peak_memory"] and baseline_memory else None
    targets = () if effort.quick else part.targets
    record["targets"] = [judged(target, record["contestants"]) for target in targets]
    return record


@torch.no_grad()
def outputs_apart(ours: Inference, theirs: Inference) -> dict[str, float]:
    """How far two models of equal weights are apart on one input: largest differences of logits, share of labels."""
    case = ours.case
    pixel_values = ours.processor(images=random_images(case, 0), return_tensors="pt")["pixel_values"].to(case.device)
    found, wanted = (work.model(pixel_values=pixel_values) for work in (ours, theirs))
    sizes = [(case.height, case.width)] * case.batch
    maps = [
        torch.stack(ours.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes))
        for outputs in (found, wanted)
    ]
    for work in (ours, theirs):
        work.clock.take()
    names = {"class logits": "class_queries_logits", "mask logits": "masks_queries_logits"}
    apart = {words: (found[name] - wanted[name]).abs().max().item() for words, name in names.items()}
    return {**apart, "labels": (maps[0] != maps[1]).float().mean().item()}


def provenance(effort: Effort) -> dict[str, Any]:
    """Where, when and how a record was measured."""
    name = torch.cuda.get_device_name() if effort.device == "cuda" else processor_name()
    return {
        "device": effort.device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "quick": effort.quick,
        "command": command_line(),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def summary(rounds: list[Stages], baseline_totals: list[float], floor: dict[str, int], rate: float) -> dict[str, Any]:
    """Quartiles of stages, total and speed-up (per round, against the baseline in the same round), floor shares."""
    totals = [sum(stages.values()) for stages in rounds]
    stages = {stage: quartiles([stages[stage] for stages in rounds]) for stage in rounds[0]}
    row: dict[str, Any] = {
        "stages": stages,
        "total": quartiles(totals),
        "speedup": quartiles([other / own for other, own in zip(baseline_totals, totals)]),
    }
    if floor:
        shares = {stage: floor[stage] / rate / stages[stage][1] for stage in stages if floor.get(stage)}
        row["share_of_floor"] = {**shares, "total": sum(floor.values()) / rate / row["total"][1]}
    return row


def floor_of(kind: str, case: Case) -> dict[str, int]:
    """Stage -> multiply-adds of this project's network; none for other kinds.

    A backward pass takes twice the forward's of what learns, which a frozen backbone does not.
    """
    if kind not in ("inference", "post-processing", "training"):
        return {}
    if kind == "post-processing":
        return {kind: semantic_products(case, case.queries)}
    counts = needed_multiply_adds(case)
    if kind == "training":
        forward = sum(count for stage, count in counts.items() if stage != "post-processing")
        learns = forward - (counts["backbone"] if case.is_frozen else 0)
        return {"forward": forward, "backward": 2 * learns}
    return counts


def weigh(kind: str, case: Case) -> int:
    """Peak bytes of two runs of the case; to be called in a child process."""
    workload = KINDS[kind](case)
    return peak_of(workload.run, workload.device)


def count_synchronisations(run: Any) -> int:
    """How often one run makes the processor wait for the GPU (device-to-host copies, for one)."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def judged(target: Target, contestants: dict[str, Any]) -> dict[str, Any]:
    """The target with what was measured; `met` is None where the contestant did not run."""
    row, met = contestants.get(target.contestant), None
    if row is not None:
        met = row["speedup"][1] >= target.at_least
        if target.at_most_memory is not None and row["memory_ratio"] is not None:
            met &= row["memory_ratio"] <= target.at_most_memory
    return {**asdict(target), "met": met}
