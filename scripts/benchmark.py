"""Times FASeg against transformers' models and against plain code, weighs their memory, and compares with the floor.

`python scripts/benchmark.py` measures what the project must show (about 12 minutes on two quiet cores); `--only`
names parts, `--scaling` and `--training_memory` measure other things in their place, or beside the parts of `--only`.
Every part is printed, and merged into the results file as soon as it is measured. All models have random weights; what
is compared is cost. `--backbones` measures what FASeg's backbones cost and whether they work, in a results file of its
own (about 5 minutes of one quiet core). `--startup` only prints what it costs to ask each command for its help.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.benchmarking.backbone_list import BACKBONES
from scripts.benchmarking.engine_tables import engines_table
from scripts.benchmarking.parts import FURTHER, MUST_SHOW, PARTS, Effort, check_contestant, scaling_file
from scripts.benchmarking.startup import startup_table
from scripts.benchmarking.tables import merge, part_table
from scripts.cli.errors import UserError
from scripts.cli.parser import (
    IS_CHECKOUT,
    PROJECT_ROOT,
    ReadPath,
    check_at_least,
    flag,
    parse_arguments,
    path_flag,
    run_command,
)
from scripts.storage.outputs import check_output_file, overwrite_flag


OF_TRAINED = ("images", "calibration_images", "validation_masks")
ENGINE_LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass
class BenchmarkArguments:
    """Time and weigh FASeg against other models; every part is merged into the results file."""

    only: list[str] = flag(
        [],
        f"Parts to measure. By default {', '.join(MUST_SHOW)}; further ones are {', '.join(FURTHER)}. With "
        "--backbones names of backbones, by default all of docs/backbones.md.",
    )
    contestants: list[str] = flag(
        [],
        "Models to compare in place of those of each part, each name in quotes: 'FASeg bf16' 'HF Mask2Former'.",
    )
    scaling: bool = flag(False, "Measure how the cost grows with image width, queries, classes and batch size.")
    training_memory: bool = flag(
        False, "Measure how much memory training by the recipes needs, and on which GPU it fits."
    )
    backbones: bool = flag(
        False,
        "Measure which backbones work, what they were adapted by, the tensors that pretrained weights fill, and their "
        "time on one thread relative to ResNet-50; nothing else.",
    )
    startup: bool = flag(
        False, "Print the CPU seconds of --help and of a wrong flag of each command, and measure no model."
    )
    engines: bool = flag(
        False,
        "Compare what runs ONNX files on a CPU, onnxruntime and OpenVINO, with eager PyTorch, by a ResNet-50 with "
        "random weights at 512 x 512, or by --trained_model, whose labels are compared as well.",
    )
    trained_model: str | None = path_flag("Folder of the model for --engines.")
    images: list[str] = flag(
        [],
        "Images and folders of them for --trained_model, of which the first 16 count; without it drawn ones.",
        action=ReadPath,
    )
    calibration_images: list[str] = flag(
        [],
        "Other images than --images, 8 or more, of which the first 16 count, with whose ranges files are made that "
        "compute in 8 bits: all of the model, and all but its backbone.",
        action=ReadPath,
    )
    validation_masks: str | None = path_flag(
        "Folder of the label maps of --images, PNGs of class ids named as their images are: the mean IoU of each "
        "engine is measured too."
    )
    device: str | None = flag(None, "Device to measure on: cpu or cuda; by default cuda where there is one.")
    repetitions: int = flag(9, "Rounds in which the models of a part take turns, after one that does not count.")
    seconds_per_part: float = flag(
        60.0, "Seconds after which a part begins no new round; three rounds are always measured."
    )
    memory: bool = flag(True, "Also measure the peak memory of each model, in a process of its own.")
    quick: bool = flag(
        False, "Use tiny models and images: shows in seconds that everything runs; the figures mean nothing."
    )
    output_file: str | None = flag(
        None,
        "JSON file for the results; by default results/benchmark-DEVICE.json, with --backbones "
        "results/backbones-DEVICE.json, with --engines results/engines-cpu.json, with --quick none.",
    )
    plot_file: str | None = flag(
        None,
        "PNG file for the plot; by default docs/benchmark.png, on cuda docs/benchmark-cuda.png, with --quick none.",
    )
    overwrite: bool = overwrite_flag()


def check_arguments(arguments: BenchmarkArguments) -> None:
    """Settles the defaults.

    Raises:
        UserError: names the flag, its value and the fix.
    """
    known = [*(BACKBONES if arguments.backbones else PARTS)]
    for name in arguments.only:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"--only {name}: " + (f"did you mean {close[0]}?" if close else f"choose of {', '.join(known)}")
            )
    for name in ("trained_model", *OF_TRAINED):
        if getattr(arguments, name):
            raise UserError(f"--{name} is for --engines: give that too")
    if arguments.backbones and not arguments.memory:
        raise UserError("--no_memory with --backbones: leave it out, the memory of backbones is not measured")
    for name in ("contestants", "scaling", "training_memory", "plot_file"):
        if arguments.backbones and getattr(arguments, name):
            raise UserError(f"--{name} with --backbones: leave one out, backbones have one measurement and no plot")
    for name in arguments.contestants:
        check_contestant(name)
    check_at_least(arguments, 1, "repetitions")
    check_at_least(arguments, 0, "seconds_per_part")
    if arguments.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {arguments.device}: choose cpu or cuda")
    import torch

    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here")
    for name in ("output_file", "plot_file"):  # before the defaults, which are the project's own files
        if file := getattr(arguments, name):
            check_output_file(f"--{name}", Path(file), arguments.overwrite)
    if arguments.plot_file:
        check_output_file("--plot_file:", scaling_file(Path(arguments.plot_file)), arguments.overwrite)
    plotted = arguments.plot_file or arguments.backbones
    if not arguments.quick and not (arguments.output_file and plotted):
        if not IS_CHECKOUT:
            raise UserError("give --output_file and --plot_file, or --quick: their defaults are files of a checkout")
        suffix = "" if arguments.device == "cpu" else f"-{arguments.device}"
        what = "backbones" if arguments.backbones else "benchmark"
        results = PROJECT_ROOT / "results" / f"{what}-{arguments.device}.json"
        arguments.output_file = arguments.output_file or str(results)
        if not plotted:
            arguments.plot_file = str(PROJECT_ROOT / "docs" / f"benchmark{suffix}.png")


def check_engines(arguments: BenchmarkArguments) -> None:
    """Settles where the records of `--engines` go.

    Raises:
        UserError: flags that do not belong together, or a library that is missing.
    """
    for name in ("only", "contestants", "scaling", "training_memory", "backbones", "plot_file"):
        if getattr(arguments, name):
            raise UserError(f"--{name} with --engines: leave one out, engines have one measurement and no plot")
    if not arguments.memory:
        raise UserError("--no_memory with --engines: leave it out, the memory of engines is not measured")
    if arguments.device not in (None, "cpu"):
        raise UserError(f"--device {arguments.device} with --engines: leave it out, engines are measured on the CPU")
    for name in OF_TRAINED:
        needed = "trained_model" if name == "images" else "images"
        if getattr(arguments, name) and not getattr(arguments, needed):
            raise UserError(f"--{name} is for --{needed}: give that too")
    check_at_least(arguments, 1, "repetitions")
    check_at_least(arguments, 0, "seconds_per_part")
    if arguments.output_file:
        check_output_file("--output_file", Path(arguments.output_file), arguments.overwrite)
    elif not arguments.quick:
        if not IS_CHECKOUT:
            raise UserError("give --output_file, or --quick: its default is a file of a checkout")
        arguments.output_file = str(PROJECT_ROOT / "results" / "engines-cpu.json")
    if missing := [name for name in ENGINE_LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--engines: {', '.join(missing)} not installed: pip install {' '.join(missing)}")


def benchmark_engines(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measures, prints and stores what `--engines` asks for; returns name -> record."""
    check_engines(arguments)
    from scripts.benchmarking.engines import measure_engines

    name = Path(arguments.trained_model).resolve().name if arguments.trained_model else "resnet50-512"
    record = measure_engines(
        arguments.trained_model,
        arguments.images,
        arguments.repetitions,
        arguments.seconds_per_part,
        arguments.quick,
        arguments.calibration_images,
        arguments.validation_masks,
    )
    print(engines_table(record), flush=True)
    if arguments.output_file:
        merge(Path(arguments.output_file), name, record)
        print(f"results in {arguments.output_file}")
    return {name: record}


def chosen_parts(arguments: BenchmarkArguments, effort: Effort) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> what measures it. `--scaling` and `--training_memory` alone leave out the default parts."""
    from scripts.benchmarking.comparing import measure_part
    from scripts.benchmarking.scaling import measure_scaling, measure_training_memory

    alone = arguments.scaling or arguments.training_memory
    names = arguments.only or ([] if alone else list(MUST_SHOW))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(measure_part, PARTS[name], effort, arguments.contestants) for name in names
    }
    if arguments.scaling:
        parts["scaling"] = partial(measure_scaling, effort)
    if arguments.training_memory:
        parts["training-memory"] = partial(measure_training_memory, effort)
    return parts


def benchmark(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measures, prints and stores; returns name -> record of this run's parts."""
    check_arguments(arguments)
    effort = Effort(
        str(arguments.device),
        arguments.repetitions,
        arguments.seconds_per_part,
        arguments.quick,
        arguments.memory,
    )
    if arguments.backbones:
        return benchmark_backbones(arguments, effort)
    from scripts.benchmarking.plots import draw

    records, stored = {}, {}
    for name, measure in chosen_parts(arguments, effort).items():
        record = records[name] = measure()
        print(f"\n[{name}] {part_table(record)}", flush=True)
        if arguments.output_file:
            stored = merge(Path(arguments.output_file), name, record)["parts"]
    for file in draw(stored or records, Path(arguments.plot_file)) if arguments.plot_file else []:
        print(f"plot in {file}")
    if arguments.output_file:
        print(f"results in {arguments.output_file}")
    return records


def benchmark_backbones(arguments: BenchmarkArguments, effort: Effort) -> dict[str, Any]:
    """Measures, prints and stores backbones one by one; returns name -> record."""
    from scripts.benchmarking.backbones import backbone_line, measure_backbones

    def store(name: str, record: dict[str, Any]) -> None:
        print(backbone_line(name, record), flush=True)
        if arguments.output_file:
            merge(Path(arguments.output_file), name, record)

    records = measure_backbones(arguments.only or list(BACKBONES), effort, store)
    if arguments.output_file:
        print(f"results in {arguments.output_file}")
    return records


def main() -> None:
    """Entry point."""
    arguments = parse_arguments(BenchmarkArguments)
    if arguments.startup:
        default = BenchmarkArguments(startup=True)
        for name in vars(default):
            if getattr(arguments, name) != getattr(default, name):
                name = "no_memory" if name == "memory" else name
                raise UserError(f"--{name} with --startup: leave one out, --startup only prints its table")
        print(startup_table())
    elif arguments.engines:
        benchmark_engines(arguments)
    else:
        benchmark(arguments)


if __name__ == "__main__":
    run_command(main)
