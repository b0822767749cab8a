"""Packing two folders into parquet shards that stream."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from scripts import pack_dataset
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample


ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path):
    """Flags of ten images and maps."""
    rng = np.random.default_rng(0)
    for kind, shape in (("photos", (6, 8, 3)), ("masks", (6, 8))):
        (tmp_path / kind).mkdir()
        for index in range(10):
            image = Image.fromarray(rng.integers(0, 5, shape, dtype=np.uint8))
            image.save(tmp_path / kind / f"{index}.png")
    (tmp_path / "id2label.json").write_text('{"0": "a", "1": "b", "2": "c", "3": "d", "4": "é"}')
    return ["--train_images", str(tmp_path / "photos"), "--train_masks", str(tmp_path / "masks")]


def test_a_packed_dataset_streams_the_same_samples(folders, tmp_path, command):
    validation = [flag.replace("train_", "eval_") for flag in folders]
    code, printed, _ = command(pack_dataset, *folders, *validation, "--output_dir", tmp_path / "packed")
    assert code == 0 and "20 images in" in printed
    assert len(list((tmp_path / "packed" / "data").glob("train-*-of-00004.parquet"))) == 4
    packed = DatasetArguments(dataset_name=str(tmp_path / "packed"))
    data = LabelledDataset(packed, "train")
    assert data.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "é"}
    assert data.num_examples == 10 == LabelledDataset(packed, "validation").num_examples
    samples = {
        name: (image, label)
        for image, label, name in (decode_sample(row, data.row_format, 5, 0) for row in data.stream)
    }
    here = LabelledDataset(DatasetArguments(train_images=folders[1], train_masks=folders[3]), "train")
    rows = list(here.stream)
    assert [row["image_id"] for row in data.stream] != [row["image_id"] for row in rows]  # shuffled once
    for row in rows:
        image, label, name = decode_sample(row, here.row_format, 5, 0)
        assert (samples[name][0] == image).all() and (samples[name][1] == label).all()
    assert len(samples) == 10
    assert datasets.load_dataset(str(tmp_path / "packed"), split="validation")[0]["label"].mode == "L"


def test_values_and_colours_become_ids(folders, tmp_path, command):
    """The packed maps need no flag any more."""
    for file in (tmp_path / "masks").glob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 0, 0, 255).astype(np.uint8)).save(file)
    (tmp_path / "id2label.json").unlink(missing_ok=True)
    folders = [flag for flag in folders if flag != "--id2label" and not str(flag).endswith(".json")]
    values = ["--mask_values", "0=membrane", "255=cell"]
    assert command(pack_dataset, *folders, *values, "--output_dir", tmp_path / "values")[0] == 0
    for file in (tmp_path / "masks").glob("*.png"):
        Image.open(file).convert("RGB").save(file)
    (tmp_path / "colours.json").write_text('{"membrane": "#000000", "cell": "#ffffff"}')
    colours = ["--mask_colors", tmp_path / "colours.json"]
    assert command(pack_dataset, *folders, *colours, "--output_dir", tmp_path / "colours")[0] == 0
    found = {}
    for name in ("values", "colours"):
        assert json.loads((tmp_path / name / "id2label.json").read_text()) == {"0": "membrane", "1": "cell"}
        rows = datasets.load_dataset(str(tmp_path / name), split="train")
        found[name] = {row["image_id"]: np.asarray(row["label"]).tolist() for row in rows}
    assert found["values"] == found["colours"]
    assert set(np.unique(list(found["values"].values()))) <= {0, 1}


def test_nothing_is_left_where_packing_fails(folders, tmp_path, command):
    Image.new("RGB", (8, 6)).save(tmp_path / "masks" / "7.png")
    code, _, errors = command(pack_dataset, *folders, "--output_dir", tmp_path / "packed")
    assert code == 2 and "label map of sample 7 has shape (6, 8, 3)" in errors[-1]
    assert not (tmp_path / "packed").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_dir", "OUT"], "nothing to pack: give --train_images and --train_masks"),
        (["--train_images", "x", "--output_dir", "OUT"], "--train_images and --train_masks go together"),
        ([], "no output folder: give --output_dir"),
        (["--output_dir", "FULL"], "is not empty: name a new folder"),
    ],
)
def test_wrong_flags(flags, message, tmp_path, command):
    (tmp_path / "FULL" / "data").mkdir(parents=True)
    code, _, errors = command(pack_dataset, *[tmp_path / flag if flag.isupper() else flag for flag in flags])
    assert code == 2 and len(errors) == 1 and message in errors[0]


@pytest.mark.slow
def test_started_as_a_file(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "pack_dataset.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "pack_dataset.py: error: no output folder: give --output_dir\n"


def test_outlines_are_not_packed(tmp_path, command):
    folder = tmp_path / "own"
    (folder / "images/train").mkdir(parents=True)
    (folder / "labels/train").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "images/train/a.png")
    (folder / "labels/train/a.txt").write_text("0 0 0 1 0 1 1\n")
    (folder / "data.yaml").write_text("names: [cell]\n")
    code, _, err = command(pack_dataset, "--dataset_name", str(folder), "--output_dir", str(tmp_path / "packed"))
    assert code == 2 and f"--dataset_name {folder}: outlines of segments, which are not packed" in err[-1]
