"""The recipe `finetune`: settings from the images' sizes and number, where nothing else gives them."""

import json

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from scripts import check_dataset
from scripts import train as train_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.training.arguments import TrainArguments, with_batch_sizes
from scripts.training.settings_from_data import Machine, settings_from_data, with_settings


@pytest.fixture
def folders(tmp_path):
    """Flags of images and label maps of two classes, `count` of a size."""

    def write(height, width, count=4, split="train"):
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(count):
            label = np.zeros((height, width), np.uint8)
            label[height // 4 : height // 2, number : width // 2] = 1
            image = rng.integers(0, 60, (height, width, 3)) + 150 * label[..., None]
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(label).save(tmp_path / split / "masks" / f"{number}.png")
        (tmp_path / "names.json").write_text('{"0": "ground", "1": "cell"}')
        places = [f"--{split}_images", tmp_path / split / "images", f"--{split}_masks", tmp_path / split / "masks"]
        return [*places, "--id2label", tmp_path / "names.json"]

    return write


def chosen(*flags, device="cpu", processes=1):
    arguments = parse_arguments(TrainArguments, ["finetune", "--output_dir", "out", *map(str, flags)])
    choices = settings_from_data(arguments, LabelledDataset(arguments, "train"), device, processes)
    return choices, with_settings(arguments, choices)


@pytest.mark.parametrize(
    ("size", "device", "view", "crop"),
    [
        ((360, 480), "cpu", 360, 256),
        ((230, 300), "cpu", 230, 224),
        ((64, 64), "cpu", 192, 192),
        ((1500, 1200), "cpu", 512, 256),
        ((1500, 1200), "cuda", 1024, 512),
    ],
)
def test_sizes_follow_the_images(folders, size, device, view, crop):
    _, arguments = chosen(*folders(*size), device=device)
    assert (arguments.eval_shortest_edge, arguments.crop_height, arguments.crop_width) == (view, crop, crop)
    assert arguments.shortest_edges[0] == round(0.6 * view) and arguments.shortest_edges[-1] == round(1.5 * view)


def test_steps_and_batch_follow_the_number_of_images(folders):
    choices, arguments = chosen(*folders(64, 64, count=4))
    assert (arguments.per_device_train_batch_size, arguments.max_train_steps) == (4, 300)
    assert choices["max_train_steps"][1] == "40 times 4 images, but 300 to 3000 on a CPU"
    assert arguments.eval_steps is None and arguments.checkpointing_steps == 60


@pytest.mark.parametrize(
    ("flags", "processes", "micro", "steps"),
    [
        ([], 1, 4, 400),
        (["--total_train_batch_size", 12], 1, 6, 133),
        (["--gradient_accumulation_steps", 4], 1, 4, 100),
        ([], 4, 4, 100),
        (["--total_train_batch_size", 8], 2, 4, 200),
    ],
)
def test_all_that_makes_up_a_batch_counts(folders, monkeypatch, flags, processes, micro, steps):
    monkeypatch.setattr("scripts.training.settings_from_data.CPU", Machine("a CPU", 256, 512, 7, (1, 3000), "no"))
    monkeypatch.setattr("scripts.training.settings_from_data.EPOCHS", 400)
    _, arguments = chosen(*folders(64, 64), *flags, processes=processes)
    assert (arguments.per_device_train_batch_size, arguments.max_train_steps) == (micro, steps)
    with_batch_sizes(arguments, processes)


def test_other_models_keep_their_own_architecture(folders):
    assert chosen(*folders(64, 64), "--model_type", "semask")[1].config_overrides == []


def test_one_file_is_no_validation_split(folders, shapes, tmp_path):
    """The number of its images is known from its end."""
    whole = datasets.load_dataset(str(shapes), split="train")
    whole.to_parquet(tmp_path / "all.parquet")
    flags = ["--dataset_name", tmp_path / "all.parquet", "--id2label", shapes / "id2label.json"]
    choices, arguments = chosen(*flags)
    assert arguments.eval_steps is None and choices["max_train_steps"][1].startswith("40 times 7 images")
    assert chosen(*flags, "--train_val_split", 0.3)[1].eval_steps == 60


def test_the_validation_split_is_used(folders):
    _, arguments = chosen(*folders(64, 64), *folders(64, 64, split="eval"))
    assert arguments.eval_steps == 60


def test_what_is_given_stays(folders):
    flags = ["--crop_height", 512, "--max_train_steps", 10, "--learning_rate", 1e-4, "--scale_range", 0.5, 1]
    choices, arguments = chosen(*folders(64, 64), *flags, "--config_overrides", "num_queries=7")
    assert not {"crop_height", "max_train_steps", "learning_rate", "shortest_edges"} & set(choices)
    assert (arguments.crop_height, arguments.crop_width, arguments.max_train_steps) == (512, 512, 10)
    assert arguments.config_overrides[-1] == "num_queries=7" and "hidden_dim=128" in arguments.config_overrides


def test_arguments_built_in_python_keep_what_they_change(folders):
    flags = [str(flag) for flag in folders(64, 64)]
    data = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    arguments = TrainArguments(settings_from_data=True, crop_height=256, seed=3, **data)
    choices = settings_from_data(arguments, LabelledDataset(arguments, "train"), "cpu")
    assert "crop_height" not in choices and choices["crop_width"][0] == 256 and "max_train_steps" in choices


def test_the_start_decides_the_rates(folders):
    data = folders(64, 64)
    assert chosen(*data)[1].backbone_lr_multiplier == 1.0
    assert chosen(*data, "--backbone_weights", "timm/some")[1].backbone_lr_multiplier == 0.1
    _, arguments = chosen(*data, "--model_name_or_path", "user/model")
    assert (arguments.learning_rate, arguments.config_overrides) == (1e-4, [])


def test_images_that_cannot_be_read_are_named(folders, tmp_path):
    data = folders(64, 64)
    for file in (tmp_path / "train" / "images").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no image of the training split can be read"):
        chosen(*data)


def test_finetune_trains_and_keeps_its_settings(folders, tiny_recipe, tmp_path, command):
    """The settings are printed with reasons, and the saved recipe gives the same run without looking at the data."""
    content = yaml.safe_load(tiny_recipe.read_text())
    overrides = [f"{key}={json.dumps(value)}" for key, value in content["config_overrides"].items()]
    data = folders(64, 64)
    given = ["--max_train_steps", 2, "--dataloader_num_workers", 0, "--config_overrides", *overrides]
    code, out, _ = command(train_command, "finetune", *data, *given, "--output_dir", tmp_path / "a")
    assert code == 0
    assert "eval_shortest_edge 192" in out and "images are 64x64 (median of the first 4), less than 192 leaves" in out
    assert "backbone from scratch (--backbone_weights gives a trained one)" in out and "labels" in out
    recipe = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert recipe["settings_from_data"] is False and recipe["crop_height"] == 192 and recipe["learning_rate"] == 5e-4
    again = [tmp_path / "a" / "recipe.yaml", *data, "--output_dir", tmp_path / "b"]
    assert command(train_command, *again)[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    code, out, _ = command(check_dataset, "finetune", *data, "--max_samples", 2)
    assert code == 0 and "settings from the data:" in out
