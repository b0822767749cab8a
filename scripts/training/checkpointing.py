"""Training checkpoints: everything an exact resumption needs, written atomically, checked when read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, load
from safetensors import SafetensorError

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.processes import on_main
from scripts.storage.atomic import WRITE_ERRORS, damage, hidden_name, publish, recover, remove, write_failure
from scripts.storage.json_files import read_json
from scripts.training.fingerprint import check_settings


NAME = re.compile(r"^checkpoint-(\d+)$")
SETTINGS = "settings.json"
STATES = "states.pt"
PICKLES = (".bin", ".pkl", ".pt")  # endings of what torch has written


@dataclass
class Progress:
    """Where a run is.

    Args:
        step: finished optimiser steps.
        epoch, index: place of the stream's next sample.
        evaluated: last step that was evaluated.
        best_step, best_score: where the task's figure on validation was highest, and how high.
        improved_score: the figure when it last rose by more than the threshold of early stopping.
        not_improved: evaluations since then.
        classes: those that occurred in the label maps of training.
        overfull: images so far that had more segments than the model has queries.
        most_segments: in an image.
        logs: what each process has summed up since the log's last line.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    evaluated: int = 0
    best_step: int = 0
    best_score: float = -1.0
    improved_score: float = -1.0
    not_improved: int = 0
    classes: set[int] = field(default_factory=set)
    overfull: int = 0
    most_segments: int = 0
    logs: list[dict[str, Any]] = field(default_factory=list)

    def count_evaluation(self, score: float, threshold: float) -> None:
        """Counts an evaluation for early stopping: whether its figure has risen by more than the threshold since it
        last did, so that many small rises together count as well."""
        if score > self.improved_score + threshold:
            self.improved_score, self.not_improved = score, 0
        else:
            self.not_improved += 1

    def state_dict(self) -> dict[str, Any]:
        """For `save_checkpoint`."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `load_checkpoint`."""
        self.__dict__.update(state)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for another name."""
    match = NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints in `output_dir`, oldest first."""
    found: Iterable[Path] = output_dir.iterdir() if output_dir.is_dir() else ()
    return sorted((path for path in found if step_of(path) >= 0), key=step_of)


def save_checkpoint(
    accelerator: Accelerator,
    states: Mapping[str, Any],
    output_dir: Path,
    step: int,
    total_limit: int | None,
    settings: dict[str, Any],
) -> Path:
    """Saves the state of all that was prepared, and of `states`, as `output_dir/checkpoint-<step>`.

    Only once it is safe on the disk do older ones go, all but the newest `total_limit - 1`.

    Args:
        states: by name, what else has a `state_dict` of numbers, texts and tensors. Not registered with accelerate,
            which would unpickle it in full, so that a checkpoint from elsewhere could run code.
    Raises:
        UserError: it cannot be written, on a full disk for one; nothing of it is left and the older ones are.
    """
    folder = output_dir / f"checkpoint-{step}"
    partial = hidden_name(folder, "partial")
    if accelerator.is_main_process:
        recover(output_dir)
    accelerator.wait_for_everyone()
    failures: list[str | None] = [None]
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            torch.save({name: state.state_dict() for name, state in states.items()}, partial / STATES)
    except WRITE_ERRORS as error:
        failures = [write_failure(error, folder)]
    failures = gather_object(failures)

    def finish() -> None:
        failure = next((text for text in failures if text), None)
        try:
            failure = failure or missing_state(partial, accelerator.num_processes)
            if failure is None:
                (partial / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
                publish(folder)
        except OSError as error:
            failure = write_failure(error, folder)
        older = [path for path in checkpoints(output_dir) if step_of(path) < step]
        if failure is not None:
            shutil.rmtree(partial, ignore_errors=True)
            advice = f"{older[-1]} is kept: make room and go on with --resume_from_checkpoint latest" if older else ""
            raise UserError(f"{folder} could not be written: {failure}; {advice or 'there is no older one'}")
        if total_limit is not None:
            for path in older[: len(older) - max(0, total_limit - 1)]:
                remove(path)

    on_main(accelerator, finish)
    return folder


def missing_state(partial: Path, num_processes: int) -> str | None:
    """Says whose state is lacking, because it was written on a disk of another machine."""
    for process in range(num_processes):
        if not (partial / f"random_states_{process}.pkl").is_file():
            return f"the state of process {process} is not there: all machines must share --output_dir"
    return None


def load_checkpoint(accelerator: Accelerator, states: Mapping[str, Any], folder: Path) -> None:
    """Puts the state saved in `folder` into all that was prepared, and into `states`; see `save_checkpoint`.

    Raises:
        UserError: the checkpoint is of another model, one of its files could run code, or the random numbers cannot
            be restored.
    """
    kinds = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
    with errors_explained(f"--resume_from_checkpoint {folder}", *kinds):
        refuse_code(folder)
        accelerator.load_state(str(folder))
        saved = load(folder / STATES, map_location="cpu")
        for name, state in states.items():
            state.load_state_dict(saved[name])
        # accelerate passes over random states that it cannot restore.
        random_states = load(folder / f"random_states_{accelerator.process_index}.pkl")
    if not torch.equal(torch.get_rng_state(), random_states["torch_manual_seed"]):
        raise UserError(f"--resume_from_checkpoint {folder}: the state of the random numbers cannot be restored")


def refuse_code(folder: Path) -> None:
    """Refuses a checkpoint with a file that holds more than numbers, texts and tensors.

    Raises:
        UserError: names the file, and what it would call.
    """
    if not (folder / STATES).is_file():
        raise UserError(
            f"--resume_from_checkpoint {folder}: it has no {STATES}: an earlier version wrote it, or another program, "
            "in a format that can run code: start anew with --model_name_or_path"
        )
    if index := next(folder.rglob(".metadata"), None):  # of FSDP's sharded states
        raise UserError(f"--resume_from_checkpoint {folder}: {index} is a plain pickle, which could run code: refused")
    for file in sorted(file for file in folder.rglob("*") if file.suffix in PICKLES):
        try:
            load(file, map_location="cpu", mmap=True)
        except UnpicklingError as error:
            # torch's message covers many lines and offers to run the code; the name of what it found is enough.
            called = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
            what = f"it calls {called[1]}" if called else "a plain pickle"
            raise UserError(
                f"--resume_from_checkpoint {folder}: {file.name} holds more than numbers ({what}) and reading it "
                "could run code: refused; train.py did not write it"
            ) from error


def find_checkpoint(name: str, output_dir: Path, settings: dict[str, Any]) -> Path:
    """The whole checkpoint, trained with the same settings, that `--resume_from_checkpoint NAME` means.

    `latest` passes over damaged ones, and says so.

    Raises:
        UserError: there is none, it is damaged, or it was trained with other settings.
    """
    if name != "latest":
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"--resume_from_checkpoint {name}: no such folder")
        if (problem := damage(folder)) is not None:
            raise UserError(f"--resume_from_checkpoint {name}: {problem}: {older_whole(folder)}")
    else:
        folder = newest_whole(output_dir)
    saved = read_json(folder / SETTINGS, f"--resume_from_checkpoint {name}: {folder / SETTINGS}", {})
    check_settings(folder, saved, settings)
    return folder


def newest_whole(output_dir: Path) -> Path:
    """What `latest` means."""
    found = checkpoints(output_dir)
    problems: list[str] = []
    for folder in reversed(found):
        problem = damage(folder)
        if problem is None:
            for line in problems:
                print(f"passed over {line}", flush=True)
            return folder
        problems.append(f"{folder}: {problem}")
    if problems:
        raise UserError(f"--resume_from_checkpoint latest: no whole checkpoint: {'; '.join(problems)}")
    raise UserError(f"--resume_from_checkpoint latest: no checkpoint-<step> in {output_dir}")


def older_whole(folder: Path) -> str:
    """Which checkpoint to take in place of a damaged one."""
    whole = [path for path in checkpoints(folder.parent) if path != folder and damage(path) is None]
    older = [path for path in whole if step_of(path) < step_of(folder)] or whole
    return f"go on with --resume_from_checkpoint {older[-1]}" if older else "there is no other whole checkpoint"
