"""ONNX files that know nothing of our models: what any exporter makes of them, run by onnxruntime."""

import onnxruntime
import torch
from torch.utils import _pytree


@torch.no_grad()
def check_plain_export(model, images):
    """Exports the model as it is, and compares every tensor of its output with eager's."""
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = _pytree.tree_leaves(model(images))
    assert len(expected) > 1
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=0)


@torch.no_grad()
def check_transformers_export(model, images):
    """The same through transformers' exporter."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    exported = OnnxExporter().export(model, {"pixel_values": images}, config=OnnxConfig())
    found, expected = exported(pixel_values=images), model(images)
    tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 1
    for name, value in tensors.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)
