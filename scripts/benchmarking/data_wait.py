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

from scripts.training.arguments import TrainArguments
from scripts.training.command_line import parse_arguments, run_command
from scripts.training.loop import training_step
from scripts.training.run import set_up


WARM_UP = 3
TURN = 5


def in_memory(held: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The held batches again and again; copies, since a step takes its batch apart."""
    while True:
        for batch in held:
            yield copy.copy(batch)


def measure(arguments: TrainArguments) -> dict[str, float]:
    """Medians over steps in seconds and the two ratios.

    While batches come from memory the workers of the stream run ahead until their queue is full, then rest; the first
    step of each turn is left out on both sides.
    """
    run = set_up(arguments)
    run.train_mode()
    stream = run.batches()
    held = [next(stream) for _ in range(TURN)]
    seconds: dict[str, list[float]] = {"streamed": [], "in_memory": []}
    waits: list[float] = []
    sources = {"streamed": stream, "in_memory": in_memory(held)}
    for _ in range(WARM_UP):
        training_step(run, sources["in_memory"])
    while len(seconds["streamed"]) < (arguments.max_train_steps or 2 * TURN):
        for name, batches in sources.items():
            for turn in range(TURN):
                started = time.perf_counter()
                step = training_step(run, batches)
                if run.accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
                    if name == "streamed":
                        waits.append(sum(step.waited))
    streamed, memory = (statistics.median(seconds[name]) for name in ("streamed", "in_memory"))
    return {
        "steps": len(seconds["streamed"]),
        "seconds_streamed": streamed,
        "seconds_in_memory": memory,
        "step_ratio": streamed / memory,
        "data_wait_share": sum(waits) / sum(seconds["streamed"]),
    }


def main() -> None:
    """Entry point."""
    arguments = parse_arguments(TrainArguments)
    figures = {key: float(f"{value:.4g}") for key, value in measure(arguments).items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
