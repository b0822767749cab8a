"""Ctrl-C and SIGTERM: the step is finished, and the run can save and leave."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from scripts.cli.parser import program


SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal and a launcher may both pass one Ctrl-C on.
SAME_CTRL_C_SECONDS = 0.5


class Stopped(Exception):
    """Training was stopped by a signal, after a checkpoint was written."""

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        self.signal_number = signal_number
        self.step = step
        self.checkpoint = checkpoint
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}, saved as {checkpoint}")


class StopSignals:
    """Inside its block the first signal is kept in `received`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self.since = 0.0
        self.process = os.getpid()
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self.previous = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does; a forked worker of the data loader leaves it to its parent."""
        if os.getpid() != self.process:
            return
        if not self.received:
            self.received, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > SAME_CTRL_C_SECONDS:
            raise KeyboardInterrupt


def command_to_go_on(num_processes: int) -> str:
    """The command line of this process, with the flag that makes it go on where it stopped.

    What `accelerate launch` was given cannot be seen from here.
    """
    if num_processes > 1:
        return "start it again as before, with --resume_from_checkpoint latest"
    arguments = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument == "--resume_from_checkpoint":
            next(given, None)
        elif not argument.startswith("--resume_from_checkpoint="):
            arguments.append(argument)
    return shlex.join([*program(), *arguments, "--resume_from_checkpoint", "latest"])
