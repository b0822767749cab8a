"""`scripts/export_onnx.py` for FASeg on plain vision transformers with a feature pyramid: files equal the models."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from backbone_cases import fields_of
from tiny_models import tiny_batch, tiny_model

from image_processing import FASegImageProcessor
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.onnx_export import checking, kinds


pytestmark = pytest.mark.system
# Its positions become constants of the traced size without what network.py has in place of transformers' `torch_int`.
REGISTERS = pytest.param("dinov2_with_registers+pyramid", marks=pytest.mark.slow)


@pytest.mark.parametrize("any_size", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["dinov3_vit+pyramid", "dinov2+pyramid", REGISTERS])
def test_files_equal_the_model(kind, any_size, tmp_path):
    """The command itself compares both on three inputs; here on sizes of which no position was traced."""
    model = tiny_model(**fields_of(kind))
    for name, value in model.named_parameters():
        if "position_embeddings" in name:
            torch.nn.init.normal_(value)
    model.save_pretrained(tmp_path / "model")
    FASegImageProcessor(size={"shortest_edge": 128, "longest_edge": 256}).save_pretrained(tmp_path / "model")
    size = [] if any_size else ["--height", "64", "--width", "96"]
    flags = [
        "--model_name_or_path",
        tmp_path / "model",
        "--output_dir",
        tmp_path / "file",
        "--timing_runs",
        "0",
        *size,
    ]
    session = onnxruntime.InferenceSession(export_onnx(parse_arguments(ExportArguments, list(map(str, flags)))))
    for height, width in ((96, 160), (192, 128)) if any_size else ((64, 96),):
        images = tiny_batch((height, width), targets=(1,))["pixel_values"]
        found = torch.from_numpy(session.run(["class_queries_logits"], {"pixel_values": images.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(found, model(images).class_queries_logits, atol=1e-4, rtol=0)


def test_a_file_that_kept_the_size_it_was_traced_with_is_refused():
    model = tiny_model()
    traced = (np.zeros((1, 6, 4)), np.zeros((1, 6, 208, 216)))
    session = SimpleNamespace(run=lambda names, inputs: traced)
    with pytest.raises(
        UserError, match=r"mask logits of \(208, 216\) for images of \(64, 96\), need \(16, 24\): .*--h"
    ):
        checking.compare_network(kinds.kind_of(model.config), model, session, [(1, 64, 96)], 0, None)
