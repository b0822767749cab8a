"""The processes of a command: how they are started, agree, fail and add up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
    send_to_device,
)
from tqdm import tqdm

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import STARTED_BY


# How long a process waits for the others. Each reads its own shards and waits out faults of the network for a quarter
# of an hour and more, see `storage/retries.py`; by default NCCL would end the run after ten minutes of it.
LONGEST_SILENCE = timedelta(hours=1)

Result = TypeVar("Result")


def build_accelerator(mixed_precision: str | None) -> Accelerator:
    """Accelerate on this machine; None leaves the precision to its own settings.

    Raises:
        UserError: a precision that does not exist or that the device cannot do.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun, and by `accelerate launch` for several processes
        Thread(target=leave_with_launcher, args=(STARTED_BY,), daemon=True, name="leave_with_launcher").start()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if on_cpu and precision == "fp16":  # Accelerate would train in float32 without a word
        raise UserError("--mixed_precision fp16: a CPU has none: give --mixed_precision no, or bf16")
    # Without a GPU and without being told, Accelerate takes each of several processes for a run of its own.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with errors_explained(f"--mixed_precision {mixed_precision}", ValueError):
        return Accelerator(
            cpu=on_cpu and several,
            mixed_precision=mixed_precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_SILENCE)],
        )


def leave_with_launcher(launcher: int) -> None:
    """Ends this process soon after the launcher that started it is gone, as a kill of its own would.

    The launcher gives each process a session of its own: what kills the launcher's group does not reach them, and they
    would train on with nobody to stop them.
    """
    while os.getppid() == launcher:
        time.sleep(1)
    print(f"process {os.getpid()}: its launcher is gone, so it leaves", file=sys.stderr, flush=True)
    os._exit(1)


def on_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """What `function` gives, or the `UserError` it raises, in all processes; only the main one runs it."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


@cache
def say_once(line: str) -> None:
    """A line on standard error, of the main process alone, however often it is to be said."""
    if os.environ.get("RANK", "0") == "0":  # set by every launcher, or by Accelerate in its place
        tqdm.write(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


@contextmanager
def raised_on_all(accelerator: Accelerator) -> Iterator[None]:
    """Raises the `UserError` of any process in all of them at the end, so that none waits for one that has stopped."""
    failures: list[str] = []
    try:
        yield
    except UserError as error:
        if accelerator.num_processes == 1:
            raise
        failures = [str(error)]
    if accelerator.num_processes > 1:
        failures = gather_object(failures)
    if failures:
        raise UserError(failures[0])


def summed(counts: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """int64 counts summed over processes."""
    if accelerator.num_processes == 1:
        return counts
    total = send_to_device(torch.from_numpy(np.ascontiguousarray(counts)), accelerator.device)
    return accelerator.reduce(total, reduction="sum").cpu().numpy()
