"""Batch norms folded into the convolutions before them, for inference, and unfolded again."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone_faseg import PROBE_SIZE, batch_norms, input_channels


TOLERANCE = 1e-3  # of the largest value of a map; wrong folding changes values by their own size

Replaced = tuple[nn.Module, str, nn.Module]  # a module, the name of its child, the child that was there


def fuse_batch_norms(backbone: nn.Module) -> list[Replaced]:
    """Fold each batch norm whose input is a convolution's output into that convolution.

    Which those are is seen in a forward pass of a small image, so that any backbone will do.

    Returns:
        what was replaced, for `restore`.
    Raises:
        ValueError: if the backbone reads a convolution's output in another place too, so that folding changes it.
    """
    reference = next(backbone.parameters())
    size = (1, input_channels(backbone), PROBE_SIZE, PROBE_SIZE)
    probe = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(reference)
    pairs, expected = _pairs(backbone, probe)
    replaced: list[Replaced] = []
    for conv, norm in pairs:
        replaced.append(_replace(backbone, conv, fuse_conv_bn_eval(conv, norm)))
        # timm's norms hold the activation that follows.
        replaced.append(_replace(backbone, norm, getattr(norm, "act", None) or nn.Identity()))
    with torch.no_grad():
        found = _maps(backbone, probe)
    for ours, theirs in zip(found, expected):
        if (ours - theirs).abs().max() > TOLERANCE * theirs.abs().max() and ours.dtype == torch.float32:
            restore(replaced)
            raise ValueError(f"the batch norms of {type(backbone).__name__} cannot be folded: use it as it is")
    return replaced


def restore(replaced: list[Replaced]) -> None:
    """Put everything back that was replaced, on the device and in the dtype of what stands there now."""
    for parent, name, child in reversed(replaced):
        weight = getattr(getattr(parent, name), "weight", None)
        if weight is None:
            weight = next(parent.parameters(), None)
        setattr(parent, name, child if weight is None else child.to(weight.device, weight.dtype))


def _pairs(backbone: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], list[Tensor]]:
    """Convolutions with the batch norms that read them, each used once, and the backbone's maps."""
    outputs: list[tuple[Tensor, nn.Module]] = []
    found: list[tuple[Any, Any]] = []
    calls: list[nn.Module] = []

    def after_convolution(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs.append((output, module))
        calls.append(module)

    def before_norm(module: nn.Module, args: tuple) -> None:
        calls.append(module)
        found.extend((conv, module) for output, conv in outputs if output is args[0])

    hooks = [each.register_forward_pre_hook(before_norm) for each in batch_norms(backbone)]
    hooks += [
        each.register_forward_hook(after_convolution) for each in backbone.modules() if isinstance(each, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            maps = _maps(backbone, probe)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(calls.count(module) == 1 for module in pair)], maps


def _maps(backbone: Any, probe: Tensor) -> list[Tensor]:
    return list(backbone(probe).feature_maps)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> Replaced:
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new.train(old.training))
                return parent, name, old
    raise ValueError(f"{type(old).__name__} is no part of {type(root).__name__}")
