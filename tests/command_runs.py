"""Commands of the project run in this process."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from scripts.cli.parser import run_command


def run_here(module: ModuleType, *argv: object) -> int | str | None:
    """Run a command's `main` as the command line does, on `argv`; return its exit code."""
    name = f"{module.__name__.rpartition('.')[2]}.py"
    with mock.patch.object(sys, "argv", [name, *map(str, argv)]), pytest.raises(SystemExit) as left:
        run_command(module.main)
    return left.value.code


def run_pytest(file: Path, **environment: str) -> None:
    """Run a file of tests in a process of its own, as one that needs another environment must be.

    Raises:
        AssertionError: one failed, or none ran; with what pytest printed.
    """
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    ended = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
