"""What the losses on masks share: checks of the labels, the count of masks, weights of classes and of terms.

Notation: K classes, T targets of an image.
"""

from collections.abc import Mapping, Sequence

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
    num_masks = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(num_masks)
        num_masks = num_masks / torch.distributed.get_world_size()
    return num_masks.clamp(min=1)


def check_targets(mask_labels: list[Tensor], class_labels: list[Tensor], num_labels: int) -> None:
    """Check per image `(T, H, W)` masks and `(T,)` classes, waiting for their device once.

    Raises:
        ValueError: for labels that do not fit each other or the classes.
    """
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
    given = [image for image, classes in enumerate(class_labels) if len(classes)]
    if not given:
        return
    ranges = [torch.stack((*mask_labels[image].aminmax(), *class_labels[image].aminmax())).float() for image in given]
    for image, (lowest_value, highest_value, lowest, highest) in zip(given, to_host(torch.stack(ranges)).tolist()):
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


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU. Matching and loss wait for the device here and nowhere else."""
    return tensor.cpu()
