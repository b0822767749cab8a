"""Every entry of `AutoBackbone`, and networks of timm: each works, or is refused with its reason and the fix."""

import copy

import pytest
import torch
from backbone_cases import (
    FOUR_STAGES,
    PYRAMID_CASES,
    REFUSED,
    SMALL_SWIN,
    TIMM,
    TRANSFORMERS,
    backbone_of,
    fields_of,
)
from tiny_models import TINY_RESNET, tiny_batch, tiny_config, tiny_model
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.backbone_faseg import build_backbone


WORKING = [*(case for case in (*TRANSFORMERS, *TIMM) if case not in REFUSED), *PYRAMID_CASES]
# An unread norm, widths other than declared, channels last, patches of 14; the others take minutes together.
FEW = ("bit", "hgnet_v2", "mambaout_femto", "dinov2+pyramid")
# One of each text, and of each library.
FEW_REFUSED = (
    "dinat", "dinov2", "dinov3_vit", "hiera", "hiera_tiny_224", "pp_lcnet_v4", "rf_detr_dinov2", "vitpose_backbone",
)  # fmt: skip


def marked(cases, few):
    return [pytest.param(case, marks=() if case in few else pytest.mark.slow) for case in cases]


def trained(model):
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_every_entry_is_a_case():
    assert set(MODEL_FOR_BACKBONE_MAPPING_NAMES) - {"timm_backbone"} <= set(TRANSFORMERS)


@pytest.mark.parametrize("case", marked(WORKING, FEW))
def test_it_trains_and_survives_saving(case, tmp_path):
    model = tiny_model(**fields_of(case))
    model.train()(**tiny_batch()).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == trained(model)
    backbone, pyramid = model.eval().model.backbone, model.model.feature_pyramid
    channels = [model.config.feature_size] * 4 if pyramid is not None else backbone.channels
    with torch.no_grad():
        for height, width in ((32, 96), (128, 64), (64, 64)):
            images = tiny_batch((height, width))["pixel_values"]
            maps = model(images, output_hidden_states=True).encoder_hidden_states
            assert [each.shape[1] for each in maps] == channels
            assert [tuple(each.shape[2:]) for each in maps] == [(height // s, width // s) for s in (4, 8, 16, 32)]
            expected = model(images).masks_queries_logits
            assert expected.isfinite().all()
        low = copy.deepcopy(model).bfloat16()(images.bfloat16()).masks_queries_logits
        assert low.dtype == torch.bfloat16 and low.isfinite().all()
        model.save_pretrained(tmp_path)
        loaded = FASegForUniversalSegmentation.from_pretrained(tmp_path).eval()
        # Untrained networks amplify; where tensors lie in memory decides which kernel rounds them.
        torch.testing.assert_close(loaded(images).masks_queries_logits, expected, rtol=1e-3, atol=1e-3)
    assert trained(loaded) == trained(model)
    assert loaded.model.backbone.unread_parameters == backbone.unread_parameters


@pytest.mark.parametrize("case", marked(REFUSED, FEW_REFUSED))
def test_it_is_refused_with_the_reason(case):
    with torch.device("meta"), pytest.raises(ValueError, match=REFUSED[case]) as refusal:
        build_backbone(tiny_config(**fields_of(case)))
    assert "\n" not in str(refusal.value)


def test_parameters_that_no_map_reads_are_frozen_and_named():
    backbone = tiny_model(**fields_of("bit")).model.backbone
    assert backbone.unread_parameters == ["bit.norm.weight", "bit.norm.bias"]
    assert [name for name, value in backbone.named_parameters() if not value.requires_grad] == [
        "bit.norm.weight", "bit.norm.bias",
    ]  # fmt: skip


def test_frozen_batch_norms_stay_frozen_after_loading(tmp_path):
    model = tiny_model(freeze_backbone_batch_norm=True)
    model.save_pretrained(tmp_path)
    assert trained(FASegForUniversalSegmentation.from_pretrained(tmp_path)) == trained(model) != trained(tiny_model())


TIMM_SWIN = {"model_type": "timm_backbone", "backbone": "swin_tiny_patch4_window7_224", "out_indices": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("refused", "message", "advised"),
    [
        (
            {"backbone_config": {**TINY_RESNET, "out_features": ["stage4"]}},
            r"gives 1 feature map\(s\) of strides \(32,\), .* set its out_features=\['stage1', 'stage2', 'stage3', ",
            {"backbone_config": TINY_RESNET},
        ),
        (
            {"backbone_config": {**backbone_of("focalnet"), "out_features": FOUR_STAGES}},
            r"strides \(8, 16, 32, 32\), .* set its out_features=\['stem', 'stage1', 'stage2', 'stage4'\]",
            {"backbone_config": backbone_of("focalnet")},
        ),
        (
            {"backbone_config": TIMM_SWIN, "timm_backbone_kwargs": SMALL_SWIN},
            r"cannot be built .* set timm_backbone_kwargs={.*, 'dynamic_img_size': True} and its out_indices=\[0, 1,",
            {
                "backbone_config": {**TIMM_SWIN, "out_indices": [0, 1, 2, 3]},
                "timm_backbone_kwargs": {**SMALL_SWIN, "dynamic_img_size": True},
            },
        ),
    ],
    ids=["stages", "focalnet", "timm"],
)
def test_the_advice_works(refused, message, advised):
    with torch.device("meta"):
        with pytest.raises(ValueError, match=message):
            FASegForUniversalSegmentation(tiny_config(**refused))
        FASegForUniversalSegmentation(tiny_config(**advised))
