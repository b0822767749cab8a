"""What holds for all three models, and for FASeg's backbones: the meta device, inputs, switches."""

import pytest
import torch
from accelerate import init_empty_weights
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_model
from tiny_qlseg import tiny_qlseg
from tiny_semask import TINY_BACKBONE, tiny_faseg
from tiny_semask import tiny_model as tiny_semask


TIMM = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
MODELS = {
    "resnet": lambda **backbone: tiny_model(backbone_config={**TINY_RESNET, **backbone}),
    "swin": lambda **backbone: tiny_model(backbone_config={**TINY_SWIN, **backbone}),
    "timm": lambda **backbone: tiny_model(backbone_config={**TIMM, **backbone}),
    "faseg on semask": lambda **backbone: tiny_faseg(backbone_config={**TINY_BACKBONE, **backbone}),
    "semask": lambda **backbone: tiny_semask(backbone_config={**TINY_BACKBONE, **backbone}),
    "semask backbone": lambda **backbone: tiny_semask(backbone_config={**TINY_BACKBONE, **backbone}).backbone,
    "qlseg": tiny_qlseg,
}


def outputs_of(model):
    """Tensors that a picture leads to."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.eval()(image)
    values = outputs if isinstance(outputs, tuple) else outputs.to_tuple()
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("kind", MODELS)
def test_a_state_dict_makes_an_empty_model_whole(kind):
    """Buffers that no state dict holds too; torch's `to_empty` leaves there what the memory held."""
    model = MODELS[kind]()
    empty = type(model)(model.config).to("meta").to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(77)
    for parameter in empty.parameters():
        parameter.data.fill_(float("nan"))
    empty.load_state_dict(model.state_dict())
    assert all(one.equal(other) for one, other in zip(outputs_of(empty), outputs_of(model), strict=True))
    assert all(value.equal(dict(model.named_buffers())[name]) for name, value in empty.named_buffers())


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_built_without_weights(kind):
    """As accelerate does to estimate memory, with buffers on the CPU; nothing is computed."""
    with init_empty_weights():
        model = MODELS[kind]()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "semask backbone"])
def test_weights_may_lie_on_the_disk(kind, tmp_path):
    """`device_map` brings them to where they are used around calls of modules, and what reads them otherwise fails."""
    model = MODELS[kind]()
    model.save_pretrained(tmp_path / "model")
    device_map, elsewhere = {"": "disk"}, tmp_path / "weights"
    offloaded = type(model).from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=elsewhere)
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    for one, other in zip(outputs_of(offloaded), outputs_of(model), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "semask backbone"])
def test_tuples_are_returned_if_the_configuration_says_so(kind):
    """Whether it is the model's that says so or its backbone's, whose maps the model itself reads by name."""
    model = MODELS[kind]()
    expected = outputs_of(model)
    model.config.return_dict = False
    assert type(model(torch.randn(1, 3, 64, 64))) is tuple
    assert all(one.equal(other) for one, other in zip(outputs_of(model), expected, strict=True))
    if kind != "qlseg":
        again = MODELS[kind](return_dict=False)
        again.load_state_dict(model.state_dict())
        assert all(one.equal(other) for one, other in zip(outputs_of(again), expected, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "semask backbone"])
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (3, 64, 64)], ids=str)
def test_images_of_other_channels_are_named(kind, shape):
    with pytest.raises(ValueError, match=r"pixel_values are of shape \(.*\), need \(B, 3, H, W\)"):
        MODELS[kind]()(torch.randn(shape))
