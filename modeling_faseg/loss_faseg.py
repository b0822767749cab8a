"""The set-prediction loss of Mask2Former on every prediction of the decoder, as the reference has it.

Notation: B batch, Q queries, K classes, T targets of an image, N matched masks of the batch, P points.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_faseg import FASegConfig
from .matcher_faseg import FASegHungarianMatcher
from .point_sampling_faseg import PointPlacement, sample_points, sample_uncertain_points


class FASegLoss(nn.Module):
    """Classification, mask and dice losses after Hungarian matching, for the final and all auxiliary predictions.

    Random numbers are drawn per prediction, the final one first: a `torch.rand` per image for the matching, then
    two for the points of the mask losses.
    """

    empty_weight: Tensor

    def __init__(self, config: FASegConfig):
        super().__init__()
        self.num_labels = cast(int, config.num_labels)
        self.no_object_weight = config.no_object_weight
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.num_points = config.train_num_points
        self.oversample_ratio = config.oversample_ratio
        self.importance_sample_ratio = config.importance_sample_ratio
        self.uncovered_is_ignored = config.task != "instance"
        self.exclude_ignored_pixels = config.exclude_ignored_pixels
        self.matcher = FASegHungarianMatcher(
            config.class_weight, config.mask_weight, config.dice_weight, config.train_num_points
        )
        self.register_buffer("empty_weight", self._class_weights())

    def reset_parameters(self) -> None:
        """Fill the buffer again, as a model made on the meta device needs."""
        init.copy_(self.empty_weight, self._class_weights())

    def _class_weights(self) -> Tensor:
        """`(K + 1,)`: 1, and `no_object_weight` for the no-object class."""
        weights = torch.ones(self.num_labels + 1)
        weights[-1] = self.no_object_weight
        return weights

    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        auxiliary_predictions: list[dict[str, Tensor]] | None = None,
        pixel_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            masks_queries_logits: `(B, Q, h, w)` of the final prediction; class_queries_logits: `(B, Q, K + 1)`.
            mask_labels: per image `(T, H, W)` masks of 0 and 1 over the same canvas; T may be 0.
            class_labels: per image `(T,)` classes in 0..K-1.
            auxiliary_predictions: the earlier predictions, dictionaries with both logits.
            pixel_mask: `(B, H, W)`, 1 on the picture; read with `exclude_ignored_pixels`.
        Returns:
            Unweighted `loss_cross_entropy`, `loss_mask` and `loss_dice`, and the same with `_0`, `_1`, ... for the
            auxiliary predictions.
        Raises:
            ValueError: for labels that do not fit each other or the classes, or a matching cost that is not finite.
        """
        mask_labels = [masks.to(masks_queries_logits.device, torch.float32) for masks in mask_labels]
        class_labels = [classes.long() for classes in class_labels]
        self._check_labels(mask_labels, class_labels)
        num_masks = count_masks(class_labels, masks_queries_logits.device)
        valid = self._valid_pixels(mask_labels, pixel_mask) if self.exclude_ignored_pixels else None
        predictions = [{"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}]
        losses: dict[str, Tensor] = {}
        for index, prediction in enumerate([*predictions, *(auxiliary_predictions or [])]):
            suffix = "" if index == 0 else f"_{index - 1}"
            terms = self._prediction_losses(
                prediction["masks_queries_logits"].float(),
                prediction["class_queries_logits"].float(),
                mask_labels,
                class_labels,
                num_masks,
                valid,
            )
            losses.update({name + suffix: value for name, value in terms.items()})
        return losses

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise: every term with the weight of its kind."""
        return torch.stack([self.weights[_kind(name)] * value for name, value in losses.items()]).sum()

    def _prediction_losses(
        self,
        mask_logits: Tensor,
        class_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        num_masks: Tensor,
        valid: list[Tensor] | None,
    ) -> dict[str, Tensor]:
        indices = self.matcher(mask_logits, class_logits, mask_labels, class_labels, valid)
        counts = [len(queries) for queries, _ in indices]
        device = mask_logits.device
        images = torch.cat([torch.full((count,), image) for image, count in enumerate(counts)]).to(device)
        queries = torch.cat([queries for queries, _ in indices]).to(device)

        targets = torch.full(class_logits.shape[:2], self.num_labels, device=device)
        matched_classes = [classes[index.to(classes.device)] for classes, (_, index) in zip(class_labels, indices)]
        targets[images, queries] = torch.cat(matched_classes).to(targets)
        loss_cross_entropy = nn.functional.cross_entropy(
            class_logits.transpose(1, 2), targets, weight=self.empty_weight.float()
        )

        logits = mask_logits[images, queries]
        place = None if valid is None else PointPlacement(valid, counts)
        points = sample_uncertain_points(
            logits, self.num_points, self.oversample_ratio, self.importance_sample_ratio, place
        )
        matched_masks = [masks[index.to(masks.device)] for masks, (_, index) in zip(mask_labels, indices)]
        point_targets = torch.cat(
            [sample_points(masks, part) for masks, part in zip(matched_masks, points.split(counts))]
        )
        point_logits = sample_points(logits, points)
        loss_mask = nn.functional.binary_cross_entropy_with_logits(point_logits, point_targets, reduction="none")
        probs = point_logits.sigmoid()
        overlap = 2 * (probs * point_targets).sum(-1)
        loss_dice = 1 - (overlap + 1) / (probs.sum(-1) + point_targets.sum(-1) + 1)
        return {
            "loss_cross_entropy": loss_cross_entropy,
            "loss_mask": loss_mask.mean(1).sum() / num_masks,
            "loss_dice": loss_dice.sum() / num_masks,
        }

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
            if masks.numel() and not 0 <= masks.amin() <= masks.amax() <= 1:
                raise ValueError(
                    f"mask_labels of image {image} of the batch lie in {masks.amin():g}..{masks.amax():g}: "
                    "give masks of 0 and 1, divide by 255?"
                )
            lowest, highest = (int(classes.min()), int(classes.max())) if len(classes) else (0, 0)
            if lowest < 0 or highest >= self.num_labels:
                wrong = lowest if lowest < 0 else highest
                raise ValueError(
                    f"label {wrong} in image {image} of the batch but {self.num_labels} classes "
                    f"(0..{self.num_labels - 1}): fix the labels or the config's id2label, set do_reduce_labels=True?"
                )


def count_masks(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """Targets of the batch: their sum over processes divided by the number of processes, at least 1."""
    num_masks = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(num_masks)
        num_masks = num_masks / torch.distributed.get_world_size()
    return num_masks.clamp(min=1)


def _kind(name: str) -> str:
    """`loss_mask_3` is of the kind `loss_mask`."""
    return name.rstrip("0123456789").removesuffix("_")
