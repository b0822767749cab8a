"""What a Mask2Former of transformers goes through here: evaluation, training, ONNX, and its code taken elsewhere."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from mask2former_models import write_mask2former
from PIL import Image
from tiny_models import TINY_RESNET
from transformers import (
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)

from saved_models import check_loads_elsewhere
from scripts import export_onnx, train
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion, valid_part
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config, build_model, build_processor


CLASSES = {
    "AutoModel": "FASegModel",
    "AutoModelForSemanticSegmentation": "FASegForUniversalSegmentation",
    "AutoModelForUniversalSegmentation": "FASegForUniversalSegmentation",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mask2former(tmp_path_factory.mktemp("model") / "mask2former-tiny-semantic", TINY_RESNET)


def here(folder):
    """Model and processor, loaded by the commands' own way."""
    named = ModelArguments(model_name_or_path=str(folder))
    config = build_config(named)
    return build_model(named, config, new_classes=False).eval(), build_processor(named, config)


@torch.no_grad()
def test_evaluation_shows_both_rules_of_post_processing(folder, shapes, evaluated):
    """The reference's, which counts, and that of transformers' own processor, computed here by it and its model.

    Of images as they are read here: transformers stretches an image to multiples of 32 instead of padding it.
    """
    results, _ = evaluated(folder, shapes, "--protocol_lens")
    by_habit = {row["habit"]: row["detectron2"] for row in results["protocol_lens"]}
    assert by_habit["protocol"] == results["mean_iou"]
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    theirs, ours = Mask2FormerImageProcessor.from_pretrained(folder), here(folder)[1]
    total = np.zeros((256, 256), dtype=np.int64)
    data = LabelledDataset(DatasetArguments(str(shapes)), "validation")
    for row in data.stream:
        sample = {name: Image.open(BytesIO(row[name]["bytes"])) for name in ("image", "label")}
        image = sample["image"].convert("RGB")
        outputs = model(ours(images=image, return_tensors="pt")["pixel_values"])
        sizes = [(image.height, image.width)]
        labels = theirs.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
        total += confusion_matrix(labels.numpy().astype(np.uint8), np.asarray(sample["label"]), 256)
    expected = 100 * scores_from_confusion(valid_part(total, 6))["mean_iou"]
    assert by_habit["masks squashed to 384x384"] == pytest.approx(expected, abs=0.05)
    assert expected > 1


def test_training_goes_on_from_it(folder, shapes, tmp_path, command):
    """As a Mask2Former: without the two ideas, and with its processor."""
    flags = ["--model_name_or_path", folder, "--dataset_name", shapes, "--output_dir", tmp_path / "run"]
    sizes = ["--crop_height", 64, "--crop_width", 96, "--per_device_train_batch_size", 2]
    steps = ["--max_train_steps", 2, "--dataloader_num_workers", 0]
    code, _, errors = command(train, *flags, *sizes, *steps)
    assert code == 0, errors
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert not model.config.use_dynamic_positional_queries and model.config.decoder_layers == 3
    names = json.loads((shapes / "id2label.json").read_text())
    assert model.config.id2label == {int(index): name for index, name in names.items()}


@pytest.mark.system
def test_onnx_equals_it(folder, tmp_path, command):
    """The command itself compares labels and logits with the model's: exit code 0 says that they are equal."""
    flags = ["--model_name_or_path", folder, "--output_dir", tmp_path / "onnx", "--height", 64, "--width", 96]
    code, out, errors = command(export_onnx, *flags, "--timing_runs", 0)
    assert code == 0 and (tmp_path / "onnx" / "model.onnx").is_file(), (out, errors)


@pytest.mark.system
def test_its_code_loads_where_the_project_is_not_installed(folder, tmp_path):
    model, processor = here(folder)
    check_loads_elsewhere(model, processor, torch.randn(2, 3, 64, 96), "masks_queries_logits", CLASSES, tmp_path)
