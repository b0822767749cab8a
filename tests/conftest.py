"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

from command_runs import run_here


ROOT = Path(__file__).parent.parent
# Of the commands that tests run, here and in processes of their own: a fault is to be seen where it happens.
os.environ["FASEG_TRACEBACK"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference outputs and real data: `FASEG_SHARED`, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("FASEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference outputs at {folder}: set FASEG_SHARED to their folder")
    return folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process: `(exit code, standard output, lines of standard error)`."""

    def run(module, *argv):
        capsys.readouterr()
        code = run_here(module, *argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run
