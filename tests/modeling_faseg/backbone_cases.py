"""Every entry of `AutoBackbone`, and timm networks: the smallest configurations that their classes allow."""

from typing import Any

from transformers import AutoConfig


FOUR_STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SMALL_VIT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64,
}  # fmt: skip
SMALL_SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}


# model type -> the fields of a tiny configuration, without out_features where these are the four stages
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "beit": SMALL_VIT,
    "bit": {**SMALL_STAGES, "embedding_size": 8, "num_groups": 4},
    "convnext": SMALL_STAGES,
    "convnextv2": SMALL_STAGES,
    "dinat": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "dinov2": {**SMALL_VIT, "patch_size": 14},
    "dinov2_with_registers": {**SMALL_VIT, "patch_size": 14},
    "dinov3_convnext": SMALL_STAGES,
    "dinov3_vit": {**SMALL_VIT, "num_register_tokens": 2},
    "focalnet": {
        "embed_dim": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1],
        "out_features": ["stem", "stage1", "stage2", "stage4"],
    },
    "hgnet_v2": {
        "embedding_size": 8, **SMALL_STAGES, "stem_channels": [3, 4, 8], "stage_in_channels": [8, 16, 24, 32],
        "stage_mid_channels": [4, 8, 8, 8], "stage_out_channels": [16, 24, 32, 40], "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "image_size": [64, 64]},
    "lw_detr_vit": {**SMALL_VIT, "num_windows": 4},
    "maskformer-swin": SMALL_SWIN,
    "pixio": SMALL_VIT,
    "pp_lcnet": {"scale": 0.25, "out_features": ["stage2", "stage3", "stage4", "stage5"]},
    "pp_lcnet_v3": {"scale": 0.25, "out_features": ["stage2", "stage3", "stage4", "stage5"]},
    "pp_lcnet_v4": {},
    "pvt_v2": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "resnet": {**SMALL_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "rf_detr_dinov2": SMALL_VIT,
    "rt_detr_resnet": {**SMALL_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "sapiens2": {**SMALL_VIT, "num_key_value_attention_heads": 1},
    "swin": SMALL_SWIN,
    "swinv2": SMALL_SWIN,
    "textnet": {"hidden_sizes": [8, 8, 16, 24, 32], "stem_out_channels": 8},
    "tipsv2": {},
    "tipsv2_vision_model": SMALL_VIT,
    "uvdoc_backbone": {},
    "vitdet": SMALL_VIT,
    "vitpose_backbone": {**SMALL_VIT, "image_size": [64, 64]},
}  # fmt: skip

# timm network -> (its out_indices, timm_backbone_kwargs)
TIMM: dict[str, tuple[list[int], dict[str, Any]]] = {
    "resnet18": ([1, 2, 3, 4], {}),
    "resnest14d": ([1, 2, 3, 4], {}),
    "regnety_002": ([1, 2, 3, 4], {}),
    "mobilenetv2_035": ([1, 2, 3, 4], {"pad_type": "same"}),
    "mobilenetv3_small_050": ([1, 2, 3, 4], {}),
    "mobilenetv4_conv_small_035": ([1, 2, 3, 4], {}),
    "tf_efficientnet_lite0": ([1, 2, 3, 4], {}),
    "efficientnetv2_rw_t": ([1, 2, 3, 4], {}),
    "hrnet_w18_small": ([1, 2, 3, 4], {}),
    "repvgg_a0": ([1, 2, 3, 4], {}),
    "densenet121": ([1, 2, 3, 4], {}),
    "hgnetv2_b0": ([0, 1, 2, 3], {}),
    "convnext_atto": ([0, 1, 2, 3], {}),
    "convnextv2_atto": ([0, 1, 2, 3], {}),
    "edgenext_xx_small": ([0, 1, 2, 3], {}),
    "fastvit_t8": ([0, 1, 2, 3], {}),
    "poolformer_s12": ([0, 1, 2, 3], {}),
    "caformer_s18": ([0, 1, 2, 3], {}),
    "pvt_v2_b0": ([0, 1, 2, 3], {}),
    "efficientvit_b0": ([0, 1, 2, 3], {}),
    "tiny_vit_5m_224": ([0, 1, 2, 3], {}),
    "mambaout_femto": ([0, 1, 2, 3], {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}),
    "swin_tiny_patch4_window7_224": (
        [0, 1, 2, 3], {"strict_img_size": False, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    ),
    "swinv2_cr_tiny_ns_224": ([0, 1, 2, 3], {"strict_img_size": False}),
    "swinv2_tiny_window8_256": ([0, 1, 2, 3], {"strict_img_size": False}),
    "maxvit_pico_rw_256": ([1, 2, 3, 4], {}),
    "hiera_tiny_224": ([0, 1, 2, 3], {}),
    "vit_tiny_patch16_224": ([2, 5, 8, 11], {"dynamic_img_size": True}),
    "vit_small_patch14_dinov2": (
        [0, 1, 2, 3], {"dynamic_img_size": True, "img_size": 56, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
    "eva02_tiny_patch14_224": (
        [0, 1, 2, 3], {"dynamic_img_size": True, "img_size": 56, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
}  # fmt: skip

# What is refused -> the reason and the advice, as a pattern
NO_PYRAMID = r"strides \({0}, {0}, {0}, {0}\), need \(4, 8, 16, 32\): set simple_feature_pyramid=True$"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("beit", "dinov3_vit", "lw_detr_vit", "pixio", "sapiens2", "vitdet"), NO_PYRAMID.format(16)),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "tipsv2_vision_model"), NO_PYRAMID.format(14)),
    "rf_detr_dinov2": r"all its layers have stride 14, so choose a pyramid",
    "tipsv2": r"of strides \(14,\), need .*: set simple_feature_pyramid=True$",
    "dinat": r"cannot be built \(DinatBackbone requires the natten library",
    "hiera": r"does not read images of 64x64 and 448x672 \(.*: choose a pyramid that reads images of any size",
    "pp_lcnet_v4": r"strides \(4, 4, \(8, 4\), \(16, 4\)\), need \(4, 8, 16, 32\): choose a pyramid",
    "uvdoc_backbone": r"of strides \(16, 16, 16, 16\), need .*_pyramid=True and its out_features=\['stage6'\]$",
    "vitpose_backbone": r"Input image size .* doesn't match model",
    "maxvit_pico_rw_256": r"height \(4\) must be divisible by window \(8\)\): choose a pyramid that reads",
    "hiera_tiny_224": r"does not read images of 64x64 and 448x672",
    "vit_tiny_patch16_224": NO_PYRAMID.format(16),
    **dict.fromkeys(
        ("vit_small_patch14_dinov2", "eva02_tiny_patch14_224"),
        r"does not read images of 64x64 and 448x672 .*: set simple_feature_pyramid=True$",
    ),
}

# Those that work with a feature pyramid, and the same as cases of their own
WITH_PYRAMID = (
    "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "lw_detr_vit", "pixio", "sapiens2", "tipsv2",
    "tipsv2_vision_model", "uvdoc_backbone", "vitdet", "vit_tiny_patch16_224", "vit_small_patch14_dinov2",
    "eva02_tiny_patch14_224",
)  # fmt: skip
PYRAMID = "+pyramid"
PYRAMID_CASES = tuple(case + PYRAMID for case in WITH_PYRAMID)


def fields_of(case: str) -> dict[str, Any]:
    """The fields of `FASegConfig` for a case of either library, with a feature pyramid or without."""
    if case.endswith(PYRAMID):
        return {**fields_of(case.removesuffix(PYRAMID)), "simple_feature_pyramid": True}
    return timm_backbone_of(case) if case in TIMM else {"backbone_config": backbone_of(case)}


def backbone_of(kind: str) -> dict[str, Any]:
    """The backbone configuration of an entry of `AutoBackbone`."""
    known = AutoConfig.for_model(kind)  # not all have the fields of most, and a command line refuses unknown ones
    fields = {"out_features": FOUR_STAGES, **TRANSFORMERS[kind]}
    return {"model_type": kind, **{name: value for name, value in fields.items() if hasattr(known, name)}}


def timm_backbone_of(name: str) -> dict[str, Any]:
    """The fields of `FASegConfig` for a timm network."""
    out_indices, kwargs = TIMM[name]
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": out_indices}
    return {"backbone_config": backbone, "timm_backbone_kwargs": kwargs or None}
