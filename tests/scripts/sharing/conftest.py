"""A tiny checkpoint to export, the command that exports it, and a Hub to push it to."""

import shutil
from pathlib import Path

import pytest
from hub_exports import MODEL_ID, loopback, write_checkpoint

from scripts import export_hub
from scripts.sharing import clean_load


@pytest.fixture(scope="session")
def checkpoint(tiny_recipe, tmp_path_factory):
    """Folder of a tiny trained model."""
    return write_checkpoint(tiny_recipe, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def hub(monkeypatch):
    """An empty loopback Hub."""
    with loopback(monkeypatch) as server:
        yield server


@pytest.fixture
def export(command, checkpoint, tmp_path, monkeypatch):
    """Runs export_hub.py on the tiny checkpoint: `(exit code, output, lines of standard error)`."""

    def run(*flags, real_load=False, source=checkpoint, output_dir=tmp_path / "export", card="card.yaml"):
        if not real_load:  # a process of several seconds
            monkeypatch.setattr(clean_load, "load_back", lambda *_: 0.0)
        named = ["--model_name_or_path", source, "--model_id", MODEL_ID, "--output_dir", output_dir]
        stated = ["--card", source / card] if card else []
        return command(export_hub, *named, *stated, *flags)

    return run


@pytest.fixture
def copy(checkpoint, tmp_path):
    """The checkpoint, to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))
