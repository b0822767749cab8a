"""What the stream costs a training step: data wait, and the step against the same step on batches held in memory.

`python -m scripts.benchmarking.data_wait RECIPE --dataset_name DATA --output_dir outputs/data_wait` takes the flags of
`scripts/train.py`; `--max_train_steps` is the number of steps measured each way, in turns of `TURN` steps.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from scripts.cli.parser import parse_arguments, run_command
from scripts.training.arguments import TrainArguments
from scripts.training.loop import training_step
from scripts.training.run import set_up


WARM_UP = 3
TURN = 5


def recorded(batches: Iterator[dict[str, Any]], record: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`batches`, each also put into `record`; copies, since a step takes its batch apart."""
    for batch in batches:
        record.append(batch)
        yield copy.copy(batch)


def measure(arguments: TrainArguments) -> dict[str, float]:
    """Medians over steps in seconds, the ratio of their sums and the share of the streamed steps spent waiting.

    A turn takes its batches from the stream, then the same ones from memory: what a step costs depends on how many
    masks its images have. In the second half the workers of the stream run ahead until their queue is full, then
    rest; the first step of each half is left out.
    """
    run = set_up(arguments)
    run.train_mode()
    stream = run.batches()
    seconds: dict[str, list[float]] = {"streamed": [], "in_memory": []}
    waits: list[float] = []

    def timed_step(batches: Iterator[dict[str, Any]]) -> tuple[float, float]:
        started = time.perf_counter()
        step = training_step(run, batches)
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, sum(step.waited)

    for _ in range(WARM_UP):
        timed_step(stream)
    while len(seconds["streamed"]) < (arguments.max_train_steps or 2 * TURN):
        held: list[dict[str, Any]] = []
        streamed = [timed_step(recorded(stream, held)) for _ in range(TURN)][1:]
        replayed = (copy.copy(batch) for batch in held)
        seconds["streamed"] += [spent for spent, _ in streamed]
        waits += [waited for _, waited in streamed]
        seconds["in_memory"] += [timed_step(replayed)[0] for _ in range(TURN)][1:]
    return {
        "steps": len(seconds["streamed"]),
        "seconds_streamed": statistics.median(seconds["streamed"]),
        "seconds_in_memory": statistics.median(seconds["in_memory"]),
        "step_ratio": sum(seconds["streamed"]) / sum(seconds["in_memory"]),
        "data_wait_share": sum(waits) / sum(seconds["streamed"]),
    }


def main() -> None:
    """Entry point."""
    arguments = parse_arguments(TrainArguments)
    figures = {key: float(f"{value:.4g}") for key, value in measure(arguments).items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
