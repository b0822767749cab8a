"""A tiny generated data set and a tiny model's flags, for the tests of the commands."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.data.synthetic_scenes import write_dataset


ROOT = Path(__file__).parents[2]

TINY_MODEL = """\
config_overrides:
  backbone_config:
    model_type: resnet
    layer_type: basic
    embedding_size: 8
    hidden_sizes: [8, 8, 16, 16]
    depths: [1, 1, 1, 1]
    out_features: [stage1, stage2, stage3, stage4]
  feature_size: 32
  mask_feature_size: 32
  hidden_dim: 32
  encoder_layers: 1
  encoder_feedforward_dim: 32
  decoder_layers: 4
  dim_feedforward: 32
  num_attention_heads: 4
  num_queries: 6
  high_resolution_reduction: 2
  train_num_points: 64
crop_height: 64
crop_width: 64
scale_range: [0.5, 1]
per_device_train_batch_size: 2
dataloader_num_workers: 0
learning_rate: 1e-3
max_grad_norm: 1.0
logging_steps: 1
"""


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """Bit-equal runs need a fixed number of threads, and tiny models are slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def whole_run() -> None:
    """For tests of what `light_runs` leaves out."""


@pytest.fixture(autouse=True)
def light_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process counts no activations beforehand and draws no curves: half of a tiny run's time.

    Runs in processes of their own do all of it.
    """
    if "whole_run" not in request.fixturenames:
        monkeypatch.setattr("scripts.training.memory.activation_bytes", lambda *_: None)
        monkeypatch.setattr("scripts.training.log.draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generated data set: 7 training samples in 3 shards, 3 validation samples."""
    folder = tmp_path_factory.mktemp("shapes")
    write_dataset(folder, {"train": 7, "validation": 3}, shards=3)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a model that trains in milliseconds."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(TINY_MODEL)
    return file


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command's `main` in this process: `(exit code, standard output, lines of standard error)`."""
    from scripts.cli.parser import run_command

    def run(module, *argv):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__.rpartition('.')[2]}.py", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(module.main)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err.splitlines()

    return run
