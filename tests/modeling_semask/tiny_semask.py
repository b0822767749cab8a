"""Small SeMask models and batches for tests."""

from typing import Any

import torch
from tiny_models import tiny_config as tiny_faseg_config

from configuration import SeMaskConfig
from modeling_faseg import FASegForUniversalSegmentation, SeMaskForSemanticSegmentation


TINY_BACKBONE = {
    "model_type": "semask_swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "semantic_window_size": 3,
    "global_semantic_stages": [3],
    "drop_path_rate": 0.2,
}


def tiny_config(**overrides: Any) -> SeMaskConfig:
    """A SeMask-FPN of a few thousand parameters, with shifted windows, semantic windows and a global stage."""
    fields = {"backbone_config": dict(TINY_BACKBONE), "decoder_hidden_size": 16, "num_labels": 3}
    return SeMaskConfig(**{**fields, **overrides})


def tiny_model(**overrides: Any) -> SeMaskForSemanticSegmentation:
    """A tiny model in evaluation mode with the same weights every time, and a semantic attention that counts."""
    torch.manual_seed(0)
    return enlivened(SeMaskForSemanticSegmentation(tiny_config(**overrides))).eval()


def tiny_faseg(**overrides: Any) -> FASegForUniversalSegmentation:
    """A tiny FASeg on the tiny backbone, in evaluation mode."""
    torch.manual_seed(0)
    config = tiny_faseg_config(**{"backbone_config": dict(TINY_BACKBONE), **overrides})
    return enlivened(FASegForUniversalSegmentation(config)).eval()


def enlivened(model: Any) -> Any:
    """The model with every `gamma` away from its initial 0, so that tests see the semantic attention."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(0.5)
    return model


def tiny_batch(size: tuple[int, int] = (50, 71), batch: int = 2) -> dict[str, torch.Tensor]:
    """Images, and labels in blocks with some ignored pixels."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    blocks = torch.randint(0, 3, (batch, -(-height // 8), -(-width // 8)), generator=generator)
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].clone()
    labels[:, :5] = 255
    return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator), "labels": labels}
