"""`--freeze_backbone` on the command line: resuming, averages and checkpointing, what is refused."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_semask import tiny_model as tiny_semask
from training_processes import as_it_was, assert_equal_end, end_state

from scripts.cli.errors import UserError
from scripts.train import TrainArguments
from scripts.training.network import prepare_network


def test_a_frozen_run_resumes_to_the_last_bit(start, tmp_path):
    """With an average and gradient checkpointing; the backbone stays as it was drawn, in the average as well."""
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--checkpoints_total_limit", 3, "--freeze_backbone"]
    flags += ["--eval_steps", 3, "--ema_decay", 0.5, "--gradient_checkpointing"]
    code, _, errors = start(*flags)
    assert code == 0, errors
    assert any("--freeze_backbone: the backbone has random weights and keeps them" in line for line in errors)
    again = as_it_was(tmp_path / "run", 1, tmp_path / "again")
    code, out, errors = start(*flags, "--resume_from_checkpoint", "latest", "--output_dir", again)
    assert code == 0 and "resumed from" in out, errors
    assert not any("--freeze_backbone" in line for line in errors)
    assert_equal_end(again, end_state(tmp_path / "run"))
    first, last = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 3))
    averaged = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in averaged.items():
        assert torch.equal(first[name], value) or ".backbone." not in name, name
    assert any(not torch.equal(value, last[name]) for name, value in first.items())


def test_a_model_is_trained_on_with_its_backbone_frozen(start, model_folder, tmp_path):
    code, _, errors = start("--max_train_steps", 1, "--freeze_backbone", "--model_name_or_path", model_folder)
    assert code == 0 and not any("random weights" in line for line in errors), errors
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "run"))
    assert {name for name in before if ".backbone." in name} <= {
        name for name, value in before.items() if torch.equal(value, after[name])
    }


def test_semantic_layers_that_are_new_are_not_frozen():
    """Weights of a plain Swin do not hold them."""
    arguments = TrainArguments(freeze_backbone=True, backbone_weights="swin.safetensors")
    with pytest.raises(UserError, match=r"^--freeze_backbone: the semantic layers of the SeMask backbone are new"):
        prepare_network(tiny_semask(), arguments, Accelerator())
    arguments = TrainArguments(freeze_backbone=True, model_name_or_path="outputs/semask")
    model = prepare_network(tiny_semask(), arguments, Accelerator())
    assert not any(value.requires_grad for value in model.backbone.parameters())
