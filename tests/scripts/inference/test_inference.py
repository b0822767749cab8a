"""Class scores over scales and mirror images, against the reference's; whole splits against single images."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from golden_cases import indexed, load_case, official_state_dict, tiny_config
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts.data.arguments import DatasetArguments
from scripts.data.augmentation import shortest_edge_size
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_label
from scripts.evaluation.mean_iou import scores_from_confusion
from scripts.evaluation.split import evaluate_split
from scripts.inference.predictors import multi_scale_scores
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
