"""FASeg on a SeMask backbone: its auxiliary loss, by itself; semantic attention that learns."""

import pytest
import torch
from tiny_semask import TINY_BACKBONE, tiny_batch, tiny_config, tiny_faseg
from tiny_semask import tiny_model as tiny_semask
from torch.nn import functional as F
from transformers import AutoModelForUniversalSegmentation

from configuration import FASegConfig, SeMaskSwinConfig
from modeling_faseg import FASegForUniversalSegmentation, SeMaskForSemanticSegmentation
from modeling_faseg.loss_semask import resized, sum_semantic_maps


def faseg_batch():
    """The tiny batch at a size that FASeg takes, with masks in place of label maps."""
    batch = tiny_batch(size=(64, 96))
    classes = [labels.unique()[:-1] for labels in batch["labels"]]
    masks = [(labels == ids[:, None, None]).float() for labels, ids in zip(batch["labels"], classes)]
    return batch, {"pixel_values": batch["pixel_values"], "mask_labels": masks, "class_labels": classes}


def test_the_auxiliary_loss_is_added_with_its_weight():
    batch, inputs = faseg_batch()
    losses = {}
    for weight in (0.4, 0.0):
        model = tiny_faseg(auxiliary_semantic_weight=weight)
        torch.manual_seed(3)
        outputs = model(**inputs)
        losses[weight] = outputs.loss
        term = outputs.loss_dict["loss_semantic"]
    assert (losses[0.4] - losses[0.0]).item() == pytest.approx(0.4 * term.item(), rel=1e-4)
    with torch.no_grad():
        summed = sum_semantic_maps(model.model.backbone(batch["pixel_values"]).semantic_maps, align_corners=True)
    at_labels = resized(summed, (64, 96), align_corners=True)
    assert term.item() == pytest.approx(F.cross_entropy(at_labels, batch["labels"], ignore_index=255).item(), rel=1e-4)


def test_labels_of_a_batch_may_be_tensors():
    """As FASeg takes them on other backbones: `(B, T, H, W)` masks and `(B, T)` classes."""
    images, masks, classes = torch.randn(2, 3, 64, 64), torch.ones(2, 1, 64, 64), torch.tensor([[1], [2]])
    losses = []
    for each in ((masks, classes), (list(masks), list(classes))):
        torch.manual_seed(0)
        losses.append(tiny_faseg()(images, *each).loss_dict["loss_semantic"])
    assert losses[0].equal(losses[1])


def test_other_backbones_have_no_such_loss():
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    model = tiny_faseg(backbone_config={**swin, "out_features": ["stage1", "stage2", "stage3", "stage4"]})
    assert "loss_semantic" not in model(**faseg_batch()[1]).loss_dict


def test_every_parameter_learns():
    model = tiny_faseg().train()
    model(**faseg_batch()[1]).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_configuration(tmp_path):
    given = SeMaskSwinConfig(**TINY_BACKBONE)
    config = FASegConfig(backbone_config=given, num_labels=5)
    assert config.backbone_config.num_semantic_classes == 5 and given.num_semantic_classes is None
    config.save_pretrained(tmp_path)
    assert FASegConfig.from_pretrained(tmp_path).backbone_config.to_dict() == config.backbone_config.to_dict()
    with pytest.raises(Exception, match="set its num_semantic_classes=2 to 5, the number of labels"):
        FASegConfig(backbone_config={**TINY_BACKBONE, "num_semantic_classes": 2}, num_labels=5)


@pytest.mark.parametrize("count", [5, 2])
@pytest.mark.parametrize("given", ["num_labels", "id2label"])
@pytest.mark.parametrize("build", [tiny_faseg, tiny_semask], ids=["faseg", "semask"])
def test_semantic_maps_follow_the_labels_that_a_model_is_loaded_with(build, given, count, tmp_path):
    """As is usual for fine-tuning on other classes."""
    build().save_pretrained(tmp_path)
    labels = {"num_labels": count, "id2label": {number: f"class {number}" for number in range(count)}}
    model_class = type(build())
    model = model_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **{given: labels[given]})
    assert model.config.num_labels == model.config.backbone_config.num_semantic_classes == count
    masks, classes = [torch.ones(1, 64, 64)], [torch.tensor([count - 1])]
    assert model(torch.randn(1, 3, 64, 64), mask_labels=masks, class_labels=classes).loss.isfinite()


def test_more_semantic_maps_than_labels_stay_as_many(tmp_path):
    tiny_semask(backbone_config={**TINY_BACKBONE, "num_semantic_classes": 9}).save_pretrained(tmp_path)
    config = SeMaskForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True).config
    assert config.backbone_config.num_semantic_classes == 9


def test_saving_and_loading(tmp_path):
    model, inputs = tiny_faseg(), faseg_batch()[1]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        masks = [each(inputs["pixel_values"]).masks_queries_logits for each in (model, loaded)]
    assert masks[0].equal(masks[1])


@pytest.mark.parametrize("kind", ["semask", "faseg"])
def test_semantic_attention_comes_alive(kind):
    """From initial weights, where every gamma is 0, twenty steps move all of them and all they multiply.

    In the reference's copy of Mask2Former they stay 0 for ever: there the output projection starts at 0 too.
    """
    torch.manual_seed(0)
    if kind == "semask":
        model, inputs = SeMaskForSemanticSegmentation(tiny_config()), tiny_batch(size=(64, 96))
    else:
        model, inputs = FASegForUniversalSegmentation(tiny_faseg().config), faseg_batch()[1]
    gammas = {name: value for name, value in model.named_parameters() if name.endswith(".gamma")}
    assert len(gammas) == 4 and not any(gamma.item() for gamma in gammas.values())
    others = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if ".semantic_layer.blocks." in name and name.endswith("weight")
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert all(abs(gamma.item()) > 1e-4 for gamma in gammas.values())
    after = dict(model.named_parameters())
    assert all((after[name] - before).abs().max() > 1e-4 for name, before in others.items())
