"""The stream: every sample once per epoch, whatever reads it; bad samples are named."""

import json
from itertools import islice

import datasets
import numpy as np
import pytest
import torch

from image_processing import FASegImageProcessor
from scripts.demo_data import encoded
from scripts.training.augmentation import training_augmentation
from scripts.training.command_line import UserError
from scripts.training.data import (
    DatasetArguments,
    StreamBatches,
    TrainingCollator,
    TrainingSamples,
    check_labels,
    collate,
    decode_label,
    good_batches,
    load_classes,
    load_split,
    number_of_examples,
    worker_loader,
)


@pytest.fixture
def arguments(shapes):
    return DatasetArguments(dataset_name=str(shapes))


def batches(arguments, batch_size=2, workers=0, count=7, **kwargs):
    data = load_split(arguments, "train")
    stream = StreamBatches(data, batch_size, seed=0, shuffle_buffer_size=4, **kwargs)
    samples = TrainingSamples(arguments, 6, training_augmentation(32, 32), seed=0)
    loader = worker_loader(samples, stream, TrainingCollator(FASegImageProcessor(), False), workers)
    return list(islice(good_batches(loader), count))


def test_every_sample_once_per_epoch(arguments):
    names = [name for batch in batches(arguments) for name in batch["names"]]
    assert len(set(names[:7])) == 7
    assert sorted(names[:7]) == sorted(names[7:])
    assert names[:7] != names[7:]


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_augmentation_do_not_depend_on_workers(arguments, workers):
    for one, other in zip(batches(arguments), batches(arguments, workers=workers), strict=True):
        assert one["names"] == other["names"] and one["position"] == other["position"]
        assert torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_global_batches(arguments, processes):
    whole = [batch["names"] for batch in batches(arguments, batch_size=2 * processes, count=3)]
    parts = [batches(arguments, count=3, process_index=rank, num_processes=processes) for rank in range(processes)]
    for step, names in enumerate(whole):
        assert [name for part in parts for name in part[step]["names"]] == names
        assert len({part[step]["position"] for part in parts}) == 1


def test_stream_goes_on_where_it_stopped(arguments):
    straight = batches(arguments, count=7)
    for stop in (1, 3, 5):
        position = straight[stop - 1]["position"]
        resumed = batches(arguments, count=7 - stop, start=position)
        for one, other in zip(straight[stop:], resumed, strict=True):
            assert one["names"] == other["names"]
            assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_shuffled_rows_and_map_style_data_agree_on_what_there_is(arguments, shapes):
    streamed = {row["image_id"] for row in load_split(arguments, "train")}
    at_hand = load_split(DatasetArguments(dataset_name=str(shapes), streaming=False), "train")
    assert {row["image_id"] for row in at_hand} == streamed
    file = next(shapes.glob("data/validation-00000*"))
    assert len(list(load_split(DatasetArguments(dataset_name=str(file)), "train"))) == 1
    assert number_of_examples(at_hand, "train") == 7


def test_collate_makes_model_inputs():
    label = np.array([[0, 0, 255], [2, 2, 255]])
    inputs = collate([{"image": torch.zeros(3, 2, 3, dtype=torch.uint8), "label": label}], FASegImageProcessor())
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["pixel_mask"].sum() == 6
    assert inputs["class_labels"][0].tolist() == [0, 2]
    assert [int(mask.sum()) for mask in inputs["mask_labels"][0]] == [2, 2]


def test_classes(arguments, shapes, tmp_path):
    assert load_classes(arguments) == dict(enumerate(["background", "disc", "square", "triangle", "ring", "cross"]))
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"1": "b", "0": "a"}))
    assert load_classes(DatasetArguments(dataset_name=str(shapes), id2label=str(file))) == {0: "a", 1: "b"}
    features = datasets.Features({"kind": datasets.ClassLabel(names=["x", "y"])})
    data = datasets.Dataset.from_dict({"kind": [0]}, features=features).to_iterable_dataset()
    assert load_classes(DatasetArguments(), data) == {0: "x", 1: "y"}
    for wrong in ('{"1": "a"}', "[]", "{"):
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"names\.json"):
            load_classes(DatasetArguments(id2label=str(file)))


@pytest.mark.parametrize(
    ("label", "reduce", "message"),
    [
        (150, False, r"label 150 in image s1 but 150 classes \(0\.\.149\): set --do_reduce_labels\?"),
        (151, True, r"label 151 in image s1 but 150 classes \(1\.\.150\)"),
        (200, False, r"label 200 in image s1"),
    ],
)
def test_labels_outside_the_classes(label, reduce, message):
    with pytest.raises(UserError, match=message):
        check_labels(torch.tensor([[0, label]]), 150, reduce, "s1")


def test_labels_inside_the_classes():
    check_labels(torch.tensor([[0, 149, 255]]), 150, False, "s1")
    check_labels(torch.tensor([[0, 150, 255]]), 150, True, "s1")


def rows_with(tmp_path, **columns):
    """Parquet file of one row."""
    features = {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    row = {"image_id": "bad_one", **columns}
    data = datasets.Dataset.from_list([row], features=datasets.Features(features))
    data.to_parquet(tmp_path / "rows.parquet")
    return DatasetArguments(dataset_name=str(tmp_path / "rows.parquet"))


@pytest.fixture
def picture():
    from PIL import Image

    return Image.new("RGB", (8, 6))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named(tmp_path, picture, workers):
    good = {"image": encoded(picture, "JPEG"), "label": encoded(picture.convert("L"), "PNG")}
    broken = {"bytes": good["image"]["bytes"][:200]}
    cases = [
        ({**good, "image": broken}, "image of sample bad_one: cannot be read"),
        ({**good, "label": encoded(picture, "PNG")}, "need one channel of class ids, not colours"),
        ({**good, "label": encoded(picture.convert("L").resize((4, 4)), "PNG")}, "but label map"),
        ({**good, "label": encoded(picture.convert("F"), "TIFF")}, "holds float32: need integers"),
        (
            {**good, "label": encoded(picture.convert("I").point(lambda value: value - 3), "TIFF")},
            "holds -3: ids start",
        ),
    ]
    for columns, message in cases if workers == 0 else cases[:1]:
        with pytest.raises(UserError, match=message) as error:
            batches(rows_with(tmp_path, **columns), batch_size=1, workers=workers, count=1)
        assert "bad_one" in str(error.value)


def test_palette_maps_keep_their_ids(picture):
    label = picture.convert("P")
    label.putpixel((0, 0), 5)
    assert decode_label({"path": None, **encoded(label, "PNG")}, "x")[0, 0] == 5


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
        load_split(DatasetArguments(**settings), split)
