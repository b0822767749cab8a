"""Optimiser groups and schedule against the reference's."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation
from scripts.models.parameter_names import official_parameter_names
from scripts.training.optimization import build_parameter_groups, build_scheduler


CARDS = {
    "ade20k_r50": "faseg-resnet50-ade20k",
    "ade20k_swin_tiny": "faseg-swin-tiny-ade20k",
    "cityscapes_r50": "faseg-resnet50-cityscapes",
}
COUNTS = {"ade20k_r50": [53, 261, 119], "ade20k_swin_tiny": [101, 76, 261, 119], "cityscapes_r50": [53, 106, 261, 119]}


@cache
def official_groups(variant):
    """`{"lr=... wd=...": official names}` of the released architecture."""
    config = FASegConfig.from_pretrained(Path(__file__).parents[3] / "hub_cards" / CARDS[variant])
    with torch.device("meta"):
        model = FASegForUniversalSegmentation(config)
    names = official_parameter_names(config)
    groups = build_parameter_groups(model, learning_rate=1e-4, weight_decay=0.05)
    return {
        f"lr={group['lr']:g} wd={group['weight_decay']}": {names[name] for name in group["parameter_names"]}
        for group in groups
    }


@pytest.mark.parametrize("variant", sorted(CARDS))
def test_groups_have_the_reference_sizes(variant):
    groups = official_groups(variant)
    assert sorted(map(len, groups.values())) == sorted(COUNTS[variant])


@pytest.mark.golden
@pytest.mark.parametrize("variant", sorted(CARDS))
def test_groups_are_the_reference_groups(shared, variant):
    recorded = json.loads((shared / "golden" / "faseg" / f"optimizer_groups_{variant}.json").read_text())["groups"]
    found = dict(official_groups(variant))
    for key, names in recorded.items():
        rate, decay = (float(part.partition("=")[2]) for part in key.split())
        assert found.pop(f"lr={rate:g} wd={decay}") == set(names), key
    assert not found


BACKBONES = {
    "swin": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
    "resnet": {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
               "depths": [1, 1, 1, 1]},
    "timm": {"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]},
}  # fmt: skip


def small_model(kind):
    stages = {} if kind == "timm" else {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    return FASegForUniversalSegmentation(FASegConfig(backbone_config={**BACKBONES[kind], **stages}, **widths))


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_groups_by_name_on_every_kind_of_backbone(kind):
    model = small_model(kind)
    groups = {group["name"]: group for group in build_parameter_groups(model, 1.0, 0.1, backbone_lr_multiplier=0.0)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone": (0.0, 0.1), "backbone_no_decay": (0.0, 0.0), "head": (1.0, 0.1), "head_no_decay": (1.0, 0.0),
    }  # fmt: skip
    names = {name: set(group["parameter_names"]) for name, group in groups.items()}
    of_backbone = {name for name, _ in model.named_parameters() if name.startswith("model.backbone.")}
    assert names["backbone"] | names["backbone_no_decay"] == of_backbone and names["backbone_no_decay"]
    assert sum(map(len, names.values())) == len(dict(model.named_parameters()))
    norms = {"swin": "layernorm_before.weight", "resnet": "normalization.weight", "timm": "bn1.weight"}
    assert any(name.endswith(norms[kind]) for name in names["backbone_no_decay"])
    assert not any(name.endswith(norms[kind]) for name in names["backbone"])
    tables = [name for name in names["backbone_no_decay"] if name.endswith("relative_position_bias_table")]
    assert len(tables) == (4 if kind == "swin" else 0)


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_a_frozen_backbone_is_left_out_and_one_of_rate_zero_stands_still(kind):
    frozen, still = small_model(kind), small_model(kind)
    frozen.model.backbone.requires_grad_(False)
    groups = build_parameter_groups(frozen, 1.0, 0.1)
    assert [group["name"] for group in groups] == ["head", "head_no_decay"]
    assert {id(value) for value in frozen.model.backbone.parameters()}.isdisjoint(
        id(value) for group in groups for value in group["params"]
    )
    groups = build_parameter_groups(still, 1.0, 0.1, backbone_lr_multiplier=0.0)
    optimizer = torch.optim.AdamW([{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups])
    before = {name: value.clone() for name, value in still.named_parameters()}
    for value in still.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    for name, value in still.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("model.backbone."), name


@pytest.mark.parametrize(
    ("backbone", "spared"),
    [
        ({"model_type": "vitdet", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "use_relative_position_embeddings": True, "image_size": 64},
         ("norm1.weight", "position_embeddings", "attention.rel_pos_h", "attention.rel_pos_w")),
        ({"model_type": "timm_backbone", "backbone": "vit_tiny_patch16_224", "out_indices": [11]},
         ("norm1.weight", "pos_embed")),
    ],
    ids=["vitdet", "timm"],
)  # fmt: skip
def test_norms_and_tables_of_vision_transformers_do_not_decay(backbone, spared):
    """Norms of a library's own, which are none of torch's, too."""
    config = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    config |= {"simple_feature_pyramid": True, "timm_backbone_kwargs": None}
    if backbone["model_type"] == "timm_backbone":
        config["timm_backbone_kwargs"] = {"dynamic_img_size": True}
    model = FASegForUniversalSegmentation(FASegConfig(backbone_config=backbone, **config))
    groups = {group["name"]: group for group in build_parameter_groups(model, 1.0, 0.1)}
    for name in spared:
        assert any(found.endswith(name) for found in groups["backbone_no_decay"]["parameter_names"]), name
        assert not any(found.endswith(name) for found in groups["backbone"]["parameter_names"]), name


def test_every_trainable_parameter_once():
    model = torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 4, 1), "norm": torch.nn.GroupNorm(2, 4)})
    model["tied"] = torch.nn.Linear(2, 2)
    model["tied_again"] = model["tied"]
    model["frozen"] = torch.nn.Linear(2, 2).requires_grad_(False)
    groups = {group["name"]: group for group in build_parameter_groups(model, 1.0, 0.1, backbone_lr_multiplier=0.5)}
    names = {name: group["parameter_names"] for name, group in groups.items()}
    assert names == {
        "backbone": ["backbone.weight", "backbone.bias"],
        "head": ["tied.weight", "tied.bias"],
        "head_no_decay": ["norm.weight", "norm.bias"],
    }
    assert (groups["backbone"]["lr"], groups["head"]["lr"]) == (0.5, 1.0)


def test_poly_schedule():
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}])
    scheduler = build_scheduler(optimizer, "poly", max_train_steps=10)
    for step in range(11):
        assert scheduler.get_last_lr() == pytest.approx([(1 - step / 10) ** 0.9, 0.1 * (1 - step / 10) ** 0.9])
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0.0, 0.0]


def test_warm_up_and_other_schedules():
    def optimizer():
        return torch.optim.AdamW([torch.zeros(1)], lr=1.0)

    assert build_scheduler(optimizer(), "poly", 10, num_warmup_steps=3).get_last_lr() == [0.25]
    assert build_scheduler(optimizer(), "constant", 10).get_last_lr() == [1.0]
