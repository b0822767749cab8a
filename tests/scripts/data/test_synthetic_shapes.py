"""The generated data set with instances: its maps and lists agree, and shapes touch and hide each other."""

import subprocess
import sys

import numpy as np
import pytest

from scripts.cli.parser import PROJECT_ROOT
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_segments
from scripts.data.synthetic_shapes import THINGS, WALL, draw_sample


def samples(count):
    return [draw_sample(np.random.default_rng(seed)) for seed in range(count)]


def touching_pairs(ids, classes):
    """Pairs of neighbours that are two instances of one class of things."""
    pairs = set()
    for one, other in ((ids[:, 1:], ids[:, :-1]), (ids[1:], ids[:-1])):
        found = np.unique(np.stack([one, other], axis=-1)[one != other], axis=0).tolist()
        pairs |= {(a, b) for a, b in found if a and b and classes[a] == classes[b] in THINGS}
    return pairs


def test_maps_and_lists_agree_and_some_shapes_of_a_class_touch():
    touching = 0
    for image, ids, listed in samples(40):
        values = np.asarray(ids)
        assert image.size == ids.size == (80, 64)
        classes = {each["id"]: each["category_id"] for each in listed}
        assert classes.keys() == set(np.unique(values).tolist()) - {0} and len(classes) == len(listed)
        assert {each["id"]: each["area"] for each in listed} == {id_: int((values == id_).sum()) for id_ in classes}
        assert WALL in classes.values() and set(THINGS) & set(classes.values())
        touching += bool(touching_pairs(values, classes))
    assert touching > 10


def test_the_data_set_is_read_as_segments(segmented):
    data = LabelledDataset(DatasetArguments(dataset_name=str(segmented)), "train")
    data.task = "panoptic"
    assert data.id2label == {0: "wall", 1: "floor", 2: "disc", 3: "box"} and data.segment_classes.things == {2, 3}
    rows = list(data.stream)
    assert len(rows) == 7
    for index, row in enumerate(rows):
        image, segments, _ = decode_segments(row, data.row_format, index)
        assert image.shape == (3, 64, 80) and len(segments) > 2 and segments.layers.shape == (1, 64, 80)


@pytest.mark.system
def test_the_command_writes_a_data_set_and_nothing_over_another(tmp_path):
    flags = ["--output_dir", tmp_path / "shapes", "--train_samples", 2, "--validation_samples", 1]
    command = [sys.executable, "-m", "scripts.data.synthetic_shapes", *map(str, flags)]
    for code, words in ((0, "2 + 1 images"), (2, "is not empty: name another folder")):
        done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
        assert done.returncode == code and words in done.stdout + done.stderr, done.stderr
