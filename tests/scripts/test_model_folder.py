"""Models from arguments: overrides, pretrained backbones, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from scripts.training.command_line import UserError, parse_overrides, read_recipe, recipe_flags
from scripts.training.model_folder import (
    ModelArguments,
    build_config,
    build_model,
    build_processor,
    load_backbone_weights,
    refuse_dead_hrca,
    save_model_folder,
)


CLASSES = {0: "sky", 1: "road", 2: "car"}


@pytest.fixture(scope="module")
def overrides(tiny_recipe):
    recipe = read_recipe(str(tiny_recipe), ["config_overrides", *tiny_keys(tiny_recipe)])
    return recipe_flags({"config_overrides": recipe["config_overrides"]})[1:]


def tiny_keys(recipe):
    return [line.split(":")[0] for line in recipe.read_text().splitlines() if not line.startswith(" ")]


@pytest.fixture(scope="module")
def arguments(overrides):
    return ModelArguments(config_overrides=overrides)


@pytest.fixture(scope="module")
def model(arguments):
    return build_model(arguments, build_config(arguments, CLASSES))


def test_configuration_of_overrides_and_classes(arguments, model):
    assert model.config.id2label == CLASSES and model.config.num_labels == 3
    assert model.config.backbone_config.hidden_sizes == [8, 8, 16, 16]
    assert parse_overrides(arguments.config_overrides)["hidden_dim"] == model.config.hidden_dim == 32


def test_nested_overrides_keep_the_rest(overrides):
    config = build_config(ModelArguments(config_overrides=[*overrides, "backbone_config.hidden_sizes=[8, 8, 8, 8]"]))
    assert config.backbone_config.hidden_sizes == [8, 8, 8, 8]
    assert config.backbone_config.layer_type == "basic"


def test_unknown_fields_and_types_are_refused():
    with pytest.raises(UserError, match="no field 'num_querys': did you mean 'num_queries'"):
        build_config(ModelArguments(config_overrides=["num_querys=3"]))
    with pytest.raises(UserError, match="--model_type fased"):
        build_config(ModelArguments(model_type="fased"))
    with pytest.raises(UserError, match="--config_name no/such"):
        build_config(ModelArguments(config_name="no/such"))


def test_saved_folder_comes_back(model, arguments, tmp_path):
    save_model_folder(model, build_processor(arguments, model.config, size={"shortest_edge": 64}), tmp_path)
    again = ModelArguments(model_name_or_path=str(tmp_path))
    config = build_config(again)
    loaded = build_model(again, config, new_classes=False)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    processor = build_processor(again, config, do_reduce_labels=True)
    assert processor.size["shortest_edge"] == 64 and processor.do_reduce_labels


def test_new_classes_renew_the_head_only(model, arguments, tmp_path, capsys):
    save_model_folder(model, build_processor(arguments, model.config), tmp_path)
    again = ModelArguments(model_name_or_path=str(tmp_path))
    renewed = build_model(again, build_config(again, {0: "a", 1: "b"}))
    assert renewed.class_predictor.out_features == 3
    assert "new class head for 2 classes" in capsys.readouterr().out
    kept = "model.transformer_decoder.queries_features.weight"
    assert torch.equal(renewed.state_dict()[kept], model.state_dict()[kept])
    with pytest.raises(UserError, match="checkpoint of another model"):
        build_model(again, build_config(again, {0: "a", 1: "b"}), new_classes=False)


def test_checkpoints_of_other_models_are_refused(model, arguments, tmp_path):
    save_model_folder(model, build_processor(arguments, model.config), tmp_path)
    again = ModelArguments(model_name_or_path=str(tmp_path))
    deeper = ModelArguments(model_name_or_path=str(tmp_path), config_overrides=["decoder_layers=5"])
    with pytest.raises(UserError, match="tensors are missing or of another shape"):
        build_model(again, build_config(deeper))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="--model_name_or_path"):
        build_model(again, build_config(again))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="give --config_name"):
        build_model(again, build_config(again))


def changed(model, file, rename, **extra):
    """Saves the backbone's weights plus one, renamed, as `file`."""
    weights = {rename(name): value + 1 for name, value in model.model.backbone.state_dict().items()}
    save_file({**weights, **extra}, file)


def test_backbone_weights_under_a_prefix_with_a_head(model, arguments, tmp_path):
    changed(model, tmp_path / "b.safetensors", lambda name: f"resnet.{name}", **{"classifier.1.bias": torch.ones(2)})
    before = {name: value.clone() for name, value in model.model.backbone.state_dict().items()}
    other = build_model(arguments, model.config)
    line = load_backbone_weights(other, str(tmp_path / "b.safetensors"))
    assert line.endswith("ignored: classifier") and f"{len(before)} of {len(before)}" in line
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
    assert line.endswith("ignored: bn2, classifier, conv_head") and f"{len(names)} of {len(names)}" in line


def test_crops_that_would_keep_no_window_are_refused(model):
    refuse_dead_hrca(model.config, 64, 64)  # 4 tokens, one in 2 is kept
    with pytest.raises(UserError, match=r"crops of 32x32 have 1 coarse tokens.*high_resolution_min_windows=1"):
        refuse_dead_hrca(model.config, 32, 32)
