"""What the tests of training share."""

import pytest
from accelerate.state import AcceleratorState

from scripts import train as train_command


@pytest.fixture
def start(tiny_recipe, shapes, tmp_path, command):
    """Runs `train.py` with the tiny recipe into `tmp_path/run`: `(exit code, output, errors without bars)`."""

    def go(*flags):
        folder = ["--dataset_name", shapes, "--output_dir", tmp_path / "run"]
        AcceleratorState._reset_state(True)
        code, out, errors = command(train_command, tiny_recipe, *folder, *flags)
        bars = ("train: ", "evaluate: ", "count pixels: ", "Writing model shards", "Loading weights")
        return code, out, [line for line in errors if line and not line.startswith(bars)]

    yield go
    AcceleratorState._reset_state(True)
