"""Training of instance and panoptic models: what is stored, evaluated, counted and refused, and exact resumption."""

import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_folder import TINY_MODEL
from training_processes import TIMED
from transformers import AutoConfig, AutoImageProcessor

from scripts import train as train_command
from scripts.cli.errors import UserError
from scripts.drawing.segments import strip_of_segments
from scripts.models.loading import build_config
from scripts.training import figures
from scripts.training.arguments import TrainArguments, check_values
from scripts.training.log import draw_curves, read_log


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory):
    """That of the other tests, in which --large_scale_jitter may take the place of --shortest_edges."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(TINY_MODEL.replace("scale_range: [0.5, 1]", "shortest_edges: [32, 64]"))
    return file


@pytest.fixture
def go(start, segmented):
    """`start` on generated shapes with instances."""
    return lambda *flags: start("--dataset_name", segmented, "--max_train_steps", 2, *flags)


@pytest.mark.parametrize(("task", "names", "fused"), [("instance", ["disc", "box"], None), ("panoptic", 4, [0, 1])])
def test_the_task_is_stored_in_model_and_processor(task, names, fused, go, tmp_path):
    code, out, errors = go("--task", task)
    assert code == 0, errors
    config, processor = (kind.from_pretrained(tmp_path / "run") for kind in (AutoConfig, AutoImageProcessor))
    assert config.task == processor.task == task and processor.label_ids_to_fuse == fused
    assert list(config.id2label.values()) == names if task == "instance" else config.num_labels == names
    kinds = "all classes are things" if task == "instance" else "2 of the classes are things, 2 stuff"
    assert f"task                 {task}, label maps hold segments; {kinds}" in out


def test_a_finished_model_goes_on_for_another_task(go, start, segmented, tmp_path):
    assert go("--task", "panoptic")[0] == 0
    shutil.move(tmp_path / "run", tmp_path / "panoptic")
    code, _, errors = go("--task", "instance", "--model_name_or_path", tmp_path / "panoptic")
    assert code == 0, errors
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert processor.task == "instance" and processor.label_ids_to_fuse is None and processor.num_labels == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--gradient_accumulation_steps", 2, "--ema_decay", 0.5, "--gradient_checkpointing"],
        ["--rotation", 30, "--vertical_flip", 0.5, "--blur", 0.5, "--large_scale_jitter", 0.1, 2],
        ["--class_weights", "auto", "--freeze_backbone", "--min_segment_area", 2000],  # which no segment has
        ["--config_overrides", "exclude_ignored_pixels=true", "--large_scale_jitter", 0.1, 0.2],
    ],
    ids=lambda flags: flags[0],
)
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_other_flags_work_on_segments(task, flags, go, tmp_path):
    code, _, errors = go("--task", task, *flags)
    assert code == 0, errors
    assert all(math.isfinite(line["loss"]) for line in read_log(tmp_path / "run" / "train_log.jsonl"))


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_finetune_takes_its_settings_from_segments(task, segmented, command, tmp_path, monkeypatch):
    fields = yaml.safe_load(TINY_MODEL)["config_overrides"]
    backbone = {f"backbone_config.{name}": value for name, value in fields.pop("backbone_config").items()}
    overrides = [f"{name}={json.dumps(value)}" for name, value in {**backbone, **fields}.items()]
    flags = ["--dataset_name", segmented, "--output_dir", tmp_path / "run", "--max_train_steps", 1, "--task", task]
    flags += ["--crop_height", 64, "--shortest_edges", 64, "--dataloader_num_workers", 0, "--mixed_precision", "no"]
    name = figures.FIGURES[task].name
    monkeypatch.setitem(figures.FIGURES, task, figures.Figure(name, lambda *_: {name: 0.25}))
    code, out, errors = command(train_command, "finetune", *flags, "--config_overrides", *overrides)
    assert code == 0, errors
    assert f"task                 {task}" in out and (tmp_path / "run" / "best" / "best.json").is_file()


# ------------------------------------------------------------------------------------------------------------- figures


def stand_in(scores):
    """In place of an evaluation: gives the scores in turn, and says what it was asked of."""
    asked = []

    def evaluate(model, processor, data, accelerator):
        asked.append((processor.task, data.task, data.split))
        return next(scores)

    return evaluate, asked


@pytest.mark.parametrize(
    ("task", "name", "words"), [("instance", "average_precision", "AP"), ("panoptic", "panoptic_quality", "PQ")]
)
def test_best_and_early_stopping_go_by_the_figure_of_the_task(task, name, words, go, tmp_path, monkeypatch):
    values = [math.nan, 0.5, 0.25, 0.5]
    scores = iter([{name: value, "other": 0.125} for value in values])
    evaluate, asked = stand_in(scores)
    monkeypatch.setitem(figures.FIGURES, task, figures.Figure(name, evaluate))
    flags = ["--task", task, "--max_train_steps", 9, "--eval_steps", 1, "--early_stopping_patience", 2]
    code, out, errors = go(*flags)
    assert code == 0, errors
    assert asked == [(task, task, "validation")] * 4
    lines = [line for line in read_log(tmp_path / "run" / "train_log.jsonl") if name in line]
    assert [line[name] for line in lines] == [None, 0.5, 0.25, 0.5] and lines[0]["other"] == 0.125
    assert json.loads((tmp_path / "run" / "best" / "best.json").read_text()) == {"step": 2, name: 0.5}
    assert f"step 3: {words} 25.00" in out and f"no rise of {words} in 2 evaluations; the best was 50.00" in out
    draw_curves(tmp_path / "run" / "train_log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_scores_of_segments_are_the_single_numbers(monkeypatch):
    found = {"average_precision": 0.5, "average_precision_50": math.nan, "images": 3, "per_class": {"disc": 1.0}}
    module = SimpleNamespace(evaluate_segments=lambda *_: found)
    monkeypatch.setitem(sys.modules, "scripts.evaluation.segments_split", module)
    scores = figures.scores_of_segments(None, None, None, None)
    assert scores.keys() == {"average_precision", "average_precision_50"} and scores["average_precision"] == 0.5


# ------------------------------------------------------------------------------------------------- more than queries


def test_images_with_more_segments_than_queries_are_counted_and_said(go, tmp_path):
    """Two queries; the same count after a resumption."""
    overrides = ["--config_overrides", "num_queries=2", "--large_scale_jitter", 1, 1, "--checkpointing_steps", 2]
    flags = ["--task", "panoptic", *overrides, "--max_train_steps", 5]
    code, _, errors = go(*flags)
    said = [line for line in errors if "more segments" in line]
    assert code == 0 and len(said) == 2, errors  # after the first epoch of 7 images, and at the end
    assert said[0].startswith("warning: ") and " of 8 images had more segments than the model's 2 queries" in said[0]
    assert " of 10 images" in said[1] and "--config_overrides num_queries=" in said[1]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    code, _, errors = go(*flags, "--resume_from_checkpoint", "latest")
    assert code == 0 and [line for line in errors if "more segments" in line] == said


def test_instances_need_a_name_even_where_the_checkpoint_has_names(go, start, tmp_path):
    """A semantic checkpoint's class 0 is the background: instances are none."""
    assert go("--task", "panoptic")[0] == 0
    shutil.move(tmp_path / "run", tmp_path / "first")
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.new("L", (80, 64)).save(maps / "a.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 64)).save(tmp_path / "images" / "a.png")
    folders = ["--dataset_name", "", "--train_images", tmp_path / "images", "--train_masks", maps]
    for task in ("semantic", "instance"):
        code, _, errors = start(
            *folders, "--label_encoding", "instances", "--model_name_or_path", tmp_path / "first", "--task", task
        )
        assert code == 2 and "instances of one class: name it by --thing_classes" in errors[-1], errors


def test_nothing_is_said_where_queries_are_enough(go):
    code, _, errors = go("--task", "panoptic", "--config_overrides", "num_queries=20")
    assert code == 0 and not [line for line in errors if "queries" in line]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--do_reduce_labels"], "--do_reduce_labels: labels of --label_encoding segments have .*: give .* false"),
        (["--rare_class_crops", 0.5], "--rare_class_crops: it is for a class per pixel"),
        (["--crop_max_class_share", 0.75], "--crop_max_class_share: "),
        (["--mask_colors", "colours.json"], "--mask_colors: "),
        (["--config_overrides", "task=panoptic"], "--task instance and --config_overrides task=panoptic: give one"),
        (["--label_encoding", "classes"], "--label_encoding classes: .*does not tell instances apart"),
        (["--model_type", "qlseg"], "task instance: a qlseg gives each pixel a class"),
        (["--large_scale_jitter", 2, 1], "--large_scale_jitter"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_has_no_meaning_for_segments_is_refused(flags, reason, go):
    code, _, errors = go("--task", "instance", *flags)
    assert code == 2 and re.search(reason, errors[-1]), errors


def test_what_measures_instances_is_asked_for_before_the_first_step(go, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    code, _, errors = go("--task", "instance", "--eval_steps", 2)
    assert code == 2 and "average precision needs pycocotools" in errors[-1]
    assert not (tmp_path / "run" / "train_log.jsonl").exists()


@pytest.mark.parametrize("model_type", ["semask", "qlseg"])
def test_models_of_one_task_may_be_told_it_and_no_other(model_type):
    assert build_config(TrainArguments(model_type=model_type, config_overrides=["task=semantic"]))
    with pytest.raises(UserError, match=f"task panoptic: a {model_type} .* semantic segmentation only: take a faseg"):
        build_config(TrainArguments(model_type=model_type, config_overrides=["task=panoptic"]))


def test_an_area_of_segments_is_refused_for_label_maps(start):
    code, _, errors = start("--min_segment_area", 4, "--max_train_steps", 1)
    assert code == 2 and "--min_segment_area: it is of segments" in errors[-1]


@pytest.mark.parametrize(
    "flags",
    [
        {"lr_scheduler_type": "multistep"},
        {"lr_step_milestones": [3]},
        {"scale_range": [0.5, 2], "large_scale_jitter": [0.1, 2]},
    ],
    ids=str,
)
def test_flags_that_do_not_fit_each_other(flags):
    with pytest.raises(UserError, match=next(iter(flags))):
        check_values(TrainArguments(**flags))


# ---------------------------------------------------------------------------------------------------------- resumption


def end_of(folder):
    lines = read_log(folder / "train_log.jsonl")
    lines = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    return lines, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_a_resumed_run_ends_bit_equal(task, go, tmp_path):
    flags = ["--task", task, "--max_train_steps", 4, "--checkpointing_steps", 2, "--large_scale_jitter", 0.5, 2]
    assert go(*flags)[0] == 0
    lines, weights = end_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    code, out, errors = go(*flags, "--resume_from_checkpoint", "latest", "--label_encoding", "segments")
    assert code == 0 and "resumed from" in out, errors
    found_lines, found = end_of(tmp_path / "run")
    assert found_lines == lines and all(found[name].equal(weights[name]) for name in weights)
    for other, words in (
        (["--thing_classes", "disc"], 'things ["box", "disc"], not ["disc"]'),
        (["--min_segment_area", 9], "--min_segment_area 1, not 9"),
        (["--large_scale_jitter", 0.5, 1], "--large_scale_jitter [0.5, 2.0], not [0.5, 1.0]"),
    ):
        code, _, errors = go(*flags, "--resume_from_checkpoint", "latest", *other)
        assert code == 2 and words in errors[-1], errors


# -------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("task", ["instance", "panoptic"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_tracked_images_show_segments(task, precision, go, tmp_path, monkeypatch):
    name = figures.FIGURES[task].name
    monkeypatch.setitem(figures.FIGURES, task, figures.Figure(name, lambda *_: {name: 0.25}))
    strips = []

    def drawn(image, maps, config):
        strips.append(maps)
        return strip_of_segments(image, maps, config)

    monkeypatch.setattr("scripts.training.tracking.strip_of_segments", drawn)
    code, _, errors = go("--task", task, "--eval_steps", 2, "--num_tracked_images", 2, "--mixed_precision", precision)
    assert code == 0, errors
    (truth, listed), (_, found) = strips[0]
    things = [each for each in listed if each.is_thing]
    assert len(strips) == 2 and len(things) >= 1 and set(truth.ravel()) <= {0, *(each.id for each in listed)}
    assert {each.is_thing for each in listed} == ({True} if task == "instance" else {True, False})
    assert {each.is_thing for each in found} <= ({True} if task == "instance" else {True, False})
    assert Image.open(tmp_path / "run" / "images" / "step-00000002.png").width > 3 * 80
