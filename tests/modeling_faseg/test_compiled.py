"""A model that is compiled for images of few sizes: which calls are, how often, and that outputs stay the same."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from tiny_semask import tiny_model as tiny_semask
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import PreTrainedConfig

from modeling_faseg import FASegForUniversalSegmentationOutput
from modeling_faseg.compiled import logger, own
from modeling_faseg.pretrained import SegmentationPreTrainedModel


class OneConvolution(SegmentationPreTrainedModel):
    """Traced in no time."""

    config_class = PreTrainedConfig

    def __init__(self, config, bias=True):
        super().__init__(config)
        self.conv = nn.Conv2d(3, 2, 3, bias=bias)
        self.post_init()

    def forward(self, pixel_values, pixel_mask=None, labels=None):
        maps = self.conv(pixel_values)
        return maps if labels is None else maps.sum()


@pytest.fixture
def counter():
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OneConvolution(PreTrainedConfig()).eval()


def images(height, width):
    torch.manual_seed(height + width)
    mask = torch.ones(1, height, width, dtype=torch.long)
    mask[:, height - 5 :] = 0
    return {"pixel_values": torch.randn(1, 3, height, width), "pixel_mask": mask}


@pytest.mark.system
@torch.no_grad()
def test_each_size_is_compiled_once_as_one_graph_and_equals_eager(counter):
    torch.manual_seed(0)
    model = tiny_model().eval()
    sizes = [(64, 64), (64, 96), (64, 64), (64, 96), (64, 64)]
    eager = [model(**images(*size)) for size in sizes]
    assert model.compile_for_inference(backend=counter) is model
    for size, theirs in zip(sizes, eager, strict=True):
        ours = model(**images(*size))
        torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, atol=1e-4, rtol=0)
    assert counter.frame_count == 2  # fullgraph: one frame is one graph


@pytest.mark.system
@torch.no_grad()
def test_semask_is_one_graph_that_equals_eager(counter):
    model, batch = tiny_semask(), images(50, 71)
    expected = model(**batch)
    found = model.compile_for_inference(backend=counter)(**batch)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert counter.frame_count == 1


@pytest.mark.system
@torch.no_grad()
def test_sizes_past_the_last_are_computed_without_and_named(model, counter, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    model.compile_for_inference(sizes=2, backend=counter)
    plain = copy.deepcopy(model)  # is not compiled
    for size in ((64, 64), (64, 96), (96, 64), (64, 96)):
        assert torch.equal(model(**images(*size)), plain(**images(*size)))
    assert counter.frame_count == 2
    (line,) = set(said)  # transformers says a line once
    assert "more than 2 sizes" in line and "96x64" in line and "size_divisor=256" in line


@pytest.mark.system
def test_other_arguments_and_training_are_not_compiled(model, counter):
    model.compile_for_inference(backend=counter)
    batch = images(64, 64)
    assert model(**batch, labels=1).ndim == 0 and model(batch["pixel_values"], batch["pixel_mask"]).ndim == 4
    model.train()(**batch)
    assert counter.frame_count == 0
    model.eval()(**batch)
    with torch.no_grad():
        model(**batch)  # a version of its own
    with torch.inference_mode():
        model(**batch)  # and another
    assert counter.frame_count == len(model._compiled_for.seen) == 3


@pytest.mark.system
@torch.no_grad()
def test_outputs_outlive_the_next_call(model):
    """As those of a CUDA graph would not, whose memory the next run writes over."""

    def graph_of_one_memory(graph, inputs):
        kept = []

        def run(*given):
            found = graph(*given)
            kept.extend(found[len(kept) :])
            return [mine.copy_(new) for mine, new in zip(kept, found, strict=True)]

        return run

    plain = copy.deepcopy(model)
    torch.compiler.reset()
    model.compile_for_inference(backend=graph_of_one_memory)
    batches = [{**images(64, 64), "pixel_values": torch.full((1, 3, 64, 64), value)} for value in (1.0, 2.0)]
    for batch, found in zip(batches, [model(**batch) for batch in batches], strict=True):
        assert torch.equal(found, plain(**batch))
    given = FASegForUniversalSegmentationOutput(
        masks_queries_logits=torch.ones(2), auxiliary_logits=[{"masks_queries_logits": torch.ones(1)}]
    )
    copied = own(given)
    given.masks_queries_logits[:] = given.auxiliary_logits[0]["masks_queries_logits"][:] = 0
    assert copied.masks_queries_logits.all() and copied.auxiliary_logits[0]["masks_queries_logits"].all()
    assert copied.loss is None and type(copied) is type(given)


@torch.no_grad()
def test_versions_of_several_models_are_not_counted_together(model, counter):
    """As torch.compile counts them, of which it allows eight; and a model may be compiled once more."""
    other = OneConvolution(PreTrainedConfig(), bias=False)
    for each in (model, other, model):
        plain = copy.deepcopy(each).eval()
        each.compile_for_inference(backend=counter)
        for width in range(64, 69):
            assert torch.equal(each(**images(64, width)), plain(**images(64, width)))
    assert counter.frame_count == 15


@pytest.mark.parametrize("option", [{"dynamic": True}, {"dynamic": None}, {"fullgraph": False}])
def test_options_that_are_fixed_are_refused(model, option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{name}={value}: each size .* leave {name} out"):
        model.compile_for_inference(**option)


@pytest.mark.parametrize("sizes", [0, 9])
def test_a_wrong_number_of_sizes_is_refused(model, sizes):
    with pytest.raises(ValueError, match=f"sizes={sizes}: give 1 to 8"):
        model.compile_for_inference(sizes=sizes)


@pytest.mark.system
@torch.no_grad()
def test_a_compiled_model_is_saved_and_loaded_as_any_other(model, counter, tmp_path):
    model.compile_for_inference(backend=counter)
    expected = model(**images(64, 64))
    model.save_pretrained(tmp_path)
    assert torch.equal(OneConvolution.from_pretrained(tmp_path).eval()(**images(64, 64)), expected)
