"""Command lines: the work done, or exit code 2 and one line; and nothing that was there before is changed."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hostile import tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import check_command
from PIL import Image

from command_runs import run_here
from scripts import check_dataset, convert_checkpoint, explain, export_hub, pack_dataset, predict, space, train
from scripts import eval as eval_command
from scripts.data.synthetic_scenes import write_dataset
from scripts.sharing import clean_load
from space_models import NAMES, write_tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, data, photos, and files and places that are none of these."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model", "semantic")
    write_dataset(folder / "data", {"train": 2, "validation": 2}, shards=1)
    (folder / "data" / "id2label.json").write_text(json.dumps({str(index): f"class {index}" for index in range(6)}))
    (folder / "photos").mkdir()
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(folder / "photos" / "one.png")
    for place, mode in (("images", "RGB"), ("masks", "L")):
        (folder / "pairs" / place).mkdir(parents=True)
        for name in "ab":
            Image.new(mode, (8, 6)).save(folder / "pairs" / place / f"{name}.png")
    (folder / "map.yaml").write_text(json.dumps({name: [2 * index, 2 * index + 1] for index, name in NAMES.items()}))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    card = yaml.safe_load((ROOT / "hub_cards" / "faseg-mobilenetv2-camvid" / "card.yaml").read_text(encoding="utf-8"))
    card = {**card, "dataset": {**card["dataset"], "name": "shapes"}, "classes": list(NAMES.values())}
    del card["architecture"]
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    (folder / "empty").mkdir()
    (folder / "file").write_text("something else")
    (folder / "null.json").write_text("null")
    (folder / "list.json").write_text('["a", "b"]')
    (folder / "deep.json").write_text("[" * 3000 + "]" * 3000)
    (folder / "latin.yaml").write_bytes(b"learning_rate: \xe9\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "nested.yaml").write_text("config_overrides: {a: {b: [1, {c: 2}]}}\nlogging_steps: [1]\n")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    (folder / "broken").mkdir()
    shutil.copytree(folder / "model", folder / "broken", dirs_exist_ok=True)
    (folder / "broken" / "config.json").write_text("null")
    os.mkfifo(folder / "fifo")
    return folder


ROOT = Path(__file__).parents[2]
RESULTS = {
    "dataset": "shapes", "split": "validation", "images": 3, "protocol": {"name": "native"}, "command": "eval.py",
    "mean_iou": 12.34,
    "per_class": {name: {"iou": 10.0, "accuracy": None} for name in NAMES.values()},
    "interval": {"low": 11.1, "high": 13.3, "confidence": 0.95}, "segment_sizes": [{"max_area": 9, "mean_iou": 3.21}],
}  # fmt: skip
MODEL = ["--model_name_or_path", "{world}/model"]
DATA = ["--dataset_name", "{world}/data"]
BASE = {
    predict: ["{world}/photos", *MODEL, "--output_dir", "{out}/p"],
    explain: ["{world}/photos", *MODEL, "--output_dir", "{out}/e", "--max_segments", "1"],
    eval_command: [*MODEL, *DATA, "--class_map", "{world}/map.yaml", "--dataloader_num_workers", "0",
                   "--output_file", "{out}/r.json"],
    check_dataset: [*DATA, "--json", "{out}/c.json", "--max_samples", "2"],
    convert_checkpoint: ["--checkpoint", "{world}/broken.safetensors", "--model_id", "faseg-resnet50-ade20k",
                         "--output_dir", "{out}/m"],
    export_hub: [*MODEL, "--output_dir", "{out}/h", "--model_id", "shapes", "--dry_run",
                 "--card", "{world}/card.yaml", "--results", "{world}/results.json",
                 "--sample_images", "{world}/photos/one.png"],
    pack_dataset: ["--train_images", "{world}/pairs/images", "--train_masks", "{world}/pairs/masks",
                   "--id2label", "{world}/data/id2label.json", "--output_dir", "{out}/d"],
    train: ["demo", *DATA, "--output_dir", "{out}/t", "--max_train_steps", "1", "--dataloader_num_workers", "0",
            "--per_device_train_batch_size", "1", "--crop_height", "64", "--crop_width", "64"],
    space: ["--model_name_or_path", "{world}/nothing"],
}  # fmt: skip
REFUSED = {convert_checkpoint, space}  # there is no official checkpoint, and a Space would wait for visitors
VALUES = ["", "-1", "0", "1", "2.5", "1e38", "inf", "nan", "-inf", "99999999999999999999", "true", "None", "null",
          "é☃",
          "a\nb", "x" * 5000, "[1, 2]", "{a: 1}", "=1", "../..", "no/such", "{world}/model", "{world}/data",
          "{world}/photos", "{world}/empty", "{world}/file", "{world}/null.json", "{world}/list.json",
          "{world}/deep.json", "{world}/latin.yaml", "{world}/list.yaml", "{world}/nested.yaml", "{world}/broken",
          "{world}/broken.safetensors", "{world}/fifo", "{world}/pairs/masks",
          "{world}/results.json", "{world}/photos/one.png", "/dev/null", "{out}/new",
          "http://127.0.0.1:9/a.parquet", "\ud800"]  # fmt: skip
# Where these may be large, the work is as large.
COSTLY = {"max_train_steps", "num_train_epochs", "eval_shortest_edge", "eval_longest_edge", "crop_height",
          "crop_width",
          "bootstrap_samples", "shuffle_buffer_size", "dataloader_num_workers", "train_samples", "push_to_hub",
          "hub_id",
          "port", "per_device_train_batch_size", "per_device_eval_batch_size", "window_batch_size"}  # fmt: skip


RECIPES = Path(train.__file__).parent / "recipes"


def flags_of(command):
    """Names of a command's flags that may have any value."""
    kinds = [value for name, value in vars(command).items() if name.endswith("Arguments")]
    most_derived = max(kinds, key=lambda kind: len(kind.__mro__))
    return sorted({field.name for field in dataclasses.fields(most_derived)} - COSTLY)


@st.composite
def command_lines(draw):
    """A command, and up to three flags that win over those it works with."""
    command = draw(st.sampled_from(list(BASE)))
    names = [*flags_of(command), "no_such_flag"]
    flags = []
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        flags += [f"--{name}", *draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=2))]
    return command.__name__.rpartition(".")[2], command, flags


def contents(folder):
    """Every file below a folder and what it holds; a pipe is not opened."""
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def run_line(world, out, command, flags):
    """Runs a command on its line and `flags`: `(exit code, lines of standard error)`."""
    text, line = io.StringIO(), [*BASE[command], *flags]
    for name, place in (("{world}", world), ("{out}", out)):
        line = [value.replace(name, str(place)) for value in line]
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        code = run_here(command, *line)
    return code, text.getvalue().splitlines()


@pytest.mark.parametrize("command", sorted(BASE.keys() - REFUSED, key=lambda command: command.__name__))
def test_the_lines_themselves_work(world, monkeypatch_module, command, tmp_path):
    """Else what is changed in them is seldom looked at."""
    code, errors = run_line(world, tmp_path, command, [])
    assert code in (0, 1) and any(tmp_path.iterdir()), errors


@tried(60)
@given(command_lines())
def test_work_is_done_or_one_line_is_said(world, monkeypatch_module, case):
    _, command, flags = case
    before = {**contents(world), **contents(RECIPES)}
    out = Path(tempfile.mkdtemp())
    try:
        code, errors = run_line(world, out, command, flags)
        worked = check_command(code, errors, (0, 1))
        assert not list(out.rglob("*.partial*")), "half a file is left"
        after = {**contents(world), **contents(RECIPES)}
        changed = [file for file, content in before.items() if after.get(file) != content]
        asked = "--overwrite" in flags or (worked and command is train)  # which writes into the folder it is given
        assert asked or not changed
        assert worked or after == before
    finally:
        shutil.rmtree(out)


@pytest.fixture(scope="module")
def monkeypatch_module(tmp_path_factory):
    """In a folder of its own, without lines of libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.setattr(space, "runpy", SimpleNamespace(run_path=lambda *_, **__: None))  # the page, without end
        handlers = {name: getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "default_int_handler")}
        patch.setattr(space, "signal", SimpleNamespace(**handlers, signal=lambda *_: None))
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(clean_load, "load_back", lambda *_: 0.0)  # a process of several seconds
        logging.disable(logging.WARNING)
        yield patch
        logging.disable(logging.NOTSET)
