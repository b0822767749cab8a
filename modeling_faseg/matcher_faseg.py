"""Which query answers for which target: Hungarian matching on class, mask and dice costs.

Notation: Q queries, K classes, T targets of an image, P points.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .point_sampling_faseg import move_to_valid_pixels, sample_points


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
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        valid: list[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """
        Args:
            masks_queries_logits: `(B, Q, h, w)`.
            class_queries_logits: `(B, Q, K + 1)`.
            mask_labels: per image `(T, H, W)` masks of 0 and 1.
            class_labels: per image `(T,)` classes.
            valid: per image `(H, W)` pixels on which points may lie, None for all.
        Returns:
            Per image the matched queries and their targets, two `(min(Q, T),)` index tensors.
        Raises:
            ValueError: if a cost is not finite, naming the image.
        """
        indices = []
        for image, (masks, classes) in enumerate(zip(mask_labels, class_labels)):
            cost = self.cost_matrix(
                masks_queries_logits[image],
                class_queries_logits[image],
                masks,
                classes,
                None if valid is None else valid[image],
            ).cpu()
            if not cost.isfinite().all():
                raise ValueError(
                    f"matching cost of image {image} of the batch is not finite: its logits or masks hold NaN or "
                    "infinity; check the picture, lower the learning rate or train in float32"
                )
            queries, targets = linear_sum_assignment(cost.numpy())
            indices.append((torch.as_tensor(queries), torch.as_tensor(targets)))
        return indices

    def cost_matrix(
        self, mask_logits: Tensor, class_logits: Tensor, masks: Tensor, classes: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """`(Q, T)` costs of one image, float32; arguments as in `forward`, without the batch."""
        points = torch.rand(1, self.num_points, 2, device=mask_logits.device)
        if valid is not None:
            points = move_to_valid_pixels(points, valid)
        logits = sample_points(mask_logits.float(), points.expand(len(mask_logits), -1, -1))
        targets = sample_points(masks.float(), points.expand(len(masks), -1, -1))

        cost_class = -class_logits.float().softmax(-1)[:, classes]
        # Binary cross-entropy against every target: softplus(x) - x * t, summed over the points.
        cost_mask = (nn.functional.softplus(logits).sum(-1, keepdim=True) - logits @ targets.T) / self.num_points
        probs = logits.sigmoid()
        overlap = 2 * probs @ targets.T
        cost_dice = 1 - (overlap + 1) / (probs.sum(-1)[:, None] + targets.sum(-1)[None] + 1)
        return self.cost_class * cost_class + self.cost_mask * cost_mask + self.cost_dice * cost_dice
