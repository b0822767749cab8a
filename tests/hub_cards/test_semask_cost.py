"""Multiply-adds of the released SeMask-FPN architectures against those counted on the reference."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from transformers import AutoConfig

from modeling_faseg import SeMaskForSemanticSegmentation


class Logits(torch.nn.Module):
    """A tensor out, for the tracer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_id", "side", "reference"),
    [
        ("semask-fpn-tiny-ade20k", 512, 41.5),
        ("semask-fpn-small-ade20k", 512, 65.3),
        ("semask-fpn-base-ade20k", 512, 114.3),
        ("semask-fpn-large-ade20k", 640, 373.0),
        ("semask-fpn-tiny-cityscapes", 768, 85.8),
        ("semask-fpn-large-cityscapes", 768, 472.1),
    ],
)
@torch.no_grad()
def test_multiply_adds(model_id, side, reference):
    config = AutoConfig.from_pretrained(f"hub_cards/{model_id}", attn_implementation="eager")
    model = SeMaskForSemanticSegmentation(config).eval()
    model.set_attn_implementation("eager")
    counter = FlopCountAnalysis(Logits(model), torch.zeros(1, 3, side, side))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counter.total() / 1e9 == pytest.approx(reference, rel=0.01)
