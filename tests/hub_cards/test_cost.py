"""Multiply-adds of the released architectures against those counted on the reference.

The table's count takes in semantic inference (it grows with the number of classes as that does) and, by solving its
rows for the rest, none of the transformer decoder's attention products (DFPQ is elementwise there). So ours is put on
its terms before the two are compared; what users run is counted as it is.
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


def count(model, size, all_predictions):
    counter = FlopCountAnalysis(Logits(model, all_predictions), torch.zeros(1, 3, *size))
    return counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def on_the_terms_of_the_table(model, size):
    """All but the decoder's matrix products, of which only the masks of all predictions; and semantic inference."""
    config, counter = model.config, count(model, size, all_predictions=True)
    products = counter.by_module_and_operator()["model.model.transformer_decoder"]["matmul"]
    pixels = size[0] * size[1]
    masks = (config.decoder_layers + 1) * config.num_queries * config.mask_feature_size * pixels // 16
    semantic_inference = config.num_queries * config.num_labels * pixels
    return counter.total() - products + masks + semantic_inference


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
    assert count(model, size, all_predictions=False).total() < 1e9 * reference
    assert on_the_terms_of_the_table(model, size) / 1e9 == pytest.approx(reference, rel=0.01)
