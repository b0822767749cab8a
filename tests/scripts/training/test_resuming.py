"""Resuming: what is refused, what is named, and that no file of a checkpoint runs code."""

import json
import os
import shutil
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from changed_runs import at_step, republish
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType

from scripts.cli.errors import UserError
from scripts.data.labelled_dataset import LabelledDataset
from scripts.storage.atomic import damage
from scripts.train import TrainArguments
from scripts.training import checkpointing, fingerprint, run
from scripts.training.checkpointing import STATES, checkpoints


def test_resuming_with_other_settings(start, tiny_recipe, shapes, tmp_path):
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    code, out, errors = start(*flags, "--weight_decay", 0.1)
    assert code == 0, errors
    assert all(f"\n{row} " in out for row in ("classes", "batch", "steps", "memory"))
    resume = [*flags, "--resume_from_checkpoint", "latest"]
    code, _, errors = start(*flags, "--weight_decay", 0.1)
    assert code == 2 and "holds checkpoint-2 of an earlier run: go on with --resume_from_checkpoint" in errors[0]
    for changed, message in (
        (["--learning_rate", 0.5], "--weight_decay 0.1, not 0.05"),
        (["--learning_rate", 0.5], "--learning_rate 0.001, not 0.5"),
        (["--max_train_steps", 3], "--max_train_steps 2, not 3"),
        (["--seed", 1], "--seed 0, not 1"),
        (["--crop_width", 96], "--crop_width 64, not 96"),
        (["--mixed_precision", "bf16"], '--mixed_precision "no", not "bf16"'),
        (["--per_device_train_batch_size", 1], "--per_device_train_batch_size 2, not 1"),
        (["--gradient_accumulation_steps", 2], "--gradient_accumulation_steps 1, not 2"),
        (["--ema_decay", 0.9], "--ema_decay null, not 0.9"),
        (["--train_split_name", "validation"], '--train_split_name "train", not "validation"'),
        (["--train_split_name", "validation"], "data: names and sizes of files "),
        (["--config_overrides", "decoder_layers=3"], "model: decoder_layers 4, not 3"),
    ):
        code, _, errors = start(*resume, *changed)
        assert code == 2 and len(errors) == 1 and message in errors[0], (changed, errors)
    free = ["--dataloader_num_workers", 1, "--logging_steps", 5, "--checkpointing_steps", 3, "--num_train_epochs", 9]
    code, out, errors = start(*resume, "--weight_decay", 0.1, *free)
    assert code == 0 and "resumed from" in out, errors


@pytest.mark.parametrize(("processes", "expected"), [(1, "batches"), (2, "shards")])
def test_settings_tell_how_processes_share_samples(processes, expected, shapes):
    arguments = TrainArguments(dataset_name=str(shapes))
    accelerator = SimpleNamespace(num_processes=processes, mixed_precision="no", device=torch.device("cpu"))
    config = SimpleNamespace(to_dict=dict)
    data = LabelledDataset(arguments, "train")
    assert fingerprint.training_settings(arguments, accelerator, data, config, 3)[fingerprint.SHARING] == expected
    data.shards = None
    assert fingerprint.training_settings(arguments, accelerator, data, config, 3)[fingerprint.SHARING] == "batches"


def test_data_that_change_between_epochs_stop_the_run(start, shapes, tmp_path, monkeypatch):
    """Seven samples, two a step: the second epoch begins in step 4."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)

    def change():
        file = next(data.glob("data/train-00001*"))
        file.write_bytes(file.read_bytes() + b"0")

    at_step(monkeypatch, 1, change)
    flags = ["--dataset_name", data, "--max_train_steps", 8, "--checkpointing_steps", 1, "--shuffle_buffer_size", 1]
    code, _, errors = start(*flags)
    assert code == 2 and "error: the data set has changed while it was trained on: data: names and sizes" in errors[-1]
    assert checkpoints(tmp_path / "run")[-1].name in ("checkpoint-2", "checkpoint-3")


def test_a_checkpoint_knows_the_code_and_libraries_that_wrote_it(start, tmp_path, monkeypatch):
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    assert start(*flags)[0] == 0
    folder = tmp_path / "run" / "checkpoint-1"
    saved = json.loads((folder / checkpointing.SETTINGS).read_text())
    assert saved["version: torch"] == version("torch") and {"version: timm", "version: python"} <= saved.keys()
    monkeypatch.setattr(fingerprint, "code_digest", lambda: "other")
    code, _, errors = start(*flags, "--resume_from_checkpoint", folder)
    assert code == 0 and len(errors) == 1
    assert errors[0].startswith(f"warning: {folder} was trained with the project's code \"")
    assert ', not "other": the run goes on, but not exactly as if it had never stopped' in errors[0]


def test_the_digest_of_the_code_changes_with_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "PROJECT_ROOT", tmp_path)
    digests = set()
    for place in fingerprint.CODE:
        (tmp_path / place / "deep").mkdir(parents=True)
        for text in ("a = 1", "a = 2"):
            (tmp_path / place / "deep" / "code.py").write_text(text)
            digests.add(fingerprint.code_digest())
    assert len(digests) == 2 * len(fingerprint.CODE)
    monkeypatch.undo()
    assert all(list((fingerprint.PROJECT_ROOT / place).rglob("*.py")) for place in fingerprint.CODE)


def test_damaged_checkpoints(start, tmp_path):
    flags = ["--max_train_steps", 4, "--checkpointing_steps", 1, "--checkpoints_total_limit", 3]
    assert start(*flags)[0] == 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    file = tmp_path / "run" / "checkpoint-4" / "optimizer.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    code, _, errors = start(*flags, "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-4")
    assert code == 2 and len(errors) == 1
    assert "optimizer.bin is damaged" in errors[0] and errors[0].endswith("checkpoint-3")
    code, out, errors = start(*flags, "--resume_from_checkpoint", "latest")
    assert code == 0 and "passed over" in out and "checkpoint-3 at step 3" in out, errors
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert damage(tmp_path / "run" / "checkpoint-4") is None  # written anew


def test_random_numbers_that_cannot_be_restored_are_not_passed_over(start, tmp_path):
    """accelerate itself goes on with other random numbers."""
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    assert start(*flags)[0] == 0
    folder = tmp_path / "run" / "checkpoint-1"
    states = torch.load(folder / "random_states_0.pkl", weights_only=False)
    states["random_state"] = (3, (), None)
    torch.save(states, folder / "random_states_0.pkl")
    republish(folder)
    code, _, errors = start(*flags, "--resume_from_checkpoint", folder)
    assert code == 2 and "the state of the random numbers cannot be restored" in errors[-1]


class Code:
    """What makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", [STATES, "random_states_0.pkl", "optimizer.bin", "custom_checkpoint_0.pkl"])
def test_no_file_of_a_checkpoint_runs_code(name, start, tmp_path):
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    assert start(*flags)[0] == 0
    folder, ran = tmp_path / "run" / "checkpoint-1", tmp_path / "ran"
    torch.save({"step": Code(ran)}, folder / name)
    republish(folder)
    code, _, errors = start(*flags, "--resume_from_checkpoint", folder)
    assert code == 2 and len(errors) == 1 and not ran.exists(), errors
    assert f"{name} holds more than numbers (it calls posix.mkdir) and reading it could run code" in errors[0]


def test_sharded_checkpoints_are_refused_since_their_index_is_unpickled(tmp_path):
    (tmp_path / STATES).touch()
    (tmp_path / "model_0").mkdir()
    (tmp_path / "model_0" / ".metadata").touch()
    with pytest.raises(UserError, match=r"model_0/\.metadata is a plain pickle, which could run code: refused"):
        checkpointing.refuse_code(tmp_path)
    run.check_sharded(TrainArguments(), SimpleNamespace(state_dict_type=StateDictType.FULL_STATE_DICT))
    with pytest.raises(UserError, match=r"fsdp_state_dict_type SHARDED_STATE_DICT: .* set FULL_STATE_DICT"):
        run.check_sharded(TrainArguments(), SimpleNamespace(state_dict_type=StateDictType.SHARDED_STATE_DICT))


def test_a_checkpoint_of_pickles_is_refused(start, tmp_path):
    """As earlier versions wrote them."""
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    assert start(*flags)[0] == 0
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / STATES).rename(folder / "custom_checkpoint_0.pkl")
    republish(folder)
    code, _, errors = start(*flags, "--resume_from_checkpoint", folder)
    assert code == 2 and len(errors) == 1
    assert "it has no states.pt: an earlier version wrote it" in errors[0]
