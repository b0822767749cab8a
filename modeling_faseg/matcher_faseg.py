"""Which query answers for which target: Hungarian matching on class, mask and dice costs.

Notation: L predictions, B batch, Q queries, K classes, T targets of an image (of the image with most, in a batch), P
points.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .loss_terms import to_host
from .mask_predictions_faseg import MaskProducts
from .point_sampling_faseg import move_to_valid_pixels, sample_shared_points


Matching = list[tuple[Tensor, Tensor]]  # per image the matched queries and their targets, two (min(Q, T),) indices


class FASegHungarianMatcher(nn.Module):
    """Assigns each target its own query at the least total cost (Mask2Former's matcher).

    Args:
        cost_class, cost_mask, cost_dice: weights of the three costs.
        num_points: points per image at which masks are compared, drawn by one `torch.rand(1, P, 2)` per image.
    """

    def __init__(self, cost_class: float, cost_mask: float, cost_dice: float, num_points: int):
        super().__init__()
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self,
        masks: MaskProducts,
        chosen: Sequence[int],
        class_logits: list[Tensor],
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        valid: list[Tensor] | None = None,
    ) -> list[Matching]:
        """
        Args:
            masks: those of all predictions.
            chosen: the predictions to match, whose costs come to the host together.
            class_logits: `(B, Q, K + 1)` of all predictions.
            mask_labels: per image `(T, H, W)` masks of 0 and 1.
            class_labels: per image `(T,)` classes.
            valid: per image `(H, W)` pixels on which points may lie, None for all.
        Returns:
            For each chosen prediction, per image the matched queries and their targets, two `(min(Q, T),)` index
            tensors.
        Raises:
            ValueError: if a cost is not finite, naming the image.
        """
        (costs,) = to_host(self.costs(masks, chosen, class_logits, mask_labels, class_labels, valid))
        return self.assign(costs, class_labels)

    @torch.no_grad()
    def costs(
        self,
        masks: MaskProducts,
        chosen: Sequence[int],
        class_logits: list[Tensor],
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        valid: list[Tensor] | None = None,
    ) -> Tensor:
        """`(L, B, Q, T)` float32 costs of the chosen predictions on their device, which is not waited for: classes
        that there are not get the costs of others, and have to be refused before costs are used."""
        classes = nn.utils.rnn.pad_sequence([each.to(masks.device) for each in class_labels], batch_first=True)
        classes = classes.clamp(0, class_logits[0].shape[-1] - 1)
        targets = [each.to(masks.device, torch.float32) for each in mask_labels]
        return torch.stack(
            [
                self._costs(masks, prediction, class_logits[prediction], targets, classes, valid)
                for prediction in chosen
            ]
        )

    def assign(self, costs: np.ndarray, class_labels: list[Tensor]) -> list[Matching]:
        """The matchings of `forward` by `costs`, which have come to the host."""
        counts = [len(classes) for classes in class_labels]
        _check_finite(costs, counts)
        return [[_assign(cost[:, :count]) for cost, count in zip(batch, counts)] for batch in costs]

    def _costs(
        self,
        masks: MaskProducts,
        prediction: int,
        class_logits: Tensor,
        mask_labels: list[Tensor],
        classes: Tensor,
        valid: list[Tensor] | None,
    ) -> Tensor:
        """`(B, Q, T)` float32 costs of one prediction; of no meaning beyond an image's own targets."""
        points = []
        for image in range(len(mask_labels)):
            drawn = torch.rand(1, self.num_points, 2, device=masks.device)
            points.append(drawn if valid is None else move_to_valid_pixels(drawn, valid[image]))
        targets = nn.utils.rnn.pad_sequence(
            [sample_shared_points(each[None], drawn)[0] for each, drawn in zip(mask_labels, points)], batch_first=True
        )
        logits = masks.at_points(prediction, torch.cat(points))

        probs = class_logits.detach().float().softmax(-1)
        cost_class = -probs.gather(2, classes[:, None].expand(-1, probs.shape[1], -1))
        # Binary cross-entropy against every target: softplus(x) - x * t, summed over the points.
        products = torch.matmul(targets, logits.transpose(1, 2)).transpose(1, 2)
        cost_mask = (nn.functional.softplus(logits).sum(-1, keepdim=True) - products) / self.num_points
        probs = logits.sigmoid_()
        overlap = 2 * torch.matmul(targets, probs.transpose(1, 2)).transpose(1, 2)
        cost_dice = 1 - (overlap + 1) / (probs.sum(-1, keepdim=True) + targets.sum(-1)[:, None] + 1)
        return self.cost_class * cost_class + self.cost_mask * cost_mask + self.cost_dice * cost_dice


def _check_finite(costs: np.ndarray, counts: list[int]) -> None:
    for image, count in enumerate(counts):
        if not np.isfinite(costs[:, image, :, :count]).all():
            raise ValueError(
                f"matching cost of image {image} of the batch is not finite: its logits or masks hold NaN or "
                "infinity; check the image, lower the learning rate or train in float32"
            )


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    queries, targets = linear_sum_assignment(cost)
    return torch.from_numpy(queries), torch.from_numpy(targets)
