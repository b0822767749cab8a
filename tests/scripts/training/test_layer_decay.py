"""Learning rates that decay from the backbone's last layer to its stem."""

import re

import pytest
import torch
from backbone_cases import backbone_of, fields_of
from tiny_models import tiny_config
from tiny_qlseg import tiny_qlseg
from tiny_semask import tiny_model as tiny_semask
from torch import nn
from training_processes import as_it_was, assert_equal_end, end_state

from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.backbone_probe import probe
from scripts.cli.errors import UserError
from scripts.train import TrainArguments
from scripts.training.layer_decay import layers_of
from scripts.training.optimization import build_parameter_groups
from scripts.training.run import build_optimizer


VIT = {"backbone_config": backbone_of("dinov3_vit"), "simple_feature_pyramid": True}
# kind -> (fields of the configuration, number of layers, which layer a parameter of the backbone is in)
STEM, LAST = 0, -1
RATES = {
    "dinov3_vit": (VIT, 4, {r"embeddings\.": STEM, r"model\.layer\.(\d)\.": None, r"norm\.": LAST}),
    "dinov2": (
        {"backbone_config": backbone_of("dinov2"), "simple_feature_pyramid": True},
        4,
        {r"embeddings\.": STEM, r"encoder\.layer\.(\d)\.": None, r"layernorm\.": LAST},
    ),
    "convnext": (
        {"backbone_config": backbone_of("convnext")},
        4,
        {r"embeddings\.": STEM, r"encoder\.stages\.(\d)\.": None, r"hidden_states_norms\.": LAST},
    ),
    "timm vit": (
        {**fields_of("vit_tiny_patch16_224"), "simple_feature_pyramid": True},
        12,
        {
            r"_backbone\.model\.(cls_token|pos_embed|patch_embed\.)": STEM,
            r"_backbone\.model\.blocks\.(\d+)\.": None,
            r"_backbone\.model\.norm\.": LAST,
        },
    ),
    "timm resnet": (
        fields_of("resnet18"),
        4,
        {r"_backbone\.(conv1|bn1)\.": STEM, **{rf"_backbone\.layer{n}\.": n for n in range(1, 5)}},
    ),
}
MODELS = {
    **{kind: fields for kind, (fields, *_) in RATES.items()},
    "dinov2_with_registers": {"backbone_config": backbone_of("dinov2_with_registers"), "simple_feature_pyramid": True},
    "beit": {"backbone_config": backbone_of("beit"), "simple_feature_pyramid": True},
    "vitdet": {"backbone_config": backbone_of("vitdet"), "simple_feature_pyramid": True},
    **{kind: {"backbone_config": backbone_of(kind)} for kind in ("dinov3_convnext", "swin", "resnet", "pvt_v2")},
    "timm mobilenetv4": fields_of("mobilenetv4_conv_small_035"),
    "timm convnext": fields_of("convnext_atto"),
}


def on_meta(fields):
    with torch.device("meta"):
        return FASegForUniversalSegmentation(tiny_config(**fields))


def decayed(model, rate=0.5):
    return build_parameter_groups(model, 1e-3, 0.05, backbone_lr_multiplier=0.1, backbone_layer_decay=rate)


def layer_in_words(name, patterns, count):
    """The one layer that the patterns name for a parameter."""
    found = []
    for pattern, layer in patterns.items():
        if match := re.match(pattern, name):
            found.append(int(match[1]) + 1 if layer is None else count if layer == LAST else layer)
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("kind", RATES)
def test_rates_of_every_parameter(kind):
    """The last block has the backbone's rate, each earlier one half of the next, the stem half of the first."""
    fields, count, patterns = RATES[kind]
    model = on_meta(fields)
    rates = {name: group["lr"] for group in decayed(model) for name in group["parameter_names"]}
    prefix = "model.backbone."
    layers = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name not in rates
        elif not name.startswith(prefix):
            assert rates.pop(name) == 1e-3  # the feature pyramid's, too
        else:
            layer = layer_in_words(name.removeprefix(prefix), patterns, count)
            assert rates.pop(name) == pytest.approx(1e-4 * 0.5 ** (count - layer), rel=1e-12), name
            layers.add(layer)
    assert not rates and layers == {*range(count + 1)}


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_in_one_group(kind):
    model = on_meta(MODELS[kind])
    groups = decayed(model)
    names = [name for group in groups for name in group["parameter_names"]]
    assert sorted(names) == sorted(name for name, value in model.named_parameters() if value.requires_grad)
    assert len({id(value) for group in groups for value in group["params"]}) == len(names)
    # As without the decay, weights decay or do not, and the head comes last.
    spared = {name for group in groups if group["weight_decay"] == 0 for name in group["parameter_names"]}
    plain = build_parameter_groups(model, 1e-3, 0.05)
    assert spared == {name for group in plain if group["weight_decay"] == 0 for name in group["parameter_names"]}
    assert [group["name"] for group in groups[-2:]] == ["head", "head_no_decay"]
    assert len(groups) <= 2 * (max(layers_of(model.model.backbone).values()) + 2)
    assert all(re.fullmatch(r"(head|backbone_(stem|layer_\d+))(_no_decay)?", group["name"]) for group in groups)


@pytest.mark.parametrize("model", [tiny_qlseg, tiny_semask])
def test_other_families(model):
    model = model()
    backbone = model.base_model.backbone
    rates = [group["lr"] for group in decayed(model) if group["name"].startswith("backbone")]
    count = max(layers_of(backbone).values())
    assert count == (3 if type(model).__name__.startswith("QLSeg") else 4)
    assert sorted(set(rates)) == pytest.approx([1e-4 * 0.5 ** (count - n) for n in range(count + 1)])


@pytest.mark.parametrize("kind", ["dinov3_vit", "dinov3_convnext", "pvt_v2", "timm mobilenetv4"])
def test_layers_are_in_the_order_of_the_forward_pass(kind):
    backbone = on_meta(MODELS[kind]).model.backbone
    layers, order = layers_of(backbone), []
    for name, module in backbone.named_modules():
        own = {layers[f"{name}.{each}" if name else each] for each, _ in module.named_parameters(recurse=False)}
        for layer in own:
            module.register_forward_pre_hook(lambda *_, layer=layer: order.append(layer))
    probe(backbone)
    one_pass = order[: len(order) // 2]  # the probe reads two sizes
    assert set(one_pass) | {0} == set(layers.values()) | {0} and one_pass == sorted(one_pass)


def test_without_a_decay_groups_are_the_reference_groups():
    model = on_meta(MODELS["convnext"])
    assert [group["name"] for group in decayed(model, 1.0)] == [
        "backbone", "backbone_no_decay", "head", "head_no_decay",
    ]  # fmt: skip


class WithoutLayers(nn.Module):
    """A model whose backbone has two convolutions, and a list of blocks that hold little of it."""

    def __init__(self):
        super().__init__()
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(1, 1, bias=False)) for _ in range(2))
        convolutions = [nn.Conv2d(3, 3, 1) for _ in range(3)]
        self.backbone = nn.ModuleDict({"blocks": blocks} | {f"conv{n}": each for n, each in enumerate(convolutions)})
        self.base_model = self


def test_a_backbone_without_layers_is_refused():
    arguments = TrainArguments(backbone_layer_decay=0.9)
    with pytest.raises(UserError, match=r"^--backbone_layer_decay 0\.9: the backbone of type 'Mod.* has no list"):
        build_optimizer(WithoutLayers(), arguments, 1)
    assert build_optimizer(WithoutLayers(), TrainArguments(), 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone_layer_decay", 0], "--backbone_layer_decay 0.0: give a number above 0, 1 for none"),
        (["--backbone_layer_decay", 1.5], "--backbone_layer_decay 1.5: give a number above 0"),
        (["--backbone_layer_decay", 0.9, "--freeze_backbone"], "--freeze_backbone and --backbone_layer_decay: a froz"),
    ],
)
def test_wrong_decays(flags, message, start):
    code, _, errors = start("--max_train_steps", 1, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]


def test_resuming_equals_never_stopping_and_another_decay_is_refused(start, tmp_path):
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--checkpoints_total_limit", 3]
    flags += ["--eval_steps", 3, "--backbone_layer_decay", 0.5]
    code, out, errors = start(*flags)
    assert code == 0, errors
    assert "- backbone_stem " in out and "- backbone_layer_4_no_decay " in out and "- head " in out
    folder = as_it_was(tmp_path / "run", 1, tmp_path / "again")
    again = ["--resume_from_checkpoint", "latest", "--output_dir", folder]
    code, out, errors = start(*flags, *again)
    assert code == 0 and "resumed from" in out, errors
    assert_equal_end(tmp_path / "again", end_state(tmp_path / "run"))
    code, _, errors = start(*flags, *again, "--backbone_layer_decay", 0.9)
    assert code == 2 and "--backbone_layer_decay 0.5, not 0.9" in errors[0]
