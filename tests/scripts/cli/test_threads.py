"""What waits for the network when a command ends neither delays its end for long nor changes its exit code."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.cli import threads
from scripts.cli.threads import StoppableThread, stop_threads
from scripts.data.streaming import read_ahead


ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from scripts.cli import threads
from scripts.cli.parser import run_command
threads.LONGEST_WAIT = 0.5

def main():
    threads.StoppableThread({work}, "reader")
    print("result")
    return 3

run_command(main)
"""


@pytest.mark.parametrize(
    ("work", "printed"),
    [
        ("lambda stopped: time.sleep(100)", "result\n"),
        ("lambda stopped: print(stopped.wait(100), flush=True)", "result\nTrue\n"),
    ],
    ids=["never ends", "ends when told"],
)
def test_a_command_ends_with_its_exit_code(work, printed):
    program = PROGRAM.format(work=work)
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, printed, "")


def test_a_reader_that_closes_what_it_reads_for_does_not_wait_for_itself(monkeypatch):
    """As the collector of garbage does where it happens to run in the thread."""
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    ready, closed, rows = threading.Event(), threading.Event(), []

    def items():
        yield 1
        ready.wait(20)
        rows.clear()  # the last reference: the generator is closed here
        closed.set()
        yield 2

    rows.append(read_ahead(items(), 1))
    assert next(rows[0]) == 1
    ready.set()
    assert closed.wait(20) and stop_threads() and not unraised


def test_threads_are_told_and_waited_for(monkeypatch):
    monkeypatch.setattr(threads, "LONGEST_WAIT", 0.2)
    ended = []
    StoppableThread(lambda stopped: ended.append(stopped.wait(20)), "one")
    assert stop_threads() and ended == [True]
    stubborn = StoppableThread(lambda stopped: time.sleep(1), "two")
    assert not stop_threads()
    stubborn.join()
    assert stop_threads()
