"""Models of other bands than RGB, and pretrained weights of RGB brought to them."""

import pytest
import torch
from backbone_cases import TIMM, backbone_of
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from tiny_models import tiny_config

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.models.arguments import ModelArguments
from scripts.models.backbone_weights import load_backbone_weights
from scripts.models.input_channels import adapt_first_convolution, num_channels, set_num_channels
from scripts.models.loading import build_config, build_model
from scripts.training.arguments import TrainArguments


def built(recipe, bands, **fields):
    arguments = parse_arguments(TrainArguments, [str(recipe)])
    for name, value in fields.items():
        setattr(arguments, name, value)
    config = build_config(arguments, {0: "a", 1: "b"})
    set_num_channels(config, bands)
    return build_model(arguments, config)


def first_convolution(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight.detach()


@pytest.mark.parametrize("bands", [1, 5])
def test_a_model_of_other_bands_runs(bands, tiny_recipe):
    model = built(tiny_recipe, bands).eval()
    assert num_channels(model.config) == bands
    with torch.no_grad():
        assert model(torch.rand(1, bands, 64, 64)).masks_queries_logits.shape[-1] == 16
    with pytest.raises(ValueError, match=f"num_channels is {bands}"):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("bands", [1, 4, 5])
def test_backbone_weights_of_rgb_are_adapted(bands, tiny_recipe, tmp_path):
    colours, model = built(tiny_recipe, 3), built(tiny_recipe, bands)
    save_file(colours.model.backbone.state_dict(), tmp_path / "b.safetensors")
    line = load_backbone_weights(model, str(tmp_path / "b.safetensors"))
    assert f"adapted from 3 to {bands} bands" in line
    assert torch.equal(first_convolution(model), adapt_input_conv(bands, first_convolution(colours)))


def test_backbone_weights_of_other_bands_than_rgb_are_not(tiny_recipe, tmp_path):
    save_file(built(tiny_recipe, 4).model.backbone.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"has shape \(8, 4, 7, 7\), need \(8, 5, 7, 7\)"):
        load_backbone_weights(built(tiny_recipe, 5), str(tmp_path / "b.safetensors"))


def test_a_checkpoint_of_rgb_is_adapted(tiny_recipe, model_folder, capsys):
    colours = built(tiny_recipe, None, model_name_or_path=str(model_folder))
    model = built(tiny_recipe, 5, model_name_or_path=str(model_folder))
    assert "adapted from 3 to 5 bands" in capsys.readouterr().out
    assert torch.equal(first_convolution(model), adapt_input_conv(5, first_convolution(colours)))


def test_every_branch_that_reads_the_image_is_adapted():
    convolution = torch.nn.Conv2d
    model, colours = (torch.nn.ModuleDict({"a": convolution(n, 8, 3), "b": convolution(n, 8, 1)}) for n in (4, 3))
    model.config = tiny_config(backbone_config={**backbone_of("resnet"), "num_channels": 4})
    ours, theirs = model.state_dict(), colours.state_dict()
    shapes = {key: (value.shape, ours[key].shape) for key, value in theirs.items() if value.ndim == 4}
    assert adapt_first_convolution(model, shapes, lambda: theirs) == {"a.weight", "b.weight"}
    assert all(torch.equal(ours[key], adapt_input_conv(4, theirs[key])) for key in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["fastvit_t8", "repvgg_a0"])
def test_a_checkpoint_whose_network_begins_in_branches_is_adapted(network, tmp_path, capsys):
    """Several convolutions read the image side by side."""
    out_indices, kwargs = TIMM[network]
    backbone = {"model_type": "timm_backbone", "backbone": network, "out_indices": out_indices}
    colours = FASegForUniversalSegmentation(tiny_config(backbone_config=backbone, timm_backbone_kwargs=kwargs or None))
    colours.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    config = build_config(arguments)
    set_num_channels(config, 4)
    model = build_model(arguments, config)
    theirs = colours.state_dict()
    stem = {key: value for key, value in model.state_dict().items() if value.ndim == 4 and value.shape[1] == 4}
    stem = {key: value for key, value in stem.items() if theirs[key].shape[1] == 3}
    assert len(stem) > 1 and capsys.readouterr().out.count("adapted from 3 to 4 bands") == len(stem)
    assert all(torch.equal(value, adapt_input_conv(4, theirs[key])) for key, value in stem.items())
