"""Inference in bfloat16 and float16: few decisions change, and coordinates and thresholds stay float32."""

import pytest
import torch
from tiny_models import tiny_model

from modeling_faseg import deformable_attention


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
@torch.no_grad()
def test_few_decisions_change(dtype, bound):
    """Which half of the pixels a mask prefers: the share that changes, of half precision weights and of autocast."""
    images = torch.randn(4, 3, 128, 128)
    expected = tiny_model()(images).masks_queries_logits.flatten(2)
    threshold = expected.median(-1, keepdim=True).values
    with torch.autocast("cpu", dtype=dtype):
        autocast = tiny_model()(images).masks_queries_logits
    for masks in (tiny_model().to(dtype)(images.to(dtype)).masks_queries_logits, autocast):
        assert masks.dtype == dtype
        changed = ((masks.float().flatten(2) > threshold) != (expected > threshold)).float().mean().item()
        assert 0 < changed < bound


@torch.no_grad()
def test_sampling_coordinates_stay_float32(monkeypatch):
    dtypes = []
    sample_maps = deformable_attention.sample_maps

    def watched(value, shapes, locations, *rest):
        dtypes.append((value.dtype, locations.dtype))
        return sample_maps(value, shapes, locations, *rest)

    monkeypatch.setattr(deformable_attention, "sample_maps", watched)
    tiny_model().bfloat16()(torch.randn(1, 3, 64, 64).bfloat16())
    assert dtypes == [(torch.bfloat16, torch.float32)]
