"""QLSeg's loss: the query of a class answers for the mask of that class, wherever the picture shows it.

Notation: B batch, K classes and queries, T classes that a picture shows.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import initialization as init
from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

from .configuration_qlseg import QLSegConfig


def match_classes(
    masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Query c to the mask of class c: per picture the indices of queries and of masks."""
    return [(classes, torch.arange(len(classes), device=classes.device)) for classes in class_labels]


class QLSegLoss(MaskFormerLoss):
    """MaskFormer's classification, focal and dice losses with a fixed matching, on the predictions of all stages.

    Pixels of no class count as outside every mask, as in the reference.
    """

    def __init__(self, config: QLSegConfig):
        weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        matcher: Any = match_classes
        super().__init__(config.num_queries, matcher, weights, config.no_object_weight)

    def reset_parameters(self) -> None:
        """Fill the buffer again, as a model made on the meta device needs."""
        weights = torch.ones(self.num_labels + 1)
        weights[-1] = self.eos_coef
        init.copy_(self.empty_weight, weights)

    def forward(  # type: ignore[override]
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        auxiliary_predictions: list[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            masks_queries_logits: `(B, K, h, w)` of the final prediction; class_queries_logits: `(B, K, K + 1)`.
            mask_labels: per picture `(T, H, W)` masks of 0 and 1 over the same canvas; T may be 0.
            class_labels: per picture `(T,)` classes in 0..K-1.
            auxiliary_predictions: the earlier predictions, dictionaries of the first two arguments.
        Returns:
            Unweighted `loss_cross_entropy`, `loss_mask` and `loss_dice`, and the same with `_0`, `_1`, ... for the
            auxiliary predictions.
        Raises:
            ValueError: for labels that do not fit each other or the classes.
        """
        device = class_queries_logits.device
        mask_labels = [each.to(device, torch.float32) for each in mask_labels]
        class_labels = [each.to(device, torch.long) for each in class_labels]
        self._check_labels(mask_labels, class_labels)
        final = {"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}
        losses: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            for number, prediction in enumerate([final, *(auxiliary_predictions or [])], start=-1):
                masks, classes = prediction["masks_queries_logits"], prediction["class_queries_logits"]
                terms = super().forward(masks.float(), classes.float(), mask_labels, class_labels)
                suffix = "" if number < 0 else f"_{number}"
                losses |= {name + suffix: value for name, value in sorted(terms.items())}
        return losses

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise: every term with the weight of its kind."""
        kinds = {name: name.rstrip("0123456789").removesuffix("_") for name in losses}
        return torch.stack([self.weight_dict[kinds[name]] * value for name, value in losses.items()]).sum()

    def get_num_masks(  # type: ignore[override]
        self, class_labels: list[Tensor], device: torch.device
    ) -> Tensor:
        """Masks of the batch: their sum over processes divided by the number of processes, at least 1.

        Transformers' own divides a mean by the number of processes again.
        """
        num_masks = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(num_masks)
            num_masks = num_masks / torch.distributed.get_world_size()
        return num_masks.clamp(min=1)

    def _check_labels(self, mask_labels: list[Tensor], class_labels: list[Tensor]) -> None:
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
        ranges = [
            torch.stack((*mask_labels[image].aminmax(), *class_labels[image].aminmax())).float() for image in given
        ]
        for image, (darkest, brightest, lowest, highest) in zip(given, torch.stack(ranges).tolist()):
            if not 0 <= darkest <= brightest <= 1:
                raise ValueError(
                    f"mask_labels of image {image} of the batch lie in {darkest:g}..{brightest:g}: "
                    "give masks of 0 and 1, divide by 255?"
                )
            if lowest < 0 or highest >= self.num_labels:
                wrong = int(lowest if lowest < 0 else highest)
                raise ValueError(
                    f"label {wrong} in image {image} of the batch but {self.num_labels} classes "
                    f"(0..{self.num_labels - 1}): fix the labels or the config's id2label, set do_reduce_labels=True?"
                )
