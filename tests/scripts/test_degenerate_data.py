"""Data on which a score cannot fail, or does not exist, are refused or said to be so by training and evaluation."""

import json
import shutil

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from scripts import eval as eval_command
from scripts import train as train_command


@pytest.fixture
def masks(tmp_path):
    """Writes four images and label maps, and the names of `num_labels` classes: flags of both splits."""

    def write(label, num_labels):
        folder = tmp_path / f"{num_labels} {len(list(tmp_path.iterdir()))}"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
        for number in range(4):
            Image.fromarray(pixels[number]).save(folder / "images" / f"{number}.png")
            Image.fromarray(label).save(folder / "masks" / f"{number}.png")
        (folder / "names.json").write_text(json.dumps({str(index): f"class {index}" for index in range(num_labels)}))
        places = {"images": folder / "images", "masks": folder / "masks"}
        flags = [
            part for split in ("train", "eval") for name in places for part in (f"--{split}_{name}", places[name])
        ]
        return [*flags, "--id2label", folder / "names.json"]

    return write


@pytest.fixture
def run(command):
    def go(module, *flags):
        AcceleratorState._reset_state(True)
        code, out, errors = command(module, *flags)
        bars = ("train: ", "evaluate: ", "Writing model shards", "Loading weights")
        return code, out, [line for line in errors if line and not line.startswith(bars)]

    yield go
    AcceleratorState._reset_state(True)


def map_of(inside, outside=255):
    label = np.full((96, 96), outside, dtype=np.uint8)
    label[10:80, 10:80] = inside
    return label


STEPS = ["--max_train_steps", 2, "--eval_steps", 2]


def test_a_model_of_one_class_is_refused(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(0), 1)
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, "--output_dir", tmp_path / "run")
    message = (
        "there is one class, 'class 0': every pixel is that or ignored, so no score can fail: label what surrounds"
    )
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "run").exists()
    model = ["--model_name_or_path", random_model(1)]
    code, _, errors = run(eval_command, *model, *data, "--dataloader_num_workers", 0)
    assert code == 2 and len(errors) == 1 and "there is one class, 'LABEL_0': " in errors[0]


def test_maps_of_ignored_pixels_only_are_refused(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(255), 3)
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS[:2], "--output_dir", tmp_path / "run")
    assert code == 2 and len(errors) == 1
    assert "split 'train': no training crop held a pixel of any class" in errors[0]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for module, flags in (
        (train_command, [tiny_recipe, *STEPS, "--output_dir", tmp_path / "other"]),
        (eval_command, ["--model_name_or_path", random_model(3), "--dataloader_num_workers", 0]),
    ):
        _, _, errors = run(module, *flags, *data)
        assert errors[0].startswith("warning: all pixels of the label maps are ignored, so there is no score")


def test_one_class_among_several_is_said(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(1), 3)
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, "--output_dir", tmp_path / "run")
    assert code == 0
    assert "warning: training has seen no other class than 'class 1': a model of it says that everywhere" in errors
    assert any(line.startswith("warning: only 'class 1' occurs in the label maps: ") for line in errors)
    output = ["--output_file", tmp_path / "results.json"]
    model = ["--model_name_or_path", random_model(3)]
    code, _, errors = run(eval_command, *model, *data, *output, "--dataloader_num_workers", 0)
    assert code == 0 and errors == [
        "warning: only 'LABEL_1' occurs in the label maps: a model that sees nothing else scores 100, so this says "
        "nothing"
    ]
    assert json.loads((tmp_path / "results.json").read_text())["warning"] == errors[0].removeprefix("warning: ")


def test_two_classes_pass_without_a_word(masks, run, tiny_recipe, tmp_path):
    """Also after a resume, which knows what was seen before."""
    output = ["--output_dir", tmp_path / "run"]
    data = masks(map_of(0, 1), 2)
    assert run(train_command, tiny_recipe, *data, *STEPS, *output, "--checkpointing_steps", 1)[::2] == (0, [])
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    assert run(train_command, tiny_recipe, *data, *STEPS, *output, "--resume_from_checkpoint", "latest")[::2] == (
        0,
        [],
    )
