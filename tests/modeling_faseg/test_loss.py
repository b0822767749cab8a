"""The loss where the recorded cases do not reach: empty targets, ignored pixels, several processes, bad values."""

import socket

import pytest
import torch
import torch.multiprocessing
from mask_logits import MaskLogits
from tiny_models import tiny_batch, tiny_config, tiny_model

from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.loss_terms import count_masks
from modeling_faseg.point_sampling_faseg import move_to_valid_pixels, sample_points


@pytest.mark.parametrize("targets", [(0, 2), (2, 0), (0, 0), (9, 1)], ids=str)
def test_any_number_of_targets(targets):
    model = tiny_model().train()
    output = model(**tiny_batch(targets=targets))
    output.loss.backward()
    assert output.loss.isfinite()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if targets == (0, 0):
        assert output.loss_dict["loss_mask"] == 0
        assert output.loss_dict["loss_dice"] == 0


def test_loss_is_the_weighted_sum_of_its_terms():
    output = tiny_model()(**tiny_batch())
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    assert len(output.loss_dict) == 3 * 6
    expected = sum(
        weights[name.rstrip("0123456789").removesuffix("_")] * value for name, value in output.loss_dict.items()
    )
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_names_the_image(bad):
    criterion = FASegLoss(tiny_config())
    criterion.reset_parameters()
    masks = torch.randn(2, 6, 8, 8)
    masks[1, 0, 0, 0] = bad
    masks[1, 0] = bad
    labels = {"mask_labels": [torch.ones(1, 32, 32)] * 2, "class_labels": [torch.tensor([1])] * 2}
    with pytest.raises(ValueError, match="cost of image 1 of the batch is not finite"):
        criterion(MaskLogits([masks]), [torch.randn(2, 6, 4)], **labels)


def test_a_label_outside_of_the_classes_is_named():
    batch = tiny_batch()
    batch["class_labels"][1] = torch.tensor([3])
    with pytest.raises(
        ValueError, match=r"label 3 in image 1 of the batch but 3 classes \(0..2\): .*do_reduce_labels"
    ):
        tiny_model()(**batch)


def test_a_class_per_mask_is_needed():
    batch = tiny_batch()
    batch["class_labels"][0] = torch.tensor([0])
    with pytest.raises(ValueError, match="image 0 of the batch has 2 mask_labels and 1 class_labels"):
        tiny_model()(**batch)


def test_masks_of_255_are_refused():
    batch = tiny_batch()
    batch["mask_labels"][1] = 255 * batch["mask_labels"][1]
    with pytest.raises(ValueError, match=r"mask_labels of image 1 of the batch lie in 0\.\.255: .*divide by 255"):
        tiny_model()(**batch)


def test_labels_come_in_pairs():
    batch = tiny_batch()
    with pytest.raises(ValueError, match="mask_labels without class_labels"):
        tiny_model()(batch["pixel_values"], mask_labels=batch["mask_labels"])
    with pytest.raises(ValueError, match="mask_labels of 2 images and class_labels of 1"):
        tiny_model()(**{**batch, "class_labels": batch["class_labels"][:1]})


def test_points_move_to_valid_pixels_alone_and_evenly():
    valid = torch.zeros(10, 20, dtype=torch.bool)
    valid[2:5, 3:7] = True
    points = move_to_valid_pixels(torch.rand(1, 12_000, 2), valid)
    columns, rows = (points[0] * torch.tensor([20, 10])).long().unbind(-1)
    assert valid[rows, columns].all()
    counts = torch.bincount(rows * 20 + columns, minlength=200)[valid.flatten()]
    assert counts.sum() == 12_000
    assert counts.min() > 800  # 1000 each on average
    # centres: a bilinear sample of the full-size map is that pixel's value
    values = torch.randn(1, 10, 20)
    torch.testing.assert_close(sample_points(values, points)[0], values[0, rows, columns], atol=1e-4, rtol=0)


def test_points_without_any_valid_pixel_stay():
    points = torch.rand(2, 5, 2)
    assert move_to_valid_pixels(points, torch.zeros(4, 4, dtype=torch.bool)).equal(points)


def criterion_gradient(task, pixel_mask, **overrides):
    """Where gradients of the mask logits fall when only the top left quarter is labelled (32x32, logits at 8x8)."""
    torch.manual_seed(0)
    config = tiny_config(task=task, train_num_points=2000, importance_sample_ratio=0.0, **overrides)
    criterion = FASegLoss(config)
    criterion.reset_parameters()
    masks = torch.zeros(2, 32, 32)
    masks[0, :16, :8] = 1
    masks[1, :16, 8:16] = 1
    logits = torch.randn(1, 6, 8, 8, requires_grad=True)
    losses = criterion(
        MaskLogits([logits]), [torch.randn(1, 6, 4)], [masks], [torch.tensor([0, 1])], pixel_mask=pixel_mask
    )
    losses["loss_mask"].backward()
    return logits.grad.abs().sum((0, 1)) > 0


def test_ignored_pixels_are_negatives_by_default():
    assert criterion_gradient("semantic", None).all()


def test_excluded_ignored_pixels_teach_nothing():
    taught = criterion_gradient("semantic", None, exclude_ignored_pixels=True)
    assert taught[:4, :4].all()
    assert not taught[5:].any() and not taught[:, 5:].any()  # one more cell is touched by bilinear sampling


def test_background_of_instances_is_not_ignored_but_padding_is():
    pixel_mask = torch.ones(1, 32, 32)
    pixel_mask[:, 24:] = 0
    taught = criterion_gradient("instance", pixel_mask, exclude_ignored_pixels=True)
    assert taught[:6].all()
    assert not taught[7:].any()


def _count_on_rank(rank, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    counts = [3, 3] if rank == 0 else [4, 6]
    results[rank] = count_masks([torch.zeros(count) for count in counts], torch.device("cpu")).item()
    torch.distributed.destroy_process_group()


def test_masks_are_counted_over_processes_once():
    """Ranks with 6 and 10 masks: 8 on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        # No gradient is computed there, so that a fork will do, which imports nothing anew.
        torch.multiprocessing.start_processes(_count_on_rank, (port, results), nprocs=2, start_method="fork")
        assert dict(results) == {0: 8.0, 1: 8.0}


def test_without_targets_masks_count_as_one():
    assert count_masks([torch.zeros(0)], torch.device("cpu")) == 1
