"""Weights as they are found elsewhere: of other bands, wrapped, in a whole segmentation model, PyTorch's own files."""

import pytest
import timm
import torch
from backbone_cases import TIMM, backbone_of
from safetensors.torch import save_file
from tiny_models import tiny_config
from transformers import CONFIG_MAPPING, AutoModel, SwinConfig, SwinModel

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.errors import UserError
from scripts.models.backbone_weights import load_backbone_weights, load_with_table


SWIN = "swin_tiny_patch4_window7_224"


def faseg(name, **fields):
    """A tiny FASeg on an entry of `AutoBackbone` or, of the same name in timm, on that network."""
    indices, kwargs = TIMM.get(name, (None, None))
    in_timm = {"model_type": "timm_backbone", "backbone": name, "out_indices": indices}
    backbone, settings = (in_timm, {"timm_backbone_kwargs": kwargs or None}) if indices else (backbone_of(name), {})
    if name == "dinov3_vit":
        settings = {"simple_feature_pyramid": True}
    return FASegForUniversalSegmentation(tiny_config(**{"backbone_config": {**backbone, **fields}, **settings}))


def equal(one, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("bands", [1, 4])
@pytest.mark.parametrize("theirs", ["equal", "rgb", "other"])
def test_bands_of_weights_whose_names_transformers_converts(bands, theirs, tmp_path):
    """DINOv3's names on disk are older than those in memory, so that transformers alone finds them."""
    fields = {**backbone_of("dinov3_vit"), "num_channels": {"equal": bands, "rgb": 3, "other": 5}[theirs]}
    whole = AutoModel.from_config(CONFIG_MAPPING[fields.pop("model_type")](**fields))
    whole.save_pretrained(tmp_path)
    model = faseg("dinov3_vit", num_channels=bands)
    if theirs == "other":
        with pytest.raises(UserError, match=rf"has shape \(16, 5, 16, 16\), need \(16, {bands}, 16, 16\)"):
            load_backbone_weights(model, str(tmp_path))
        return
    assert (f"adapted from 3 to {bands} bands" in load_backbone_weights(model, str(tmp_path))) == (theirs == "rgb")
    loaded = model.model.backbone.embeddings.patch_embeddings.weight
    stem = whole.embeddings.patch_embeddings.weight
    expected = stem if theirs == "equal" else timm.models.adapt_input_conv(bands, stem.detach())
    assert torch.equal(loaded, expected)


def test_other_swins_on_timms_are_refused_in_one_line(tmp_path):
    """timm's reading of Swin looks for each block in the network, and raises what torch raises where there is none."""
    model = faseg(SWIN)
    deeper = timm.create_model(SWIN, **{**TIMM[SWIN][1], "depths": [1, 1, 2, 1]})
    save_file(deeper.state_dict(), tmp_path / "deeper.safetensors")
    with pytest.raises(UserError, match=r"layers\.2\.blocks\.1\S* is not in the backbone"):
        load_backbone_weights(model, str(tmp_path / "deeper.safetensors"))
    SwinModel(SwinConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has shape"):
        load_backbone_weights(model, str(tmp_path))


def test_arguments_of_timms_features_alone(tmp_path):
    """`feature_cls` says how timm takes a network apart; the network itself refuses it."""
    name, kwargs = "convnext_atto", {"feature_cls": "getter"}
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": [0, 1, 2, 3]}
    model = FASegForUniversalSegmentation(tiny_config(backbone_config=backbone, timm_backbone_kwargs=kwargs))
    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    assert "tensors loaded" in load_backbone_weights(model, str(tmp_path))
    assert torch.equal(model.model.backbone.state_dict()["_backbone.model.stem.0.weight"], whole.stem[0].weight)


@pytest.mark.parametrize("name", ["resnet", "swin", "dinov3_vit", "convnext_atto"])
def test_the_backbone_of_a_trained_faseg(name, tmp_path):
    trained, model = faseg(name), faseg(name)
    trained.save_pretrained(tmp_path)
    line = load_backbone_weights(model, str(tmp_path))
    count = len(model.model.backbone.state_dict())
    assert f"{count} of {count} tensors loaded" in line and "pixel_decoder, transformer_decoder)" in line
    assert equal(model.model.backbone, trained.model.backbone)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("convnext_atto", "module."), ("convnext_atto", "module.backbone."), (SWIN, "backbone."), ("hgnetv2_b0", "net.")],
)
def test_timms_names_under_prefixes(name, prefix, tmp_path):
    """timm takes these networks apart, so that `stages.0` is `stages_0` there."""
    whole = timm.create_model(name, **TIMM[name][1]).state_dict()
    save_file({f"{prefix}{key}": value.contiguous() for key, value in whole.items()}, tmp_path / "model.safetensors")
    model = faseg(name)
    assert "left out (head" in load_backbone_weights(model, str(tmp_path))
    stem = next(key for key, value in whole.items() if value.ndim == 4)
    assert any(torch.equal(value, whole[stem]) for value in model.model.backbone.state_dict().values())


def test_two_backbones_in_a_file_are_refused(tmp_path):
    weights = faseg("resnet").model.backbone.state_dict()
    both = {
        f"{owner}.backbone.{key}": value.clone() for owner in ("student", "teacher") for key, value in weights.items()
    }
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="weights of another architecture"):
        load_backbone_weights(faseg("resnet"), str(tmp_path))


@pytest.mark.parametrize("file", ["net.pth", "net.pt", "pytorch_model.bin"])
def test_pytorchs_own_files(file, tmp_path):
    source, model = faseg("resnet"), faseg("resnet")
    torch.save({"state_dict": source.model.backbone.state_dict(), "epoch": 3}, tmp_path / file)
    assert f"loaded from {file}" in load_backbone_weights(model, str(tmp_path / file))
    assert equal(model.model.backbone, source.model.backbone)
    torch.save({"state_dict": source.model.backbone}, tmp_path / file)
    with pytest.raises(UserError, match=rf"--backbone_weights \S*{file} holds more than tensors .* refused"):
        load_backbone_weights(model, str(tmp_path / file))


def test_a_table_says_what_was_loaded_new_and_left_out(tmp_path):
    swin = AutoModel.from_config(CONFIG_MAPPING["swin"](embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4],
                                                        window_size=4))  # fmt: skip
    swin.save_pretrained(tmp_path)
    model = faseg("swin")
    line, heading, *rows = load_with_table(model, str(tmp_path)).splitlines()
    assert line.startswith("backbone weights: ") and heading.split() == ["part", "loaded", "new", "left", "out"]
    counts = {part: tuple(map(int, numbers)) for part, *numbers in map(str.split, rows)}
    assert counts["hidden_states_norms"] == (0, 8, 0) and counts["layernorm"] == (0, 0, 2)
    loaded, new, _ = map(sum, zip(*counts.values()))
    assert f"{loaded} of {loaded + new} tensors" in line
    model.model.backbone.save_pretrained(tmp_path)
    assert "\n" not in load_with_table(model, str(tmp_path)), "nothing but loaded tensors: the line says it all"


def test_parts_of_timm_are_not_numbered(tmp_path):
    save_file(timm.create_model("convnext_atto").state_dict(), tmp_path / "model.safetensors")
    said = load_with_table(faseg("convnext_atto"), str(tmp_path))
    assert [row.split()[0] for row in said.splitlines()[2:]] == ["stem", "stages", "head"]
