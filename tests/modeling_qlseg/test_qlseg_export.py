"""`torch.export`, `torch.compile` and ONNX of a small model equal eager."""

import pytest
import torch
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch
from torch.export import Dim


pytestmark = pytest.mark.slow


class Tensors(torch.nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model(pixel_values)
        return outputs.class_queries_logits, outputs.masks_queries_logits, outputs.semantic_scores


def check(expected, found):
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.as_tensor(theirs), ours, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_export_of_a_window():
    model, images = Tensors(tiny_qlseg()), tiny_qlseg_batch()["pixel_values"]
    exported = torch.export.export(model, (images,), strict=False)
    check(model(images), exported.module()(images))


@torch.no_grad()
def test_export_of_any_rectangle():
    model = Tensors(tiny_qlseg(use_windows=False))
    height, width = Dim("height", min=3, max=32), Dim("width", min=3, max=32)
    shapes = {"pixel_values": {0: Dim("batch", min=1, max=4), 2: 16 * height, 3: 16 * width}}
    exported = torch.export.export(model, (torch.zeros(2, 3, 80, 112),), dynamic_shapes=shapes, strict=False).module()
    for size in [(2, 3, 48, 96), (1, 3, 128, 80)]:
        images = torch.randn(size)
        check(model(images), exported(images))


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_onnx(dynamic, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    twin = tiny_qlseg(use_windows=not dynamic)
    twin.set_attn_implementation("eager")
    model = Tensors(twin)
    size, shapes = (1, 3, 64, 64), None
    if dynamic:
        height, width = Dim("height", min=3, max=32), Dim("width", min=3, max=32)
        size, shapes = (2, 3, 80, 112), {"pixel_values": {2: 16 * height, 3: 16 * width}}
    traced = torch.export.export(model, (torch.zeros(size),), dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(traced, dynamo=True, input_names=["pixel_values"], verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 48, 96) if dynamic else torch.randn(size)
    check(model(images), session.run(None, {"pixel_values": images.numpy()}))


@torch.no_grad()
def test_inference_compiles_into_one_graph():
    model, images = tiny_qlseg(), tiny_qlseg_batch()["pixel_values"]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images).semantic_scores, model(images).semantic_scores)
