"""Pretrained backbones under every name they are published with, and what is refused."""

import json

import pytest
import timm
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from scripts.cli.errors import UserError
from scripts.models import backbone_weights
from scripts.models.arguments import ModelArguments
from scripts.models.backbone_weights import load_backbone_weights
from scripts.models.loading import build_config, build_model


SMALL = ["feature_size=32", "hidden_dim=32", "mask_feature_size=32", "encoder_layers=1", "decoder_layers=1"]
RESNET = {
    "layer_type": "bottleneck", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [1, 1, 1, 1],
}  # fmt: skip
SWIN = {"embed_dim": 24, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}


def model_of(backbone):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    arguments = ModelArguments(
        config_overrides=[f"backbone_config={json.dumps({**backbone, 'out_features': stages})}", *SMALL]
    )
    return build_model(arguments, build_config(arguments)).eval()


@pytest.fixture(scope="module")
def model():
    small = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    return model_of({"model_type": "resnet", **small})


def shuffled(network):
    """`network` with statistics and biases that are not all alike, so that swapped ones show."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5) if "running_var" in name or name.endswith("weight") else value.normal_(0, 0.1)
    return network.eval()


def changed(model, file, rename, **extra):
    """Saves the backbone's weights plus one, renamed, as `file`."""
    weights = {rename(name): value + 1 for name, value in model.model.backbone.state_dict().items()}
    save_file({**weights, **extra}, file)


def test_backbone_weights_under_a_prefix_with_a_head(model, tmp_path):
    changed(model, tmp_path / "b.safetensors", lambda name: f"resnet.{name}", **{"classifier.1.bias": torch.ones(2)})
    before = {name: value.clone() for name, value in model.model.backbone.state_dict().items()}
    other = build_model(ModelArguments(), model.config)
    line = load_backbone_weights(other, str(tmp_path / "b.safetensors"))
    assert line.endswith("left out (classifier)") and f"{len(before)} of {len(before)}" in line
    for name, value in other.model.backbone.state_dict().items():
        assert torch.equal(value, before[name] + 1), name


def test_backbone_weights_of_another_architecture(model, tmp_path):
    file = tmp_path / "b.safetensors"
    first = next(iter(model.model.backbone.state_dict()))
    save_file({"layer.weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match="none of its 1 tensors"):
        load_backbone_weights(model, str(file))
    changed(model, file, lambda name: name, **{"extra.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"extra\.weight is not in the backbone"):
        load_backbone_weights(model, str(file))
    changed(model, file, lambda name: f"fc.{name}" if name == first else name)
    with pytest.raises(UserError, match=f"{first} is lacking"):
        load_backbone_weights(model, str(file))
    changed(model, file, lambda name: name, **{first: torch.ones(2)})
    with pytest.raises(UserError, match="has shape"):
        load_backbone_weights(model, str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="--backbone_weights"):
        load_backbone_weights(model, str(file))


def test_timm_backbone_weights(tmp_path):
    backbone = '{"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]}'
    small = ["feature_size=32", "hidden_dim=32", "mask_feature_size=32", "encoder_layers=1", "decoder_layers=1"]
    settings = [f"backbone_config={backbone}", 'timm_backbone_kwargs={"pad_type": "same"}', *small]
    arguments = ModelArguments(config_overrides=settings)
    model = build_model(arguments, build_config(arguments))
    names = [name.removeprefix("_backbone.") for name in model.model.backbone.state_dict()]
    assert "conv_stem.weight" in names
    changed(
        model,
        tmp_path / "b.safetensors",
        lambda name: name.removeprefix("_backbone."),
        **{"conv_head.weight": torch.ones(2), "bn2.bias": torch.ones(2), "classifier.weight": torch.ones(2)},
    )
    line = load_backbone_weights(model, str(tmp_path / "b.safetensors"))
    assert line.endswith("left out (bn2, classifier, conv_head)") and f"{len(names)} of {len(names)}" in line


@torch.no_grad()
def test_transformers_folders_give_their_features(tmp_path):
    """Of a ResNet and of a Swin, whose names on disk are older than those in memory."""
    images = torch.randn(1, 3, 64, 64)
    resnet = shuffled(ResNetForImageClassification(ResNetConfig(**RESNET)))
    resnet.save_pretrained(tmp_path / "resnet")
    ours = model_of({"model_type": "resnet", **RESNET})
    assert load_backbone_weights(ours, str(tmp_path / "resnet")).endswith("left out (classifier)")
    last = ours.model.backbone(images).feature_maps[-1]
    torch.testing.assert_close(last, resnet.resnet(images).last_hidden_state)

    images = torch.randn(1, 3, 256, 256)
    swin = shuffled(SwinForImageClassification(SwinConfig(**SWIN, image_size=256)))
    swin.save_pretrained(tmp_path / "swin")
    ours = model_of({"model_type": "swin", **SWIN})
    load_backbone_weights(ours, str(tmp_path / "swin"))
    for norm in ours.model.backbone.hidden_states_norms.values():  # the backbone's own: not part of the checkpoint
        norm.reset_parameters()
    expected = swin.swin(images, output_hidden_states=True).reshaped_hidden_states
    torch.testing.assert_close(
        ours.model.backbone(images).feature_maps[-1].flatten(2).mT,
        torch.nn.functional.layer_norm(expected[-1].flatten(2).mT, (8 * SWIN["embed_dim"],)),
    )


def dinov2(**fields):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    return {"model_type": "dinov2", **sizes, **fields}


@pytest.mark.parametrize(
    ("theirs", "fix"),
    [
        ({"patch_size": 14, "image_size": 28}, "backbone_config.image_size=28 backbone_config.patch_size=14"),
        ({"num_hidden_layers": 3}, "backbone_config.num_hidden_layers=3"),
    ],
)
def test_weights_of_another_size_name_the_fields_of_their_configuration(theirs, fix, tmp_path):
    """Patches and position tables of most released vision transformers are not the library's default."""

    def built(fields, *overrides):
        given = [f"backbone_config={json.dumps(fields)}", "simple_feature_pyramid=true", *SMALL, *overrides]
        arguments = ModelArguments(config_overrides=given)
        return build_model(arguments, build_config(arguments))

    Dinov2Model(Dinov2Config(**dinov2(**theirs))).save_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        load_backbone_weights(built(dinov2()), str(tmp_path))
    assert str(refused.value).endswith(f": its config.json wants --config_overrides {fix}")
    assert " tensors loaded from " in load_backbone_weights(built(dinov2(), *fix.split()), str(tmp_path))


@torch.no_grad()
def test_timm_names_give_timm_features_in_transformers_backbones(tmp_path):
    images = torch.randn(1, 3, 64, 64)
    resnet = shuffled(timm.create_model("resnet50", layers=(1, 1, 1, 1)))
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    ours = model_of({"model_type": "resnet", **RESNET})
    line = load_backbone_weights(ours, str(tmp_path / "resnet.safetensors"))
    assert line.endswith("left out (fc)")
    torch.testing.assert_close(
        ours.model.backbone(images).feature_maps[-1], resnet.forward_features(images), rtol=1e-4, atol=1e-4
    )

    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=256, embed_dim=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4),
        window_size=4,
    )  # fmt: skip
    swin = shuffled(swin)
    swin.norm.reset_parameters()
    save_file({key: value.contiguous() for key, value in swin.state_dict().items()}, tmp_path / "swin.safetensors")
    ours = model_of({"model_type": "swin", **SWIN})
    assert load_backbone_weights(ours, str(tmp_path / "swin.safetensors")).endswith("left out (head, norm)")
    for norm in ours.model.backbone.hidden_states_norms.values():
        norm.reset_parameters()
    # On images so large that every map has several windows: timm shifts none where there is but one.
    images = torch.randn(1, 3, 256, 256)
    torch.testing.assert_close(
        ours.model.backbone(images).feature_maps[-1],
        swin.forward_features(images).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_folders_and_shards(model, tmp_path):
    weights = {key: value + 1 for key, value in model.model.backbone.state_dict().items()}
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, tmp_path / "a.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        load_backbone_weights(model, str(tmp_path))
    weight_map = {name: "ab"[index % 2] + ".safetensors" for index, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert f"{len(names)} of {len(names)}" in load_backbone_weights(model, str(tmp_path))
    assert all(torch.equal(value, weights[name]) for name, value in model.model.backbone.state_dict().items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors"):
        load_backbone_weights(model, str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json has no weight_map"):
        load_backbone_weights(model, str(tmp_path))


def test_hub_models_whole_and_in_shards(model, tmp_path, monkeypatch):
    weights = model.model.backbone.state_dict()
    save_file(weights, tmp_path / "one.safetensors")
    weight_map = dict.fromkeys(weights, "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        if not (tmp_path / file).is_file():
            raise errors.EntryNotFoundError("404")
        return str(tmp_path / file)

    monkeypatch.setattr(backbone_weights, "hf_hub_download", download)
    assert "tensors loaded from net" in load_backbone_weights(model, "somebody/net")
    assert [file for _, file in asked] == ["model.safetensors", "model.safetensors.index.json", "one.safetensors"]
    (tmp_path / "one.safetensors").rename(tmp_path / "model.safetensors")
    load_backbone_weights(model, "somebody/net")
    assert asked[3:] == [("somebody/net", "model.safetensors")]


def raising(kind):
    def download(repo, file):
        raise kind

    return download


def hub_error(kind):
    return kind.__new__(kind)  # their constructors want a response


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no such file, folder or model on the Hub"),
        (errors.GatedRepoError, "accept its terms"),
        (errors.LocalEntryNotFoundError, "the Hub is out of reach"),
        (errors.OfflineModeIsEnabled, "the Hub is out of reach"),
        (errors.EntryNotFoundError, "has no model.safetensors"),
    ],
)
def test_faults_of_the_hub_are_one_line(model, monkeypatch, kind, message):
    monkeypatch.setattr(backbone_weights, "hf_hub_download", raising(hub_error(kind)))
    with pytest.raises(UserError, match=message):
        load_backbone_weights(model, "microsoft/resnet-50")


def test_without_a_network(model, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not in the Hub's cache, and the Hub is out of reach"):
        load_backbone_weights(model, "somebody/resnet-50-not-cached")


@pytest.mark.parametrize("name", ["nowhere/model.safetensors", "/nowhere/model", "./nowhere", "a/b/c"])
def test_paths_are_not_looked_up_on_the_hub(model, name):
    with pytest.raises(UserError, match=f"--backbone_weights {name}: no such file or folder"):
        load_backbone_weights(model, name)
