"""The layers of a backbone, in the order in which an image passes through them, for learning rates that decay."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
LEAST_SHARE = 0.5  # of the backbone's tensors, that its layers have to hold


def decayed_rates(backbone: nn.Module, rate: float, decay: float) -> tuple[dict[str, float], dict[int, str]]:
    """The learning rate of each layer by its name, the last one having `rate`, and the layer of each parameter's id.

    As in BEiT (arXiv 2106.08254), MAE and ViTDet, but for their factor before the last layer.

    Raises:
        ValueError: see `layers_of`.
    """
    layers = layers_of(backbone)
    last = max(layers.values())
    names = ["backbone_stem", *(f"backbone_layer_{number}" for number in range(1, last + 1))]
    rates = {name: rate * decay ** (last - number) for number, name in enumerate(names)}
    return rates, {id(parameter): names[layers[name]] for name, parameter in backbone.named_parameters()}


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """Name of each parameter of the backbone -> its layer: 0 for what comes before the first, then 1, 2, ...

    The layers are the entries of the backbone's largest list of blocks: the blocks of a plain vision transformer, the
    stages of a hierarchical network (also of one that timm has taken apart). What comes after a layer and is none,
    such as the norms of the maps at the end, belongs to it.

    Raises:
        ValueError: there is no such list, or it holds less than half of the backbone's tensors.
    """
    parameters = dict(backbone.named_parameters())
    layers: list[nn.Module] = max(lists_of_blocks(backbone), key=tensors_in, default=[])
    if tensors_in(layers) < max(1, LEAST_SHARE * len(parameters)):
        kind = getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__)
        raise ValueError(
            f"the backbone of type {kind!r} has no list of blocks or stages that holds most of its weights: give 1"
        )
    layer_of = {id(value): index for index, layer in enumerate(layers, 1) for value in layer.parameters()}
    result: dict[str, int] = {}
    reached = 0
    for name, parameter in parameters.items():
        reached = layer_of.get(id(parameter), reached)
        result[name] = reached
    return result


def lists_of_blocks(backbone: nn.Module) -> Iterator[list[nn.Module]]:
    """The entries of every container of at least two blocks, the outer before the inner ones."""
    for module in backbone.modules():
        if isinstance(module, CONTAINERS):
            blocks = [child for child in module.children() if is_block(child)]
            if len(blocks) > 1:
                yield blocks


def is_block(module: nn.Module) -> bool:
    """Whether parameters lie in modules of the module: a block or a stage, and not a single convolution or norm."""
    return any(True for child in module.children() for _ in child.parameters())


def tensors_in(modules: list[nn.Module]) -> int:
    """Number of the modules' parameters."""
    return sum(1 for module in modules for _ in module.parameters())
