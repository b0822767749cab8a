"""The model as training asks for it: frozen parts, norms over all processes, activations recomputed."""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from scripts.cli.errors import UserError, errors_explained
from scripts.training.arguments import TrainArguments


def prepare_network(model: Any, arguments: TrainArguments, accelerator: Accelerator) -> Any:
    """`model` with what the flags ask of it, before accelerate wraps it.

    Raises:
        UserError: a model that cannot do it.
    """
    if arguments.freeze_backbone:
        check_trained(model, arguments, accelerator)
        model.base_model.backbone.requires_grad_(False)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        synchronise_batch_norms(model)
    if arguments.gradient_checkpointing:
        with errors_explained("--gradient_checkpointing", ValueError):
            model.gradient_checkpointing_enable()
    return model


def synchronise_batch_norms(model: Any) -> None:
    """Lets batch norms that are trained take their statistics over all processes.

    By timm's conversion: torch's own loses the activations that timm puts into its norms.
    """
    from timm.layers import convert_sync_batchnorm

    for name, module in [*model.named_modules()]:
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and (not own or any(value.requires_grad for value in own)):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, convert_sync_batchnorm(module))


def check_trained(model: Any, arguments: TrainArguments, accelerator: Accelerator) -> None:
    """Warns of a backbone that would be frozen as it was drawn, and refuses one of which a part would.

    Raises:
        UserError: the semantic layers of a SeMask backbone, which pretrained weights of Swin do not hold.
    """
    if arguments.model_name_or_path or arguments.warm_start or arguments.resume_from_checkpoint:
        return
    if not arguments.backbone_weights:
        text = "warning: --freeze_backbone: the backbone has random weights and keeps them: give --backbone_weights"
        accelerator.print(text, file=sys.stderr)
    elif any(".semantic_layer." in name for name, _ in model.base_model.backbone.named_parameters()):
        raise UserError(
            "--freeze_backbone: the semantic layers of the SeMask backbone are new and would stay random: leave it "
            "out, or start from a trained model by --model_name_or_path"
        )
