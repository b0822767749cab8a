"""AdamW groups, learning-rate schedules, and an exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_scheduler

from scripts.cli.errors import errors_explained
from scripts.models.families import family_of
from scripts.training.layer_decay import decayed_rates


NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed", "position_embeddings")
# Of timm's and ViTDet's transformers. QLSeg's reference decays its `pos_embed`.
TABLES_OF_VITS = ("pos_embed", "rel_pos_h", "rel_pos_w")


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm of torch, or one of a library's own by its name and the shape of its weights."""
    if isinstance(module, NORM_LAYERS):
        return True
    own = list(module.parameters(recurse=False))
    return "Norm" in type(module).__name__ and all(value.ndim == 1 for value in own)


def build_parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    backbone_lr_multiplier: float = 0.1,
    backbone_layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters in the reference's four groups: backbone or not, decayed or not.

    Norms, `nn.Embedding`s (queries and level embedding of the transformer decoder) and position tables do not decay;
    biases and the pixel decoder's level embedding, a bare parameter, do. Frozen parameters are left out.
    Of a family whose `whole_head_decays` the head's norms decay too.

    Args:
        backbone_layer_decay: what the rate of each of the backbone's layers is multiplied by to give that of the layer
            before; the last one has the backbone's rate. Unless it is 1, each layer is a part of its own:
            `backbone_stem`, `backbone_layer_1`, ...
    Returns:
        Groups for `torch.optim.AdamW` with `params`, `lr`, `weight_decay`, `name` and `parameter_names`; empty ones
        are left out.
    Raises:
        ValueError: layers are asked for of a backbone that has none, see `layers_of`.
    """
    rates = {"backbone": learning_rate * backbone_lr_multiplier}
    layer_of: dict[int, str] = {}  # by a parameter's id
    if backbone_layer_decay != 1:
        backbone = cast(Any, model).base_model.backbone
        rates, layer_of = decayed_rates(backbone, rates["backbone"], backbone_layer_decay)
    groups: dict[str, dict[str, Any]] = {}
    for part, rate in {**rates, "head": learning_rate}.items():
        for suffix, decay in (("", weight_decay), ("_no_decay", 0.0)):
            name = part + suffix
            groups[name] = {"name": name, "params": [], "parameter_names": [], "lr": rate, "weight_decay": decay}
    whole_head_decays = family_of(getattr(model, "config", None)).whole_head_decays
    tables = POSITION_TABLES if whole_head_decays else POSITION_TABLES + TABLES_OF_VITS
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full_name = f"{module_name}.{parameter_name}" if module_name else parameter_name
            part = layer_of.get(id(parameter), "backbone") if "backbone" in full_name.split(".") else "head"
            spared = is_norm(module) or isinstance(module, nn.Embedding) or parameter_name in tables
            if whole_head_decays:
                spared = spared and part != "head"
            group = groups[part + ("_no_decay" if spared else "")]
            group["params"].append(parameter)
            group["parameter_names"].append(full_name)
    return [group for group in groups.values() if group["params"]]


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str,
    max_train_steps: int,
    num_warmup_steps: int = 0,
    power: float = 0.9,
    milestones: Sequence[int] = (),
) -> Any:
    """Learning-rate schedule, stepped once per optimiser step.

    `poly` is the reference's `lr * (1 - step / max_train_steps) ** power`, after a linear warm-up if there is one;
    `multistep` is Mask2Former's for COCO, a tenth of the rate after each of `milestones`; other names are those of
    `transformers.get_scheduler`.

    Raises:
        UserError: a schedule that needs more settings than these.
    """
    if name not in ("poly", "multistep"):
        with errors_explained(f"--lr_scheduler_type {name}", TypeError, ValueError):
            return get_scheduler(name, optimizer, num_warmup_steps, max_train_steps)

    def factor(step: int) -> float:
        warm_up = min(1.0, (step + 1) / (num_warmup_steps + 1))
        if name == "multistep":
            return warm_up * 0.1 ** sum(step >= milestone for milestone in milestones)
        return warm_up * max(0.0, 1.0 - step / max_train_steps) ** power

    return LambdaLR(optimizer, factor)


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
