"""Trackers, images and curves of a run, read back from the files that they left."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scripts import train as train_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.drawing.headings import headed_strip
from scripts.drawing.sheets import PANEL_SIZE, explained_strip, strip
from scripts.drawing.visualization import class_colour
from scripts.training.arguments import TrainArguments, check_trackers
from scripts.training.tracking import log_images, tracked_run_id


def train_here(recipe, data, folder, *flags):
    flags = [str(recipe), "--dataset_name", str(data), "--output_dir", str(folder), *map(str, flags)]
    return train_command.train(parse_arguments(TrainArguments, flags))


def read_lines(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    assert check_trackers(["none"]) == []
    with pytest.raises(UserError, match=r"tensorbord: unknown tracker: did you mean 'tensorboard'\?"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--report_to trackio: not installed: pip install trackio$"):
        check_trackers(["none", "trackio"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(UserError, match="pip install wandb"):
        check_trackers(["wandb"])


def test_several_trackers_each_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=f"{name}/__init__.py"))
    assert check_trackers(["wandb", "trackio", "wandb", "none"]) == ["wandb", "trackio"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--num_tracked_images", 2], "give --eval_steps"), (["--report_to", "none", "aim"], "--report_to aim: unknown")],
)
def test_flags_are_checked_before_anything_is_loaded(tiny_recipe, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        train_here(tiny_recipe, "nowhere", tmp_path, "--max_train_steps", 1, *flags)


@pytest.mark.system
def test_tensorboard_holds_figures_and_images_of_a_run_and_of_its_continuation(
    tiny_recipe, shapes, tmp_path, whole_run
):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 2, "--eval_steps", 1]
    flags += ["--report_to", "tensorboard", "--num_tracked_images", 2]
    train_here(tiny_recipe, shapes, tmp_path, *flags)
    lines = read_lines(tmp_path)
    train_here(tiny_recipe, shapes, tmp_path, *flags, "--resume_from_checkpoint", tmp_path / "checkpoint-2")
    assert [line["step"] for line in read_lines(tmp_path)] == [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3]

    read = events.EventAccumulator(str(tmp_path / "faseg"), size_guidance={"images": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert scalars["loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses]
    assert [step for step, _ in scalars["mean_iou"]] == [1, 2, 3]
    groups = ("backbone", "backbone_no_decay", "head", "head_no_decay")
    assert {f"learning_rates/{group}" for group in groups} <= scalars.keys()
    kinds = ("loss_cross_entropy", "loss_dice", "loss_mask")
    assert {f"layers/{kind}/{layer:02}" for kind in kinds for layer in range(5)} <= scalars.keys()
    figures = {"grad_norm", "data_wait_seconds", "data_wait_share", "images_per_second", "peak_memory_gib"}
    assert figures | {"loss_per_prediction"} | set(kinds) <= scalars.keys()

    assert len(read.Tags()["images"]) == 2
    for tag in read.Tags()["images"]:
        assert tag.startswith("images/") and [event.step for event in read.Images(tag)] == [1, 2, 3]
    images = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert images == [f"step-{step:08}.png" for step in (1, 2, 3)]
    assert Image.open(tmp_path / "curves.png").size == (800, 480)


def test_the_progress_bar_shows_the_loss_of_the_curves(tiny_recipe, shapes, tmp_path, capsys):
    """The mean over the decoder's predictions, which the demo's page draws as well."""
    train_here(tiny_recipe, shapes, tmp_path, "--max_train_steps", 2)
    shown = re.findall(r"loss=(\d+\.\d+)", capsys.readouterr().err)[-1]
    (last,) = (line for line in read_lines(tmp_path) if line["step"] == 2)
    assert shown == f"{last['loss_per_prediction']:.3f}" != f"{last['loss']:.3f}"


def test_images_leave_the_run_as_it_is(tiny_recipe, shapes, tmp_path):
    losses = []
    for count in (0, 3):
        folder = tmp_path / str(count)
        train_here(
            tiny_recipe, shapes, folder, "--max_train_steps", 2, "--eval_steps", 1, "--num_tracked_images", count
        )
        losses.append([line.get("loss", line.get("mean_iou")) for line in read_lines(folder)])
        assert (folder / "images").exists() == (count > 0)
    assert losses[0] == losses[1]


def test_strip_shows_image_truth_and_prediction():
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    truth, prediction = np.full((20, 40), 255, np.uint8), np.full((20, 40), 3, np.int64)
    pixels = np.asarray(strip(image, truth, prediction))
    assert pixels.shape == (20, 3 * 40 + 2 * 4, 3)
    assert [tuple(pixels[10, x]) for x in (5, 60, 110)] == [(10, 20, 30), (0, 0, 0), class_colour(3)]
    large = strip(image.resize((1000, 500)), np.zeros((500, 1000), np.uint8), np.zeros((500, 1000), np.uint8))
    assert large.size == (3 * PANEL_SIZE[0] + 8, PANEL_SIZE[0] // 2)


@pytest.mark.parametrize("size", [(40, 20), (1000, 500)])
def test_each_panel_of_a_training_image_has_a_heading(size):
    """Ink above every panel, within its width, and no ink from one panel's heading into the next."""
    maps = [np.full(size[::-1], index, np.uint8) for index in (0, 1)]
    config = SimpleNamespace(id2label={0: "road", 1: "kerb"})
    with_headings, without = (
        np.asarray(draw(Image.new("RGB", size), *maps, config)) for draw in (headed_strip, explained_strip)
    )
    height = len(with_headings) - len(without)
    assert height > 0 and np.array_equal(with_headings[height:], without)
    panel = min(size[0], PANEL_SIZE[0])
    for number in range(3):
        start = number * (panel + 4)
        assert (with_headings[:height, start : start + panel] < 128).any(), number
        assert (with_headings[:height, start + panel : start + panel + 4] > 250).all(), number


def test_each_tracker_gets_images_in_its_own_form(monkeypatch):
    sent = {}
    trackers = [
        SimpleNamespace(name="trackio", log=lambda values, step: sent.update(trackio=(values, step))),
        SimpleNamespace(name="wandb", log_images=lambda values, step: sent.update(wandb=(values, step))),
    ]
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda image: ("image", image.size)))
    image = Image.new("RGB", (6, 2))
    log_images(SimpleNamespace(is_main_process=True, trackers=trackers), {"images/a": image}, 7)
    assert sent == {"trackio": ({"images/a": ("image", (6, 2))}, 7), "wandb": ({"images/a": [image]}, 7)}


def test_a_run_that_breaks_off_sends_its_last_figures(tiny_recipe, shapes, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def broken_off(run):
        log_images(run.accelerator, {"images/a": Image.new("RGB", (6, 2))}, 1)
        raise UserError("loss is nan")

    monkeypatch.setattr("scripts.training.loop.loop", broken_off)
    with pytest.raises(UserError, match="loss is nan"):
        train_here(tiny_recipe, shapes, tmp_path, "--max_train_steps", 1, "--report_to", "tensorboard")
    read = events.EventAccumulator(str(tmp_path / "faseg")).Reload()
    assert read.Tags()["images"] == ["images/a"]


def test_a_resumed_run_keeps_its_id(tmp_path):
    first = tracked_run_id(tmp_path, 0)
    assert tracked_run_id(tmp_path, 5) == first
    assert tracked_run_id(tmp_path, 0) != first
    (tmp_path / "tracking.json").write_text("{")
    with pytest.raises(UserError, match=r"tracking\.json"):
        tracked_run_id(tmp_path, 5)
