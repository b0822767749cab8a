"""Multiply-adds of the released architectures against those counted on the reference.

The reference's count takes in semantic inference (it depends on the number of classes as that does) and leaves out
what its code does by elementwise products. So two counts bracket it: our forward as users run it lies below, and with
every layer's prediction computed, as in training, it comes within three per cent.
"""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from transformers import AutoConfig

from modeling_faseg import FASegForUniversalSegmentation


class Logits(torch.nn.Module):
    """Tensors out, for the tracer."""

    def __init__(self, model, all_predictions):
        super().__init__()
        self.model = model
        self.all_predictions = all_predictions

    def forward(self, pixel_values):
        output = self.model(pixel_values, output_auxiliary_logits=self.all_predictions)
        earlier = [logits for prediction in output.auxiliary_logits or [] for logits in prediction.values()]
        return output.class_queries_logits, output.masks_queries_logits, *earlier


def giga_multiply_adds(model, size, all_predictions):
    count = FlopCountAnalysis(Logits(model, all_predictions), torch.zeros(1, 3, *size))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return count.total() / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_id", "size", "reference"),
    [
        ("faseg-resnet50-ade20k", (512, 512), 73.4),
        ("faseg-swin-tiny-ade20k", (512, 512), 75.6),
        ("faseg-swin-base-ade20k-640", (640, 640), 226.2),
        ("faseg-swin-large-ade20k-640", (640, 640), 405.9),
        ("faseg-resnet50-cityscapes", (1024, 2048), 542.4),
    ],
)
@torch.no_grad()
def test_multiply_adds(model_id, size, reference):
    config = AutoConfig.from_pretrained(f"hub_cards/{model_id}", attn_implementation="eager")
    model = FASegForUniversalSegmentation(config).eval()
    assert giga_multiply_adds(model, size, all_predictions=False) < reference
    assert giga_multiply_adds(model, size, all_predictions=True) == pytest.approx(reference, rel=0.03)
