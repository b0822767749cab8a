"""`supervision.Detections.from_transformers` reads what the processor answers, of each task and form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from image_processing import FASegImageProcessor


supervision = pytest.importorskip("supervision", reason="supervision is not installed: pip install supervision")

NAMES = {0: "road", 1: "car"}
SIZE = (40, 60)  # of a network input of 64x64, in which the image fills 64 columns and 43 rows


@pytest.fixture(scope="module")
def found():
    """Query 0 is the road in the lower half, query 1 a car in the left third of it, query 2 nothing."""
    masks = torch.full((1, 3, 16, 16), -20.0)
    masks[0, 0, 5:] = 10.0
    masks[0, 1, 5:, :5] = 20.0
    classes = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]])
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def answer(task, found, **kwargs):
    processor = FASegImageProcessor(task=task, label_ids_to_fuse=[0] if task == "panoptic" else None)
    call = getattr(processor, f"post_process_{task}_segmentation")
    return call(found, target_sizes=[SIZE], input_sizes=[(43, 64)], **kwargs)[0]


def detections(result):
    read = supervision.Detections.from_transformers(result, id2label=NAMES)
    assert read.mask.shape == (len(read), *SIZE) and read.mask.any((1, 2)).all()
    assert read["class_name"].tolist() == [NAMES[index] for index in read.class_id.tolist()]
    return read


@pytest.mark.parametrize("with_scores", [False, True])
def test_semantic_maps(found, with_scores):
    result = answer("semantic", found, return_segmentation_scores=with_scores)
    labels = (result["segmentation"] if with_scores else result).numpy()
    read = detections(result)
    assert read.class_id.tolist() == [0, 1]
    assert all(np.array_equal(mask, labels == index) for mask, index in zip(read.mask, read.class_id, strict=True))


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_segments(found, task):
    result = answer(task, found)
    read = detections(result)
    assert sorted(read.class_id.tolist()) == [0, 1]
    assert read.confidence.tolist() == pytest.approx([entry["score"] for entry in result["segments_info"]])
    for mask, entry in zip(read.mask, result["segments_info"], strict=True):
        assert np.array_equal(mask, (result["segmentation"] == entry["id"]).numpy())
    car = read[read.class_id == 1]
    left, _, right, bottom = car.xyxy[0]
    assert left == 0 and 15 <= right <= 22 and bottom == SIZE[0] - 1


def test_binary_maps_keep_what_overlaps(found):
    result = answer("instance", found, return_binary_maps=True)
    read = detections(result)
    assert np.array_equal(read.mask, result["segmentation"].bool().numpy())
    assert (read.mask[0] & read.mask[1]).any()


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_nothing_found(found, task):
    nothing = SimpleNamespace(
        class_queries_logits=found.class_queries_logits, masks_queries_logits=torch.full((1, 3, 16, 16), -9.0)
    )
    assert len(supervision.Detections.from_transformers(answer(task, nothing), id2label=NAMES)) == 0
