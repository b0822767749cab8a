"""Class scores over scales and mirror images, against the reference's; whole splits against single images."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_folder import decided
from tiny_models import tiny_model

from golden_cases import indexed, load_case, official_state_dict, tiny_config
from host_waits import host_waits
from image_processing import FASegImageProcessor, semantic_labels
from modeling_faseg import FASegForUniversalSegmentation
from scripts.data.arguments import DatasetArguments
from scripts.data.augmentation import shortest_edge_size
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_label
from scripts.data.synthetic_scenes import draw_sample
from scripts.evaluation.mean_iou import scores_from_confusion
from scripts.evaluation.split import evaluate_split
from scripts.inference import found_segments, predictors
from scripts.inference.found_segments import SegmentPredictor
from scripts.inference.predictors import (
    image_scores,
    input_size_of,
    labels_and_confidence,
    multi_scale_scores,
    outputs_of,
    processed_inputs,
)
from scripts.models.parameter_names import convert_state_dict


@pytest.mark.golden
@pytest.mark.parametrize("name", ["full_r50narrow", "full_swin_w7"])
def test_multi_scale_scores_are_the_reference_average(shared, name):
    """From the image on: PIL's resize, padding, model, scores at the original size, flip back, mean."""
    tensors, meta = load_case(shared, name)
    config = tiny_config(meta)
    model = FASegForUniversalSegmentation(config)
    model.load_state_dict(convert_state_dict(official_state_dict(tensors), config))
    settings = meta["params"]["tta"]
    image = Image.fromarray(tensors["tta/image"].permute(1, 2, 0).numpy())
    views = iter(indexed(tensors, "tta/aug_image_"))
    for edge in settings["min_sizes"]:
        height, width = shortest_edge_size(image.height, image.width, edge, settings["max_size"])
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        for view in (resized, resized[:, ::-1]):
            assert np.array_equal(view, next(views).permute(1, 2, 0).numpy())
    found = multi_scale_scores(
        model.eval(),
        FASegImageProcessor(),
        image,
        tuple(settings["image"][2:]),
        [(edge, settings["max_size"]) for edge in settings["min_sizes"]],
    ).stacked()
    assert float((found - tensors["tta/sem_seg"]).abs().max()) < 1e-4


class Stub(torch.nn.Module):
    """Stands for a model of six classes."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_labels": 6})()


def test_a_perfect_predictor_scores_one(shapes):
    data = LabelledDataset(DatasetArguments(dataset_name=str(shapes)), "validation")
    truths = iter([decode_label(row["label"], "x").numpy() for row in data.stream])

    def perfect(image):
        truth = next(truths)
        return np.where(truth == 255, 3, truth)

    confusion, images = evaluate_split(Stub(), None, data, Accelerator(), predictor=perfect, num_workers=0)
    assert images == 3
    scores = scores_from_confusion(confusion)
    assert scores["mean_iou"] == scores["overall_accuracy"] == 1.0


def test_a_limit_stops_early(shapes):
    data = LabelledDataset(DatasetArguments(dataset_name=str(shapes)), "validation")
    seen = []

    def constant(image):
        seen.append(image.size)
        return np.zeros((image.height, image.width), dtype=np.uint8)

    confusion, images = evaluate_split(Stub(), None, data, Accelerator(), constant, 2, 0)
    assert images == len(seen) == 2
    assert confusion[:, 1:].sum() == 0 and confusion[:, 0].sum() > 0


# ---- how often a command waits for the device, which cannot work ahead meanwhile


def tiny_processor(**fields):
    return FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 160}, num_labels=3, **fields)


@torch.no_grad()
def test_a_label_map_and_its_confidence_are_brought_at_once(monkeypatch):
    """After the check of the logits; in blocks of a few rows."""
    monkeypatch.setitem(semantic_labels.BLOCK_BYTES, "cpu", 4 * 90 * 6 * 16)
    model, processor = tiny_model().eval(), tiny_processor()
    inputs = processed_inputs(processor, Image.new("RGB", (90, 70), (200, 40, 90)), "cpu")
    expected = labels_and_confidence(image_scores(model, processor, inputs, (70, 90)), softmax=False)
    with host_waits(predictors) as waits:
        scores = image_scores(model, processor, inputs, (70, 90))
        assert len(list(scores)) > 3
        labels, confidence = labels_and_confidence(scores, softmax=False)
    assert waits.found == [] and waits.transfers[1:] == [[(70, 90)], [(70, 90)]]
    assert np.array_equal(labels, expected[0]) and np.allclose(confidence, expected[1], atol=1e-5)


def test_all_instances_are_brought_at_once():
    """After what decides about them."""
    model, processor = decided(tiny_model(num_queries=20, task="instance")).eval(), tiny_processor(task="instance")
    predictor = SegmentPredictor(model, processor, "cpu", threshold=0.0)
    inputs = processed_inputs(processor, draw_sample(np.random.default_rng(1))[0], "cpu")
    with host_waits(found_segments) as waits:
        outputs, size = outputs_of(model, inputs)
        found = predictor.found(outputs, size, size)
    assert waits.found == [] and len(waits.transfers) == 2
    shapes = [tuple(one.mask.pixels.shape) for one in found.instances]
    assert len(shapes) > 3 and set(waits.transfers[1]) == set(shapes)
    assert len(waits.transfers[1]) <= 20  # queries, of which one is several instances
    for one, expected in zip(found.instances, predictor.found(outputs, size, size).instances, strict=True):
        assert one.label == expected.label and one.mask.whole().equal(expected.mask.whole())


def test_the_size_without_padding_is_read_before_the_image_goes_to_the_device():
    """`meta` is a device that nothing can be read from."""
    inputs = processed_inputs(tiny_processor(), Image.new("RGB", (90, 70)), "meta")
    assert inputs["pixel_mask"].device.type == "meta" and input_size_of(inputs) == (64, 82)
    del inputs["input_sizes"]
    inputs["pixel_mask"] = torch.zeros(1, 9, 9)
    inputs["pixel_mask"][:, :4, :5] = 1
    assert input_size_of(inputs) == (4, 5)
