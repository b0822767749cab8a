"""The loss of instance and panoptic models against plain formulas, on masks of equal logits everywhere."""

import pytest
import torch
from mask_logits import MaskLogits
from tiny_models import tiny_config
from torch.nn.functional import softplus

from modeling_faseg.loss_faseg import FASegLoss


LOGIT = 1.5  # of every mask
SIDE = 128  # of masks and logits: beyond the outermost middles of cells sampling mixes in zeros


def losses_of(task, masks, classes, class_logits):
    """`(1, Q)` masks of `LOGIT`, targets `masks` (T, SIDE, SIDE): the terms of the loss."""
    torch.manual_seed(0)
    criterion = FASegLoss(
        tiny_config(
            task=task,
            exclude_ignored_pixels=True,
            train_num_points=20000,
            importance_sample_ratio=0.0,
            num_queries=class_logits.shape[1],
        )
    )
    criterion.reset_parameters()
    logits = torch.full((1, class_logits.shape[1], SIDE, SIDE), LOGIT)
    return criterion(MaskLogits([logits]), [class_logits], [masks], [classes])


def class_loss(class_logits, targets, no_object_weight=0.1):
    """Cross-entropy of `(1, Q, K + 1)` against one class of each query, K for none."""
    num_labels = class_logits.shape[2] - 1
    weights = torch.tensor([no_object_weight if target == num_labels else 1.0 for target in targets])
    entropies = -class_logits[0].log_softmax(-1)[range(len(targets)), targets]
    return (weights * entropies).sum() / weights.sum()


def dice_loss(inside):
    """Of a mask of `LOGIT` whose target covers a share `inside` of 20000 points."""
    prob, points = torch.tensor(LOGIT).sigmoid(), 20000
    return 1 - (2 * prob * inside * points + 1) / (prob * points + inside * points + 1)


@pytest.mark.parametrize(("task", "inside"), [("instance", 0.5), ("panoptic", 1.0)])
def test_what_no_segment_covers_is_background_of_instances_and_nothing_to_panoptic(task, inside):
    """One segment on the left half: half of the points lie outside of it, or none is drawn there."""
    masks = torch.zeros(1, SIDE, SIDE)
    masks[:, :, : SIDE // 2] = 1
    class_logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    class_logits[0, 1, 2] = 9.0  # so that query 1 is matched
    losses = losses_of(task, masks, torch.tensor([2]), class_logits)
    torch.testing.assert_close(losses["loss_cross_entropy"], class_loss(class_logits, [3, 2, 3]))
    # Points in the cells at the border are in part outside; points are drawn, so that shares are so to a percent.
    logit = torch.tensor(LOGIT)
    expected = inside * softplus(-logit) + (1 - inside) * softplus(logit)
    assert losses["loss_mask"].item() == pytest.approx(expected.item(), abs=0.02)
    assert losses["loss_dice"].item() == pytest.approx(dice_loss(inside).item(), abs=0.02)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_an_image_without_a_segment_teaches_every_query_to_be_none(task):
    class_logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    losses = losses_of(task, torch.zeros(0, SIDE, SIDE), torch.zeros(0, dtype=torch.long), class_logits)
    torch.testing.assert_close(losses["loss_cross_entropy"], class_loss(class_logits, [3, 3, 3]))
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_of_more_segments_than_queries_the_best_fitting_are_learnt():
    """Five segments of which each query's class names one: the others add to the divisor of the mask losses alone."""
    masks = torch.zeros(5, SIDE, SIDE)
    for index in range(5):
        masks[index, :, 24 * index : 24 * index + 24] = 1
    class_logits = torch.zeros(1, 2, 4)
    class_logits[0, 0, 1], class_logits[0, 1, 2] = 12.0, 12.0
    losses = losses_of("instance", masks, torch.tensor([0, 1, 0, 2, 0]), class_logits)
    torch.testing.assert_close(losses["loss_cross_entropy"], class_loss(class_logits, [1, 2]))
    logit, inside = torch.tensor(LOGIT), 24 / SIDE
    expected = 2 / 5 * (inside * softplus(-logit) + (1 - inside) * softplus(logit))
    assert losses["loss_mask"].item() == pytest.approx(expected.item(), abs=0.02)
