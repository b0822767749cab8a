"""A tiny generated data set, tiny models and the commands on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny_folder import TINY_MODEL, decided, write_model_folder

from configuration import FASegConfig
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import eval as eval_command
from scripts.cli.processes import say_once
from scripts.data import synthetic_shapes
from scripts.data.synthetic_scenes import write_dataset
from space_models import write_tiny_model


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """Bit-equal runs need a fixed number of threads, and tiny models are slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    """What is said once in a process is said once in each test."""
    say_once.cache_clear()


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
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generated data set with instances: 7 training samples in 3 shards, 3 validation samples."""
    folder = tmp_path_factory.mktemp("segmented")
    synthetic_shapes.write_dataset(folder, {"train": 7, "validation": 3}, shards=3)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a model that trains in milliseconds."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(TINY_MODEL)
    return file


@pytest.fixture(scope="session")
def model_folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the recipe's model with random weights; none may change it."""
    return write_model_folder(tiny_recipe, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory):
    """Number of classes -> folder of a tiny random model that finds several; none may change it."""
    folders = {}

    def build(num_labels):
        if num_labels not in folders:
            folders[num_labels] = folder = tmp_path_factory.mktemp(f"model{num_labels}")
            torch.manual_seed(0)
            fields = yaml.safe_load(TINY_MODEL)["config_overrides"]
            model = FASegForUniversalSegmentation(FASegConfig(**fields, num_labels=num_labels))
            decided(model).save_pretrained(folder)
            FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
        return folders[num_labels]

    return build


@pytest.fixture(scope="session")
def shapes_model(random_model) -> Path:
    """`random_model` of the generated data's classes."""
    return random_model(6)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory):
    """Task -> folder of a tiny random model for it that finds all of three classes; none may change it."""
    folders = {}

    def build(task):
        if task not in folders:
            folders[task] = write_tiny_model(tmp_path_factory.mktemp(task), task)
        return folders[task]

    return build


@pytest.fixture
def evaluated(command, tmp_path: Path):
    """Evaluates a model on a data set: `(results, standard output)`."""

    def run(model, data, *flags):
        file = tmp_path / "results.json"
        given = ["--model_name_or_path", model, "--dataset_name", data, "--output_file", file]
        code, out, errors = command(eval_command, *given, "--dataloader_num_workers", 0, *flags)
        assert code == 0, errors
        return json.loads(file.read_text()), out

    return run
