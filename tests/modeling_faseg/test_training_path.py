"""The training path: masks never multiplied out, one matching pass, and the same loss as from whole masks."""

import pytest
import torch
from mask_logits import MaskLogits
from tiny_models import TINY_SWIN, tiny_batch, tiny_config, tiny_model

from host_waits import host_waits
from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.mask_predictions_faseg import MaskProducts
from modeling_faseg.point_sampling_faseg import sample_uncertain_points


def random_predictions(num_predictions=3, num_queries=6, size=(12, 16)):
    """Embeddings and features of predictions for two images, as products and multiplied out, and class logits."""
    features = torch.randn(2, 8, *size, requires_grad=True)
    embeddings = [torch.randn(2, num_queries, 8, requires_grad=True) for _ in range(num_predictions)]
    masks = [torch.einsum("bqc,bchw->bqhw", each, features) for each in embeddings]
    class_logits = [torch.randn(2, num_queries, 4) for _ in range(num_predictions)]
    return [features, *embeddings], MaskProducts(embeddings, features), masks, class_logits


def losses(criterion, masks, class_logits, targets=(2, 1), seed=5):
    batch = tiny_batch(targets=targets)
    torch.manual_seed(seed)
    return criterion(masks, class_logits, batch["mask_labels"], batch["class_labels"])


@pytest.mark.parametrize("targets", [(2, 1), (0, 2), (9, 1)], ids=str)
def test_products_lose_as_their_masks_do(targets):
    criterion = FASegLoss(tiny_config())
    criterion.reset_parameters()
    leaves, products, masks, class_logits = random_predictions()
    gradients = []
    for predictions in (products, MaskLogits(masks)):
        terms = losses(criterion, predictions, class_logits, targets)
        gradients.append(torch.autograd.grad(criterion.weighted_sum(terms), leaves, retain_graph=True))
        gradients[-1] = (*terms.values(), *gradients[-1])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_points", [50, 500])
def test_sampled_features_times_embeddings_are_sampled_masks(num_points):
    """Also with more points than the 12 x 16 pixels of the masks."""
    leaves, _, masks, _ = random_predictions()
    points = torch.rand(2, num_points, 2) * 1.2 - 0.1
    predictions = MaskProducts(leaves[1:], leaves[0])
    grid = 2 * points[:, :, None] - 1
    for index, each in enumerate(masks):
        expected = torch.nn.functional.grid_sample(each, grid, align_corners=False)[..., 0]
        torch.testing.assert_close(predictions.at_points(index, points), expected, atol=1e-5, rtol=1e-4)


def test_no_layer_masks_are_made_for_the_loss():
    """With many queries and one target, all queries' masks of an image would be the largest tensor by far."""
    model = tiny_model(num_queries=200, train_num_points=16).train()
    batch = tiny_batch((128, 128), targets=(1,))
    masks_of_a_layer = (200, 32 * 32)
    made = []
    mask_product = torch.matmul

    def counted(*args):
        result = mask_product(*args)
        if result.shape[-2:] == masks_of_a_layer:
            made.append(result.shape)
        return result

    torch.matmul = counted
    try:
        output = model(**batch)
    finally:
        torch.matmul = mask_product
    assert [tuple(shape) for shape in made] == [(1, 200, 1024)]  # the output's, of the last layer
    assert output.auxiliary_logits is None and len(output.loss_dict) == 18


@pytest.mark.parametrize("exclude_ignored_pixels", [False, True])
def test_a_training_step_waits_for_the_device_once(exclude_ignored_pixels):
    """For the costs of all predictions, and with them the labels' ranges. What follows works on host copies."""
    model = tiny_model(exclude_ignored_pixels=exclude_ignored_pixels).train()
    with host_waits() as waits:
        loss = model(**tiny_batch()).loss
        loss.backward()
    assert waits.transfers == [[(6, 2, 6, 2), (2, 4)]]
    assert waits.found == []


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@torch.no_grad()
def test_a_forward_waits_for_nothing(mask_padding, backbone):
    """Two of HRCA's layers, DFPQ's in all others."""
    overrides = {"backbone_config": dict(TINY_SWIN), "freeze_backbone_batch_norm": False} if backbone == "swin" else {}
    model = tiny_model(decoder_layers=9, mask_padding=mask_padding, **overrides)
    pixel_mask = torch.ones(2, 128, 160)
    pixel_mask[1, :, 100:] = 0
    with host_waits() as waits:
        output = model(torch.randn(2, 3, 128, 160), pixel_mask=pixel_mask, output_focus=True)
    assert sum(windows is not None for windows in output.hrca_windows) == 2
    assert waits.found == [] and waits.transfers == []


def test_a_class_that_there_is_not_is_named_after_the_wait():
    """Costs are made before labels are read; a class outside of the table must not reach into its neighbours."""
    batch = tiny_batch()
    batch["class_labels"][1] = torch.tensor([7])
    model = tiny_model().train()
    with host_waits(), pytest.raises(ValueError, match=r"label 7 in image 1 of the batch but 3 classes \(0..2\)"):
        model(**batch)


@pytest.mark.parametrize("operation", ["item", "tolist", "nonzero", "boolean", "constant", "unique"])
def test_waits_are_noticed(operation):
    """The counter itself: each is one wait."""
    values = torch.arange(4.0)
    mask = values > 1
    calls = {
        "item": lambda: values[0].item(),
        "tolist": lambda: values.tolist(),
        "nonzero": mask.nonzero,
        "boolean": lambda: values[mask],
        "constant": lambda: torch.tensor([1, 2]),
        "unique": values.unique,
    }
    with host_waits() as waits:
        calls[operation]()
    assert len(waits.found) >= 1


def test_points_of_the_loss_are_where_masks_are_uncertain_as_often_as_in_the_reference():
    """Over many draws: three quarters of the points come from the least certain quarter of the candidates.

    The mask is a ramp, so that the distance from its zero line is the certainty. Of three candidates per point the
    nearest quarter of the image is kept as three quarters of the points; the others fall anywhere.
    """
    columns = (torch.arange(64) + 0.5) / 64 - 0.5
    logits = columns.expand(1, 64, 64).contiguous()
    points = torch.cat([sample_uncertain_points(logits, 12544, 3.0, 0.75) for _ in range(3)])
    distance = (points[..., 0] - 0.5).abs()
    near = (distance < 0.125).float().mean().item()  # a quarter of the image
    assert near == pytest.approx(0.75 + 0.25 * 0.25, abs=0.01)
    assert points[..., 1].mean().item() == pytest.approx(0.5, abs=0.01)


def test_matchings_of_all_predictions_are_those_of_each():
    criterion = FASegLoss(tiny_config())
    _, products, masks, class_logits = random_predictions()
    batch = tiny_batch(targets=(2, 3))
    labels = batch["mask_labels"], batch["class_labels"]
    torch.manual_seed(2)
    together = criterion.matcher(products, range(3), class_logits, *labels)
    torch.manual_seed(2)
    for matching, each, logits in zip(together, masks, class_logits):
        (expected,) = criterion.matcher(MaskLogits([each]), [0], [logits], *labels)
        assert all(ours[0].equal(alone[0]) and ours[1].equal(alone[1]) for ours, alone in zip(matching, expected))
