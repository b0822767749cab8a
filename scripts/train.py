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

from typing import TYPE_CHECKING, Any

import yaml

from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments, run_command
from scripts.cli.processes import on_main
from scripts.models.loading import save_model_folder
from scripts.storage.atomic import DISK_FULL, WRITE_ERRORS, atomic_file, atomic_files, write_failure
from scripts.training.arguments import TrainArguments, check_arguments, check_trackers, saved_recipe
from scripts.training.checkpointing import checkpoints
from scripts.training.loop import loop
from scripts.training.run import Run, describe, set_up
from scripts.training.stopping import Stopped, command_to_go_on


if TYPE_CHECKING:
    from scripts.training.run import Run


def announce(run: Run) -> None:
    """Writes the effective recipe beside the checkpoints and prints the run in a table."""

    recipe = yaml.safe_dump(saved_recipe(run.arguments), sort_keys=False)
    try:
        with atomic_file(run.output_dir / "recipe.yaml") as file:
            file.write_text(recipe, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output_dir {run.output_dir}: {error}") from error
    print(describe(run), flush=True)


def kept_checkpoint(run: Run) -> str:
    """How to go on after a failure."""

    kept = checkpoints(run.output_dir)
    return f"; {kept[-1]} is kept: go on with --resume_from_checkpoint latest" if kept else ""


def finish(run: Run, weights: dict[str, Any] | None) -> None:
    """Writes model and processor into the output folder, `config.json` last.

    Args:
        weights: gathered from all processes where each holds a part; else the model's own are taken.
    """

    try:
        # There may have been more shards.
        with atomic_files(run.output_dir, last="config.json", replaced="model*.safetensors*") as folder:
            save_model_folder(run.result, run.processor, folder, weights)
    except WRITE_ERRORS as error:
        reason = write_failure(error, run.output_dir)
        raise UserError(f"model not written: {reason}{kept_checkpoint(run)}") from error
    print(f"model and processor saved in {run.output_dir}")


def train(arguments: TrainArguments) -> dict[str, Any]:
    """The whole run; returns the last line of the log.

    Raises:
        Stopped: by a signal, after a checkpoint was written.
    """
    check_arguments(arguments)  # before the imports, which take seconds
    from accelerate import DistributedType

    from scripts.training.tracking import finish_trackers, start_trackers

    run = set_up(arguments)
    on_main(run.accelerator, lambda: announce(run))
    recipe = saved_recipe(arguments)
    start_trackers(run.accelerator, check_trackers(arguments.report_to), run.output_dir, run.progress.step, recipe)
    try:
        last = loop(run)
    except Exception as error:
        finish_trackers(run.accelerator)
        if not isinstance(error, OSError) or error.errno not in DISK_FULL:
            raise
        raise UserError(f"{run.output_dir}: the disk is full{kept_checkpoint(run)}") from error
    sharded = run.accelerator.distributed_type == DistributedType.FSDP
    weights = run.accelerator.get_state_dict(run.model) if sharded else None
    on_main(run.accelerator, lambda: finish(run, weights))
    run.accelerator.end_training()
    return last


def main() -> int:
    """Entry point."""
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
