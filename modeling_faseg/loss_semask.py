"""The loss of SeMask: cross-entropy of the logits, and of the sum of the backbone's semantic maps.

Notation: B batch, K classes, H and W of the labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .loss_terms import to_host


def sum_semantic_maps(semantic_maps: tuple[Tensor, ...] | list[Tensor], align_corners: bool = False) -> Tensor:
    """The parameter-free semantic decoder: `(B, K, H/4, W/4)` of maps `(B, K, H/s, W/s)`, fine to coarse.

    A map is doubled once per stage and then fitted to the first one, which is not one large resize (reference).
    """
    size = semantic_maps[0].shape[-2:]
    total = semantic_maps[0]
    for stage, semantic_map in enumerate(semantic_maps[1:], start=1):
        for _ in range(stage):
            semantic_map = doubled(semantic_map, align_corners)
        total = total + resized(semantic_map, size, align_corners)
    return total


def doubled(maps: Tensor, align_corners: bool = False) -> Tensor:
    """`(B, C, h, w)` -> `(B, C, 2 h, 2 w)`."""
    return resized(maps, (2 * maps.shape[-2], 2 * maps.shape[-1]), align_corners)


def resized(maps: Tensor, size: tuple[int, int] | torch.Size, align_corners: bool = False) -> Tensor:
    """Bilinear resize to `size` `(height, width)`."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)


def pixel_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_value: int,
    min_kept: int | None = None,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross-entropy of SeMask-FPN: a mean over all pixels, to which ignored ones add nothing (reference).

    Args:
        logits: `(B, K, h, w)`, resized to the labels; labels: `(B, H, W)` in 0..K-1 or `ignore_value`.
        min_kept: pixels per image that are kept, the hardest of the batch; the mean is still over all (OHEM).
        class_weights: K numbers that the losses of the pixels of each class are multiplied by, before that choice.
    """
    with torch.autocast(logits.device.type, enabled=False):
        at_labels = resized(logits.float(), labels.shape[-2:])
        weights = weights_of_maps(at_labels, class_weights)
        losses = F.cross_entropy(at_labels, labels, weights, ignore_index=ignore_value, reduction="none").flatten()
        kept = losses
        if min_kept is not None:
            kept = losses.topk(min(min_kept * len(labels), len(losses)), sorted=False).values
        return kept.sum() / len(losses)


def weights_of_maps(logits: Tensor, class_weights: Sequence[float] | None) -> Tensor | None:
    """`(C,)` for logits `(B, C, h, w)`, of which a backbone may have more than there are classes; those are never a
    label, and weigh 1."""
    if class_weights is None:
        return None
    spare = logits.shape[1] - len(class_weights)
    weights = torch.tensor([*class_weights, *[1.0] * spare], dtype=logits.dtype)
    return weights.to(logits.device, non_blocking=True)


def semantic_map_loss(
    semantic_maps: tuple[Tensor, ...],
    labels: Tensor,
    ignore_value: int,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """The auxiliary loss of a mask-classification model: cross-entropy of the summed semantic maps, a mean over the
    pixels that are not ignored. Corners are aligned, other than in SeMask-FPN (reference).

    Args:
        semantic_maps: `(B, K, H/s, W/s)`, fine to coarse; labels: `(B, H, W)` in 0..K-1 or `ignore_value`.
        class_weights: K numbers that the losses of the pixels of each class are multiplied by.
    Returns:
        A scalar, 0 where every pixel is ignored.
    """
    with torch.autocast(labels.device.type, enabled=False):
        summed = sum_semantic_maps([semantic_map.float() for semantic_map in semantic_maps], align_corners=True)
        at_labels = resized(summed, labels.shape[-2:], align_corners=True)
        weights = weights_of_maps(at_labels, class_weights)
        total = F.cross_entropy(at_labels, labels, weights, ignore_index=ignore_value, reduction="sum")
        return total / (labels != ignore_value).sum().clamp(min=1)


@torch.no_grad()
def label_maps_of_masks(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    size: tuple[int, int],
    ignore_value: int,
    device: torch.device,
) -> Tensor:
    """`(B, H, W)` label maps of binary masks, `ignore_value` where there is none; of masks that overlap the first.

    Args:
        mask_labels: per image `(T, H, W)` masks of 0 and 1; class_labels: per image `(T,)` classes.
    """
    maps = torch.full((len(mask_labels), *size), ignore_value, dtype=torch.long, device=device)
    for label_map, masks, classes in zip(maps, mask_labels, class_labels, strict=True):
        if len(masks):
            covered, first = masks.to(device).max(dim=0)
            label_map.copy_(torch.where(covered > 0, classes.to(device, torch.long)[first], ignore_value))
    return maps


def check_label_maps(labels: Tensor, num_classes: int, ignore_value: int) -> None:
    """Raise a `ValueError` that names the first label outside the classes, waiting for their device once."""
    shown = torch.where(labels == ignore_value, 0, labels)
    ((lowest, highest),) = to_host(torch.stack(shown.aminmax()).float())
    if lowest < 0 or highest >= num_classes:
        first = int(shown[(shown < 0) | (shown >= num_classes)][0])
        raise ValueError(
            f"label {first} but {num_classes} classes (0..{num_classes - 1}), {ignore_value} being ignored: "
            "fix the labels or the config's id2label, set do_reduce_labels=True?"
        )
