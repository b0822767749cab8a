"""QLSeg's loss: the query of a class answers for the mask of that class, wherever the image shows it.

Notation: B batch, K classes and queries, T classes that an image shows.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import initialization as init
from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

from .configuration_qlseg import QLSegConfig
from .loss_terms import check_targets, class_weights, count_masks, weighted_sum


def match_classes(
    masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Query c to the mask of class c: per image the indices of queries and of masks."""
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
        self.class_weights = config.class_weights
        self.register_buffer("empty_weight", self.weights_of_classes())

    def weights_of_classes(self) -> Tensor:
        """`(K + 1,)` as the configuration has them."""
        return class_weights(self.num_labels, self.eos_coef, self.class_weights)

    def reset_parameters(self) -> None:
        """Fill the buffer again, as a model made on the meta device needs."""
        init.copy_(self.empty_weight, self.weights_of_classes())

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
            mask_labels: per image `(T, H, W)` masks of 0 and 1 over the same canvas; T may be 0.
            class_labels: per image `(T,)` classes in 0..K-1.
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
        check_targets(mask_labels, class_labels, self.num_labels)
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
        return weighted_sum(losses, self.weight_dict)

    def get_num_masks(  # type: ignore[override]
        self, class_labels: list[Tensor], device: torch.device
    ) -> Tensor:
        """`count_masks`: transformers' own divides a mean over processes by their number again."""
        return count_masks(class_labels, device)
