"""Interleaved timing, spreads, the machine's matmul rate and peak memory in a child process."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers.utils import logging

from scripts.cli.errors import UserError


Stages = dict[str, float]  # stage -> seconds, in the order in which they ran
Run = Callable[[int], Stages]  # seed of the inputs -> stages


class Clock:
    """Seconds per stage of one run; waits for the device at both ends of a stage.

    Stages may be nested: `watch`ed modules report on their own, and `split` takes them out of the stage around them.

    Args:
        timer: gives the seconds, such as those of this process on the processor (`time.process_time`).
    """

    def __init__(self, device: torch.device, timer: Callable[[], float] = time.perf_counter):
        self.device, self.timer = device, timer
        self.stages: Stages = {}
        self._starts: dict[str, float] = {}

    def now(self) -> float:
        """Seconds, after all work on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.timer()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to stage `name`."""
        start = self.now()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + self.now() - start

    def watch(self, name: str, module: nn.Module) -> None:
        """Adds the time of every forward of `module` to stage `name`."""

        def begin(*_: Any) -> None:
            self._starts[name] = self.now()

        def end(*_: Any) -> None:
            self.stages[name] = self.stages.get(name, 0.0) + self.now() - self._starts.pop(name)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def take(self) -> Stages:
        """The stages since the last call."""
        stages, self.stages = self.stages, {}
        return stages

    @staticmethod
    def split(stages: Stages, whole: str, rest: str) -> Stages:
        """`stages` with stage `whole` replaced by the watched parts before it and `rest`, what these leave of it."""
        parts = [name for name in stages if name in (*MODEL_PARTS, "loss")]
        result: Stages = {}
        for name, seconds in stages.items():
            if name == whole:
                result.update({part: stages[part] for part in parts})
                result[rest] = max(0.0, seconds - sum(stages[part] for part in parts))
            elif name not in parts:
                result[name] = seconds
        return result


MODEL_PARTS = ("backbone", "pixel decoder", "transformer decoder")


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def interleave(
    runs: dict[str, Run], repetitions: int, seconds: float, rate: Callable[[], float], least: int = 3
) -> tuple[dict[str, list[Stages]], list[float]]:
    """Every contestant once per round, on the same fresh inputs, in an order that turns; one untimed round before.

    Args:
        runs: contestant -> its run.
        repetitions: rounds; fewer, but at least `least`, once `seconds` have passed.
        rate: the machine's matmul rate, measured in every round.
    Returns:
        Per contestant the stages of every round, and the rates.
    """
    names = list(runs)
    for name in names:
        runs[name](0)
    measured: dict[str, list[Stages]] = {name: [] for name in names}
    rates: list[float] = []
    begin = time.perf_counter()
    for number in range(repetitions):
        if number >= least and time.perf_counter() - begin > seconds:
            break
        turn = number % len(names)
        gc.collect()
        for name in names[turn:] + names[:turn]:
            measured[name].append(runs[name](number + 1))
        rates.append(rate())
    return measured, rates


def matmul_rate(device: torch.device, size: int = 1024, repetitions: int = 5) -> float:
    """Multiply-adds per second of the fastest float32 product of two square matrices, the better of two routes.

    On some processors torch's `matmul` takes a slower route than its 1x1 convolution; the machine can do the better.
    """
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    image = left.T.reshape(1, size, 1, size).to(memory_format=torch.channels_last)
    kernel = right.reshape(size, size, 1, 1)
    clock, best = Clock(device), float("inf")
    with torch.no_grad():
        for _ in range(repetitions):
            for product in (lambda: left @ right, lambda: nn.functional.conv2d(image, kernel)):
                start = clock.now()
                product()
                best = min(best, clock.now() - start)
    return size**3 / best


# ------------------------------------------------------------------------------------------------------------ memory


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own that has imported `function`'s module and done nothing else.

    Returns:
        Its answer, or None where it ran out of memory or was ended for that.
    Raises:
        UserError: raised by the function.
        RuntimeError: any other error of the function, as text.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, torch.get_num_threads(), function, arguments))
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    child.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(sender: Any, threads: int, function: Callable[..., Any], arguments: tuple) -> None:
    try:
        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        sender.send(function(*arguments))
    except (MemoryError, torch.OutOfMemoryError):
        sender.send(None)
    except UserError as error:
        sender.send(error)
    except Exception as error:
        sender.send(RuntimeError(f"{arguments}: {type(error).__name__}: {error}"))


def peak_of(run: Run, device: torch.device, repetitions: int = 2) -> int:
    """Bytes that `repetitions` runs need at their peak on top of what is there before them (imports, loaded model).

    On the CPU: the process's peak resident memory, without pages of files, less that at the start, after the allocator
    gave back what it held free. On CUDA: `max_memory_allocated` less what was allocated at the start.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        baseline = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        for seed in range(repetitions):
            run(seed)
        return torch.cuda.max_memory_allocated(device) - baseline
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    with ResidentPeak() as resident:
        for seed in range(repetitions):
            run(seed)
    return resident.peak - resident.baseline


class ResidentPeak:
    """Peak resident bytes inside a `with` block: the kernel's own mark where it can be reset, else sampled.

    Pages of files do not count, such as those of shared libraries: the kernel drops them and reads them again as it
    likes, so that under load they would look like memory of the block.
    """

    def __enter__(self) -> ResidentPeak:
        self.process = psutil.Process()
        self.baseline, self.file_pages = self._resident()
        self.peak = self.baseline
        self.stop = threading.Event()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.sampler = None
        except OSError:
            self.sampler = threading.Thread(target=self._sample, daemon=True)
            self.sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.sampler is None:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            file_pages = max(self.file_pages, self._resident()[1])
            self.peak = max(self.baseline, int(line.split()[1]) * 1024 - file_pages)
            return
        self.stop.set()
        self.sampler.join()

    def _resident(self) -> tuple[int, int]:
        """Resident bytes of the process itself, and those of files."""
        memory = self.process.memory_info()
        file_pages = getattr(memory, "shared", 0)  # told by Linux only
        return memory.rss - file_pages, file_pages

    def _sample(self) -> None:
        while not self.stop.wait(0.002):
            self.peak = max(self.peak, self._resident()[0])
