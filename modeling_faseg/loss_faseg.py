"""The set-prediction loss of Mask2Former on every prediction of the decoder, as the reference has it.

Notation: B batch, Q queries, K classes, T targets of an image, N matched masks of the batch, P points.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_faseg import FASegConfig
from .loss_terms import (
    check_label_ranges,
    check_target_counts,
    class_weights,
    count_masks,
    label_ranges,
    to_host,
    waits_for,
    weighted_sum,
)
from .mask_predictions_faseg import MaskProducts
from .matcher_faseg import FASegHungarianMatcher, Matching
from .point_sampling_faseg import PointPlacement, sample_points, sample_uncertain_points


class FASegLoss(nn.Module):
    """Classification, mask and dice losses after Hungarian matching, for the final and all auxiliary predictions.

    Random numbers are drawn in the reference's order, the final prediction first: a `torch.rand` per image for its
    matching, then two for the points of its mask losses. On a GPU, which waits at every matching, all predictions are
    matched at once, and the draws of all matchings come before those of the losses.
    """

    empty_weight: Tensor

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.num_labels = cast(int, config.num_labels)
        self.no_object_weight = config.no_object_weight
        self.class_weights = config.class_weights
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
            "loss_semantic": config.auxiliary_semantic_weight,  # of a backbone with semantic maps, added by the model
        }
        self.num_points = config.train_num_points
        self.oversample_ratio = config.oversample_ratio
        self.importance_sample_ratio = config.importance_sample_ratio
        self.uncovered_is_ignored = config.task != "instance"
        self.exclude_ignored_pixels = config.exclude_ignored_pixels
        self.matcher = FASegHungarianMatcher(
            config.class_weight, config.mask_weight, config.dice_weight, config.train_num_points
        )
        self.register_buffer("empty_weight", self.weights_of_classes())

    def weights_of_classes(self) -> Tensor:
        """`(K + 1,)` as the configuration has them."""
        return class_weights(self.num_labels, self.no_object_weight, self.class_weights)

    def reset_parameters(self) -> None:
        """Fill the buffer again, as a model made on the meta device needs."""
        init.copy_(self.empty_weight, self.weights_of_classes())

    def forward(
        self,
        masks: MaskProducts,
        class_logits: list[Tensor],
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        pixel_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            masks: those of all predictions, the final one first.
            class_logits: `(B, Q, K + 1)` of the same.
            mask_labels: per image `(T, H, W)` masks of 0 and 1 over the same canvas; T may be 0.
            class_labels: per image `(T,)` classes in 0..K-1.
            pixel_mask: `(B, H, W)`, 1 on the image; read with `exclude_ignored_pixels`.
        Returns:
            Unweighted `loss_cross_entropy`, `loss_mask` and `loss_dice`, and the same with `_0`, `_1`, ... for the
            auxiliary predictions.
        Raises:
            ValueError: for labels that do not fit each other or the classes, or a matching cost that is not finite.
        """
        device = masks.device
        with torch.autocast(device.type, enabled=False):  # fp32 island, as in the reference
            class_logits = [each.float() for each in class_logits]
            mask_labels = [each.to(device, torch.float32, non_blocking=True) for each in mask_labels]
            class_labels = [each.to(device, torch.long, non_blocking=True) for each in class_labels]
            check_target_counts(mask_labels, class_labels)
            ranges = label_ranges(mask_labels, class_labels)
            num_masks = count_masks(class_labels, device)
            valid = self._valid_pixels(mask_labels, pixel_mask) if self.exclude_ignored_pixels else None

            matchings: list[Matching] = []
            points: list[Tensor] = []
            count = len(class_logits)
            at_once = count if waits_for(device) else 1
            for first in range(0, count, at_once):
                chosen = range(first, min(first + at_once, count))
                costs = self.matcher.costs(masks, chosen, class_logits, mask_labels, class_labels, valid)
                read, read_ranges = to_host(costs, ranges)  # the one wait, if all are matched at once
                check_label_ranges(read_ranges, self.num_labels)
                found = [_to_device(matching, device) for matching in self.matcher.assign(read, class_labels)]
                points += [self._points(masks, *each, valid) for each in zip(chosen, found)]
                matchings += found
            logits = masks.of_queries(range(count), [_queries(matching) for matching in matchings])
            losses: dict[str, Tensor] = {}
            for index, matching in enumerate(matchings):
                terms = {
                    "loss_cross_entropy": self._class_loss(class_logits[index], class_labels, matching),
                    **self._mask_losses(logits[index], points[index], mask_labels, matching, num_masks),
                }
                suffix = "" if index == 0 else f"_{index - 1}"
                losses.update({name + suffix: value for name, value in terms.items()})
            return losses

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise: every term with the weight of its kind."""
        return weighted_sum(losses, self.weights)

    def _class_loss(self, class_logits: Tensor, class_labels: list[Tensor], matching: Matching) -> Tensor:
        """Cross-entropy of all queries, of which those without a target are no object."""
        targets = torch.full(class_logits.shape[:2], self.num_labels, device=class_logits.device)
        for image, (queries, indices) in enumerate(matching):
            targets[image, queries] = class_labels[image][indices]
        return nn.functional.cross_entropy(class_logits.transpose(1, 2), targets, weight=self.empty_weight.float())

    @torch.no_grad()
    def _points(self, masks: MaskProducts, index: int, matching: Matching, valid: list[Tensor] | None) -> Tensor:
        """`(N, P, 2)` points at which the matched masks of prediction `index` are compared with their targets."""
        logits = masks.of_queries([index], [_queries(matching)])[0]
        place = None if valid is None else PointPlacement(valid, [len(queries) for queries, _ in matching])
        return sample_uncertain_points(
            logits, self.num_points, self.oversample_ratio, self.importance_sample_ratio, place
        )

    def _mask_losses(
        self, logits: Tensor, points: Tensor, mask_labels: list[Tensor], matching: Matching, num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the matched masks `(N, h, w)` at their points, in the order of the matching."""
        counts = [len(queries) for queries, _ in matching]
        point_targets = torch.cat(
            [
                _sample_targets(masks, indices, part)
                for masks, (_, indices), part in zip(mask_labels, matching, points.split(counts))
            ]
        )
        point_logits = sample_points(logits, points)
        loss_mask = nn.functional.binary_cross_entropy_with_logits(point_logits, point_targets, reduction="none")
        probs = point_logits.sigmoid()
        overlap = 2 * (probs * point_targets).sum(-1)
        loss_dice = 1 - (overlap + 1) / (probs.sum(-1) + point_targets.sum(-1) + 1)
        return {"loss_mask": loss_mask.mean(1).sum() / num_masks, "loss_dice": loss_dice.sum() / num_masks}

    def _valid_pixels(self, mask_labels: list[Tensor], pixel_mask: Tensor | None) -> list[Tensor]:
        """Per image the `(H, W)` pixels that teach something: covered by a target, and not padding."""
        valid = []
        for image, masks in enumerate(mask_labels):
            pixels = torch.ones(masks.shape[-2:], dtype=torch.bool, device=masks.device)
            if self.uncovered_is_ignored:
                pixels = (masks > 0).any(0)
            if pixel_mask is not None:
                pixels = pixels & (pixel_mask[image] > 0).to(pixels.device)
            valid.append(pixels)
        return valid


def _queries(matching: Matching) -> list[Tensor]:
    """Per image the queries that were matched."""
    return [queries for queries, _ in matching]


def _to_device(matching: Matching, device: torch.device) -> Matching:
    """The matching's indices on the device, without waiting for it."""
    return [
        (queries.to(device, non_blocking=True), targets.to(device, non_blocking=True)) for queries, targets in matching
    ]


def _sample_targets(masks: Tensor, indices: Tensor, points: Tensor) -> Tensor:
    """`(N, P)` values of `masks[indices]` at `(N, P, 2)` points. With every mask asked for, as almost always, none is
    copied: the points go into their order instead."""
    if len(indices) < len(masks):
        return sample_points(masks[indices], points)
    return sample_points(masks, points[indices.argsort()])[indices]
