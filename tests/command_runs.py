"""Commands of the project run in this process."""

import sys
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
