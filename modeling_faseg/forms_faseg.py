"""The same values by other roads, where a device is faster or needs less memory on them: each step's plain form first,
its other forms beside it, and what chooses among them last.

Notation: B batch, C channels, L tokens, H and W of a map.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


TOKENS_AT_ONCE = 1024  # the wide activations of so many tokens stay in a CPU's cache

# ---- feed-forward of a layer with `feed_forward` and `final_layer_norm`: `(B, L, C)` to `(B, L, C)` ----


def add_feed_forward(layer: Any, tokens: Tensor) -> Tensor:
    """Residual and norm around the feed-forward."""
    return layer.final_layer_norm(tokens + layer.feed_forward(tokens))


def add_feed_forward_recomputed(layer: Any, tokens: Tensor) -> Tensor:
    """Makes the wide activations, the largest of the model, again for the backward pass: a twentieth of a step's
    time."""
    return layer.final_layer_norm(tokens + checkpoint(layer.feed_forward, tokens, use_reentrant=False))


def add_feed_forward_in_parts(layer: Any, tokens: Tensor) -> Tensor:
    """A few tokens at a time; without gradients."""
    result = torch.empty_like(tokens)
    for part, place in zip(tokens.split(TOKENS_AT_ONCE, dim=1), result.split(TOKENS_AT_ONCE, dim=1)):
        place.copy_(add_feed_forward(layer, part))
    return result


def feed_forward_form(device: torch.device) -> Callable[[Any, Tensor], Tensor]:
    """Which of the three suits the device, with or without gradients."""
    if torch.compiler.is_compiling():
        return add_feed_forward
    if torch.is_grad_enabled():
        return add_feed_forward_recomputed
    return add_feed_forward_in_parts if device.type == "cpu" else add_feed_forward


# ---- tokens `(B, H*W, C)` of one level, cut out of those of all, as a map `(B, C, H, W)`, not copied ----


def as_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """A map whose channels lie side by side in memory."""
    return tokens.unflatten(1, shape).permute(0, 3, 1, 2)


def as_map_of_one(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """Of a batch of one. Its stride from image to image, which may be anything, becomes that of a whole map: only then
    convolutions take it for channels last."""
    return as_map(tokens.reshape(-1, tokens.shape[-1])[None], shape)


def map_form(tokens: Tensor) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """Which of the two suits the batch; a compiler must not learn its size."""
    return as_map if torch.compiler.is_compiling() or tokens.shape[0] != 1 else as_map_of_one


# ---- images in the memory layout that the backbone's and the pixel decoder's maps inherit ----


def images_as_given(images: Tensor) -> Tensor:
    """Images as they lie in memory."""
    return images


def images_channels_last(images: Tensor) -> Tensor:
    """Makes a CPU's convolutions faster, but their backward passes slower."""
    return images.contiguous(memory_format=torch.channels_last)


def image_form(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Which of the two suits the device, with or without gradients."""
    if device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return images_as_given
    return images_channels_last
