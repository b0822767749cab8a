"""Small FASeg models and batches for tests."""

from typing import Any

import torch

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation


TINY_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 32, 64, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY_SWIN = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 4, 4],
    "window_size": 4,
    "drop_path_rate": 0.5,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def tiny_config(**overrides: Any) -> FASegConfig:
    """A FASeg of a few thousand parameters; five layers, so that each level and HRCA is read."""
    fields: dict[str, Any] = {
        "backbone_config": dict(TINY_RESNET),
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 32,
        "decoder_layers": 5,
        "dim_feedforward": 32,
        "num_attention_heads": 4,
        "num_queries": 6,
        "high_resolution_reduction": 4,
        "train_num_points": 64,
        "num_labels": 3,
    }
    return FASegConfig(**{**fields, **overrides})


def tiny_model(**overrides: Any) -> FASegForUniversalSegmentation:
    """A tiny model in evaluation mode with the same weights every time."""
    torch.manual_seed(0)
    return FASegForUniversalSegmentation(tiny_config(**overrides)).eval()


def tiny_batch(sizes: tuple[int, int] = (64, 96), targets: tuple[int, ...] = (2, 1)) -> dict[str, Any]:
    """Images of `sizes` with so many random targets each."""
    generator = torch.Generator().manual_seed(1)
    height, width = sizes
    return {
        "pixel_values": torch.randn(len(targets), 3, height, width, generator=generator),
        "mask_labels": [(torch.rand(count, height, width, generator=generator) > 0.5).float() for count in targets],
        "class_labels": [torch.randint(0, 3, (count,), generator=generator) for count in targets],
    }
