"""Datasets from wherever they are: splits, columns, classes, folders of images and label maps."""

import json
import os
import re
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.class_names import read_class_names
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample
from scripts.data.streaming import shuffled_rows


@pytest.fixture
def arguments(shapes):
    return DatasetArguments(dataset_name=str(shapes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"0": "door", "1": "car", "2": "door"}',
            "ids 0 and 2 are both called 'door': give each class a name of its own",
        ),
        ('{"0": "door", "1": "car", "1": "bus"}', "id 1 is named twice, 'car' and 'bus'"),
        ('{"0": "door", "1": "car", "01": "bus"}', "id 1 is named twice, 'car' and 'bus'"),
        ('{"0": "door", "1": null}', "the name of id 1 is None, no text"),
        ('{"0": "door", "1": {"2": "x"}}', "no text"),
        ('["door", "car"]', "write"),
        ('{"0": ' + "[" * 100000, "write"),
    ],
)
def test_class_names_that_would_be_lost_are_refused(text, message, tmp_path):
    """JSON itself lets the last of two equal keys win."""
    file = tmp_path / "names.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read_class_names(file)
    assert str(refused.value).startswith(str(file))


def test_shuffled_rows_and_map_style_data_agree_on_what_there_is(arguments, shapes):
    streamed = {row["image_id"] for row in LabelledDataset(arguments, "train").stream}
    at_hand = LabelledDataset(DatasetArguments(dataset_name=str(shapes), streaming=False), "train")
    assert {row["image_id"] for row in at_hand.stream} == streamed
    file = next(shapes.glob("data/validation-00000*"))
    assert len(list(LabelledDataset(DatasetArguments(dataset_name=str(file)), "train").stream)) == 1
    assert at_hand.num_examples == 7


def test_classes(shapes, tmp_path):
    def classes(**settings):
        return LabelledDataset(DatasetArguments(**settings), "train").id2label

    names = ["sky", "terrain", "road", "tree", "house", "car"]
    assert classes(dataset_name=str(shapes)) == dict(enumerate(names))
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"1": "b", "0": "a"}))
    assert classes(dataset_name=str(shapes), id2label=str(file)) == {0: "a", 1: "b"}
    kinds = datasets.Sequence(datasets.ClassLabel(names=["x", "y"]))
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    datasets.Dataset.from_dict({"image": [None], "label": [[0]]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert classes(dataset_name=str(tmp_path / "a.parquet")) == {0: "x", 1: "y"}


@pytest.mark.parametrize("wrong", ['{"1": "a"}', "[]", "{"])
def test_files_that_name_no_classes(wrong, shapes, tmp_path):
    file = tmp_path / "names.json"
    file.write_text(wrong)
    with pytest.raises(UserError, match=r"names\.json"):
        LabelledDataset(DatasetArguments(dataset_name=str(shapes), id2label=str(file)), "train").id2label  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "split", "message"),
    [
        ({}, "train", "give --dataset_name"),
        ({"dataset_name": "no/such/folder/here"}, "train", "--dataset_name no/such/folder/here"),
        ({"dataset_name": "SHAPES"}, "test", "split 'test'"),
        ({"dataset_name": "SHAPES", "label_column_name": "mask"}, "train", "no column 'mask'.*--label_column_name"),
    ],
)
def test_wrong_datasets(shapes, settings, split, message, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    settings = {key: str(shapes) if value == "SHAPES" else value for key, value in settings.items()}
    with pytest.raises(UserError, match=message):
        LabelledDataset(DatasetArguments(**settings), split)


def test_a_folder_of_save_to_disk(arguments, shapes, tmp_path):
    data = datasets.load_dataset(str(shapes))
    data.save_to_disk(tmp_path / "both")
    data["train"].save_to_disk(tmp_path / "one")
    names = {row["image_id"] for row in LabelledDataset(arguments, "train").stream}
    for folder in ("both", "one"):
        found = LabelledDataset(DatasetArguments(dataset_name=str(tmp_path / folder)), "train")
        assert {row["image_id"] for row in found.stream} == names and found.num_examples == 7
        with pytest.raises(UserError, match="split 'test': the folder holds"):
            LabelledDataset(DatasetArguments(dataset_name=str(tmp_path / folder)), "test")


# --------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path):
    """600 small images and palette maps, in folders of equal structure; the map's id tells the image."""
    for index in range(600):
        stem = f"town{index % 3}/{index:04d}"
        for kind, ending in (("photos", "jpg"), ("masks", "png")):
            (tmp_path / kind / stem).parent.mkdir(parents=True, exist_ok=True)
            if kind == "photos":
                image = Image.new("RGB", (8, 6), (index % 250, 0, 0))
            else:
                image = Image.new("P", (8, 6), index % 250)
                image.putpalette(bytes(range(256)) * 3)
            image.save(tmp_path / kind / f"{stem}.{ending}")
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"")
    for hidden in (".ipynb_checkpoints", "town0/.thumbnails/small"):  # copies, as notebooks and file managers keep
        for kind, ending in (("photos", "jpg"), ("masks", "png")):
            (tmp_path / kind / hidden).mkdir(parents=True)
            shutil.copy(tmp_path / kind / "town0" / f"0000.{ending}", tmp_path / kind / hidden)
    return DatasetArguments(train_images=str(tmp_path / "photos"), train_masks=str(tmp_path / "masks"))


def test_folders_of_images_and_maps(folders):
    data = LabelledDataset(folders, "train")
    assert data.num_examples == 600
    assert data.stream.num_shards > 100
    orders = [[row["image_id"] for _, row in shuffled_rows(data.stream, 0, epoch, 64)] for epoch in range(2)]
    assert orders[0] != orders[1] and len(set(orders[0])) == 600 and set(orders[0]) == set(orders[1])
    assert np.abs(np.diff([int(name[-4:]) for name in orders[0]])).mean() > 120  # 200 for a random order
    row = next(iter(data.stream))
    assert row["image"]["bytes"] is None  # read by the worker that decodes it
    image, label, name = decode_sample(row, data.row_format, 250, 0)
    assert name == "town0/0000" and image.shape == (3, 6, 8) and label.unique().tolist() == [0]


@pytest.mark.parametrize("columns", [("photo", "map"), ("image", "map"), ("photo", "label")])
def test_folders_serve_the_columns_that_were_asked_for(folders, columns):
    folders.image_column_name, folders.label_column_name = columns
    data = LabelledDataset(folders, "train")
    assert decode_sample(next(iter(data.stream)), data.row_format, 250, 0)[2] == "town0/0000"


def test_folders_of_the_other_split(folders):
    with pytest.raises(UserError, match="split 'validation': no --eval_images"):
        LabelledDataset(folders, "validation")
    folders.eval_images, folders.eval_masks = folders.train_images, folders.train_masks
    assert LabelledDataset(folders, "validation").num_examples == 600
    folders.train_masks = None
    with pytest.raises(UserError, match="no --train_masks: give both"):
        LabelledDataset(folders, "train")


def test_classes_beside_the_folders(folders, tmp_path):
    assert LabelledDataset(folders, "train").id2label is None
    (tmp_path / "id2label.json").write_text('{"0": "all"}')
    assert LabelledDataset(folders, "train").id2label == {0: "all"}


def test_wrong_folders(folders, tmp_path):
    masks = tmp_path / "masks"

    def message():
        with pytest.raises(UserError) as error:
            LabelledDataset(folders, "train")
        return str(error.value)

    (masks / "town1" / "extra.png").write_bytes((masks / "town1" / "0001.png").read_bytes())
    assert re.search(r"--train_images .*photos: nothing of the stem 'town1/extra'", message())
    (masks / "town1" / "extra.png").unlink()
    (masks / "town1" / "0001.png").unlink()
    (masks / "town1" / "0004.png").unlink()
    assert re.search(r"--train_masks .*masks: nothing of the stem 'town1/0001' of 0001.jpg and 1 more", message())
    folders.train_masks = str(tmp_path / "nowhere")
    assert "no such folder" in message()
    (tmp_path / "nowhere").mkdir()
    assert "no file ending in .png" in message()


def test_a_pipe_among_masks_is_refused(folders, tmp_path):
    os.mkfifo(tmp_path / "masks" / "town0" / "a.png")
    with pytest.raises(UserError, match=r"a\.png is no regular file: remove it"):
        LabelledDataset(folders, "train")
