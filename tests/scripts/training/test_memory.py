"""The estimate of memory: what it must not leave behind."""

import pytest
import torch
from accelerate import Accelerator
from backbone_cases import backbone_of
from torch._subclasses.fake_tensor import FakeTensor
from transformers import CONFIG_MAPPING, AutoBackbone

from scripts.training.memory import activation_bytes


@pytest.mark.parametrize("kind", ["beit", "dinov3_vit"])
def test_the_estimate_leaves_no_fake_tensors_in_the_caches_of_transformers(kind):
    """Position tables of a size are cached there; fake ones would make every later forward of that size fake."""
    fields = {**backbone_of(kind), "use_relative_position_bias": True}
    backbone = AutoBackbone.from_config(CONFIG_MAPPING[fields.pop("model_type")](**fields)).train()
    assert activation_bytes(backbone, 2, 64, 96, Accelerator(cpu=True)) > 0
    maps = backbone(torch.zeros(2, 3, 64, 96)).feature_maps
    assert not any(isinstance(each, FakeTensor) for each in maps)
