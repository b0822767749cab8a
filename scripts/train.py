# /// script
# requires-python = ">=3.11"
# dependencies = ["faseg-transformers"]
#
# [tool.uv.sources]
# faseg-transformers = { path = ".." }
# ///
"""Trains a segmentation model on a streamed dataset.

Runs alike as `python scripts/train.py`, `python -m scripts.train` and `accelerate launch scripts/train.py`, with a
recipe, flags, or both (flags win): `python scripts/train.py faseg-mobilenetv2-camvid --dataset_name DATA`.

SIGTERM and Ctrl-C finish the step, write a checkpoint and leave with 128 plus the signal's number; a second Ctrl-C
leaves at once. `--resume_from_checkpoint latest` goes on as if the run had never stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from typing import Any

from scripts.cli.parser import parse_arguments, run_command
from scripts.training.arguments import TrainArguments, check_arguments
from scripts.training.stopping import Stopped, command_to_go_on


def train(arguments: TrainArguments) -> dict[str, Any]:
    """The whole run, see `scripts.training.loop.train`, after a check of the flags."""
    check_arguments(arguments)  # before the import, which takes seconds
    from scripts.training import loop

    return loop.train(arguments)


def main() -> int:
    try:
        train(parse_arguments(TrainArguments))
    except Stopped as stopped:
        from accelerate import PartialState

        state = PartialState()
        if state.is_main_process:
            print(f"{stopped}; to go on:\n{command_to_go_on(state.num_processes)}", file=sys.stderr)
        return 128 + stopped.signal_number
    return 0


if __name__ == "__main__":
    run_command(main)
