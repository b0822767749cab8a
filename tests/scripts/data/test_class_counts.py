"""How many pixels each class has: counted, read from check_dataset.py's file, and what follows from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from scripts import check_dataset as check_command
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.class_counts import balanced_weights, count_class_pixels, read_class_pixels, shares_of
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_label


@pytest.fixture
def arguments(shapes):
    return DatasetArguments(dataset_name=str(shapes))


def by_hand(arguments, size=256):
    maps = [decode_label(row["label"], "x").numpy() for row in LabelledDataset(arguments, "train").stream]
    return np.bincount(np.concatenate([each.ravel() for each in maps]), minlength=size)


def test_pixels_are_those_of_the_maps(arguments, tmp_path):
    expected = by_hand(arguments)
    data = LabelledDataset(arguments, "train")
    assert count_class_pixels(data, 6) == count_class_pixels(data, 6) == expected[:6].tolist()
    assert 0 < sum(count_class_pixels(data, 6, limit=2)) < sum(expected[:6])
    # Maps are counted as they are trained on: after --class_map.
    names = list(data.id2label.values())
    file = tmp_path / "classes.yaml"
    file.write_text(yaml.safe_dump({"two": names[:2], "rest": names[2:5], "ignore": names[5:]}))
    mapped = LabelledDataset(replace(arguments, class_map=str(file)), "train")
    assert count_class_pixels(mapped, 2) == [expected[:2].sum(), expected[2:5].sum()]


def test_pixels_of_maps_whose_classes_start_at_one(arguments):
    data = LabelledDataset(arguments, "train")
    data.do_reduce_labels = True
    assert count_class_pixels(data, 5) == by_hand(arguments)[1:6].tolist()


def test_an_id_outside_of_the_classes_stops(arguments):
    with pytest.raises(UserError, match="but 3 classes"):
        count_class_pixels(LabelledDataset(arguments, "train"), 3)


def test_counts_of_check_dataset_are_the_same(arguments, shapes, tmp_path, command):
    file = tmp_path / "check.json"
    code, _, errors = command(check_command, "--dataset_name", shapes, "--json", file)
    assert code == 0, errors
    data = LabelledDataset(arguments, "train")
    names = data.id2label
    assert read_class_pixels(str(file), "train", names) == count_class_pixels(data, 6)
    with pytest.raises(UserError, match=r"it has no counts of split 'test': run python scripts/check_dataset\.py"):
        read_class_pixels(str(file), "test", names)
    with pytest.raises(UserError, match="it is of other classes than the data set"):
        read_class_pixels(str(file), "train", {**names, 0: "other"})
    found = json.loads(file.read_text())
    found["splits"]["train"]["class_pixels"]["0"] = "many"
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match="are no whole numbers"):
        read_class_pixels(str(file), "train", names)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"--class_counts .* holds list, not an object"):
        read_class_pixels(str(file), "train", names)


def test_weights_are_inverse_to_the_square_root_of_the_share():
    shares = shares_of([81, 16, 3, 0])
    assert shares == [0.81, 0.16, 0.03, 0]
    weights = balanced_weights(shares)
    assert np.mean(weights) == pytest.approx(1, rel=1e-3)
    assert weights[1] / weights[0] == pytest.approx(9 / 4, rel=1e-3)
    assert weights[3] / weights[0] == pytest.approx(90, rel=1e-3)  # one pixel in 10,000, not none
    with pytest.raises(UserError, match="no label map that was counted holds a pixel of any class"):
        shares_of([0, 0])
