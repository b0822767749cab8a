"""Weights as their libraries save them, loaded into every backbone, equal what the library itself loads."""

import pytest
import timm
import torch
from backbone_cases import TIMM, TRANSFORMERS, backbone_of
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmBackboneConfig,
)

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.errors import UserError
from scripts.models.backbone_weights import load_backbone_weights


# By hooks, taken apart, channels last, whole; and the transformers that two spellings of a name are known of.
FEW = ("mobilenetv3_small_050", "convnext_atto", "mambaout_femto", "beit", "dinov3_vit", "dinov3_convnext", "pixio")
WHOLE = (AutoModelForImageClassification, AutoModel)


def marked(cases):
    return [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in cases]


class Holder:
    """As much of a model as loading reads, for backbones that FASeg refuses too."""

    def __init__(self, backbone: PreTrainedModel, kwargs: dict | None = None) -> None:
        self.base_model = self
        self.backbone = backbone
        self.config = tiny_config()
        self.config.backbone_config, self.config.timm_backbone_kwargs = backbone.config, kwargs


def transformers_config(kind):
    fields = backbone_of(kind)
    return CONFIG_MAPPING[fields.pop("model_type")](**fields)


@pytest.mark.parametrize("name", marked(TIMM))
def test_files_of_timm(name, tmp_path):
    out_indices, kwargs = TIMM[name]
    file = tmp_path / "model.safetensors"
    whole = timm.create_model(name, **kwargs).state_dict()
    save_file({key: value.contiguous() for key, value in whole.items()}, file)
    backbone = AutoBackbone.from_config(TimmBackboneConfig(backbone=name, out_indices=out_indices), **kwargs)
    said = load_backbone_weights(Holder(backbone, kwargs), str(file))
    count = len(backbone.state_dict())
    assert f"{count} of {count} tensors loaded from model.safetensors, " in said and "left out" in said
    by_timm = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, features_only=True,
        out_indices=out_indices, **kwargs,
    ).state_dict()  # fmt: skip
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, by_timm[key.removeprefix("_backbone.")]), key


@pytest.mark.parametrize("kind", marked(kind for kind in TRANSFORMERS if kind not in ("dinat", "tipsv2")))
def test_folders_of_transformers(kind, tmp_path):
    for auto in (*WHOLE, AutoBackbone):
        if auto in WHOLE and type(transformers_config(kind)) not in auto._model_mapping:
            continue
        folder = tmp_path / auto.__name__
        auto.from_config(transformers_config(kind)).save_pretrained(folder)
        backbone = AutoBackbone.from_config(transformers_config(kind))
        load_backbone_weights(Holder(backbone), str(folder))
        theirs = type(backbone).from_pretrained(folder, config=transformers_config(kind))
        drawn = ("hidden_states_norms", *(["layernorm"] if kind == "pixio" and auto in WHOLE else []))
        for key, value in theirs.state_dict().items():
            if not key.startswith(drawn):
                assert torch.equal(backbone.state_dict()[key], value), (auto, key)


def test_the_final_norm_of_pixio_is_that_of_the_file(tmp_path):
    """transformers' own loading leaves the norm that its maps go through at ones and zeros."""
    whole = AutoModel.from_config(transformers_config("pixio"))
    torch.nn.init.normal_(whole.layernorm.weight)
    whole.save_pretrained(tmp_path)
    backbone = AutoBackbone.from_config(transformers_config("pixio"))
    load_backbone_weights(Holder(backbone), str(tmp_path))
    assert torch.equal(backbone.layernorm.weight, whole.layernorm.weight)


def test_a_deeper_network_of_timm_is_refused(tmp_path):
    def saved(name):
        save_file(timm.create_model(name).state_dict(), tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    backbone = AutoBackbone.from_config(TimmBackboneConfig(backbone="convnext_atto", out_indices=[0, 1, 2, 3]))
    with pytest.raises(UserError, match=r"has shape|is not in the backbone"):
        load_backbone_weights(Holder(backbone), saved("convnext_femto"))
    backbone = AutoBackbone.from_config(TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4]))
    with pytest.raises(UserError, match=r"layer1\.2\.bn1\.bias is not in the backbone \(and 79 more\)"):
        load_backbone_weights(Holder(backbone), saved("resnet34"))


@pytest.mark.parametrize(
    ("name", "kwargs"), [("mobilenetv2_100", {"pad_type": "same"}), ("tf_efficientnet_lite0", {})]
)
def test_real_weights(name, kwargs, shared):
    file = shared / "data" / "backbones" / f"{name.removeprefix('tf_')}.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": [1, 2, 3, 4]}
    model = FASegForUniversalSegmentation(tiny_config(backbone_config=backbone, timm_backbone_kwargs=kwargs or None))
    said = load_backbone_weights(model, str(file))
    stem = model.model.backbone.state_dict()["_backbone.conv_stem.weight"]
    assert "left out (bn2, classifier, conv_head)" in said and torch.equal(stem, load_file(file)["conv_stem.weight"])
