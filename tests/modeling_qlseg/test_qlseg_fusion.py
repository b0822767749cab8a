"""Query fusion, also of numbers of classes that torch.chunk splits into fewer groups than were asked for."""

import pytest
import torch
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch, tiny_qlseg_config

from modeling_faseg.decoder_qlseg import QLSegQueryFusion


# Released, then those of which the reference reads memory that it never wrote: CamVid, VOC.
GROUPS = {150: 10, 171: 10, 59: 10, 60: 10, 19: 10, 11: 6, 12: 6, 21: 7, 2: 2}


@pytest.mark.parametrize("num_labels", GROUPS)
@torch.no_grad()
def test_missing_groups_are_zero(num_labels):
    fusion = QLSegQueryFusion(tiny_qlseg_config(num_labels=num_labels))
    queries = [torch.randn(2, num_labels, 16) - 5 for _ in range(3)]  # below zero, so that zeros would show
    size = -(-num_labels // 10)
    pooled = torch.zeros(2, 16, 30)
    for level, each in enumerate(queries):
        for group, start in enumerate(range(0, num_labels, size)):
            pooled[:, :, 10 * level + group] = each[:, start : start + size].max(dim=1).values
    assert (pooled[0, 0, :10] != 0).sum() == GROUPS[num_labels]
    weights = torch.softmax(pooled @ fusion.weights.weight.T + fusion.weights.bias, dim=-1)
    expected = sum(each * weights[:, None, :, level] for level, each in enumerate(queries))
    torch.testing.assert_close(fusion(queries), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_labels", [12, 21])
@torch.no_grad()
def test_predictions_are_deterministic(num_labels):
    """Memory full of other numbers before each run changes nothing."""
    images = tiny_qlseg_batch()["pixel_values"]
    model = tiny_qlseg(num_labels=num_labels)
    found = []
    for value in (1e6, float("nan"), 0.0):
        waste = [torch.full((2, 16, 10), value) for _ in range(64)]
        del waste
        found.append(model(images).class_queries_logits)
    assert torch.isfinite(found[0]).all() and all(torch.equal(found[0], each) for each in found)
