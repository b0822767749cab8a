"""Small QLSeg models and batches for tests."""

from typing import Any

import torch
from tiny_models import tiny_batch

from configuration import QLSegConfig
from modeling_faseg import QLSegForSemanticSegmentation


def tiny_qlseg_config(**overrides: Any) -> QLSegConfig:
    """A QLSeg of some ten thousand parameters: windows of 64 every 40 pixels, three levels, two stages."""
    fields: dict[str, Any] = {
        "image_size": 64,
        "window_stride": 40,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "out_indices": [0, 1, 2],
        "mlp_ratio": 2,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_feedforward_dim": 32,
        "hidden_dim": 16,
        "decoder_attention_heads": 2,
        "decoder_stages": 2,
        "decoder_layers": 2,
        "num_labels": 3,
    }
    return QLSegConfig(**{**fields, **overrides})


def tiny_qlseg(**overrides: Any) -> QLSegForSemanticSegmentation:
    """A tiny model in evaluation mode with the same weights every time, wide enough apart that places differ."""
    torch.manual_seed(0)
    return QLSegForSemanticSegmentation(tiny_qlseg_config(init_std=0.2, **overrides)).eval()


def tiny_qlseg_batch(sizes: tuple[int, int] = (64, 64), targets: tuple[int, ...] = (2, 1)) -> dict[str, Any]:
    """Images of `sizes` that show the first so many classes each, in random masks."""
    batch = tiny_batch(sizes, targets)
    return {**batch, "class_labels": [torch.arange(count) for count in targets]}
