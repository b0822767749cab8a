"""What post-processing is given, checked at the boundary: a model's logits, sizes and thresholds."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .host_transfers import to_host
from .semantic_labels import LOGITS_STRIDE, Size


# What an image is resized to at most: 16,384 x 16,384, of which a network input holds 3 GB.
MAX_PIXELS = 2**28


def checked_outputs(outputs: Any, read: bool = True) -> tuple[Tensor | None, Tensor, int]:
    """What a model gives: class logits `(B, Q, K+1)` or None, maps `(B, C, h, w)`, and the stride of the maps.

    Args:
        read: whether the logits are read, for which their device is waited for once. Else they may not be finite.
    Raises:
        ValueError: class and mask logits that do not belong together; logits that are not finite.
    """
    classes, stride = getattr(outputs, "class_queries_logits", None), LOGITS_STRIDE
    maps, name = getattr(outputs, "semantic_scores", None), "semantic_scores"
    if maps is not None:
        classes, stride = None, 1
    elif classes is None:
        maps, name = getattr(outputs, "logits", None), "logits"
    else:
        maps, name = outputs.masks_queries_logits, "masks_queries_logits"
    if maps is None:
        raise ValueError("the outputs have no class_queries_logits, no logits and no semantic_scores")
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"{name} have shape {tuple(maps.shape)}: pass (images, queries or classes, height, width)")
    checked = {name: maps}
    if classes is not None:
        if classes.ndim != 3 or classes.shape[:2] != maps.shape[:2] or classes.shape[2] < 2:
            raise ValueError(
                f"class_queries_logits have shape {tuple(classes.shape)} and masks_queries_logits {tuple(maps.shape)}:"
                " pass (B, Q, K+1) and (B, Q, h, w) of the same B images and Q queries"
            )
        checked["class_queries_logits"] = classes
    if read:
        require_finite(**checked)
    return classes, maps, stride


def require_finite(**logits: Tensor) -> None:
    """Raise ValueError for logits that are NaN or infinite; those of classes may be -inf, of one that cannot be."""
    check_ends(list(logits), *to_host(logit_ends(*logits.values())))


def logit_ends(*logits: Tensor) -> Tensor:
    """`(N, 2)` float32: the least and the largest of each; both are NaN if one logit is."""
    return torch.stack([torch.stack(each.aminmax()).float() for each in logits])


def check_ends(names: Sequence[str], ends: np.ndarray) -> None:
    """Raise ValueError for the ends of logits that are not finite, see `require_finite`."""
    for name, (least, largest) in zip(names, ends.tolist(), strict=True):
        may_be_low = name == "class_queries_logits"
        wrong = [end for end in (least, largest) if not math.isfinite(end) and not (may_be_low and end == -math.inf)]
        if wrong:
            raise ValueError(
                f"{name} hold {wrong[0]}: pass finite numbers; are the model's weights finite, or did float16"
                " overflow?"
            )


def check_thresholds(threshold: float, mask_threshold: float, overlap_mask_area_threshold: float) -> None:
    """Raise ValueError unless all three are numbers from 0 to 1."""
    shares = {
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_mask_area_threshold": overlap_mask_area_threshold,
    }
    for name, value in shares.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: pass a number from 0 to 1")


def checked_sizes(name: str, sizes: Any, batch: int) -> list[Size]:
    """`sizes` (list, array or tensor) as B pairs of positive integers, or ValueError."""
    if not isinstance(sizes, Iterable) or isinstance(sizes, (str, dict)):
        raise ValueError(f"{name}={sizes!r}: pass one (height, width) per image")
    pairs = [numbers_of(size) for size in sizes]
    if len(pairs) != batch:
        raise ValueError(f"{name} has {len(pairs)} sizes for {batch} images: pass one (height, width) per image")
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(side, (int, float)) and side >= 1 for side in pair):
            raise ValueError(f"{name} holds {pair}: pass (height, width), both at least 1")
        if pair[0] * pair[1] > MAX_PIXELS:
            raise ValueError(f"{name} holds {pair}: pass a size of at most {MAX_PIXELS} pixels")
        if any(int(side) != side for side in pair):
            raise ValueError(f"{name} holds {pair}: pass whole numbers of pixels")
    return [(int(height), int(width)) for height, width in pairs]


def numbers_of(size: Any) -> tuple[Any, ...]:
    """A size as Python's numbers, whatever holds it."""
    sides = size.tolist() if hasattr(size, "tolist") else size
    sides = sides if isinstance(sides, Iterable) else (sides,)
    return tuple(side.item() if hasattr(side, "item") else side for side in sides)
