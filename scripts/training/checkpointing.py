"""Training checkpoints: written whole or not at all, the old one removed only after the new one is safe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from scripts.training.command_line import UserError


NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass
class Progress:
    """Where a run is: finished optimiser steps, and the (epoch, index) of the stream's next sample."""

    step: int = 0
    epoch: int = 0
    index: int = 0
    seed: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For `Accelerator.register_for_checkpointing`."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `Accelerator.register_for_checkpointing`."""
        self.__dict__.update(state)


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints in `output_dir`, oldest first."""
    found: Iterable[Path] = output_dir.iterdir() if output_dir.is_dir() else ()
    numbered = [(int(match[1]), path) for path in found if (match := NAME.match(path.name))]
    return [path for _, path in sorted(numbered)]


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int | None) -> Path:
    """Saves the state of all that was prepared and registered as `output_dir/checkpoint-<step>`."""
    final = output_dir / f"checkpoint-{step}"
    partial = output_dir / f".checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        if total_limit is not None:
            for old in checkpoints(output_dir)[: -max(1, total_limit)]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Puts the state saved in `folder` into all that was prepared and registered.

    Raises:
        UserError: a file is missing or damaged, or the checkpoint is of another model.
    """
    try:
        accelerator.load_state(str(folder))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"--resume_from_checkpoint {folder}: {error}") from error


def find_checkpoint(name: str, output_dir: Path) -> Path:
    """The folder that `--resume_from_checkpoint NAME` means.

    Raises:
        UserError: there is none.
    """
    if name == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise UserError(f"--resume_from_checkpoint latest: no checkpoint-<step> in {output_dir}")
        return found[-1]
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"--resume_from_checkpoint {name}: no such folder")
    return path
