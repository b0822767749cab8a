"""Optimiser groups and schedule against the reference's."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation
from scripts.conversion.parameter_names import official_parameter_names
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
    config = FASegConfig.from_pretrained(Path(__file__).parents[2] / "hub_cards" / CARDS[variant])
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
