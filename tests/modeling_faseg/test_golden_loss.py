"""The loss against the reference's recorded losses, matchings and gradients, with its random numbers."""

import pytest
from mask_logits import MaskLogits

from configuration import FASegConfig
from golden_cases import (
    CRITERION_CASES,
    LOCAL_CASES,
    indexed,
    load_case,
    random_numbers,
    replayed_random_numbers,
)
from modeling_faseg.loss_faseg import FASegLoss


@pytest.mark.parametrize("name", CRITERION_CASES)
def test_criterion(shared, name):
    check_criterion(*load_case(shared, name))


@pytest.mark.parametrize("name", [name for name in LOCAL_CASES if name in CRITERION_CASES])
def test_criterion_of_local_copy(name):
    check_criterion(*load_case(None, name))


def check_criterion(tensors, meta):
    params = meta["params"]
    config = FASegConfig(
        num_labels=params["num_classes"], num_queries=params["num_queries"], train_num_points=params["num_points"]
    )
    criterion = FASegLoss(config)
    criterion.reset_parameters()
    names = ["final", *(f"aux{index}" for index in range(params["aux"]))]
    pred_masks = [tensors[f"in/{name}.pred_masks"].float().requires_grad_() for name in names]
    pred_logits = [tensors[f"in/{name}.pred_logits"].float().requires_grad_() for name in names]
    masks = [masks.float() for masks in indexed(tensors, "in/target_masks_")]
    labels = indexed(tensors, "in/target_labels_")
    with replayed_random_numbers(random_numbers(tensors)):
        losses = criterion(MaskLogits(pred_masks), pred_logits, masks, labels)
    total = criterion.weighted_sum(losses)

    expected = {name.replace("loss_ce", "loss_cross_entropy"): v for name, v in meta["losses_unweighted"].items()}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    assert total.item() == pytest.approx(meta["total_weighted"], rel=1e-5)

    total.backward()
    for official, predictions in (("pred_logits", pred_logits), ("pred_masks", pred_masks)):
        for name, prediction in zip(names, predictions):
            recorded = tensors[f"grad/{name}.{official}"]
            assert (prediction.grad - recorded).norm() <= 1e-4 * recorded.norm()

    numbers = iter(random_numbers(tensors))
    for index, name in enumerate(names):
        with replayed_random_numbers([next(numbers) for _ in masks]):
            (indices,) = criterion.matcher(MaskLogits(pred_masks), [index], pred_logits, masks, labels)
        next(numbers), next(numbers)  # drawn by the mask losses
        for image, (queries, targets) in enumerate(indices):
            assert queries.equal(tensors[f"out/{name}.src_idx_{image}"])
            assert targets.equal(tensors[f"out/{name}.tgt_idx_{image}"])
