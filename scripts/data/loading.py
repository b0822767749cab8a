"""Rows on their way through DataLoader workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scripts.cli.errors import UserError


@dataclass(frozen=True)
class StreamRow:
    """An undecoded row and its place: `index` counts the samples of `epoch` over all processes.

    `place` is `shard:row`, the same in every epoch. Of a sample that another process reads, `row` is empty.
    """

    epoch: int
    index: int
    row: dict[str, Any]
    place: str = ""


def start_worker(_: int) -> None:
    """Workers share the cores with the training step: one thread each.

    They form groups of their own: terminals, `timeout` and job managers send signals to all of a process's group, and
    it still needs its workers to finish the step. Some signal every process of a job: a worker takes SIGTERM from its
    own process alone. A worker whose process is gone leaves by itself.
    """
    run = multiprocessing.parent_process()
    if run and hasattr(signal, "sigwaitinfo"):  # where signals tell their sender: not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the threads that start from here on, too
        Thread(target=leave_when_told, args=(run.pid,), daemon=True, name="leave_when_told").start()
    Thread(target=leave_with_parent, daemon=True, name="leave_with_parent").start()
    torch.set_num_threads(1)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def leave_when_told(parent: int | None) -> None:
    """Ends this worker at a SIGTERM of the process that it works for."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def leave_with_parent() -> None:
    """Ends this worker as soon as the process that it works for is gone, by whatever signal.

    The loader's own watch only ends its loop: then it waits for good until somebody reads the images that do not fit
    into the pipe.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def worker_loader(samples: Dataset, batches: Sampler, collator: Callable, num_workers: int) -> DataLoader:
    """DataLoader with its own random generator, so that making it does not move the run's."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def good_batches(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Batches of `loader`.

    Raises:
        UserError: at samples that stop a run.
    """
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def first_example(examples: list[Any]) -> Any:
    """Collator of batches of one."""
    return examples[0]
