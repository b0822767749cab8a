"""SeMask-FPN and its backbone: any size, saving, switches, gradients, refusals."""

import copy

import pytest
import torch
from tiny_semask import TINY_BACKBONE, tiny_batch, tiny_config, tiny_model
from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation

from configuration import SeMaskConfig, SeMaskSwinConfig
from modeling_faseg import SeMaskForSemanticSegmentation, SeMaskSwinBackbone


@pytest.mark.parametrize("size", [(64, 96), (50, 71), (33, 32), (5, 7), (1, 1)], ids=str)
def test_any_image_size(size):
    model = tiny_model()
    height, width = (-(-side // 4) for side in size)
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size), output_hidden_states=True)
    assert outputs.logits.shape == outputs.auxiliary_logits.shape == (2, 3, height, width)
    assert [semantic.shape[1] for semantic in outputs.semantic_maps] == [3] * 4
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states[:2]] == [(8, height, width)] * 2
    assert outputs.loss is None and len(outputs.hidden_states) == 5


def test_zeros_at_the_border_are_the_padding_of_the_backbone():
    """Sides up to the next multiple of 4 are filled with zeros, that is the mean colour of normalised images."""
    model, images = tiny_model(), torch.randn(1, 3, 50, 71)
    with torch.no_grad():
        padded = torch.nn.functional.pad(images, (0, 1, 0, 2))
        torch.testing.assert_close(model(images).logits, model(padded).logits)


def test_global_stages_see_the_whole_map():
    """A change in one corner reaches the other only where a stage's semantic attention is global."""
    images = torch.randn(1, 3, 256, 256)
    changed = images.clone()
    changed[..., :4, :4] += 5
    for stages, reaches in (([], False), ([0], True)):
        backbone = AutoBackbone.from_config(
            AutoConfig.for_model(**{**TINY_BACKBONE, "global_semantic_stages": stages})
        )
        for block in backbone.modules():
            if hasattr(block, "gamma"):
                torch.nn.init.constant_(block.gamma, 0.5)
        with torch.no_grad():
            before, after = (backbone.eval()(each).feature_maps[0][..., -1, -1] for each in (images, changed))
        assert (not torch.equal(before, after)) == reaches


def test_batch_of_two_is_two_batches_of_one():
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_saving_and_loading(tmp_path):
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SeMaskForSemanticSegmentation
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.backbone_config.global_semantic_stages == [3]
    with torch.no_grad():
        assert loaded.eval()(images).logits.equal(model(images).logits)


def test_backbone_alone(tmp_path):
    config = SeMaskSwinConfig(**TINY_BACKBONE, num_labels=5, out_features=["stage2", "stage4"])
    backbone = AutoBackbone.from_config(config).eval()
    backbone.save_pretrained(tmp_path)
    assert type(backbone) is SeMaskSwinBackbone
    loaded = SeMaskSwinBackbone.from_pretrained(
        tmp_path
    )  # AutoBackbone of transformers 5.24 takes a folder for a Hub id
    images = tiny_batch()["pixel_values"]
    with torch.no_grad():
        outputs, again = backbone(images), loaded(images)
    assert [feature_map.shape[1] for feature_map in outputs.feature_maps] == backbone.channels == [16, 64]
    assert [semantic.shape[1] for semantic in outputs.semantic_maps] == [5] * 4
    assert all(left.equal(right) for left, right in zip(outputs.feature_maps, again.feature_maps))


def test_attentions_of_every_block():
    model = tiny_model()
    model.set_attn_implementation("eager")
    outputs = model(torch.randn(1, 3, 32, 32), output_attentions=True)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [
        (4, 1, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16), (1, 4, 16, 16),
    ]  # fmt: skip
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(4, 1, 16))


def test_sdpa_is_eager():
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    logits = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            logits.append(model(images).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns():
    model = tiny_model().train()
    model(**tiny_batch()).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(backbone_config={**TINY_BACKBONE, "drop_path_rate": 0.0, "semantic_dropout": 0.0})
        model.decoder.dropout.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**tiny_batch()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right)


def test_drop_path_drops_both_branches():
    """With every path dropped a block returns its input, whereas transformers' Swin keeps the feed-forward."""
    block = copy.deepcopy(tiny_model().backbone.encoder.layers[3].blocks[0]).train()
    assert block.drop_path.rate == pytest.approx(0.2)
    block.drop_path.rate = 1 - 1e-7
    maps = torch.randn(3, 4, 4, 64)
    assert block(maps).equal(maps)
    assert not block.eval()(maps).equal(maps)


def test_initial_weights_are_the_reference_s():
    """Semantic attention starts switched off, but able to learn: only its gamma is 0, not what it multiplies."""
    torch.manual_seed(0)
    model = SeMaskForSemanticSegmentation(tiny_config(backbone_config={**TINY_BACKBONE, "embed_dim": 32}))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert parameter.item() == 0
        elif name.endswith("bias") and "embeddings" not in name:
            assert not parameter.any(), name
        elif name.endswith("relative_position_bias_table") or (parameter.ndim == 2 and "backbone" in name):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
        elif ".conv." in name:
            fan_out = parameter.shape[0] * 9
            assert parameter.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    assert model.decoder.classifier.weight.std().item() == pytest.approx(0.01, rel=0.3)


def test_model_made_on_the_meta_device_has_its_index():
    expected = tiny_model().backbone.encoder.layers[0].blocks[0].attention.relative_position_bias
    with torch.device("meta"):
        model = SeMaskForSemanticSegmentation(tiny_config())
    model.to_empty(device="cpu")
    model.init_weights()
    bias = model.backbone.encoder.layers[0].blocks[0].attention.relative_position_bias
    assert bias.relative_position_index.equal(expected.relative_position_index)


def test_number_of_semantic_classes_follows_the_labels():
    given = SeMaskSwinConfig(**TINY_BACKBONE)
    assert SeMaskConfig(backbone_config=given, num_labels=7).backbone_config.num_semantic_classes == 7
    assert given.num_semantic_classes is None
    kept = SeMaskConfig(backbone_config={**TINY_BACKBONE, "num_semantic_classes": 9}, num_labels=7)
    assert kept.backbone_config.num_semantic_classes == 9
    assert SeMaskConfig().backbone_config.depths == (2, 2, 6, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": {"model_type": "swin"}}, "type 'swin': set its model_type to 'semask_swin'"),
        (
            {"backbone_config": {**TINY_BACKBONE, "out_features": ["stage1"]}},
            "set them to .'stage1', 'stage2',",
        ),
        ({"backbone_config": {**TINY_BACKBONE, "global_semantic_stages": [4]}}, "name stages from 0 to 3"),
        ({"backbone_config": {**TINY_BACKBONE, "num_heads": [3, 3, 3, 3]}}, "stage 0 has 8 channels: not divisible"),
        ({"backbone_config": {**TINY_BACKBONE, "num_semantic_blocks": [1]}}, "give one number for each of 4 stages"),
        ({"ohem_min_kept": 0}, "ohem_min_kept=0: set it to at least 1"),
        ({"ignore_value": 2}, "choose an id that is no class: id2label has 3 classes"),
    ],
)
def test_configurations_that_cannot_be_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_labels_that_cannot_be_are_named():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match=r"labels are of shape \(2, 5, 5\), need \(2, 50, 71\)"):
        model(batch["pixel_values"], labels=torch.zeros(2, 5, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"label 3 but 3 classes \(0..2\)"):
        model(batch["pixel_values"], labels=batch["labels"].clone().fill_(3))
    few = tiny_model(backbone_config={**TINY_BACKBONE, "num_semantic_classes": 2})
    with torch.no_grad():
        assert few(batch["pixel_values"]).auxiliary_logits.shape[1] == 2
    with pytest.raises(ValueError, match="num_semantic_classes=2 of backbone_config but 3 classes"):
        few(**batch)


def test_masks_in_place_of_a_label_map():
    """The processor's labels, as the training commands hand them over, mean the same."""
    model, batch = tiny_model(), tiny_batch()
    classes = [torch.tensor([2, 0, 1]), torch.tensor([0, 1])]
    batch["labels"][1][batch["labels"][1] == 2] = 255
    masks = [(labels == ids[:, None, None]).float() for labels, ids in zip(batch["labels"], classes)]
    found = model(batch["pixel_values"], mask_labels=masks, class_labels=classes)
    torch.testing.assert_close(found.loss, model(**batch).loss)
