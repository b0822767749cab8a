"""Classes that weigh differently: in which terms of the loss, and that it is the configuration that says so."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model
from torch.nn import functional as F

from configuration import FASegConfig, QLSegConfig, SeMaskConfig
from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.loss_qlseg import QLSegLoss
from modeling_faseg.loss_semask import pixel_loss, semantic_map_loss


WEIGHTS = [0.5, 2.0, 7.0]
CONFIGS = (FASegConfig, QLSegConfig, SeMaskConfig)


def test_faseg_weighs_the_classes_of_queries_and_nothing_else():
    criterion = FASegLoss(tiny_config(class_weights=WEIGHTS))
    logits = torch.randn(1, 4, 4)
    matching = [(torch.tensor([3, 1]), torch.tensor([0, 1]))]
    expected = F.cross_entropy(
        logits[0], torch.tensor([3, 2, 3, 0]), weight=torch.tensor([*WEIGHTS, 0.1])
    )  # queries 3 and 1 have the classes 0 and 2, the others none
    found = criterion._class_loss(logits, [torch.tensor([0, 2])], matching)
    torch.testing.assert_close(found, expected)

    losses = []
    for weights in (None, WEIGHTS):
        torch.manual_seed(0)
        model = tiny_model(class_weights=weights)
        torch.manual_seed(1)
        losses.append(model(**tiny_batch()).loss_dict)
    changed = {name for name, value in losses[0].items() if not torch.equal(value, losses[1][name])}
    assert changed == {name for name in losses[0] if name.startswith("loss_cross_entropy")}


def test_qlseg_weighs_the_classes_of_queries():
    criterion = QLSegLoss(QLSegConfig(num_labels=3, class_weights=WEIGHTS))
    assert criterion.empty_weight.tolist() == [*WEIGHTS, pytest.approx(0.1)]
    logits = torch.randn(1, 3, 4)
    masks, labels = [torch.ones(1, 8, 8)], [torch.tensor([2])]
    found = criterion(torch.randn(1, 3, 8, 8), logits, masks, labels)["loss_cross_entropy"]
    expected = F.cross_entropy(logits[0], torch.tensor([3, 3, 2]), weight=torch.tensor([*WEIGHTS, 0.1]))
    torch.testing.assert_close(found, expected)


def test_semask_weighs_pixels_of_the_classes():
    """Also before the hardest are chosen, and where a backbone has more maps than there are classes."""
    labels = torch.tensor([[[0, 1, 2, 255]]])
    for maps in (3, 5):
        logits = torch.randn(1, maps, 1, 4)
        each = F.cross_entropy(logits, labels, reduction="none", ignore_index=255)[0, 0, :3] * torch.tensor(WEIGHTS)
        found = pixel_loss(logits, labels, 255, class_weights=WEIGHTS)
        torch.testing.assert_close(found, each.sum() / 4)
        kept = pixel_loss(logits, labels, 255, min_kept=1, class_weights=WEIGHTS)
        torch.testing.assert_close(kept, each.max() / 4)
        torch.testing.assert_close(semantic_map_loss((logits,), labels, 255, WEIGHTS), each.sum() / 3)


def test_the_configuration_says_what_classes_weigh_whatever_the_checkpoint_does(tmp_path):
    """The weights are in a model's files, too, from which they would be read over those of the configuration."""
    plain = tiny_model()
    plain.save_pretrained(tmp_path / "plain")
    weighted = FASegForUniversalSegmentation.from_pretrained(tmp_path / "plain", class_weights=WEIGHTS)
    assert weighted.criterion.empty_weight.tolist() == [*WEIGHTS, pytest.approx(0.1)]
    rarer = FASegForUniversalSegmentation.from_pretrained(tmp_path / "plain", no_object_weight=0.5)
    assert rarer.criterion.empty_weight.tolist() == [1, 1, 1, 0.5]
    weighted.load_state_dict(plain.state_dict())
    assert weighted.criterion.empty_weight[:3].tolist() == WEIGHTS

    weighted.save_pretrained(tmp_path / "weighted")
    again, info = FASegForUniversalSegmentation.from_pretrained(tmp_path / "weighted", output_loading_info=True)
    assert again.config.class_weights == WEIGHTS and not info["missing_keys"]
    assert again.criterion.empty_weight[:3].tolist() == WEIGHTS
    with pytest.raises(Exception, match="one number for each of the 5 classes, or None for equal weights"):
        FASegForUniversalSegmentation.from_pretrained(tmp_path / "weighted", num_labels=5)
    other = FASegForUniversalSegmentation.from_pretrained(
        tmp_path / "weighted", num_labels=5, class_weights=None, ignore_mismatched_sizes=True
    )
    assert other.criterion.empty_weight.tolist() == [1] * 5 + [pytest.approx(0.1)]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"class_weights=\[1.0, 2.0\]: give one number for each of the 3 classes"),
        ([1.0, -2.0, 1.0], "give numbers of 0 or more, not all of them 0"),
        ([1.0, float("inf"), 1.0], "give numbers of 0 or more"),
        ([0, 0, 0], "not all of them 0"),
    ],
)
def test_weights_that_cannot_be(config_class, weights, message):
    with pytest.raises(Exception, match=message):
        config_class(num_labels=3, class_weights=weights)


def test_a_loss_that_is_made_without_memory_gets_its_weights():
    with torch.device("meta"):
        criterion = QLSegLoss(QLSegConfig(num_labels=3, class_weights=WEIGHTS))
    criterion.to_empty(device="cpu").reset_parameters()
    assert criterion.empty_weight[:3].tolist() == WEIGHTS
