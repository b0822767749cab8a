"""Every form of a step gives what its plain form gives, and the chooser gives a device the form made for it."""

import pytest
import torch
from tiny_models import tiny_model

from modeling_faseg import forms_faseg
from modeling_faseg.forms_faseg import (
    add_feed_forward,
    add_feed_forward_in_parts,
    add_feed_forward_recomputed,
    as_map,
    as_map_of_one,
    feed_forward_form,
    image_form,
    images_as_given,
    images_channels_last,
    map_form,
)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def layer():
    return tiny_model().model.pixel_decoder.layers[0]


def gradients(form, layer, tokens):
    layer.zero_grad()
    tokens = tokens.clone().requires_grad_()
    form(layer, tokens).square().sum().backward()
    return [tokens.grad, *(weight.grad.clone() for weight in layer.parameters() if weight.grad is not None)]


def test_a_recomputed_feed_forward_has_the_same_gradients(layer):
    tokens = torch.randn(2, 20, 32)
    assert add_feed_forward_recomputed(layer, tokens).equal(add_feed_forward(layer, tokens))
    expected = gradients(add_feed_forward, layer, tokens)
    found = gradients(add_feed_forward_recomputed, layer, tokens)
    assert len(found) > 5 and all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))


@torch.no_grad()
def test_a_feed_forward_in_parts_is_the_same(layer, monkeypatch):
    monkeypatch.setattr(forms_faseg, "TOKENS_AT_ONCE", 7)
    tokens = torch.randn(2, 20, 32)
    found = add_feed_forward_in_parts(layer, tokens)
    torch.testing.assert_close(found, add_feed_forward(layer, tokens), atol=1e-6, rtol=1e-6)


def test_a_map_of_one_lies_channels_last_and_is_no_copy():
    tokens = torch.randn(1, 40, 8)
    level = tokens[:, 5:29]
    found = as_map_of_one(level, (4, 6))
    assert found.equal(as_map(level, (4, 6))) and found.data_ptr() == level.data_ptr()
    assert found.stride() == found.contiguous(memory_format=torch.channels_last).stride()


def test_images_keep_their_values():
    images = torch.randn(2, 3, 8, 8)
    assert images_channels_last(images).equal(images_as_given(images))
    assert images_channels_last(images).is_contiguous(memory_format=torch.channels_last)


def test_the_chosen_forms():
    one, two = torch.zeros(1, 4, 8), torch.zeros(2, 4, 8)
    assert map_form(one) is as_map_of_one and map_form(two) is as_map
    assert feed_forward_form(CPU) is feed_forward_form(GPU) is add_feed_forward_recomputed
    assert image_form(CPU) is image_form(GPU) is images_as_given
    with torch.no_grad():
        assert feed_forward_form(CPU) is add_feed_forward_in_parts and feed_forward_form(GPU) is add_feed_forward
        assert image_form(CPU) is images_channels_last and image_form(GPU) is images_as_given
