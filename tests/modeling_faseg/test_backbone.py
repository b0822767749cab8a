"""Backbones: strides, Swin as the reference has it, frozen batch norms, timm."""

import pytest
import torch
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch, tiny_config, tiny_model
from torch import nn

from modeling_faseg import FASegForUniversalSegmentation, backbone_faseg
from modeling_faseg.backbone_faseg import FASegFrozenBatchNorm2d, batch_norms, probe


DYNAMIC = {"dynamic_img_size": True}
TIMM = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}


@pytest.mark.parametrize("backbone", [TINY_RESNET, TINY_SWIN, TIMM], ids=lambda config: config["model_type"])
def test_pyramid_backbones_train(backbone):
    model = tiny_model(backbone_config=dict(backbone)).train()
    model(**tiny_batch()).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # 64x96 has six coarse tokens, enough for one HRCA window at a reduction of four
    assert not unused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone_config": {"model_type": "bert"}}, "'bert' is no backbone: choose"),
        (
            {"backbone_config": {**TIMM, "out_indices": [1, 2, 3, 9]}},
            r"cannot be built .*set its out_indices=\[1, 2, 3, 4",
        ),
        ({"backbone_config": {**TIMM, "backbone": "nonet"}}, r"cannot be built \(Unknown model \(nonet\)\): choose"),
        (
            {"backbone_config": TIMM, "timm_backbone_kwargs": {"a": 1}},
            "timm_backbone_kwargs={'a': 1}.* cannot be built .*: set timm_backbone_kwargs=None",
        ),
        (
            {"backbone_config": {**TIMM, "backbone": "legacy_xception"}},  # whose first convolution does not pad
            r"strides \(\(4.04, 4.02\), 8, 16, 32\), need \(4, 8, 16, 32\): choose a pyramid",
        ),
        (
            {"backbone_config": {"model_type": "dinov3_vit", "reshape_hidden_states": False}},
            r"gives maps of shape \(1, .*: set its reshape_hidden_states=True, for maps",
        ),
        ({"backbone_config": TINY_SWIN, "freeze_backbone_batch_norm": True}, "has no batch norm: set it to False"),
    ],
)
def test_backbones_that_cannot_be_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        FASegForUniversalSegmentation(tiny_config(**overrides))


def test_equal_backbones_are_probed_once(monkeypatch):
    probed = []
    monkeypatch.setattr(backbone_faseg, "_FOUND", {})
    monkeypatch.setattr(backbone_faseg, "probe", lambda *given, **named: probed.append(1) or probe(*given, **named))
    first, second = (tiny_model(backbone_config=dict(TINY_RESNET)).model.backbone for _ in range(2))
    assert len(probed) == 1 and first.maps_as_built == second.maps_as_built
    first.unread_parameters.append("of this model alone")
    assert tiny_model(backbone_config=dict(TINY_RESNET)).model.backbone.unread_parameters == []
    tiny_model(backbone_config={**TINY_RESNET, "hidden_sizes": [8, 16, 24, 40]})
    assert len(probed) == 2
    vit = {**TIMM, "backbone": "vit_tiny_patch16_224", "out_indices": [11]}
    frees = {
        "backbone_config": vit,
        "simple_feature_pyramid": True,
        "timm_backbone_kwargs": DYNAMIC,
    }
    assert tiny_model(**frees).model.backbone.maps_as_built.strides == (16,)
    with pytest.raises(ValueError, match=rf"set timm_backbone_kwargs={DYNAMIC}"):
        tiny_model(**{**frees, "timm_backbone_kwargs": None})


def test_what_is_unread_does_not_depend_on_modes_of_the_caller(monkeypatch):
    monkeypatch.setattr(backbone_faseg, "_FOUND", {})
    with torch.inference_mode():
        tiny_model(backbone_config=dict(TINY_RESNET))
    model = tiny_model(backbone_config=dict(TINY_RESNET))
    assert model.model.backbone.unread_parameters == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_swin_has_no_unread_final_norm():
    model = tiny_model(backbone_config=dict(TINY_SWIN))
    assert not [name for name, _ in model.named_parameters() if name.startswith("model.backbone.swin.layernorm")]


def test_swin_drops_both_branches():
    """With every path of a block dropped, the block returns its input; transformers' own keeps the feed-forward."""
    model = tiny_model(backbone_config=dict(TINY_SWIN)).train()
    block = model.model.backbone.swin.encoder.layers[3].blocks[1]
    assert block.drop_path.drop_prob == pytest.approx(0.5)
    block.drop_path.drop_prob = 1 - 1e-7
    tokens = torch.randn(3, 16, 128)
    output = block(tokens, (4, 4), always_partition=True)
    assert output[0].equal(tokens)
    block.eval()
    assert not block(tokens, (4, 4), always_partition=True)[0].equal(tokens)


def test_swin_drop_path_survives_deepcopy():
    import copy

    model = copy.deepcopy(tiny_model(backbone_config=dict(TINY_SWIN)))
    block = model.model.backbone.swin.encoder.layers[3].blocks[1]
    feed_forward = block.mlp if hasattr(block, "mlp") else block.output
    assert feed_forward.drop_path is block.drop_path


def test_frozen_batch_norms_keep_weights_and_statistics():
    model = tiny_model(freeze_backbone_batch_norm=True).train()
    norms = batch_norms(model.model.backbone)
    before = [norm.running_mean.clone() for norm in norms]
    model(**tiny_batch()).loss.backward()
    assert norms and all(norm.running_mean.equal(mean) for norm, mean in zip(norms, before))
    assert all(parameter.grad is None for norm in norms for parameter in norm.parameters())


def test_frozen_batch_norms_keep_no_input():
    """The same values and gradients as torch's in evaluation mode, with nothing of the input held for the backward."""
    norm = nn.BatchNorm2d(4).eval().requires_grad_(False)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.copy_(torch.rand(4) + 0.5)
    outputs, gradients, kept = [], [], []
    for norm_class in (nn.BatchNorm2d, FASegFrozenBatchNorm2d):
        norm.__class__ = norm_class
        features = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            output = norm(features)
        output.sin().sum().backward()
        outputs.append(output)
        gradients.append(features.grad)
        kept.append(max(sizes))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    assert kept == [2 * 4 * 5 * 6, 4]
    assert norm(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16
    frozen = tiny_model(freeze_backbone_batch_norm=True)
    assert all(type(each) is FASegFrozenBatchNorm2d for each in batch_norms(frozen.model.backbone))


def test_trained_batch_norms_learn():
    model = tiny_model().train()
    norm = batch_norms(model.model.backbone)[0]
    before = norm.running_mean.clone()
    model(**tiny_batch()).loss.backward()
    assert not norm.running_mean.equal(before)
    assert norm.weight.grad is not None


def test_timm_backbone_kwargs_survive_saving(tmp_path):
    mobilenet = {"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]}
    model = tiny_model(backbone_config=mobilenet, timm_backbone_kwargs={"pad_type": "same"})
    paddings = {type(module).__name__ for module in model.model.backbone.modules()}
    assert "Conv2dSame" in paddings
    model.save_pretrained(tmp_path)
    loaded = FASegForUniversalSegmentation.from_pretrained(tmp_path)
    images = tiny_batch()["pixel_values"]
    assert loaded(images).masks_queries_logits.equal(model(images).masks_queries_logits)
