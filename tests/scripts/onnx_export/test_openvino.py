"""OpenVINO runs exported files, with `GridSample` and with gathers, as the model does, decision by decision."""

import pytest
import torch
from several_classes import with_several_classes
from transformers import AutoModelForUniversalSegmentation

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
