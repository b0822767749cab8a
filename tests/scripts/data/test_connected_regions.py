"""Segments from class maps: which regions become instances, and the data set that the command writes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scripts.cli.parser import PROJECT_ROOT
from scripts.data import connected_regions
from scripts.data.arguments import DatasetArguments
from scripts.data.connected_regions import segments_of_classes
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample, decode_segments


CLASSES = np.array(
    [
        [0, 0, 0, 0, 0, 255],
        [1, 1, 0, 0, 1, 1],
        [1, 0, 1, 0, 1, 1],
        [0, 0, 0, 2, 0, 0],
        [2, 2, 0, 2, 0, 1],
    ]
)


def test_regions_of_instance_classes_are_apart_and_the_other_classes_one_segment_each():
    ids, listed = segments_of_classes(CLASSES, {1}, min_area=2)
    by_class = [(each["category_id"], each["area"]) for each in listed]
    # the first region of class 1 hangs together at a corner; the pixel in the last corner is too small
    assert by_class == [(0, 16), (1, 4), (1, 4), (2, 4)]
    assert {each["id"]: each["area"] for each in listed} == {id_: int((ids == id_).sum()) for id_ in range(1, 5)}
    assert ids[4, 5] == 0 and ids[0, 5] == 0 and ids[1, 0] == ids[2, 2] != ids[1, 4]


def test_every_pixel_but_ignored_ones_is_in_a_segment_where_nothing_is_small():
    ids, listed = segments_of_classes(CLASSES, {0, 1, 2}, min_area=1)
    assert np.array_equal(ids == 0, CLASSES == 255)
    for each in listed:
        assert (CLASSES[ids == each["id"]] == each["category_id"]).all()


def test_more_regions_than_ids_are_refused():
    dotted = np.zeros((512, 520), dtype=np.int64)
    dotted[::2, ::2] = 1
    with pytest.raises(ValueError, match=r"66561 regions in one image: raise --min_area 1"):
        segments_of_classes(dotted, {1}, min_area=1)


def test_images_of_folders_are_in_the_data_set_and_broken_ones_are_skipped(tmp_path, command, monkeypatch):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.fromarray(np.full((5, 6, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(CLASSES.astype(np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"")
    (tmp_path / "id2label.json").write_text(json.dumps({0: "sky", 1: "car", 2: "tree"}))
    flags = ["--train_images", tmp_path / "images", "--train_masks", tmp_path / "masks", "--splits", "train"]
    flags += ["--instance_classes", "car", "--output_dir"]
    code, _, errors = command(connected_regions, *flags, tmp_path / "none", "--max_bad_samples", 0)
    assert code == 2 and "1 bad samples, more than the 0 of --max_bad_samples" in errors[-1]
    code, out, errors = command(connected_regions, *flags, tmp_path / "segments", "--min_area", 2)
    assert code == 0 and "train: 2 images with 4 instances" in out, errors
    assert any(line.startswith("skipped: ") and "sample 1" in line for line in errors)
    shutil.rmtree(tmp_path / "images")
    written = LabelledDataset(DatasetArguments(dataset_name=str(tmp_path / "segments")), "train")
    images = [decode_segments(row, written.row_format, number)[0] for number, row in enumerate(written.stream)]
    assert [int(image.unique()) for image in images] == [0, 2]


@pytest.mark.system
def test_the_command_writes_segments_of_the_same_images(shapes, tmp_path):
    names = json.loads((shapes / "id2label.json").read_text())
    flags = ["--dataset_name", shapes, "--instance_classes", "car", "--output_dir", tmp_path / "segments"]
    command = [sys.executable, "-m", "scripts.data.connected_regions", *map(str, flags)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "validation: 3 images" in done.stdout, done.stderr
    given = LabelledDataset(DatasetArguments(dataset_name=str(shapes)), "train")
    written = LabelledDataset(DatasetArguments(dataset_name=str(tmp_path / "segments")), "train")
    written.task = "panoptic"
    car = int(next(index for index, name in names.items() if name == "car"))
    assert written.segment_classes.things == {car} and written.id2label == given.id2label
    for index, (one, other) in enumerate(zip(given.stream, written.stream, strict=True)):
        image, label, name = decode_sample(one, given.row_format, len(names), index)
        same, segments, same_name = decode_segments(other, written.row_format, index)
        assert (image == same).all() and name == same_name
        painted = segments.label_map()
        assert ((painted == label) | ((painted == 255) & (label == car))).all()
    again = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "is not empty: name another folder" in again.stderr
    wrong = [*command[:-3], "horse", "--output_dir", str(tmp_path / "other")]
    refused = subprocess.run(wrong, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "--instance_classes horse is no class: choose of" in refused.stderr
