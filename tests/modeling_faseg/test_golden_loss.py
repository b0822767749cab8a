"""The loss against the reference's recorded losses, matchings and gradients, with its random numbers."""

import pytest

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
    predictions = [
        {
            "masks_queries_logits": tensors[f"in/{name}.pred_masks"].float().requires_grad_(),
            "class_queries_logits": tensors[f"in/{name}.pred_logits"].float().requires_grad_(),
        }
        for name in names
    ]
    masks = [masks.float() for masks in indexed(tensors, "in/target_masks_")]
    labels = indexed(tensors, "in/target_labels_")
    with replayed_random_numbers(random_numbers(tensors)):
        losses = criterion(
            **predictions[0], mask_labels=masks, class_labels=labels, auxiliary_predictions=predictions[1:]
        )
    total = criterion.weighted_sum(losses)

    expected = {name.replace("loss_ce", "loss_cross_entropy"): v for name, v in meta["losses_unweighted"].items()}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    assert total.item() == pytest.approx(meta["total_weighted"], rel=1e-5)

    total.backward()
    for name, prediction in zip(names, predictions):
        for ours, official in (("class_queries_logits", "pred_logits"), ("masks_queries_logits", "pred_masks")):
            recorded = tensors[f"grad/{name}.{official}"]
            assert (prediction[ours].grad - recorded).norm() <= 1e-4 * recorded.norm()

    numbers = iter(random_numbers(tensors))
    for name, prediction in zip(names, predictions):
        with replayed_random_numbers([next(numbers) for _ in masks]):
            indices = criterion.matcher(**prediction, mask_labels=masks, class_labels=labels)
        next(numbers), next(numbers)  # drawn by the mask losses
        for image, (queries, targets) in enumerate(indices):
            assert queries.equal(tensors[f"out/{name}.src_idx_{image}"])
            assert targets.equal(tensors[f"out/{name}.tgt_idx_{image}"])
