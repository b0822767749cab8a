"""Overrides of a backbone that a configuration already has: which stages are read, and that all depth is."""

import json

import pytest
from tiny_models import tiny_config
from transformers import CONFIG_MAPPING

from modeling_faseg import FASegForUniversalSegmentation
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config


VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32}


def saved(folder, **fields):
    """The name of a configuration as `save_pretrained` writes it, with every field that its backbone derives."""
    tiny_config(backbone_config=fields, simple_feature_pyramid=fields["model_type"] != "resnet").save_pretrained(
        folder
    )
    return str(folder)


def read(folder, *overrides):
    given = [f"backbone_config.{override}" for override in overrides]
    return build_config(ModelArguments(config_name=str(folder), config_overrides=given))


@pytest.mark.parametrize("kind", ["dinov3_vit", "dinov2"])
@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("chosen", [["stage3"], ["stage1", "stage3"]])
def test_the_last_block_of_another_depth_is_read(kind, depth, chosen, tmp_path):
    saved(tmp_path, model_type=kind, **VIT, patch_size=16, out_features=chosen)
    config = read(tmp_path, f"num_hidden_layers={depth}")
    assert config.backbone_config.out_features == [f"stage{depth}"]
    assert config.backbone_config.stage_names[-1] == f"stage{depth}" and config.backbone_config.out_indices == [depth]
    unread = FASegForUniversalSegmentation(config).model.backbone.unread_parameters
    assert [name for name in unread if "mask_token" not in name] == []


def test_a_stage_that_was_not_the_last_stays_chosen(tmp_path):
    saved(tmp_path, model_type="dinov3_vit", **VIT, out_features=["stage2"])
    assert read(tmp_path, "num_hidden_layers=5").backbone_config.out_features == ["stage2"]
    assert read(tmp_path, "num_hidden_layers=3").backbone_config.out_features == ["stage2"]


@pytest.mark.parametrize("override", ["out_features=[stage2]", "out_indices=[2]"])
def test_either_field_of_the_stages_read_replaces_both(override, tmp_path):
    saved(tmp_path, model_type="dinov3_vit", **VIT)
    backbone = read(tmp_path, override).backbone_config
    assert (backbone.out_features, backbone.out_indices) == (["stage2"], [2])


def test_deeper_stages_of_a_pyramid_leave_the_choice(tmp_path):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"}
    saved(tmp_path, model_type="resnet", **sizes, out_features=stages)
    assert read(tmp_path, "depths=[2, 1, 1, 1]").backbone_config.out_features == stages


def test_another_network_of_timm_keeps_the_indices(tmp_path):
    """A model's saved configuration has timm's names of the stages, which differ between networks."""
    backbone = {"model_type": "timm_backbone", "backbone": "mobilenetv3_small_050", "out_indices": [1, 2, 3, 4]}
    FASegForUniversalSegmentation(tiny_config(backbone_config=backbone)).config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["stage_names"]
    model = FASegForUniversalSegmentation(read(tmp_path, "backbone=resnet18"))
    assert model.config.backbone_config.out_features == ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("kind", ["beit", "dinov2_with_registers", "pixio", "sapiens2", "swin", "vitdet"])
def test_the_library_reads_the_last_stage_where_nothing_is_chosen(kind):
    config = CONFIG_MAPPING[kind]()
    assert config.out_features == config.stage_names[-1:]
