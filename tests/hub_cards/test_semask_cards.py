"""The folders `hub_cards/semask-fpn-*` describe the twelve released SeMask-FPN models, to the unit."""

import json

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoImageProcessor

from modeling_faseg import SeMaskForSemanticSegmentation
from scripts.convert_checkpoint import HUB_CARDS
from scripts.models.families import FAMILIES
from scripts.models.semask_names import convert_state_dict
from scripts.training.optimization import build_parameter_groups
from semask_backbones import convert_backbone


SIZES = ("tiny", "small", "base", "large")
# data -> (classes, labels stored one too high, network input)
DATA = {"ade20k": (150, True), "cityscapes": (19, False), "coco-stuff10k": (171, True)}
MODEL_IDS = [f"semask-fpn-{size}-{data}" for data in DATA for size in SIZES]


def size_and_data(model_id):
    size, _, data = model_id.removeprefix("semask-fpn-").partition("-")
    return size, data


def keys_file(shared, model_id):
    """The official keys; of COCO-Stuff models those with 171 semantic classes, which the released ones must have."""
    name = model_id.replace("-", "_") + ("_numcls171" if "coco" in model_id else "")
    return json.loads((shared / "keys" / "semask" / f"{name}.json").read_text())


def on_meta(config):
    with torch.device("meta"):
        return SeMaskForSemanticSegmentation(config)


def official_tensors(keys):
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in keys["keys"].items()}


def test_every_released_model_has_a_card():
    released = set(FAMILIES["semask"].released_pages)
    assert set(MODEL_IDS) == released == {path.name for path in HUB_CARDS.glob("semask-fpn-*")}


@pytest.mark.parametrize("model_id", MODEL_IDS)
def test_parameters_and_names(model_id, shared):
    config = AutoConfig.from_pretrained(HUB_CARDS / model_id)
    keys = keys_file(shared, model_id)
    model = on_meta(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == keys["num_parameters"] == keys["num_trainable"]
    converted = convert_state_dict(official_tensors(keys), config)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(converted[name].shape == value.shape for name, value in expected.items())
    recorded = [stage for stage, kind in enumerate(keys["semantic_layers"]) if kind == "SeMaskBlock"]
    assert list(config.backbone_config.global_semantic_stages) == recorded


@pytest.mark.parametrize("size", SIZES)
def test_semantic_classes_come_from_the_checkpoint(size, shared):
    """The COCO-Stuff configurations as shipped: 150 semantic classes under a head of 171."""
    config = AutoConfig.from_pretrained(HUB_CARDS / f"semask-fpn-{size}-coco-stuff10k")
    keys = json.loads((shared / "keys" / "semask" / f"semask_fpn_{size}_coco_stuff10k.json").read_text())
    converted = convert_state_dict(official_tensors(keys), config)
    assert config.backbone_config.num_semantic_classes == 150 and config.num_labels == 171
    model = on_meta(config)
    assert converted.keys() == model.state_dict().keys()
    assert sum(parameter.numel() for parameter in model.parameters()) == keys["num_parameters"]


@pytest.mark.parametrize("data", ["ade20k", "cityscapes"])
def test_backbones_of_mask_classification(data, shared):
    """Those of SeMask's copy of Mask2Former: `FASegConfig(backbone_config=...)` takes them."""
    keys = json.loads((shared / "keys" / "semask" / f"semask_m2f_backbone_large_{data}.json").read_text())
    backbone = on_meta(AutoConfig.from_pretrained(HUB_CARDS / f"semask-fpn-large-{data}")).backbone
    converted = convert_backbone(official_tensors(keys), backbone)
    assert converted.keys() == backbone.state_dict().keys()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == keys["num_parameters"]


@pytest.mark.parametrize("model_id", MODEL_IDS)
def test_labels_and_processor(model_id):
    size, data = size_and_data(model_id)
    num_labels, reduce_labels = DATA[data]
    config = AutoConfig.from_pretrained(HUB_CARDS / model_id)
    assert config.num_labels == config.backbone_config.num_semantic_classes == num_labels
    assert sorted(config.id2label) == list(range(num_labels)) and len(set(config.id2label.values())) == num_labels
    ends = {"ade20k": ("wall", "flag"), "cityscapes": ("road", "bicycle"), "coco-stuff10k": ("person", "wood")}
    assert (config.id2label[0], config.id2label[num_labels - 1]) == ends[data]
    assert config.ohem_min_kept == (100_000 if data == "coco-stuff10k" or model_id.endswith("large-ade20k") else None)
    assert (config.auxiliary_loss_weight, config.backbone_config.drop_path_rate) == (0.4, 0.3)
    processor = AutoImageProcessor.from_pretrained(HUB_CARDS / model_id)
    shortest = 1024 if data == "cityscapes" else 640 if size == "large" else 512
    longest = 2048 if data == "cityscapes" else 4 * shortest
    assert dict(processor.size) == {"shortest_edge": shortest, "longest_edge": longest}
    assert (processor.do_reduce_labels, processor.num_labels) == (reduce_labels, num_labels)
    assert (processor.size_divisor, processor.ignore_index) == (0, config.ignore_value)


def test_weight_decay_of_the_reference():
    """Backbone norms and position tables do not decay; the head's batch norms, biases and gamma do. One rate for all
    by the recipes' multiplier of 1."""
    model = on_meta(AutoConfig.from_pretrained(HUB_CARDS / "semask-fpn-tiny-ade20k"))
    spared = set()
    for group in build_parameter_groups(model, 1e-4, 1e-4, backbone_lr_multiplier=1.0):
        assert group["lr"] == 1e-4
        if group["weight_decay"] == 0:
            spared.update(group["parameter_names"])
    named = {name for name, _ in model.named_parameters()}
    assert spared == {
        name for name in named if name.startswith("backbone.") and ("norm" in name or "position_bias_table" in name)
    }


def test_published_numbers_are_those_of_the_authors_table(shared):
    tables = list((shared / "seeds").glob("002_*.txt"))
    if not tables:
        pytest.skip(f"no authors' README in {shared / 'seeds'}")
    published = yaml.safe_load((HUB_CARDS / "published.yaml").read_text())
    data, found = "", set()
    for line in tables[0].read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            data = line.removeprefix("### ").lower().replace(" ", "")
        if not line.startswith("| SeMask-"):
            continue
        _, name, _, crop, single, multi, parameters, *_ = [cell.strip() for cell in line.split("|")]
        size = next(size for size in SIZES if size[0].upper() == name.removeprefix("SeMask-")[0])
        row = published[f"semask-fpn-{size}-{data}"]
        found.add(f"semask-fpn-{size}-{data}")
        figures = [f"{row[key]:.2f}" for key in ("mean_iou", "mean_iou_multi_scale")]
        assert (row["crop"], *figures, f"{row['parameters_millions']}M") == (crop, single, multi, parameters)
    assert found == set(MODEL_IDS)
