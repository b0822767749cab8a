"""`fuse_for_inference`: the same predictions without batch norms, and back."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch, tiny_model
from torch import nn

from modeling_faseg.backbone_faseg import batch_norms
from modeling_faseg.fusion_faseg import fuse_batch_norms


TIMM = {"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]}


def model_with_statistics(backbone):
    """A model whose batch norms do something: random statistics and weights."""
    model = tiny_model(backbone_config=dict(backbone))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for norm in batch_norms(model.model.backbone):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    return model


@pytest.mark.parametrize("backbone", [TINY_RESNET, TIMM], ids=lambda config: config["model_type"])
@torch.no_grad()
def test_fused_predictions_are_the_same(backbone):
    images = tiny_batch()["pixel_values"]
    model = model_with_statistics(backbone)
    expected, weights = model(images), {name: value.clone() for name, value in model.state_dict().items()}
    assert model.fuse_for_inference() is model and model.is_fused
    assert not batch_norms(model.model.backbone)
    fused = model(images)
    for ours, theirs in zip(model.model.backbone(images).feature_maps, model.unfuse().model.backbone(images)[0]):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused.masks_queries_logits, expected.masks_queries_logits, atol=3e-4, rtol=1e-3)
    assert not model.is_fused and model.state_dict().keys() == weights.keys()
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    assert model(images).masks_queries_logits.equal(expected.masks_queries_logits)


@torch.no_grad()
def test_images_of_any_number_of_channels():
    model = model_with_statistics({**TINY_RESNET, "num_channels": 4})
    images = torch.randn(1, 4, 64, 64)
    expected = model.model.backbone(images).feature_maps
    assert model.fuse_for_inference().is_fused
    for ours, theirs in zip(model.model.backbone(images).feature_maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_fused_models_neither_train_nor_are_saved(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"in training mode.*call eval"):
        model.train().fuse_for_inference()
    model.eval().fuse_for_inference().fuse_for_inference()
    with pytest.raises(ValueError, match=r"call unfuse\(\) before train"):
        model.train()
    with pytest.raises(ValueError, match=r"call unfuse\(\) before train"):
        model.model.train()
    with pytest.raises(ValueError, match=r"call unfuse\(\) before save_pretrained"):
        model.save_pretrained(tmp_path)
    model.unfuse().unfuse().train()
    assert batch_norms(model.model.backbone)


def test_backbones_without_batch_norms_stay_as_they_are():
    model = tiny_model(backbone_config=dict(TINY_SWIN))
    assert not model.fuse_for_inference().is_fused


@torch.no_grad()
def test_fused_models_can_be_copied_and_converted():
    images = tiny_batch()["pixel_values"]
    model = tiny_model().fuse_for_inference()
    twin = copy.deepcopy(model).to(torch.bfloat16)
    assert twin.unfuse().model.backbone(images.bfloat16()).feature_maps[0].dtype == torch.bfloat16
    assert model.is_fused and not twin.is_fused


def test_a_convolution_that_is_read_twice_is_not_folded():
    class Output:
        def __init__(self, *maps):
            self.feature_maps = maps

    class ReadTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(num_channels=3)
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.norm.running_mean.fill_(2.0)

        def forward(self, image):
            features = self.conv(image)
            return Output(self.norm(features), features)

    backbone = ReadTwice().eval()
    with pytest.raises(ValueError, match="batch norms of ReadTwice cannot be folded"):
        fuse_batch_norms(backbone)
    assert isinstance(backbone.norm, nn.BatchNorm2d) and backbone.conv(torch.ones(1, 3, 1, 1)).shape == (1, 4, 1, 1)
