"""Threads that may be waiting for the network when a command ends.

As Python ends it stops daemon threads wherever they are. One that is within a library's C code takes the whole process
down with SIGABRT, after a run that went well. So they are told to stop, and waited for.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


LONGEST_WAIT = 5.0  # seconds: a server that is silent may hold a thread for many minutes


class StoppableThread(threading.Thread):
    """A daemon thread, started at once.

    Args:
        work: gets the event that is set when it shall end.
    """

    def __init__(self, work: Callable[[threading.Event], None], name: str) -> None:
        self.stopped = threading.Event()
        super().__init__(target=work, args=(self.stopped,), daemon=True, name=name)
        self.start()

    def stop(self) -> None:
        """Tells it to end, and waits for that as long as `LONGEST_WAIT`.

        The thread itself does not wait: it may be the one in which the collector of garbage closes what stops it.
        """
        self.stopped.set()
        if self is not threading.current_thread():
            self.join(LONGEST_WAIT)


@atexit.register
def stop_threads() -> bool:
    """Stops all such threads; returns whether they have ended."""
    running = [thread for thread in threading.enumerate() if isinstance(thread, StoppableThread)]
    for thread in running:
        thread.stop()
    return not any(thread.is_alive() for thread in running)


def leave(code: int) -> NoReturn:
    """Ends the program with this exit code, even if a thread cannot be stopped."""
    if not stop_threads():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)
