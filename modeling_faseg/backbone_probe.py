"""What a backbone gives, found by running its shapes: strides, widths and layout of its maps, parameters unread."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import pytorch_utils


# Both are multiples of 32; the second one also of 14, so that each usual patch shows its stride, and of no window.
PROBE_SIZES = ((64, 64), (448, 672))
LONGEST = 200  # characters of another library's message


@dataclass
class BackboneMaps:
    """What a backbone gives for images of any size.

    Args:
        strides: of each map, fine to coarse; a pair where height and width have different ones, and a fraction, to
            two digits, where a map does not divide the image evenly.
        widths: channels of each map.
        declared_widths: channels that the library says each map has.
        channels_last: whether the maps are `(B, H, W, C)` and not `(B, C, H, W)`.
        unread: names of the parameters that no map depends on.
    """

    strides: tuple[float | tuple[float, float], ...]
    widths: list[int]
    declared_widths: list[int]
    channels_last: bool
    unread: list[str]


class ProbeError(ValueError):
    """The backbone does not give maps of images of any size; the message is what it said, in one line."""


@contextmanager
def uncached() -> Iterator[None]:
    """Keeps transformers from caching what is computed inside, such as position indices of a size: what they are
    computed from is no data, and a later forward would take them from the cache."""
    asked = pytorch_utils.is_torchdynamo_compiling
    pytorch_utils.is_torchdynamo_compiling = lambda: True
    try:
        yield
    finally:
        pytorch_utils.is_torchdynamo_compiling = asked


def one_line(error: Exception) -> str:
    """What an error says, and its kind where it says nothing, in one line of moderate length."""
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def probe(backbone: Any, sizes: Sequence[tuple[int, int]] = PROBE_SIZES, last_alone: bool = False) -> BackboneMaps:
    """Runs the backbone on images of two sizes: of shapes alone, on the meta device, wherever its weights are.

    Args:
        sizes: height and width of the images, the small one first.
        last_alone: whether the other maps are not read, so that what only they depend on counts as unread.
    Raises:
        ProbeError: it fails, or gives no maps of two axes of space.
    """
    channels = getattr(backbone.config, "num_channels", 3)  # of the images that it takes
    dtype = next(backbone.parameters()).dtype
    was_training = backbone.training
    backbone.eval()
    found: list[Sequence[Tensor]] = []
    try:
        with uncached(), torch.inference_mode(False), torch.enable_grad():  # whatever the caller has chosen
            state = {name: torch.empty_like(value, device="meta") for name, value in backbone.named_buffers()}
            for name, value in backbone.named_parameters():
                state[name] = torch.empty_like(value, device="meta", requires_grad=True)
            for height, width in sizes:
                image = torch.empty(1, channels, height, width, device="meta", dtype=dtype)
                found.append(functional_call(backbone, state, image).feature_maps)
    except Exception as error:  # of whatever a backbone does with a size that it does not take
        named = " and ".join(f"{height}x{width}" for height, width in sizes)
        raise ProbeError(f"does not read images of {named} ({one_line(error)})") from error
    finally:
        backbone.train(was_training)
    small, large = ([tuple(each.shape) for each in maps] for maps in found)
    if any(len(shape) != 4 for shape in large):
        raise ProbeError(f"gives maps of shape {large[0]}, need (B, C, H, W)")
    channels_last = all(a[1] != b[1] and a[3] == b[3] for a, b in zip(small, large))
    wide, high, across = (3, 1, 2) if channels_last else (1, 2, 3)  # axes of channels, rows and columns
    strides = [
        tuple(
            _stride(sizes[0][axis], before[place], sizes[1][axis], after[place])
            for axis, place in enumerate((high, across))
        )
        for before, after in zip(small, large)
    ]
    read = {id(leaf) for leaf in leaves(found[0][-1:] if last_alone else found[0])}
    return BackboneMaps(
        strides=tuple(down if down == across else (down, across) for down, across in strides),
        widths=[shape[wide] for shape in large],
        declared_widths=[*backbone.channels],
        channels_last=channels_last,
        unread=[name for name, _ in backbone.named_parameters() if id(state[name]) not in read],
    )


def _stride(small: int, small_side: int, large: int, large_side: int) -> float:
    """The stride of a map along one axis, from the side of two images and of their maps.

    A whole number where the map divides the larger image evenly, and the smaller one too if that is a multiple of it;
    else the fraction where it does not.
    """
    if large % large_side:
        return round(large / large_side, 2)
    stride = large // large_side
    return stride if small % stride or small == small_side * stride else round(small / small_side, 2)


def leaves(outputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors without a history that `outputs` were computed from, as autograd has noted it."""
    waiting = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
