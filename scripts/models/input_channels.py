"""How many bands a model reads, and pretrained weights brought to another number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import adapt_input_conv
from torch import Size, Tensor

from scripts.cli.errors import UserError


RGB = 3


def holder(config: Any) -> Any:
    """The configuration that has `num_channels`: that of the backbone, or of a model that is one (QLSeg)."""
    return getattr(config, "backbone_config", None) or config


def num_channels(config: Any) -> int:
    """Bands of an image."""
    return getattr(holder(config), "num_channels", RGB)


def set_num_channels(config: Any, count: int | None) -> None:
    """Makes a configuration one of images of so many bands; None leaves it as it is.

    Raises:
        UserError: its backbone reads RGB only.
    """
    if count is None or count == num_channels(config):
        return
    if not hasattr(holder(config), "num_channels"):
        raise UserError(f"--num_channels {count}: a backbone of type {holder(config).model_type} reads {RGB}")
    holder(config).num_channels = count


def is_first_convolution(found: Size, wanted: Size, channels: int) -> bool:
    """Whether two shapes are those of a first convolution, of RGB and of `channels` bands."""
    others = len(wanted) == 4 and found[:1] + found[2:] == wanted[:1] + wanted[2:]
    return others and found[1] == RGB and wanted[1] == channels != RGB


def adapted(weight: Tensor, channels: int) -> Tensor:
    """A first convolution of RGB for images of other bands, as timm does it: its sum for one band, else its channels
    repeated and scaled so that the answers keep their size."""
    return adapt_input_conv(channels, weight)


def adapt_first_convolution(model: Any, mismatched: Mapping[str, tuple[Size, Size]], weights: Any) -> set[str]:
    """Gives a model of other bands the first convolution of a checkpoint of RGB, and says so.

    Args:
        mismatched: tensors of another shape in the checkpoint, and their shapes there and here.
        weights: gives the checkpoint's tensors by name, read only if needed.
    Returns:
        the names of the tensors that it filled.
    """
    channels = num_channels(model.config)
    keys = {key for key, (found, wanted) in mismatched.items() if is_first_convolution(found, wanted, channels)}
    if not keys:
        return set()
    tensors = weights()
    for key in sorted(keys):  # several where the network begins in branches
        model.get_parameter(key).data.copy_(adapted(tensors[key], channels))
        print(f"first convolution {key} adapted from {RGB} to {channels} bands")
    return keys
