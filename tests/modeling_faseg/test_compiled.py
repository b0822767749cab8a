"""A model that is compiled for images of few sizes: which calls are, how often, and that outputs stay the same."""

import copy

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from torch._dynamo.testing import CompileCounter

from modeling_faseg.pretrained import logger


@pytest.fixture
def counter():
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model().eval()


def image(height, width):
    torch.manual_seed(height + width)
    mask = torch.ones(1, height, width, dtype=torch.long)
    mask[:, height - 5 :] = 0
    return {"pixel_values": torch.randn(1, 3, height, width), "pixel_mask": mask}


@torch.no_grad()
def test_each_size_is_compiled_once_as_one_graph_and_equals_eager(model, counter):
    sizes = [(64, 64), (64, 96), (64, 64), (64, 96), (64, 64)]
    eager = [model(**image(*size)) for size in sizes]
    assert model.compile_for_inference(backend=counter) is model
    for size, theirs in zip(sizes, eager, strict=True):
        ours = model(**image(*size))
        torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, atol=1e-4, rtol=0)
    assert counter.frame_count == 2  # fullgraph: one frame is one graph


@torch.no_grad()
def test_sizes_past_the_last_are_computed_without_and_named(model, counter, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    model.compile_for_inference(sizes=1, backend=counter)
    further = image(96, 64)
    expected = copy.deepcopy(model)(**further)  # a copy is not compiled
    assert counter.frame_count == 0
    model(**image(64, 64))
    found = model(**further)
    assert counter.frame_count == 1
    assert torch.equal(found.class_queries_logits, expected.class_queries_logits)
    (line,) = said
    assert "more than 1 sizes" in line and "96x64" in line and "size_divisor=256" in line


def test_calls_with_labels_and_training_are_not_compiled(model, counter):
    model.compile_for_inference(backend=counter)
    batch = tiny_batch()
    assert model(**batch).loss.isfinite()
    model.train()
    model(batch["pixel_values"])
    assert counter.frame_count == 0
    with torch.no_grad():
        model.eval()(batch["pixel_values"])
    assert counter.frame_count == 1


def test_a_wrong_number_of_sizes_is_refused(model):
    with pytest.raises(ValueError, match="sizes=9: give 1 to 8"):
        model.compile_for_inference(sizes=9)


def test_a_compiled_model_is_saved_and_loaded_as_any_other(model, counter, tmp_path):
    model.compile_for_inference(backend=counter)
    with torch.no_grad():
        expected = model(**image(64, 64)).class_queries_logits
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(**image(64, 64)).class_queries_logits, expected, atol=1e-5, rtol=0)
