"""The commands from end to end on a tiny stream: train, resume, evaluate, predict, and their errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_processes import run_script

from scripts import eval as eval_command
from scripts import predict as predict_command
from scripts import train as train_command
from scripts.cli.parser import parse_arguments
from scripts.train import TrainArguments, train


# What a log holds of the machine, not of the run.
MACHINE_FIGURES = ("images_per_second", "data_wait_seconds", "data_wait_share", "peak_memory_gib")
ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def train_here(recipe, shapes, output_dir, *flags):
    flags = [str(recipe), "--dataset_name", str(shapes), "--output_dir", str(output_dir), *map(str, flags)]
    return train(parse_arguments(TrainArguments, flags))


def launch(*argv, cwd=ROOT):
    environment = {**os.environ, **OFFLINE}
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tiny_recipe, shapes, tmp_path_factory):
    """Folder of a model trained for four steps in its own process, as a user would."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--dataset_name", shapes, "--output_dir", folder, "--max_train_steps", 4, "--checkpointing_steps", 1]
    done = run_script(ROOT / "scripts" / "train.py", tiny_recipe, *flags, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "group" not in done.stderr and "4/4" in done.stderr
    assert re.search(r"GiB per process.*activations \d", done.stdout), done.stdout
    return folder


def test_training_leaves_a_model_a_log_and_the_newest_checkpoints(trained, shapes):
    log = [json.loads(line) for line in (trained / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["loss_dice"] > 0 for row in log)
    assert log[0]["learning_rate"] == 1e-3 > log[3]["learning_rate"] > 0
    kept = sorted(path.name for path in trained.iterdir() if "checkpoint" in path.name)
    assert kept == ["checkpoint-3", "checkpoint-4"]
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "recipe.yaml"} <= set(os.listdir(trained))
    assert (trained / "curves.png").is_file()
    again = parse_arguments(TrainArguments, [str(trained / "recipe.yaml")])
    assert (again.max_train_steps, again.crop_height) == (4, 64)
    assert again.dataset_name == shapes.name and again.output_dir is None
    assert os.sep not in (trained / "recipe.yaml").read_text()


def test_resumed_run_equals_the_run_never_stopped(tiny_recipe, shapes, tmp_path):
    flags = ["--max_train_steps", 4, "--checkpointing_steps", 2, "--gradient_accumulation_steps", 2]
    whole = train_here(tiny_recipe, shapes, tmp_path / "whole", *flags)
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = train_here(
        tiny_recipe, shapes, tmp_path / "resumed", *flags,
        "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2",
    )  # fmt: skip
    figures = [
        {name: value for name, value in line.items() if name not in MACHINE_FIGURES} for line in (resumed, whole)
    ]
    assert figures[0] == figures[1]
    for name, value in load_file(tmp_path / "resumed" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name
    first = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(value, weights[name]) for name, value in first.items() if name in weights)


def test_resuming_a_finished_run_trains_no_step(trained, tiny_recipe, shapes):
    before = load_file(trained / "model.safetensors")
    train_here(tiny_recipe, shapes, trained, "--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert len((trained / "train_log.jsonl").read_text().splitlines()) == 4


def test_evaluation_writes_what_it_prints(trained, shapes, tmp_path, command):
    file = tmp_path / "results" / "tiny.json"
    flags = ["--model_name_or_path", trained, "--dataset_name", shapes, "--output_file", file]
    code, out, _ = command(eval_command, *flags, "--dataloader_num_workers", 0)
    results = json.loads(file.read_text())
    assert code == 0 and f"{results['mean_iou']:.2f}" in out
    assert results["images"] == 3 and results["split"] == "validation"
    assert len(results["weights_sha256"]) == 64 and results["checkpoint"] == trained.name
    assert list(results["per_class"]) == ["sky", "terrain", "road", "tree", "house", "car"]
    present = [row["iou"] for row in results["per_class"].values() if row["iou"] is not None]
    assert results["mean_iou"] == pytest.approx(np.mean(present), abs=0.01)
    code, out, _ = command(eval_command, *flags, "--tta", "--tta_shortest_edges", 32, 64, "--max_eval_samples", 1)
    assert code == 0 and json.loads(file.read_text())["protocol"]["tta_shortest_edges"] == [32, 64]


def test_evaluation_in_training_equals_evaluation_after(trained, tiny_recipe, shapes, tmp_path, command):
    flags = ["--max_train_steps", 1, "--eval_steps", 1]
    last = train_here(tiny_recipe, shapes, tmp_path, *flags)
    _, _, _ = command(
        eval_command, "--model_name_or_path", tmp_path, "--dataset_name", shapes, "--output_file", tmp_path / "r.json"
    )
    assert json.loads((tmp_path / "r.json").read_text())["mean_iou"] == pytest.approx(
        100 * last["mean_iou"], abs=0.006
    )


def test_prediction(trained, tmp_path, command):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 61, 3), dtype=np.uint8)).save(images / "plain.png")
    Image.fromarray(rng.integers(0, 256, (30, 50), dtype=np.uint8)).save(images / "gray.png")
    turned = Image.fromarray(rng.integers(0, 256, (20, 50, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "turned.jpg", exif=exif)
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "notes.txt").write_text("not one either")
    out = tmp_path / "out"
    code, _, errors = command(predict_command, images, "--model_name_or_path", trained, "--output_dir", out)
    assert code == 1
    assert any("broken.jpg: skipped" in line for line in errors) and "1 of 4 images" in errors[-1]
    sizes = {"plain": (61, 40), "gray": (50, 30), "turned": (20, 50)}
    assert {path.name for path in out.iterdir()} == {f"{n}_{k}.png" for n in sizes for k in ("labels", "overlay")}
    for name, size in sizes.items():
        labels = Image.open(out / f"{name}_labels.png")
        assert labels.size == size and labels.mode == "P" and np.asarray(labels).max() < 6
        overlay = Image.open(out / f"{name}_overlay.png")
        assert overlay.height > size[1] and overlay.width >= size[0]
    code, _, _ = command(
        predict_command, images / "plain.png", "--model_name_or_path", trained, "--output_dir", tmp_path / "o"
    )
    assert code == 0


def one_line(result, message):
    code, _, errors = result
    errors = [line for line in errors if line and not line.startswith(("train: ", "evaluate: ", "Loading weights: "))]
    assert code == 2 and len(errors) == 1 and message in errors[0], errors


def test_errors_are_one_line_with_exit_code_2(tiny_recipe, shapes, tmp_path, command):
    data = ["--dataset_name", shapes]
    out = ["--output_dir", tmp_path / "out", "--max_train_steps", 1]
    recipe = [tiny_recipe, *data, *out]
    one_line(command(train_command, tiny_recipe, *data), "give --output_dir")
    one_line(command(train_command, *recipe, "--learning_rate", "fast"), "invalid float value: 'fast'")
    one_line(command(train_command, *recipe, "--learning_rat", "1"), "--learning_rat 1: did you mean --learning_rate?")
    one_line(command(train_command, *recipe, "--config_overrides", "hidden_dim=30"), "hidden_dim")
    one_line(command(train_command, *recipe, "--config_overrides", "num_queries=many"), "num_queries")
    one_line(command(train_command, *recipe, "--crop_height", 32, "--crop_width", 32), "high_resolution_reduction")
    one_line(command(train_command, *recipe, "--total_train_batch_size", 3), "no multiple of 1 processes")
    one_line(command(train_command, *recipe, "--resume_from_checkpoint", "latest"), "no checkpoint-<step>")
    one_line(command(train_command, *recipe, "--resume_from_checkpoint", shapes), "--resume_from_checkpoint")
    one_line(command(train_command, *recipe, "--mixed_precision", "fp61"), "--mixed_precision fp61")
    long = ["--max_train_steps", 9]  # until the labels that are not there have come
    reduced = [*recipe, *long, "--do_reduce_labels"]
    one_line(command(train_command, *reduced, "--id2label", write_names(tmp_path, 4)), "label 5")
    one_line(command(train_command, *recipe, *long, "--id2label", write_names(tmp_path, 3)), "but 3 classes (0..2)")
    one_line(command(train_command, tiny_recipe, *data, "--output_dir", tmp_path / "o"), "give --max_train_steps")
    one_line(command(eval_command, *data), "give --model_name_or_path")
    one_line(command(eval_command, "--model_name_or_path", tmp_path, *data), "--model_name_or_path")
    one_line(command(predict_command, "--model_name_or_path", tmp_path, "--output_dir", tmp_path), "no image")
    no_folder = ["--output_dir", tiny_recipe]
    one_line(command(predict_command, "--model_name_or_path", tmp_path, *no_folder), "is a file: name another folder")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr_scheduler_type foo", "--lr_scheduler_type 'foo': give one of poly, linear"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "give one of poly, linear"),
        ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr: "),
        ("--dataset_name nobody/none", "--dataset_name nobody/none, split 'train'"),
        ("--output_dir RECIPE", "is a file: name another folder"),
        ("--output_dir RECIPE/below", "is a file: name another folder"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers -1: give at least 0"),
        ("--seed -1", "--seed -1: give at least 0"),
        ("--seed 5000000000", "--seed 5000000000: give less than"),
        ("--total_train_batch_size 0", "--total_train_batch_size 0: give at least 1"),
        ("--shortest_edges 64 0", "--shortest_edges [64, 0]: give at least 1"),
        ("--longest_edge 0", "--longest_edge 0: give at least 1"),
        ("--eval_shortest_edge -5", "--eval_shortest_edge -5: give at least 1"),
        ("--learning_rate -1", "--learning_rate -1.0: give at least 0"),
        ("--learning_rate 0", "--learning_rate 0.0: give a number above 0"),
        ("--weight_decay -1", "--weight_decay -1.0: give at least 0"),
        ("--adam_epsilon -1", "--adam_epsilon -1.0: give at least 0"),
        ("--adam_epsilon 0", "--adam_epsilon 0.0: give at least 1e-30"),
        ("--adam_epsilon 1e-60", "--adam_epsilon 1e-60: give at least 1e-30"),
        ("--learning_rate inf", "--learning_rate inf: give at most 1e+06"),
        ("--learning_rate 1e38", "--learning_rate 1e+38: give at most 1e+06"),
        ("--weight_decay 1e38", "--weight_decay 1e+38: give at most 1e+06"),
        ("--backbone_lr_multiplier inf", "--backbone_lr_multiplier inf: give at most 1e+06"),
        ("--lr_power inf", "--lr_power inf: give at most 1e+06"),
        ("--max_bad_samples -1", "--max_bad_samples -1: give at least 0"),
        ("--scale_range 0.5 inf", "--scale_range [0.5, inf]: give two factors above 0 and up to 100, LOW HIGH"),
        ("--scale_range nan 1", "--scale_range [nan, 1.0]: give two factors above 0 and up to 100, LOW HIGH"),
        ("--scale_range 2 1", "--scale_range [2.0, 1.0]: give two factors above 0 and up to 100, LOW HIGH"),
        ("--ema_decay nan", "--ema_decay nan: give a number from 0"),
        ("--adam_beta2 1", "--adam_beta2 1.0: give a number from 0"),
        ("--num_warmup_steps -1", "--num_warmup_steps -1: give at least 0"),
        ("--max_grad_norm nan", "--max_grad_norm nan: give at least 0"),
        ("--config_overrides ignore_value=254", "read with 255 as the ignored id"),
    ],
)
def test_training_errors_at_wrong_values(flags, message, tiny_recipe, shapes, tmp_path, command, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    recipe = [tiny_recipe, "--dataset_name", shapes, "--output_dir", tmp_path / "out", "--max_train_steps", 1]
    one_line(command(train_command, *recipe, *flags.replace("RECIPE", str(tiny_recipe)).split()), message)
    assert not (tmp_path / "out").exists()


def test_crops_and_edges_of_one_pixel(trained, tiny_recipe, shapes, tmp_path, command):
    """Work, but for training on a single value per channel."""
    data = ["--dataset_name", shapes]
    crops = ["--crop_height", 1, "--crop_width", 1, "--config_overrides", "high_resolution_min_windows=1"]
    train = [tiny_recipe, *data, *crops, "--output_dir", tmp_path / "out", "--max_train_steps", 1]
    one_line(
        command(train_command, *train, "--per_device_train_batch_size", 1),
        "--crop_height 1 --crop_width 1 --per_device_train_batch_size 1: a batch norm gets a single value per channel",
    )
    assert command(train_command, *train, "--per_device_train_batch_size", 2)[0] == 0
    edges, results = ["--eval_shortest_edge", 1, "--eval_longest_edge", 1], tmp_path / "results.json"
    flags = ["--model_name_or_path", trained, *data, *edges, "--output_file", results]
    assert command(eval_command, *flags)[0] == 0
    assert 0 <= json.loads(results.read_text())["mean_iou"] <= 100


def test_errors_of_model_and_data(trained, tiny_recipe, shapes, tmp_path, command):
    out = ["--output_dir", tmp_path / "out", "--max_train_steps", 9]
    backbone = "backbone_config={model_type: timm_backbone, backbone: resnet18, out_indices: [1, 2, 3, 4]}"
    kwargs = ["--config_overrides", backbone, "timm_backbone_kwargs={nonsense: 1}"]
    data = ["--dataset_name", shapes]
    one_line(command(train_command, tiny_recipe, *data, *out, *kwargs), "nonsense")
    many = ["--id2label", write_names(tmp_path, 256)]
    one_line(command(train_command, tiny_recipe, *data, *out, *many), "256 classes")
    # Another ignore_value, as the configuration would advise, does not help.
    for flags in ([], ["--config_overrides", "ignore_value=256"]):
        one_line(
            command(train_command, tiny_recipe, *data, *out, *many, *flags), "so 255 fit: merge some by --class_map"
        )
    many = ["--id2label", write_names(tmp_path, 255), "--do_reduce_labels"]
    one_line(command(train_command, tiny_recipe, *data, *out, *many), "so 254 fit: merge some by --class_map")

    broken = tmp_path / "broken"
    shutil.copytree(shapes, broken)
    for shard in (*broken.glob("data/train-00001*"), *broken.glob("data/validation-00001*")):
        shard.write_bytes(shard.read_bytes()[:-100])
    data = ["--dataset_name", broken]
    done = run_script(ROOT / "scripts" / "train.py", tiny_recipe, *data, *out, folder=ROOT)
    # what libraries log counts too
    one_line((done.returncode, done.stdout, done.stderr.splitlines()), "dataset cannot be read: ")
    model = ["--model_name_or_path", trained]
    one_line(command(eval_command, *model, *data, "--dataloader_num_workers", 0), "dataset cannot be read: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eval_shortest_edge -5", "--eval_shortest_edge -5: give at least 1"),
        ("--tta_shortest_edges 0 64", "--tta_shortest_edges [0, 64]: give at least 1"),
        ("--max_eval_samples 0", "--max_eval_samples 0: give at least 1"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers -1: give at least 0"),
        ("--config_overrides ignore_value=254", "read with 255 as the ignored id"),
        ("--dataset_name nobody/none", "--dataset_name nobody/none, split 'validation'"),
        ("--output_file FOLDER", "is a folder: name a file"),
        ("--output_file FOLDER/config.json/below.json", "is a file: name another folder"),
    ],
)
def test_evaluation_errors_at_wrong_values(flags, message, trained, shapes, command, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    flags = flags.replace("FOLDER", str(trained)).split()
    one_line(command(eval_command, "--model_name_or_path", trained, "--dataset_name", shapes, *flags), message)
    assert not list(trained.parent.glob(".*.partial"))


def write_names(folder, count):
    file = folder / f"names{count}.json"
    file.write_text(json.dumps({str(index): f"class {index}" for index in range(count)}))
    return file


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("train", "file"),
        ("predict", "module"),
        pytest.param("train", "module", marks=pytest.mark.slow),
        pytest.param("eval", "file", marks=pytest.mark.slow),
    ],
)
def test_commands_start_as_file_and_as_module(name, start, tmp_path):
    """Without arguments each says in one line what it lacks; started as a file, from any folder and by Python anew."""
    if start == "file":
        done = launch(ROOT / "scripts" / f"{name}.py", cwd=tmp_path)
    else:
        done = run_script("-m", f"scripts.{name}", folder=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and f"{name}.py: error: no " in done.stderr


@pytest.mark.slow
def test_two_processes_equal_one(trained, tiny_recipe, shapes, tmp_path):
    """Evaluation to the digit; training runs and shares the samples."""
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "cpu.yaml"]
    flags = ["--model_name_or_path", trained, "--dataset_name", shapes, "--output_file"]
    for number, start in enumerate([[], accelerate]):
        done = launch(*start, ROOT / "scripts" / "eval.py", *flags, tmp_path / f"{number}.json")
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert one["per_class"] == two["per_class"] and one["images"] == two["images"]
    flags = ["--dataset_name", shapes, "--output_dir", tmp_path / "two", "--max_train_steps", 2]
    done = launch(*accelerate, ROOT / "scripts" / "train.py", tiny_recipe, *flags)
    assert done.returncode == 0, done.stderr
    assert " x 2 processes" in done.stdout
    assert len((tmp_path / "two" / "train_log.jsonl").read_text().splitlines()) == 2
