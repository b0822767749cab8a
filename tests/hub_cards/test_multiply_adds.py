"""Multiply-adds of the released SeMask and QLSeg architectures against those counted on the reference.

Counted on the meta device, where nothing is computed. QLSeg's figures take in its semantic inference, as FASeg's do.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

import modeling_faseg  # noqa: F401  (registers the classes)
from scripts.convert_checkpoint import HUB_CARDS


# model -> (side of the image, thousand millions)
SEMASK = {
    "semask-fpn-tiny-ade20k": (512, 41.5),
    "semask-fpn-small-ade20k": (512, 65.3),
    "semask-fpn-base-ade20k": (512, 114.3),
    "semask-fpn-large-ade20k": (640, 373.0),
    "semask-fpn-tiny-cityscapes": (768, 85.8),
    "semask-fpn-large-cityscapes": (768, 472.1),
}
QLSEG = {
    "qlseg-vit-base-ade20k": (512, 190.5),
    "qlseg-vit-large-ade20k-640": (640, 801.1),
    "qlseg-vit-large-coco-stuff10k": (512, 494.0),
    "qlseg-vit-large-pascal-context59": (480, 410.2),
}
FAST = ("semask-fpn-tiny-ade20k", "qlseg-vit-base-ade20k")


@pytest.mark.parametrize(
    "model_id", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SEMASK | QLSEG]
)
def test_multiply_adds(model_id, monkeypatch):
    side, reference = (SEMASK | QLSEG)[model_id]
    config = AutoConfig.from_pretrained(HUB_CARDS / model_id)
    auto_class = AutoModelForSemanticSegmentation if model_id in SEMASK else AutoModelForUniversalSegmentation
    with torch.device("meta"):
        model = auto_class.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())  # the meta device has none
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side, device="meta"))
    multiply_adds = counter.get_total_flops() / 2
    assert multiply_adds / 1e9 == pytest.approx(reference, rel=0.004)
