"""What the losses on masks share: checks of the labels, the count of masks, weights of classes and of terms.

Notation: K classes, T targets of an image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def class_weights(num_labels: int, no_object_weight: float, of_classes: Sequence[float] | None = None) -> Tensor:
    """`(K + 1,)`: those `of_classes` (1 if left out), and `no_object_weight` for the no-object class."""
    weights = torch.ones(num_labels + 1)
    if of_classes is not None:
        weights[:-1] = torch.tensor(of_classes)
    weights[-1] = no_object_weight
    return weights


def weighted_sum(losses: dict[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The scalar to minimise: every term with the weight of its kind, `loss_mask_3` being of the kind `loss_mask`."""
    kinds = {name: name.rstrip("0123456789").removesuffix("_") for name in losses}
    return torch.stack([weights[kinds[name]] * value for name, value in losses.items()]).sum()


def count_masks(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """Targets of the batch: their sum over processes divided by the number of processes, at least 1."""
    num_masks = torch.full((), float(sum(len(classes) for classes in class_labels)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(num_masks)
        num_masks = num_masks / torch.distributed.get_world_size()
    return num_masks.clamp(min=1)


def check_targets(mask_labels: list[Tensor], class_labels: list[Tensor], num_labels: int) -> None:
    """Check per image `(T, H, W)` masks and `(T,)` classes, waiting for their device once.

    Raises:
        ValueError: for labels that do not fit each other or the classes.
    """
    check_target_counts(mask_labels, class_labels)
    (ranges,) = to_host(label_ranges(mask_labels, class_labels))
    check_label_ranges(ranges, num_labels)


def check_target_counts(mask_labels: list[Tensor], class_labels: list[Tensor]) -> None:
    """Raise a `ValueError` unless there are as many masks as classes, in each of as many images."""
    if len(mask_labels) != len(class_labels):
        raise ValueError(
            f"mask_labels of {len(mask_labels)} images and class_labels of {len(class_labels)}: give both for each"
        )
    for image, (masks, classes) in enumerate(zip(mask_labels, class_labels)):
        if len(masks) != len(classes):
            raise ValueError(
                f"image {image} of the batch has {len(masks)} mask_labels and {len(classes)} class_labels: "
                "give one class per mask"
            )


def label_ranges(mask_labels: list[Tensor], class_labels: list[Tensor]) -> Tensor:
    """`(B, 4)` float32: the least and the largest value of an image's masks, and of its classes; 0 without any."""
    ranges = [
        torch.stack((*masks.aminmax(), *classes.aminmax())).float() if len(classes) else masks.new_zeros(4).float()
        for masks, classes in zip(mask_labels, class_labels)
    ]
    return torch.stack(ranges)


def check_label_ranges(ranges: np.ndarray, num_labels: int) -> None:
    """Raise a `ValueError` unless masks lie in 0..1 and classes in 0..K-1; `ranges` are `(B, 4)`."""
    for image, (lowest_value, highest_value, lowest, highest) in enumerate(ranges.tolist()):
        if not 0 <= lowest_value <= highest_value <= 1:
            raise ValueError(
                f"mask_labels of image {image} of the batch lie in {lowest_value:g}..{highest_value:g}: "
                "give masks of 0 and 1, divide by 255?"
            )
        if lowest < 0 or highest >= num_labels:
            wrong = int(lowest if lowest < 0 else highest)
            raise ValueError(
                f"label {wrong} in image {image} of the batch but {num_labels} classes "
                f"(0..{num_labels - 1}): fix the labels or the config's id2label, set do_reduce_labels=True?"
            )


def waits_for(device: torch.device) -> bool:
    """Whether reading a tensor means waiting for the work of its device."""
    return device.type != "cpu"


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Float32 tensors of one device as arrays, by one transfer. Matching and loss wait for the device here and nowhere
    else."""
    if not waits_for(tensors[0].device):
        return [each.numpy() for each in tensors]
    copies = torch.cat([each.flatten() for each in tensors]).cpu().split([each.numel() for each in tensors])
    return [copy.view(each.shape).numpy() for copy, each in zip(copies, tensors)]
