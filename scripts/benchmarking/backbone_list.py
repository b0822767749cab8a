"""The backbones that docs/backbones.md is about: every entry of transformers' `AutoBackbone`, and networks of timm.

All have their published size: the default configuration of their class, or timm's network of the name. The tests of
backbones have the same names in tiny configurations (tests/modeling_faseg/backbone_cases.py).
"""

from __future__ import annotations

from typing import Any


REFERENCE = "resnet"  # ResNet-50, whose time the others' are compared with
FOUR_STAGES = ["stage1", "stage2", "stage3", "stage4"]
TIMM = "timm_backbone"
UNBOUND = {"strict_img_size": False}


def _in_transformers(*stages: str) -> dict[str, Any]:
    """Fields of `FASegConfig` for an entry of `AutoBackbone`; its model type is put in by `config_fields`."""
    return {"backbone_config": {"out_features": list(stages or FOUR_STAGES)}}


def _plain(**backbone: Any) -> dict[str, Any]:
    """As `_in_transformers`, of a vision transformer whose last map a feature pyramid makes four of."""
    return {"backbone_config": backbone, "simple_feature_pyramid": True}


def _plain_in_timm() -> dict[str, Any]:
    """As `_plain`, of timm's, which are made for one size of image unless they are told otherwise."""
    return {**_plain(model_type=TIMM, out_indices=[-1]), "timm_backbone_kwargs": {"dynamic_img_size": True}}


def _in_timm(first: int, kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fields of `FASegConfig` for a network of timm, of whose maps four are read from the `first` on."""
    backbone = {"model_type": TIMM, "out_indices": [*range(first, first + 4)]}
    return {"backbone_config": backbone, **({"timm_backbone_kwargs": kwargs} if kwargs else {})}


# Name of the model type in transformers, or of the network in timm -> fields of `FASegConfig`
BACKBONES: dict[str, dict[str, Any]] = {
    "beit": _plain(),
    "bit": _in_transformers(),
    "convnext": _in_transformers(),
    "convnextv2": _in_transformers(),
    "dinat": _in_transformers(),
    "dinov2": _plain(),
    "dinov2_with_registers": _plain(),
    "dinov3_convnext": _in_transformers(),
    "dinov3_vit": _plain(),
    "focalnet": _in_transformers("stem", "stage1", "stage2", "stage4"),
    "hgnet_v2": _in_transformers(),
    "hiera": _in_transformers(),
    "lw_detr_vit": _plain(num_windows=4),  # the default of 16 takes few sizes of images
    "maskformer-swin": _in_transformers(),
    "pixio": _plain(),
    "pp_lcnet": _in_transformers("stage2", "stage3", "stage4", "stage5"),
    "pp_lcnet_v3": _in_transformers("stage2", "stage3", "stage4", "stage5"),
    "pp_lcnet_v4": _in_transformers(),
    "pvt_v2": _in_transformers(),
    "resnet": _in_transformers(),
    "rf_detr_dinov2": _in_transformers(),
    "rt_detr_resnet": _in_transformers(),
    "sapiens2": _plain(),
    "swin": _in_transformers(),
    "swinv2": _in_transformers(),
    "textnet": _in_transformers(),
    "tipsv2": _plain(),
    "tipsv2_vision_model": _plain(),
    "uvdoc_backbone": _plain(),
    "vitdet": _plain(),
    "vitpose_backbone": _in_transformers(),
    "resnet18": _in_timm(1),
    "resnest14d": _in_timm(1),
    "regnety_002": _in_timm(1),
    "mobilenetv2_035": _in_timm(1, {"pad_type": "same"}),
    "mobilenetv3_small_050": _in_timm(1),
    "mobilenetv4_conv_small_035": _in_timm(1),
    "tf_efficientnet_lite0": _in_timm(1),
    "efficientnetv2_rw_t": _in_timm(1),
    "hrnet_w18_small": _in_timm(1),
    "repvgg_a0": _in_timm(1),
    "densenet121": _in_timm(1),
    "hgnetv2_b0": _in_timm(0),
    "convnext_atto": _in_timm(0),
    "convnextv2_atto": _in_timm(0),
    "edgenext_xx_small": _in_timm(0),
    "fastvit_t8": _in_timm(0),
    "poolformer_s12": _in_timm(0),
    "caformer_s18": _in_timm(0),
    "pvt_v2_b0": _in_timm(0),
    "efficientvit_b0": _in_timm(0),
    "tiny_vit_5m_224": _in_timm(0),
    "mambaout_femto": _in_timm(0),
    "swin_tiny_patch4_window7_224": _in_timm(0, UNBOUND),
    "swinv2_cr_tiny_ns_224": _in_timm(0, UNBOUND),
    "swinv2_tiny_window8_256": _in_timm(0, UNBOUND),
    "maxvit_pico_rw_256": _in_timm(1),
    "hiera_tiny_224": _in_timm(0),
    "vit_tiny_patch16_224": _plain_in_timm(),
    "vit_small_patch14_dinov2": _plain_in_timm(),
    "eva02_tiny_patch14_224": _plain_in_timm(),
}


def in_timm(name: str) -> bool:
    """Whether the backbone is timm's."""
    return BACKBONES[name]["backbone_config"].get("model_type") == TIMM


def config_fields(name: str) -> dict[str, Any]:
    """The fields of `FASegConfig` for a backbone of the list."""
    fields = BACKBONES[name]
    named = {"model_type": TIMM, "backbone": name} if in_timm(name) else {"model_type": name}
    return {**fields, "backbone_config": {**named, **fields["backbone_config"]}}
