"""HRCA's layers that share weights: how many are left, what they compute, what is saved."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model
from transformers import AutoModelForUniversalSegmentation

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.errors import UserError
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config
from scripts.models.parameter_names import ConversionError, convert_state_dict, official_parameter_names


LAYERS = "model.transformer_decoder.layers."
# Whose weights each of nine layers runs; HRCA's are 3 and 7.
RUNS = {"shared": [0, 1, 2, 3, 4, 5, 6, 3, 8], "reused": [0, 1, 2, 2, 4, 5, 6, 6, 8]}
both = pytest.mark.parametrize("sharing", RUNS)


def sharing_model(sharing, **overrides):
    return tiny_model(decoder_layers=9, high_resolution_sharing=sharing, **overrides)


def unshared(model):
    """A model of nine layers with weights of their own that are equal where `model` has one layer for several."""
    weights = model.state_dict()
    for index, number in enumerate(RUNS[model.config.high_resolution_sharing]):
        taken = {name: value for name, value in weights.items() if name.startswith(f"{LAYERS}{number}.")}
        weights |= {name.replace(f"{LAYERS}{number}.", f"{LAYERS}{index}."): value for name, value in taken.items()}
    result = tiny_model(decoder_layers=9)
    result.load_state_dict(weights)
    return result


@pytest.mark.parametrize(("sharing", "saved"), [("none", 0), ("shared", 2 * 1_578_752), ("reused", 3 * 1_578_752)])
def test_parameters_of_the_reference(sharing, saved):
    """Whole decoder layers of the ResNet-50 model: two of HRCA's three, or all."""
    config = FASegConfig.from_pretrained("hub_cards/faseg-resnet50-ade20k", high_resolution_sharing=sharing)
    with torch.device("meta"):
        model = FASegForUniversalSegmentation(config)
    assert sum(value.numel() for value in model.parameters()) == 50_564_759 - saved


@both
def test_it_computes_what_equal_weights_would(sharing):
    model = sharing_model(sharing)
    apart = unshared(model)
    assert model.config.decoder_layer_weights == RUNS[sharing]
    for images in (torch.randn(2, 3, 128, 96), torch.randn(1, 3, 32, 64)):  # the second keeps no window
        with torch.no_grad():
            ours, theirs = (each(images, output_focus=True) for each in (model, apart))
        assert torch.equal(ours.masks_queries_logits, theirs.masks_queries_logits)
        assert all(map(torch.equal, ours.focus_maps, theirs.focus_maps)) and len(ours.focus_maps) == 9


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_is_the_sum_over_what_runs_the_weights(sharing, checkpointing):
    model = sharing_model(sharing).train()
    apart = unshared(model).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    for each in (model, apart):
        torch.manual_seed(0)
        each(**tiny_batch()).loss.backward()
    for name in ("cross_attn.v_proj.weight", "self_attn.q_proj.weight", "fc2.bias", "final_layer_norm.weight"):
        for number in set(RUNS[sharing]):
            users = [index for index, other in enumerate(RUNS[sharing]) if other == number]
            wanted = sum(apart.get_parameter(f"{LAYERS}{index}.{name}").grad for index in users)
            found = model.get_parameter(f"{LAYERS}{number}.{name}").grad
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@both
def test_each_tensor_is_saved_once_under_the_name_of_its_layer(sharing, tmp_path):
    model = sharing_model(sharing)
    own = {name for name in tiny_model(decoder_layers=9).state_dict() if not name.startswith(LAYERS)}
    numbers = {int(name.removeprefix(LAYERS).split(".")[0]) for name in model.state_dict().keys() - own}
    assert numbers == set(RUNS[sharing])
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.high_resolution_sharing == sharing
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(loaded(images).masks_queries_logits, model(images).masks_queries_logits)


@both
def test_weights_of_other_sharing_are_refused(sharing, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    named = ModelArguments(model_name_or_path=str(tmp_path))
    assert build_config(named).high_resolution_sharing == "none"
    named.config_overrides = [f"high_resolution_sharing={sharing}"]
    with pytest.raises(UserError, match=f"high_resolution_sharing={sharing}: .* was trained with 'none'"):
        build_config(named)
    new = ModelArguments(config_name=str(tmp_path), config_overrides=named.config_overrides)
    assert build_config(new).high_resolution_sharing == sharing


@both
def test_an_official_checkpoint_is_not_converted_into_it(sharing):
    """It has weights for each layer; none may be dropped in silence."""
    config = tiny_config(decoder_layers=9)
    with torch.device("meta"):
        shapes = FASegForUniversalSegmentation(config).state_dict()
    official = {}
    for name, source in official_parameter_names(config).items():
        third = any(f".{letter}_proj." in name for letter in "qkv")
        shape = (3 * shapes[name].shape[0], *shapes[name].shape[1:]) if third else shapes[name].shape
        official[source] = torch.empty(shape, device="meta")
    assert convert_state_dict(official, config).keys() == shapes.keys()
    with pytest.raises(ConversionError, match=f"high_resolution_sharing='{sharing}', but each layer of"):
        convert_state_dict(official, tiny_config(decoder_layers=9, high_resolution_sharing=sharing))


@pytest.mark.parametrize("sharing", ["none", *RUNS])
@torch.no_grad()
def test_an_image_without_windows_looks_at_nothing_in_hrca_s_layers(sharing):
    """Beside one that keeps some: the layer's weights must be used as those of windows, whatever else they do."""
    pixel_mask = torch.ones(2, 128, 128)
    pixel_mask[1, 32:] = pixel_mask[1, :, 32:] = 0  # one coarse token, of which one in four is none
    model = sharing_model(sharing, mask_padding=True)
    output = model(torch.randn(2, 3, 128, 128), pixel_mask=pixel_mask, output_focus=True)
    sums = torch.stack([focus_map.flatten(2).sum(-1) for focus_map in output.focus_maps])
    wanted = torch.ones_like(sums)
    wanted[[3, 7], 1] = 0
    torch.testing.assert_close(sums, wanted, atol=1e-4, rtol=0)
