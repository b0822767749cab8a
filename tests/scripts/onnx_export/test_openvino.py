"""OpenVINO runs exported files, with `GridSample` and with gathers, as the model does, decision by decision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from several_classes import with_several_classes
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import benchmark
from scripts.models.loading import save_model_folder
from scripts.onnx_export import checking, kinds


pytestmark = pytest.mark.system


def test_both_forms_equal_the_model_in_both_engines(model_folder, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    from scripts.benchmarking import engines  # needs it

    model = with_several_classes(AutoModelForUniversalSegmentation.from_pretrained(model_folder))
    kind = kinds.kind_of(model.config)
    inputs = [checking.drawn_images(1, 64, 96, seed) for seed in range(2)]
    files = engines.write_files(model, kind, (64, 96), tmp_path)
    assert len(files) == 4 and len(set(files.values())) == 2
    for name, file in files.items():
        opened = engines.ENGINES[name.split(",")[0]]
        found = engines.labels_of(kind, model, opened(file), file, inputs)
        assert found["within_tolerance"] and found["equal_labels"] > 0.999 and found["decisions"] > 500, (name, found)
    with torch.no_grad():
        model.class_predictor.bias[0] += 20  # another model than the files'
    found = engines.labels_of(kind, model, opened(file), file, inputs)
    assert not found["within_tolerance"] and found["equal_labels"] < 0.9


def test_a_trained_model_in_eight_bits_too(model_folder, tmp_path, command):
    """Of the whole command: labels and mean IoU of both engines beside eager PyTorch's."""
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    model = with_several_classes(AutoModelForUniversalSegmentation.from_pretrained(model_folder)).eval()
    processor = AutoImageProcessor.from_pretrained(model_folder, backend="pil")
    save_model_folder(model, processor, tmp_path / "model")
    for name in ("images", "masks", "others"):
        (tmp_path / name).mkdir()
    for number in range(10):
        image = checking.drawn_image(64, 96, number)
        if number > 1:
            Image.fromarray(image).save(tmp_path / "others" / f"{number}.png")
            continue
        labels = checking.eager_labels(model, processor, image).numpy().astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    flags = ["--engines", "--trained_model", tmp_path / "model", "--images", tmp_path / "images", "--repetitions", 1]
    flags += ["--calibration_images", tmp_path / "others", "--validation_masks", tmp_path / "masks"]
    code, printed, errors = command(benchmark, *flags, "--output_file", tmp_path / "engines.json")
    assert code == 0, errors
    assert "labels compared on 2 images; ranges of 8 bits from 8 other images; " in printed
    (record,) = json.loads((tmp_path / "engines.json").read_text())["parts"].values()
    rows = record["contestants"]
    assert len(rows) == 9 and rows["eager PyTorch"]["mean_iou"] > 99.9
    for name, row in rows.items():
        if "int8" in name:
            assert "decisions" not in row and "mean_iou" in row, name  # in random weights few labels stay equal
        elif name != "eager PyTorch":
            assert row["within_tolerance"] and row["equal_labels"] > 0.999 and row["mean_iou"] > 99, name
    with_backbone, without = rows["onnxruntime, int8"], rows["onnxruntime, int8 but the backbone"]
    assert with_backbone["file_bytes"] < without["file_bytes"]
