"""Training on a folder of one split, some of which is held back: as if it had been moved into folders of its own."""

import json
import shutil

import pytest
import yaml
from folder_forms import TRAIN, write_form
from safetensors.torch import load_file

from scripts import check_dataset
from scripts import eval as eval_command
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.training.checkpointing import checkpoints


STEPS = ["--max_train_steps", 2, "--checkpointing_steps", 1, "--eval_steps", 2, "--dataloader_num_workers", 0]
SHARE = ["--train_val_split", 0.3]


@pytest.fixture
def own(tmp_path):
    """Images and masks side by side, three videos of five frames."""
    return write_form(tmp_path / "own", "side by side in each split", {"train": TRAIN})


def moved_apart(own, share, target):
    """The same samples as a training and a validation folder."""
    for split, place in (("train", "train"), ("validation", "val")):
        (target / place).mkdir(parents=True)
        for row in LabelledDataset(DatasetArguments(str(own), train_val_split=share), split).stream:
            for column in ("image", "label"):
                shutil.copy(row[column]["path"], target / place)
    shutil.copy(own / "id2label.json", target)
    return target


def test_held_back_samples_are_a_validation_split(own, start, tmp_path, command):
    def weights():
        return load_file(tmp_path / "run" / "model.safetensors")

    code, out, errors = start("--dataset_name", own, *STEPS, *SHARE)
    assert code == 0, errors
    assert errors[0] == f"--dataset_name {own}: train 15 pairs (side by side in train, masks *_mask)"
    assert errors[1].startswith("validation: 5 of 15 images held back (--train_val_split 0.3), whole groups: seq")
    assert "10 samples" in out and (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train_val_split"] == 0.3
    trained = weights()

    # ---- evaluated and checked by the same flags
    given = ["--dataset_name", own, *SHARE]
    results = tmp_path / "results.json"
    flags = ["--model_name_or_path", tmp_path / "run", *given, "--output_file", results]
    assert command(eval_command, *flags, "--dataloader_num_workers", 0, "--no_extended_metrics")[0] == 0
    facts = json.loads(results.read_text())
    assert (facts["images"], facts["split"], facts["train_val_split"]) == (5, "validation", 0.3)
    _, printed, _ = command(check_dataset, *given)
    assert "train: samples: 10" in printed and "validation: samples: 5" in printed

    # ---- resumed
    shutil.rmtree(checkpoints(tmp_path / "run")[-1])
    code, out, errors = start("--dataset_name", own, *STEPS, *SHARE, "--resume_from_checkpoint", "latest")
    assert code == 0 and "resumed from" in out, errors
    assert all((weights()[name] == value).all() for name, value in trained.items())
    resume = [*STEPS, "--resume_from_checkpoint", "latest"]
    code, _, errors = start("--dataset_name", own, *resume, "--train_val_split", 0.6)
    assert code == 2 and "--train_val_split 0.3, not 0.6" in errors[-1] and "data: samples held back" in errors[-1]

    # ---- the same as two folders
    shutil.rmtree(tmp_path / "run")
    code, _, errors = start("--dataset_name", moved_apart(own, 0.3, tmp_path / "apart"), *STEPS)
    assert code == 0, errors
    assert all((weights()[name] == value).all() for name, value in trained.items())


def test_the_split_keeps_its_name(own, start):
    code, _, errors = start("--dataset_name", own, *STEPS, *SHARE, "--eval_split_name", "test")
    assert code == 2 and errors[-1].endswith("--eval_split_name is 'test': give one of both")


def test_one_file_for_training_and_validation_is_said(own, start, shapes, tmp_path):
    file = next(shapes.glob("data/train-00000*"))
    names = ["--id2label", shapes / "id2label.json"]
    code, _, errors = start("--dataset_name", file, *names, "--max_train_steps", 1, "--eval_steps", 1)
    assert code == 0 and any("is one file, all of which is trained on and evaluated on" in line for line in errors)
