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
        for name in ("images", "masks"):
            shutil.copytree(folder / name, folder / "eval" / name)
        places = {"train": folder, "eval": folder / "eval"}
        kinds = ("images", "masks")
        flags = [
            part for split, place in places.items() for kind in kinds for part in (f"--{split}_{kind}", place / kind)
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
    message = "its 4 label maps hold 0 and 255, and 255 is ignored, so one class is left: --mask_values 0=background"
    assert code == 2 and len(errors) == 1 and f"{message} '255=class 0'" in errors[0]
    assert not (tmp_path / "run").exists()
    model = ["--model_name_or_path", random_model(1)]
    code, _, errors = run(eval_command, *model, *data, "--dataloader_num_workers", 0)
    assert code == 2 and len(errors) == 1 and "there is one class, 'LABEL_0': " in errors[0]


def test_maps_of_ignored_pixels_only_are_refused(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(255), 3)
    output = [*STEPS, "--output_dir", tmp_path / "run"]
    evaluation = ["--model_name_or_path", random_model(3), "--dataloader_num_workers", 0]
    for module, flags in ((train_command, [tiny_recipe, *output]), (eval_command, evaluation)):
        code, _, errors = run(module, *flags, *data)
        assert code == 2 and len(errors) == 1 and "its 4 label maps hold 255, all of them ignored" in errors[0]
        _, _, errors = run(module, *flags, *data, "--allow_absent_classes")
        assert errors[0].startswith("warning: all pixels of the label maps are ignored, so there is no score")
    code, _, errors = run(train_command, tiny_recipe, *output[:2], *output[4:], *data, "--allow_absent_classes")
    assert code == 2 and "split 'train': no label map held a pixel of any class" in errors[0]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_one_class_among_several_is_refused_or_said(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(1), 3)
    output = ["--output_dir", tmp_path / "run"]
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, *output)
    alone = "split {}: its 4 label maps hold 1, 255, which is {} alone, so no score can fail: "
    assert code == 2 and len(errors) == 1 and alone.format("'train'", "'class 1'") in errors[0]
    assert not (tmp_path / "run").exists()
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, *output, "--allow_absent_classes")
    assert code == 0
    assert "warning: training has seen no other class than 'class 1': a model of it says that everywhere" in errors
    assert any(line.startswith("warning: only 'class 1' occurs in the label maps: ") for line in errors)

    output = ["--output_file", tmp_path / "results.json", "--dataloader_num_workers", 0]
    model = ["--model_name_or_path", random_model(3)]
    code, _, errors = run(eval_command, *model, *data, *output)
    assert code == 2 and len(errors) == 1 and alone.format("'validation'", "'LABEL_1'") in errors[0]
    code, _, errors = run(eval_command, *model, *data, *output, "--allow_absent_classes")
    assert code == 0 and errors == [
        "warning: only 'LABEL_1' occurs in the label maps: a model that sees nothing else scores 100, so this says "
        "nothing"
    ]
    assert json.loads((tmp_path / "results.json").read_text())["warning"] == errors[0].removeprefix("warning: ")


def test_a_named_class_that_never_occurs_is_refused(masks, run, tiny_recipe, random_model, tmp_path):
    data = masks(map_of(0, 2), 3)
    never = "'{} 1' of the 3 named classes never occurs in its 4 label maps, which hold 0, 2: "
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, "--output_dir", tmp_path / "run")
    assert code == 2 and len(errors) == 1 and never.format("class") in errors[0]
    model = ["--model_name_or_path", random_model(3), "--dataloader_num_workers", 0]
    code, _, errors = run(eval_command, *model, *data)
    assert code == 2 and len(errors) == 1 and never.format("LABEL").replace("LABEL ", "LABEL_") in errors[0]
    assert run(eval_command, *model, *data, "--allow_absent_classes")[::2] == (0, [])


def test_a_class_of_training_may_lack_in_validation(masks, run, tiny_recipe, tmp_path):
    """The few images that are held back seldom have all of them."""
    data = masks(map_of(0, 2), 3)
    other = map_of(0, 2)
    other[:8] = 1
    for file in (data[3]).glob("*.png"):
        Image.fromarray(other).save(file)
    code, _, errors = run(train_command, tiny_recipe, *data, *STEPS, "--output_dir", tmp_path / "run")
    assert (code, errors) == (0, ["warning: split 'validation' lacks 'class 1', left out of the mean"])


def test_what_the_first_maps_cannot_tell_is_told_after_an_epoch(masks, run, tiny_recipe, tmp_path, monkeypatch):
    """Training stops after every sample went by, and keeps what it has trained."""
    monkeypatch.setattr("scripts.data.first_look.LEAST_MAPS", 2)
    data = masks(map_of(0, 2), 3)
    output = ["--output_dir", tmp_path / "run"]
    code, _, errors = run(train_command, tiny_recipe, *data, "--max_train_steps", 4, *output)
    assert code == 2 and len(errors) == 1
    assert "'class 1' of the 3 named classes never occurs in a whole epoch" in errors[0]
    assert "checkpoint-3 keeps what was trained" in errors[0] and (tmp_path / "run" / "checkpoint-3").is_dir()
    go_on = ["--resume_from_checkpoint", "latest", "--allow_absent_classes"]
    assert run(train_command, tiny_recipe, *data, "--max_train_steps", 4, *output, *go_on)[::2] == (0, [])


def test_a_whole_split_without_a_class_is_refused_after_its_results(masks, run, random_model, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.data.first_look.LEAST_MAPS", 2)
    flags = ["--model_name_or_path", random_model(3), "--dataloader_num_workers", 0]
    code, _, errors = run(eval_command, *flags, *masks(map_of(0, 2), 3), "--output_file", tmp_path / "results.json")
    assert code == 2 and "'LABEL_1' of the 3 named classes never occurs in all of its label maps" in errors[0]
    assert "mean_iou" in json.loads((tmp_path / "results.json").read_text())


def test_a_benchmarks_recipe_does_not_shift_labels_in_silence(masks, run, tiny_recipe, tmp_path):
    """Its reduced labels would ignore the first class of data that are numbered from 0."""
    output = ["--output_dir", tmp_path / "run", "--do_reduce_labels"]
    code, _, errors = run(train_command, tiny_recipe, *masks(map_of(0, 1), 2), *STEPS, *output)
    assert code == 2 and len(errors) == 1
    assert "0 is ignored and 1 is 'class 0', but its 4 label maps hold 0, 1 and never 2" in errors[0]
    assert run(train_command, tiny_recipe, *masks(map_of(1, 2), 2), *STEPS, *output)[::2] == (0, [])


def test_classes_in_another_order_than_the_models_are_refused(masks, run, random_model):
    """Else each would be counted as another."""
    model = ["--model_name_or_path", random_model(2), "--dataloader_num_workers", 0]
    data = masks(map_of(255, 0), 2)[:-2]
    assert run(eval_command, *model, *data, "--mask_values", "0=LABEL_0", "255=LABEL_1")[::2] == (0, [])
    code, _, errors = run(eval_command, *model, *data, "--mask_values", "255=LABEL_1", "0=LABEL_0")
    assert code == 2 and len(errors) == 1
    assert (
        "class 'LABEL_1' is number 0 by the data or the flags of the label maps" in errors[0]
        and "but 1 in the model" in errors[0]
    )


def test_what_surrounds_the_one_named_class_is_added(masks, run, tiny_recipe, tmp_path):
    code, _, errors = run(
        train_command, tiny_recipe, *masks(map_of(1, 0), 1), *STEPS, "--output_dir", tmp_path / "run"
    )
    said = "classes: the label maps hold 0 and 1 but only 'class 0' is named: 0 is 'background', 1 is 'class 0'"
    assert (code, errors) == (0, [said])
    names = json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]
    assert names == {"0": "background", "1": "class 0"}


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
