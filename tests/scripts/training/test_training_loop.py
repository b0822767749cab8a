"""The training step and loop: signals, full disks, bad losses, averages, frozen backbones."""

import errno
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from changed_runs import at_step, republish
from safetensors.torch import load_file, save_file
from training_processes import arguments_for, assert_equal_end, end_state, in_processes
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import eval as eval_command
from scripts import predict as predict_command
from scripts import train as train_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.loading import good_batches
from scripts.models.loading import build_config, build_model
from scripts.storage.atomic import damage
from scripts.train import TrainArguments, train
from scripts.training import checkpointing, loop, run
from scripts.training.arguments import saved_recipe, with_batch_sizes
from scripts.training.checkpointing import STATES, checkpoints
from scripts.training.memory import activation_bytes, state_bytes
from scripts.training.optimization import average_of
from scripts.training.stopping import Stopped


def losses(folder):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


# ------------------------------------------------------------------------------------------------------------ signals


def test_sigterm_then_ctrl_c_then_the_end_equal_the_run_never_stopped(
    tiny_recipe, shapes, tmp_path, monkeypatch, command
):
    """Stopped in the steps 2 and 4, so that an evaluation is still due at the next start."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    common = ["--dataset_name", shapes, "--max_train_steps", 5, "--eval_steps", 2, "--logging_steps", 2]
    common += ["--ema_decay", 0.5]
    train(parse_arguments(TrainArguments, [str(flag) for flag in (tiny_recipe, *common, "--output_dir", whole)]))
    flags = [tiny_recipe, *common, "--output_dir", stopped]
    for step, number in ((2, signal.SIGTERM), (4, signal.SIGINT)):
        with monkeypatch.context() as patch:
            at_step(patch, step - 1, lambda number=number: os.kill(os.getpid(), number))
            # The signal of the step before is seen by the processes together in the next one.
            code, _, errors = command(train_command, *flags)
        assert code == 128 + number
        checkpoint = stopped / f"checkpoint-{step + 1 if step == 2 else 5}"
        assert damage(checkpoint) is None, errors
        assert f"stopped by {number.name} after step {checkpoint.name[11:]}, saved as {checkpoint}" in errors[-2]
        again = shlex.split(errors[-1])
        assert again[:1] == ["python"] and again[-2:] == ["--resume_from_checkpoint", "latest"]
        flags = again[again.index(str(tiny_recipe)) :]
        assert flags.count("--resume_from_checkpoint") == 1
        assert not (stopped / "model.safetensors").exists()
    assert command(train_command, *flags)[0] == 0
    for kept in stopped.glob("checkpoint-*"):
        assert damage(kept) is None
    assert_equal_end(stopped, end_state(whole))


def test_an_evaluation_that_is_due_again_leaves_one_line(start, tmp_path, monkeypatch):
    """Stopped before the evaluation of step 2, resumed, killed after that evaluation, resumed."""
    flags = ["--max_train_steps", 4, "--eval_steps", 2]
    with monkeypatch.context() as patch:
        at_step(patch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert start(*flags)[0] == 128 + signal.SIGTERM
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert evaluations(tmp_path / "run") == []

    class Killed(BaseException):
        pass

    def killed():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, 2, killed)
        with pytest.raises(Killed):
            start(*flags, "--resume_from_checkpoint", "latest")
    assert evaluations(tmp_path / "run") == [2]
    assert start(*flags, "--resume_from_checkpoint", "latest")[0] == 0
    assert evaluations(tmp_path / "run") == [2, 4]


def evaluations(folder):
    """The steps of the evaluations in the log."""
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "mean_iou" in line]


def test_second_ctrl_c_leaves_at_once(start, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    at_step(monkeypatch, 1, twice)
    code, _, errors = start("--max_train_steps", 4)
    assert code == 130 and errors[-1].endswith("interrupted")
    assert not checkpoints(tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def stopped_by_the_other(arguments, rank):
    original = loop.agree

    def agree(this, step, received):
        return original(this, step, signal.SIGTERM if rank == 1 and this.progress.step == 1 else received)

    loop.agree = agree
    with pytest.raises(Stopped, match="SIGTERM after step 2"):
        train(arguments)


@pytest.mark.system
def test_signal_of_one_process_stops_both(tiny_recipe, shapes, tmp_path):
    arguments = arguments_for(tiny_recipe, shapes, tmp_path / "run")
    codes, errors = in_processes(partial(stopped_by_the_other, arguments), world=2)
    assert codes == [0, 0], errors
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert damage(tmp_path / "run" / "checkpoint-2") is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_accelerate_launch(number, tiny_recipe, shapes, tmp_path):
    """The launcher passes the signal on to both processes, which leave a checkpoint to go on from."""
    root = Path(__file__).parents[3]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", root / "configs" / "accelerate" / "cpu.yaml", root / "scripts" / "train.py"]
    flags = [tiny_recipe, "--dataset_name", shapes, "--output_dir", tmp_path / "run"]
    flags += ["--dataloader_num_workers", 1, "--max_train_steps", 500]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    started = subprocess.Popen(
        [str(part) for part in (*launcher, *flags)], env=environment, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "train_log.jsonl"
    while started.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.2)
    started.send_signal(number)
    _, errors = started.communicate(timeout=120)
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert damage(checkpoint) is None
    assert f"stopped by {number.name}" in errors and "start it again as before" in errors


# ------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("failure", ["fsync", "file size"])
def test_full_disk_keeps_the_last_checkpoint(failure, start, tmp_path, monkeypatch):
    flags = ["--max_train_steps", 4, "--checkpointing_steps", 2, "--checkpoints_total_limit", 1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        if failure == "fsync":

            def full(descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr("os.fsync", full)
        else:  # torch and safetensors meet it while they write, and say so in words of their own
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    with monkeypatch.context() as patch:
        at_step(patch, 3, fill)
        try:
            code, _, errors = start(*flags)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and len(errors) == 1
    assert "checkpoint-4 could not be written: " in errors[0] and "checkpoint-2 is kept" in errors[0]
    assert failure != "fsync" or "the disk is full" in errors[0]
    assert [path.name for path in (tmp_path / "run").iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    assert damage(tmp_path / "run" / "checkpoint-2") is None


def test_really_full_disk(tiny_recipe, shapes, tmp_path, command):
    """On a file system of 4 MiB of its own, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        flags = ["--dataset_name", shapes, "--output_dir", disk / "run", "--max_train_steps", 9]
        flags += ["--checkpointing_steps", 1, "--checkpoints_total_limit", 9]
        code, _, errors = command(train_command, tiny_recipe, *flags)
        kept = checkpoints(disk / "run")
        assert code == 2 and "the disk is full" in errors[-1] and f"{kept[-1]} is kept" in errors[-1]
        assert kept and all(damage(path) is None for path in kept)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_log_that_cannot_be_written_is_one_line(start, tmp_path, monkeypatch):
    log = tmp_path / "run" / "train_log.jsonl"

    def lose():
        log.unlink()
        log.mkdir()

    at_step(monkeypatch, 1, lose)
    code, _, errors = start("--max_train_steps", 3, "--checkpointing_steps", 1)
    assert code == 2 and f"error: {log}: Is a directory; {tmp_path / 'run' / 'checkpoint-1'} is kept" in errors[-1]


def interrupted_in_the_last_save(arguments, rank):
    """Ctrl-C reaches each process when the first is about to write the model."""
    original, on_main = loop.loop, loop.on_main

    def interrupted(accelerator, function):
        os.kill(os.getpid(), signal.SIGINT)
        return on_main(accelerator, function)

    def then_interrupted(*args):
        last = original(*args)
        loop.on_main = interrupted
        return last

    loop.loop = then_interrupted
    train(arguments)


@pytest.mark.system
@pytest.mark.parametrize("world", [1, 2])
def test_ctrl_c_in_the_last_save_lets_it_end(world, tiny_recipe, shapes, tmp_path):
    arguments = arguments_for(tiny_recipe, shapes, tmp_path / "run", "--max_train_steps", 1)
    codes, errors = in_processes(partial(interrupted_in_the_last_save, arguments), world)
    assert codes == [0] * world, errors
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------------- bad numbers


def with_an_infinite_term(arguments, world, rank):
    """Trains until the last process's loss, in the second of two micro steps, is infinite."""
    seen, runs = [], []

    def spoil(criterion, inputs, losses):
        if len(seen) == 6 and rank == world - 1:
            losses["loss_dice_1"] = losses["loss_dice_1"] * float("inf")

    def prepared(arguments, original=run.set_up):
        runs.append(original(arguments))
        runs[0].network.criterion.register_forward_hook(spoil)
        return runs[0]

    def batches(loader, original=good_batches):
        for batch in original(loader):
            seen.append(batch["names"])
            yield batch

    run.good_batches, loop.set_up = batches, prepared
    with pytest.raises(UserError) as stopped:
        train(arguments)
    start, _, end = str(stopped.value).partition(", samples ")
    assert start == "step 3: loss is inf, loss_dice_1 is inf", start
    if rank == world - 1:
        assert end.startswith(", ".join(seen[-1])), end
    assert end.endswith(" (process 1)" * (world == 2) + "; the weights are those of the step before"), end
    assert all(parameter.isfinite().all() for parameter in runs[0].network.parameters())


@pytest.mark.parametrize("world", [1, 2])
def test_a_loss_that_is_not_finite_stops_with_its_terms_and_samples(world, tiny_recipe, shapes, tmp_path):
    """That of one process stops all of them; the weights are still good."""
    arguments = arguments_for(tiny_recipe, shapes, tmp_path / "run", "--dataloader_num_workers", 0)
    codes, errors = in_processes(partial(with_an_infinite_term, arguments, world), world)
    assert codes == [0] * world, errors
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_logits_that_are_not_finite_stop_with_the_step_and_the_samples(start, tmp_path, monkeypatch):
    def batches(loader, original=good_batches):
        for number, batch in enumerate(original(loader)):
            yield {**batch, "pixel_values": batch["pixel_values"] * (float("nan") if number == 2 else 1)}

    monkeypatch.setattr(run, "good_batches", batches)
    code, _, errors = start("--max_train_steps", 4, "--checkpointing_steps", 1)
    assert code == 2 and "error: step 3, samples " in errors[-1] and "is not finite" in errors[-1]
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-2"


@pytest.mark.parametrize("name", ["decoder.level_embed.weight", "running_var"])
def test_an_update_that_leaves_no_numbers_stops_and_keeps_the_last_finite_checkpoint(
    name, start, tmp_path, monkeypatch
):
    """Weights, or statistics of batch norms; gradients and losses of that step are finite."""
    original, calls = torch.optim.AdamW.step, []

    def step(optimizer, *args, **kwargs):
        result = original(optimizer, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            tensors = runs[-1].network.state_dict()
            next(value for key, value in tensors.items() if key.endswith(name)).view(-1)[0] = float("inf")
        return result

    runs = []
    monkeypatch.setattr(loop, "set_up", lambda arguments: runs.append(run.set_up(arguments)) or runs[0])
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    code, _, errors = start("--max_train_steps", 4, "--checkpointing_steps", 1)
    assert code == 2 and "error: step 3, after an update with learning rate 0.000536: " in errors[-1], errors
    assert f"{name} holds values that are NaN or infinite; lower --learning_rate; " in errors[-1]
    assert errors[-1].endswith("checkpoint-2 is kept: go on with --resume_from_checkpoint latest")
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-2"
    assert not (tmp_path / "run" / "model.safetensors").exists()


def broken_weights(file):
    weights = load_file(file)
    weights["class_predictor.bias"][1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def test_weights_that_are_no_numbers_are_refused_when_read(start, model_folder, shapes, tmp_path, command):
    """By training from them, by resuming with them, and by whatever predicts with them."""
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1]
    assert start(*flags)[0] == 0
    folder = tmp_path / "run" / "checkpoint-1"
    broken_weights(folder / "model.safetensors")
    republish(folder)
    what = "class_predictor.bias holds values that are NaN or infinite"
    code, _, errors = start(*flags, "--resume_from_checkpoint", folder)
    assert code == 2 and f"--resume_from_checkpoint {folder}: {what}" in errors[-1]
    shutil.copytree(model_folder, tmp_path / "model")
    broken_weights(tmp_path / "model" / "model.safetensors")
    model, data = ["--model_name_or_path", tmp_path / "model"], ["--dataset_name", shapes]
    code, _, errors = start(*flags, *model, "--output_dir", tmp_path / "new")
    assert code == 2 and f"error: initial weights {tmp_path / 'model'}: {what}" in errors[-1]
    for module, more in ((eval_command, []), (predict_command, ["--output_dir", tmp_path / "out"])):
        code, _, errors = command(module, *model, *data, *more)
        assert code == 2 and f"--model_name_or_path {tmp_path / 'model'}: {what}" in errors[-1]


def with_bad_samples(arguments, rank):
    """Of two micro steps per step, process 0 meets a bad sample in the first step, process 1 in each."""

    def batches(loader, original=good_batches):
        for number, batch in enumerate(original(loader)):
            yield {**batch, "bad": [f"{rank} {number}"] if number % 2 == 0 and (rank or not number) else []}

    run.good_batches = batches
    with pytest.raises(UserError, match="4 bad samples, more than the 3 of --max_bad_samples; the last: 1 4"):
        train(arguments)


@pytest.mark.system
def test_bad_samples_of_all_processes_are_counted_and_kept(tiny_recipe, shapes, tmp_path):
    flags = ["--max_bad_samples", 3, "--dataloader_num_workers", 0]
    arguments = arguments_for(tiny_recipe, shapes, tmp_path / "run", *flags)
    codes, errors = in_processes(partial(with_bad_samples, arguments), world=2)
    assert codes == [0, 0], errors
    state = torch.load(tmp_path / "run" / "checkpoint-2" / STATES, weights_only=True)["bad_samples"]
    assert sorted(state["messages"]) == ["0 0", "1 0", "1 2"] and state["seen"] == 2 * 2 * 2 * 2


# --------------------------------------------------------------------------------------------------------- the flags


def test_best_and_average_are_folders_for_from_pretrained(start, tmp_path):
    flags = ["--max_train_steps", 3, "--eval_steps", 1, "--ema_decay", 0.9, "--checkpointing_steps", 3]
    code, _, errors = start(*flags)
    assert code == 0, errors
    log = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["mean_iou"] for line in log if "mean_iou" in line}
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert len(scores) == 3
    assert best["step"] == min(scores, key=lambda step: (-scores[step], step))
    assert best["mean_iou"] == pytest.approx(max(scores.values()), rel=1e-5)
    for folder in ("best", "."):
        AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run" / folder)
        AutoImageProcessor.from_pretrained(tmp_path / "run" / folder)
    averaged = load_file(tmp_path / "run" / "model.safetensors")
    trained = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    kept = torch.load(tmp_path / "run" / "checkpoint-3" / STATES, weights_only=True)["average"]
    assert all(torch.equal(value, kept[f"module.{name}"]) for name, value in averaged.items())
    assert any(not torch.equal(value, averaged[name]) for name, value in trained.items() if name in averaged)


def test_average_is_the_moving_average():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    model.register_buffer("table", torch.tensor([5, 7, 100]))
    model[0].weight.data.fill_(1.0)
    average = average_of(model, 0.9, torch.device("cpu"))
    expected = []
    for value in (1.0, 2.0, 4.0):
        model[0].weight.data.fill_(value)
        model[1].running_mean.fill_(value)
        average.update_parameters(model)
        expected.append(value if not expected else 0.9 * expected[-1] + 0.1 * value)
    assert average.module[0].weight.item() == pytest.approx(expected[-1])
    assert average.module[1].running_mean.item() == pytest.approx(expected[-1])
    assert average.module.table.tolist() == [5, 7, 100]  # not rounded down


def test_frozen_backbone(start, tmp_path):
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2]
    code, out, errors = start(*flags, "--freeze_backbone", "--gradient_checkpointing")
    assert code == 0, errors
    assert "- head " in out and "- backbone" not in out
    first, last = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2))
    same = {name for name, value in first.items() if torch.equal(value, last[name])}
    backbone = {name for name in first if ".backbone." in name}
    assert backbone <= same and any("running_mean" in name for name in backbone)
    assert len(same - backbone) < len(first) / 10


def test_estimated_activations_are_those_that_are_kept(tiny_recipe):
    arguments = parse_arguments(TrainArguments, [str(tiny_recipe)])
    model = build_model(arguments, build_config(arguments, {0: "a", 1: "b"})).train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    accelerator = Accelerator()
    estimates = [activation_bytes(model, 2, 64, 96, accelerator)]
    model.gradient_checkpointing_enable()
    estimates.append(activation_bytes(model, 2, 64, 96, accelerator))
    model.gradient_checkpointing_disable()
    assert all(torch.equal(buffer, kept) for buffer, kept in zip(model.buffers(), buffers, strict=True))

    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(pixel_values=torch.randn(2, 3, 64, 96))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert outputs.masks_queries_logits.requires_grad
    assert estimates[0] == sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert 0 < estimates[1] < 0.9 * estimates[0]

    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    sizes = state_bytes(model, num_processes=2, averaged=True)
    assert (sizes["gradients"], sizes["AdamW"], sizes["exchange"]) == (weights, 2 * weights, weights)
    assert sizes["weights"] == sizes["average"] >= weights


@pytest.mark.slow
def test_gradient_checkpointing_trains_alike(start, tmp_path):
    for number, flags in enumerate(([], ["--gradient_checkpointing"])):
        code, _, errors = start("--max_train_steps", 2, "--output_dir", tmp_path / str(number), *flags)
        assert code == 0, errors
    assert losses(tmp_path / "0") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


@pytest.mark.slow
def test_compiled_network_trains_alike(start, tmp_path):
    for name, flags in (("plain", []), ("compiled", ["--torch_compile"])):
        code, _, errors = start("--max_train_steps", 3, "--output_dir", tmp_path / name, *flags)
        assert code == 0, errors
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "compiled"), rel=1e-3)
    names = [set(load_file(tmp_path / name / "model.safetensors")) for name in ("plain", "compiled")]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("total", "micro", "processes", "expected"),
    [(16, 8, 1, (8, 2)), (16, 8, 2, (8, 1)), (16, 8, 8, (2, 1)), (16, 2, 4, (2, 2)), (None, 8, 8, (8, 3))],
)
def test_batch_is_the_same_on_any_number_of_processes(total, micro, processes, expected):
    arguments = TrainArguments(
        total_train_batch_size=total, per_device_train_batch_size=micro, gradient_accumulation_steps=3
    )
    used = with_batch_sizes(arguments, processes)
    assert (used.per_device_train_batch_size, used.gradient_accumulation_steps) == expected
    with pytest.raises(UserError, match="--total_train_batch_size 16 is no multiple of 3 processes"):
        with_batch_sizes(replace(arguments, total_train_batch_size=16), 3)


def test_recipe_beside_the_checkpoints_is_what_was_used(start, tiny_recipe, shapes, tmp_path):
    code, _, errors = start("--max_train_steps", 1, "--total_train_batch_size", 4, "--learning_rate", 0.5)
    assert code == 0, errors
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recipe["learning_rate"], recipe["gradient_accumulation_steps"], recipe["crop_height"]) == (0.5, 2, 64)
    assert recipe["dataset_name"] == shapes.name and "output_dir" not in recipe
    assert saved_recipe(TrainArguments(dataset_name="a/b"))["dataset_name"] == "a/b"


@pytest.mark.parametrize("flags", ["--ema_decay 1", "--ema_decay -0.1"])
def test_wrong_values(flags, start):
    code, _, errors = start("--max_train_steps", 1, *flags.split())
    assert code == 2 and "give a number from 0 to below 1" in errors[0]


def test_missing_state_of_another_machine(tmp_path):
    (tmp_path / "random_states_0.pkl").touch()
    assert checkpointing.missing_state(tmp_path, 1) is None
    assert "process 1" in checkpointing.missing_state(tmp_path, 2)
