"""The recipes on backbones newer than the paper: published architectures, settings of named sources, what learns."""

import functools

import pytest
import timm
import torch
from transformers import AutoConfig, AutoImageProcessor

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.parser import PROJECT_ROOT, RECIPES, parse_arguments
from scripts.models.loading import build_config, refuse_dead_hrca
from scripts.sharing.card_facts import read_card
from scripts.training.arguments import TrainArguments, check_arguments
from scripts.training.optimization import build_parameter_groups


CARDS = PROJECT_ROOT / "hub_cards"
# ---- settings, by the sources that the recipes name, and FASeg's for ADE20K ----
ALL = {
    "do_reduce_labels": True, "crop_height": 512, "crop_width": 512, "longest_edge": 2048, "eval_shortest_edge": 512,
    "shortest_edges": [int(0.1 * k * 512) for k in range(5, 21)], "eval_longest_edge": 2048, "color_jitter": True,
    "total_train_batch_size": 16, "learning_rate": 0.0001, "weight_decay": 0.05, "max_grad_norm": 0.01,
    "lr_scheduler_type": "poly", "lr_power": 0.9, "mixed_precision": "fp16", "adam_beta1": 0.9, "adam_beta2": 0.999,
}  # fmt: skip
EPOCHS_31 = {"max_train_steps": 20210 // 16 * 31}
TUNED = ALL | EPOCHS_31 | {
    "backbone_lr_multiplier": 1.0, "backbone_layer_decay": 0.8, "num_warmup_steps": 1500, "freeze_backbone": False,
}  # fmt: skip
# ---- architectures, as published: DINOv3 (arXiv 2508.10104), DINOv2 with registers (arXiv 2309.16588) ----
CONVNEXT_TINY = {"model_type": "dinov3_convnext", "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}
VIT_BASE = {
    "model_type": "dinov3_vit", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_register_tokens": 4, "patch_size": 16, "rope_theta": 100.0, "query_bias": True,
    "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True, "use_gated_mlp": False,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pos_embed_rescale": 2.0, "out_features": ["stage12"],
}  # fmt: skip
VIT_SMALL = {
    "model_type": "dinov2_with_registers", "hidden_size": 384, "mlp_ratio": 4, "num_hidden_layers": 12,
    "num_attention_heads": 6, "num_register_tokens": 4, "patch_size": 14, "image_size": 518, "use_swiglu_ffn": False,
    "layer_norm_eps": 1e-6, "out_features": ["stage12"],
}  # fmt: skip
MOBILENET = {"model_type": "timm_backbone", "backbone": "mobilenetv4_conv_medium", "out_indices": [1, 2, 3, 4]}
# model id: (settings, architecture, parameters of the backbone, of the published network in millions)
RECIPES_HERE = {
    "faseg-dinov3-convnext-tiny-ade20k": (
        ALL | {
            "max_train_steps": 160000, "backbone_lr_multiplier": 0.729, "backbone_layer_decay": 0.9,
            "num_warmup_steps": 1500,
        },
        CONVNEXT_TINY | {"drop_path_rate": 0.4}, 27_818_592, 29,
    ),
    "faseg-dinov3-vit-base-ade20k": (TUNED, VIT_BASE, 85_660_416, 86),
    "faseg-dinov3-vit-base-ade20k-frozen": (
        ALL | EPOCHS_31 | {"freeze_backbone": True, "backbone_layer_decay": 1.0, "num_warmup_steps": 0},
        VIT_BASE, 85_660_416, 86,
    ),
    "faseg-dinov2-reg-small-ade20k": (TUNED, VIT_SMALL, 22_058_112, 22),
    "faseg-mobilenetv4-ade20k": (
        ALL | {"max_train_steps": 160000, "backbone_lr_multiplier": 0.1, "backbone_layer_decay": 1.0},
        MOBILENET, 7_203_152, 9.7,
    ),
}  # fmt: skip
# What of the published count is no part of a backbone: ConvNeXt's last norm and classifier of 1000 classes, and the
# last convolution, its norm and the classifier of MobileNetV4.
LEFT_OUT = {
    "faseg-dinov3-convnext-tiny-ade20k": 2 * 768 + 769_000,
    "faseg-mobilenetv4-ade20k": 960 * 1280 + 2 * 1280 + 1_281_000,
}


def arguments_of(name):
    return parse_arguments(TrainArguments, [name, "--dataset_name", "data", "--output_dir", "out"])


@functools.cache
def on_meta(name):
    with torch.device("meta"):
        return FASegForUniversalSegmentation(build_config(arguments_of(name)))


def test_there_are_no_others():
    words = {"dinov3", "dinov2", "mobilenetv4"}
    assert {recipe.stem for recipe in RECIPES.glob("*.yaml") if words & set(recipe.stem.split("-"))} == {*RECIPES_HERE}


@pytest.mark.parametrize("name", RECIPES_HERE)
def test_recipes_have_the_settings_of_their_sources(name):
    settings, *_ = RECIPES_HERE[name]
    arguments = arguments_of(name)
    assert {key: getattr(arguments, key) for key in settings} == settings
    check_arguments(arguments)
    refuse_dead_hrca(build_config(arguments), arguments.crop_height, arguments.crop_width)
    text = (RECIPES / f"{name}.yaml").read_text()
    card = read_card(CARDS / name / "card.yaml")
    assert "Not run here" in text and card.base_model in text
    assert ("DINOv3 License" in text) == (card.license_name == "dinov3-license") == ("dinov3" in name)


@pytest.mark.parametrize("name", RECIPES_HERE)
def test_models_have_the_published_architecture(name):
    _, architecture, parameters, millions = RECIPES_HERE[name]
    model = on_meta(name)
    backbone = model.model.backbone
    assert {key: getattr(model.config.backbone_config, key) for key in architecture} == architecture
    assert sum(value.numel() for value in backbone.parameters()) == parameters
    assert (parameters + LEFT_OUT.get(name, 0)) / 1e6 == pytest.approx(millions, abs=0.5)
    plain = architecture["model_type"] in ("dinov3_vit", "dinov2_with_registers")
    assert model.config.simple_feature_pyramid == plain
    # All else is the released models'.
    released = AutoConfig.from_pretrained(CARDS / "faseg-resnet50-ade20k").to_dict()
    own = {"backbone_config", "simple_feature_pyramid", "freeze_backbone_batch_norm", "_name_or_path"}
    config = AutoConfig.from_pretrained(CARDS / name)
    assert {k: v for k, v in config.to_dict().items() if k not in own} == {
        k: v for k, v in released.items() if k not in own
    }
    assert config.freeze_backbone_batch_norm == ("mobilenet" in name)


def test_the_small_one_is_all_of_timm_s_network_but_its_classifier():
    with torch.device("meta"):
        whole = timm.create_model("mobilenetv4_conv_medium")
    assert sum(value.numel() for value in whole.parameters()) == 9_715_512 == (
        RECIPES_HERE["faseg-mobilenetv4-ade20k"][2] + LEFT_OUT["faseg-mobilenetv4-ade20k"]
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES_HERE)
def test_processors_are_the_released_ones(name):
    """Images are normalised as DINOv2, DINOv3 and timm's MobileNetV4 had them: by ImageNet's mean and deviation."""
    processors = [AutoImageProcessor.from_pretrained(CARDS / each) for each in (name, "faseg-resnet50-ade20k")]
    assert processors[0].to_dict() == processors[1].to_dict()


def test_rates_of_the_vision_transformer_and_the_convnext():
    """EoMT's last block learns as fast as the head; ConvNeXt's last stage has 0.9^3 of the rate of the head."""
    rates = {}
    for name in ("faseg-dinov3-vit-base-ade20k", "faseg-dinov3-convnext-tiny-ade20k"):
        arguments = arguments_of(name)
        groups = build_parameter_groups(
            on_meta(name), arguments.learning_rate, arguments.weight_decay, arguments.backbone_lr_multiplier,
            arguments.backbone_layer_decay,
        )  # fmt: skip
        rates[name] = {group["name"]: group["lr"] for group in groups}
        assert rates[name]["head"] == 1e-4
    vit, convnext = rates.values()
    assert vit["backbone_layer_12"] == 1e-4 and vit["backbone_layer_1"] == pytest.approx(1e-4 * 0.8**11)
    assert [convnext[f"backbone_layer_{n}"] for n in (4, 3, 2, 1)] == pytest.approx(
        [1e-4 * 0.9**n for n in (3, 4, 5, 6)]
    )
