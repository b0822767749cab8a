"""The model as training asks for it."""

import pytest
import torch
from tiny_models import TINY_RESNET, tiny_model
from torch import nn

from scripts.training.network import synchronise_batch_norms


TIMM = {"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]}


@pytest.mark.parametrize(("backbone", "kwargs"), [(TINY_RESNET, None), (TIMM, {"pad_type": "same"})])
def test_norms_over_all_processes_compute_the_same(backbone, kwargs):
    """timm's norms hold activations, which torch's own conversion loses."""
    model = tiny_model(backbone_config=dict(backbone), timm_backbone_kwargs=kwargs).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixel_values=pixels).masks_queries_logits
        names = [*model.state_dict()]
        synchronise_batch_norms(model)
        assert model.eval()(pixel_values=pixels).masks_queries_logits.equal(expected)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert [*model.state_dict()] == names


def test_frozen_norms_stay_as_they_are():
    model = tiny_model(backbone_config=dict(TINY_RESNET))
    model.model.backbone.requires_grad_(False)
    synchronise_batch_norms(model)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
