"""`--class_map`: merged, renamed and ignored classes, and what is wrong with a file."""

import json

import numpy as np
import pytest
import torch
from folder_forms import write_files
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.class_map import build_class_map, map_of_values
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample


NAMES = dict(enumerate(["road", "lane", "car", "truck", "person", "sky"]))


@pytest.fixture
def written(tmp_path):
    """Writes a class map and reads it."""

    def write(text, do_reduce_labels=False):
        file = tmp_path / "classes.yaml"
        file.write_text(text)
        return build_class_map(str(file), NAMES, 255, do_reduce_labels)

    return write


def test_classes_are_merged_renamed_and_ignored(written):
    found = written("vehicle: [car, truck]\nstreet: [road, 1]\nhuman: person\nignore: [sky, 200]\n")
    assert found.id2label == {0: "street", 1: "vehicle", 2: "human"}
    label = torch.tensor([[0, 1, 2, 3], [4, 5, 255, 200]], dtype=torch.uint8)
    mapped = found.apply(label, "x")
    assert mapped.dtype == torch.uint8
    assert mapped.tolist() == [[0, 0, 1, 1], [2, 255, 255, 255]]


def test_classes_that_are_not_named_stay(written):
    found = written("road: [road, lane]\n")
    assert found.id2label == dict(enumerate(["road", "car", "truck", "person", "sky"]))
    assert found.apply(torch.tensor([[0, 1, 2, 5]]), "x").tolist() == [[0, 0, 1, 4]]


def test_reduced_labels_stay_one_too_high(written):
    found = written("vehicle: [3, truck]\nignore: [road]\n", do_reduce_labels=True)
    assert found.id2label == {0: "lane", 1: "vehicle", 2: "person", 3: "sky"}
    assert found.apply(torch.tensor([[0, 1, 2, 3, 4, 6, 255]]), "x").tolist() == [[0, 255, 1, 2, 2, 4, 255]]


def test_a_class_may_be_stored_as_255(written):
    found = written("road: [road, lane]\ncell: [255]\n")
    assert found.id2label == dict(enumerate(["road", "car", "truck", "person", "sky", "cell"]))
    assert found.apply(torch.tensor([[0, 5, 255]], dtype=torch.uint8), "x").tolist() == [[0, 4, 5]]


def test_values_are_mapped_without_class_names(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text("cell: [255, 65535]\nmembrane: 0\nignore: [128]\n")
    found = build_class_map(str(file), None, 255, False)
    assert found.id2label == {0: "membrane", 1: "cell"}
    mapped = found.apply(torch.tensor([[0, 128, 255, 65535]], dtype=torch.int32), "x")
    assert mapped.tolist() == [[0, 255, 1, 1]]
    file.write_text("cell: [nucleus]\n")
    with pytest.raises(UserError, match="cell: the dataset has no class names, so 'nucleus' is none"):
        build_class_map(str(file), None, 255, False)


def test_values_are_named_by_a_flag():
    found = map_of_values(["0=membrane,255=cell", "7=cell", " 9 = ignore "], 255)
    assert found.id2label == {0: "membrane", 1: "cell"}
    assert found.apply(torch.tensor([[0, 7, 9, 255]], dtype=torch.uint8), "x").tolist() == [[0, 1, 255, 1]]
    assert map_of_values(["0=a", "1=b"], 255).apply(torch.tensor([[0, 255]]), "x").tolist() == [[0, 255]]
    with pytest.raises(UserError, match="label 3 in image x is no class: name it in --mask_values, 3=ignore"):
        found.apply(torch.tensor([[3]]), "x")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["0"], "--mask_values '0': write VALUE=NAME"),
        (["cell=255"], "--mask_values 'cell=255': write VALUE=NAME"),
        (["-1=cell"], "write VALUE=NAME"),
        (["70000=cell"], "label maps hold values from 0 to 65535"),
        (["0=a", "0=b"], "0 is 'a' and 'b': give each value one name"),
        (["255=ignore"], "it names no class"),
    ],
)
def test_wrong_values(items, message):
    with pytest.raises(UserError, match=message):
        map_of_values(items, 255)


@pytest.mark.parametrize("value", [6, 254, 300, 70000])
def test_ids_outside_the_old_classes_stop(written, value):
    found = written("road: [road, lane]\n")
    with pytest.raises(UserError, match=rf"label {value} in image s1 is no class.*ignore: \[{value}\]"):
        found.apply(torch.tensor([[0, value]]), "s1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road: [road, lanes]", "no class 'lanes': did you mean 'lane'"),
        ("road: [xyz]", "no class 'xyz': the classes are road, lane"),
        ("road: [9]", r"no class 9: ids go from 0 to 5"),
        ("a: [road]\nb: [lane, road]", "'road' is in 'a' and in 'b'"),
        ("road: [lane]", "'road' is also an old class"),
        ("ignore: [0, 1, 2, 3, 4, 5]", "every class is ignored"),
        ("- road", "write lines like"),
        ("a: [1.5]", "1.5 is neither a name nor an id"),
        ("a: [", "--class_map"),
        ("a: [road]\na: [lane]", "'a' has two lines: write one, with the old classes of both"),
    ],
)
def test_wrong_files(written, text, message):
    with pytest.raises(UserError, match=message):
        written(text)


def test_a_class_map_reaches_the_samples(tmp_path):
    for kind, value in (("images", 0), ("masks", 3)):
        (tmp_path / kind).mkdir()
        Image.new("L", (4, 4), value).save(tmp_path / kind / "one.png")
    (tmp_path / "classes.yaml").write_text("vehicle: [car, truck]\n")
    arguments = DatasetArguments(
        train_images=str(tmp_path / "images"),
        train_masks=str(tmp_path / "masks"),
        class_map=str(tmp_path / "classes.yaml"),
    )
    with pytest.raises(UserError, match=r"--class_map .* the dataset has no class names, so 'car' is none"):
        assert LabelledDataset(arguments, "train").id2label
    (tmp_path / "id2label.json").write_text(json.dumps(NAMES))
    data = LabelledDataset(arguments, "train")
    assert data.id2label == dict(enumerate(["road", "lane", "vehicle", "person", "sky"]))
    _, label, _ = decode_sample(next(iter(data.stream)), data.row_format, 5, 0)
    assert np.unique(label).tolist() == [2]
    with pytest.raises(UserError, match="makes 5 classes but the model has 6"):
        decode_sample(next(iter(data.stream)), data.row_format, 6, 0)


def test_values_say_which_names_beside_the_data_they_replace(tmp_path, capsys):
    write_files(tmp_path, ["images/a.jpg", "masks/a.png"])
    (tmp_path / "id2label.json").write_text('{"0": "background", "1": "cell"}')
    for values in (None, ["0=cell", "255=other"]):
        data = LabelledDataset(DatasetArguments(str(tmp_path), mask_values=values), "train")
        names = data.id2label
        said = [line for line in capsys.readouterr().err.splitlines() if "mask_values" in line]
        assert names == ({0: "cell", 1: "other"} if values else {0: "background", 1: "cell"})
        place = tmp_path / "id2label.json"
        assert said == ([f"classes are those of --mask_values, in place of those in {place}"] if values else [])
