"""SeMask's losses by hand."""

import pytest
import torch
from tiny_semask import tiny_batch, tiny_model
from torch.nn import functional as F

from host_waits import host_waits
from modeling_faseg.loss_semask import (
    check_label_maps,
    label_maps_of_masks,
    pixel_loss,
    semantic_map_loss,
    sum_semantic_maps,
)


def test_ignored_pixels_stay_in_the_denominator():
    logits, labels = torch.randn(1, 4, 6, 8), torch.randint(0, 4, (1, 6, 8))
    labels[0, :3] = 255
    over_valid = F.cross_entropy(logits, labels, ignore_index=255)
    assert pixel_loss(logits, labels, 255).item() == pytest.approx(over_valid.item() / 2)
    assert pixel_loss(logits, torch.full_like(labels, 255), 255).item() == 0


def test_hardest_pixels_of_the_batch_are_kept():
    logits, labels = torch.randn(2, 4, 6, 8), torch.randint(0, 4, (2, 6, 8))
    labels[0, :3] = 255
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none").flatten()
    expected = losses.sort(descending=True).values[:10].sum() / 96
    assert pixel_loss(logits, labels, 255, min_kept=5).item() == pytest.approx(expected.item())
    assert pixel_loss(logits, labels, 255, min_kept=1000).item() == pytest.approx(losses.mean().item())


def test_doublings_are_not_one_resize():
    maps = [torch.zeros(1, 2, 11, 9), torch.zeros(1, 2, 6, 5), torch.randn(1, 2, 3, 3)]
    found = sum_semantic_maps(maps)
    assert found.shape == (1, 2, 11, 9)
    once = F.interpolate(maps[2], size=(6, 6), mode="bilinear")
    twice = F.interpolate(once, size=(12, 12), mode="bilinear")
    torch.testing.assert_close(found, F.interpolate(twice, size=(11, 9), mode="bilinear"))
    assert not torch.allclose(found, F.interpolate(maps[2], size=(11, 9), mode="bilinear"))


def test_a_image_without_labels_costs_nothing():
    maps = (torch.randn(1, 3, 8, 8, requires_grad=True),)
    loss = semantic_map_loss(maps, torch.full((1, 32, 32), 255), 255)
    loss.backward()
    assert loss.item() == 0 and not maps[0].grad.any()


def test_label_maps_of_masks():
    masks = [torch.zeros(2, 3, 4), torch.zeros(0, 3, 4)]
    masks[0][0, 0], masks[0][1, :2] = 1, 1
    maps = label_maps_of_masks(masks, [torch.tensor([7, 5]), torch.tensor([])], (3, 4), 255, torch.device("cpu"))
    assert maps[0].tolist() == [[7] * 4, [5] * 4, [255] * 4]
    assert (maps[1] == 255).all() and maps.dtype == torch.long


def test_a_training_step_waits_once_for_the_labels_range_and_a_forward_for_nothing():
    model = tiny_model().train()
    batch = tiny_batch()
    with host_waits() as waits:
        model(**batch).loss.backward()
        assert waits.transfers == [[(2,)]]
        with torch.no_grad():
            model.eval()(batch["pixel_values"])
    assert waits.found == [] and len(waits.transfers) == 1


@pytest.mark.parametrize(("wrong", "named"), [([7, 300], 7), ([-1, 9], -1), ([4, -2], 4), ([255, 3], 3)])
def test_the_first_label_outside_the_classes_is_named(wrong, named):
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    labels[0, 1, 2], labels[0, 3, 0] = wrong[0], wrong[1]
    with pytest.raises(ValueError, match=rf"^label {named} but 3 classes \(0..2\), 255 being ignored"):
        check_label_maps(labels, 3, 255)
    check_label_maps(labels.clamp(0, 2), 3, 255)
    check_label_maps(torch.full((1, 4, 5), 255), 3, 255)
