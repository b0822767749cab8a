"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_of(model: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """Copy of `model` that `update_parameters` moves towards it: `average = decay * average + (1 - decay) * model`.

    Floating-point buffers (the statistics of batch norms) are averaged too; index tables and counters are copied,
    since torch's average would round them down.
    """
    average_floats = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            average_floats(averaged, current, num_averaged)
        else:
            for kept, value in zip(averaged, current, strict=True):
                kept.copy_(value)

    result = AveragedModel(model, device=device, multi_avg_fn=average, use_buffers=True)
    return result.requires_grad_(False)
