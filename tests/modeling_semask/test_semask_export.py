"""`torch.export`, `torch.compile` and ONNX of a small SeMask-FPN equal eager."""

import pytest
import torch
from tiny_semask import tiny_model


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def check(model, run, pictures):
    with torch.no_grad():
        torch.testing.assert_close(run(pictures), model(pictures).logits, atol=1e-4, rtol=1e-4)


def test_static_export(model):
    """Of a size that is no multiple of anything."""
    pictures = torch.randn(2, 3, 50, 71)
    exported = torch.export.export(model, (pictures,), strict=False).module()
    check(model, lambda each: exported(each).logits, pictures)


def test_inference_compiles_into_one_graph(model):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    check(model, lambda each: compiled(each).logits, torch.randn(1, 3, 50, 71))


class Logits(torch.nn.Module):
    """One tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def test_onnx(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pictures = torch.randn(1, 3, 50, 71)
    file = tmp_path / "model.onnx"
    model.set_attn_implementation("eager")
    torch.onnx.export(Logits(model), (pictures,), file, dynamo=True, input_names=["pixel_values"], verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    check(model, lambda each: torch.from_numpy(session.run(None, {"pixel_values": each.numpy()})[0]), pictures)
