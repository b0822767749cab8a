"""The demo's parts: its scenes, its report, README's image; that it can be interrupted."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import demo, tables
from scripts.data.synthetic_scenes import CLASSES, ROAD, SKY, TERRAIN, draw_sample
from scripts.error_report.demo_page import (
    README_IMAGE,
    README_IMAGE_SOURCES,
    readme_image_is_stale,
    write_readme_image,
    write_report,
)
from space_models import write_tiny_model


ROOT = Path(__file__).parents[3]


# ---- scenes


def test_every_scene_is_a_road_under_the_sky_and_all_classes_occur():
    seen, ignored = set(), 0
    for index in range(12):
        image, label = draw_sample(np.random.default_rng(index))
        assert image.size == label.size == (160, 128) and image.mode == "RGB"
        shares = np.bincount(np.asarray(label).ravel(), minlength=256) / (128 * 160)
        assert min(shares[[SKY, TERRAIN, ROAD]]) > 0.02 and shares[len(CLASSES) : 255].sum() == 0
        seen |= set(np.flatnonzero(shares[:255]))
        ignored += shares[255] > 0
    assert seen == set(range(len(CLASSES))) and 0 < ignored < 12


def test_a_scene_depends_on_its_seed_alone():
    first, again, other = (draw_sample(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_scene_is_the_same_at_every_size():
    for seed in range(4):
        small = np.asarray(draw_sample(np.random.default_rng(seed))[1])
        large = np.asarray(draw_sample(np.random.default_rng(seed), (384, 480))[1])[1::3, 1::3]
        certain = (small != 255) & (large != 255)
        assert (small == large)[certain].mean() > 0.97


# ---- report and README's image


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A scene that a tiny random model has seen."""
    folder = write_tiny_model(tmp_path_factory.mktemp("demo") / "model", "semantic")
    image, label = draw_sample(np.random.default_rng(1))
    truth = np.asarray(label) % 3
    return demo.explained_example(folder, image, truth, truth)


def test_the_report_shows_curve_bars_images_and_focus(example, tmp_path):
    results = {"per_class": {"sky": {"iou": 91.5, "accuracy": 95.0}, "car": {"iou": None, "accuracy": None}}}
    log = [{"step": 10, "loss_per_prediction": 3.0}, {"step": 20, "loss_per_prediction": 1.0}]
    write_report(tmp_path / "report.html", {"validation mIoU": "88.8"}, results, log, example)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (
        "88.8",
        "IoU per class",
        "91.5",
        "training loss by step",
        ">image<",
        ">truth<",
        "prediction, through",
    ):
        assert text in page
    assert page.count("class='path'") == 1 and all(f"Layer {step.number}:" in page for step in example.path.steps)
    assert page.count('src="data:image/') == 3 + len(example.path.steps)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # one file, which fetches nothing


def test_readmes_image_is_stale_after_any_change_of_its_sources(example, tmp_path, monkeypatch, command):
    for name in ("README.md", "docs", "results", "hub_cards", *README_IMAGE_SOURCES):
        source, copy = ROOT / name, tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    file = tmp_path / README_IMAGE
    command(tables)
    write_readme_image(file, example)
    assert command(tables, "--check")[:2] == (0, "")
    for name in README_IMAGE_SOURCES:
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text + "# changed\n", encoding="utf-8")
        assert readme_image_is_stale(tmp_path), name
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert not readme_image_is_stale(tmp_path), name
    Image.open(file).convert("RGB").save(file)  # drawn by something else
    code, out, _ = command(tables, "--check")
    assert code == 1 and "run python scripts/demo.py --readme_image docs/demo.png" in out


# ---- Ctrl-C


@pytest.mark.system
def test_ctrl_c_is_one_line(tmp_path):
    flags = ["--output_dir", tmp_path / "out", "--train_samples", 8, "--validation_samples", 2]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "demo.py", *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells start jobs without it
    )  # fmt: skip
    assert process.stdout is not None
    while "[2/5]" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1] == "demo.py: interrupted"
