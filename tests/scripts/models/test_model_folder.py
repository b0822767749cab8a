"""Models from arguments: overrides, pretrained backbones, and what is refused."""

import pytest
import torch

from scripts.cli.errors import UserError
from scripts.cli.parser import parse_overrides, read_recipe, recipe_flags, run_command
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config, build_model, build_processor, refuse_dead_hrca, save_model_folder


SWIN_TINY = "hub_cards/faseg-swin-tiny-ade20k"
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


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("num_queries=7", "num_queries", 7),
        ("dropout=0.25", "dropout", 0.25),
        ("use_dynamic_positional_queries=False", "use_dynamic_positional_queries", False),
        ("use_high_resolution_cross_attention=no", "use_high_resolution_cross_attention", False),
        ("output_auxiliary_logits=true", "output_auxiliary_logits", True),
        ("output_auxiliary_logits=null", "output_auxiliary_logits", None),
        ("positional_encoding_type=sine", "positional_encoding_type", "sine"),
        ("backbone_config.depths=[1, 1, 1, 1]", "backbone_config.depths", [1, 1, 1, 1]),
        ("backbone_config.drop_path_rate=0.1", "backbone_config.drop_path_rate", 0.1),
        ("backbone_config={drop_path_rate: 0.2}", "backbone_config.drop_path_rate", 0.2),
    ],
)
def test_overrides_of_every_kind(override, path, value):
    config = build_config(ModelArguments(config_name=SWIN_TINY, config_overrides=[override]))
    found = config
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)
    assert config.backbone_config.embed_dim == 96  # what was not named stays


def test_another_backbone_takes_nothing_from_the_one_before():
    backbone = (
        "backbone_config={model_type: resnet, depths: [1, 1, 1, 1], out_features: [stage1, stage2, stage3, stage4]}"
    )
    found = build_config(ModelArguments(config_name=SWIN_TINY, config_overrides=[backbone])).backbone_config
    assert found.model_type == "resnet" and not hasattr(found, "embed_dim")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_queries=many", "'num_queries' expected int, got str"),
        ("num_queries=null", "'num_queries' expected int, got NoneType"),
        ("num_queries=100.5", "'num_queries' expected int, got float"),
        ("num_queries=[100]", "'num_queries' expected int, got list"),
        ("num_queries=-1", "num_queries=-1: set it to at least 1"),
        ("use_auxiliary_loss=perhaps", "'use_auxiliary_loss' expected bool, got str"),
        ("positional_encoding_type=sin", "expected one of ('conditional', 'sine', 'learned'), got sin"),
        ("num_query=3", "has no field 'num_query': did you mean 'num_queries'?"),
        ("learning_rate=1", "FASegConfig has no field 'learning_rate'"),
        ("backbone_config.depth=[1]", "SwinConfig has no field 'backbone_config.depth'"),
        ("backbone_config.drop_path=0.3", "did you mean 'backbone_config.drop_path_rate'?"),
        ("backbone_config.depths=3", "'depths'"),
        ("backbone_config=resnet", "'backbone_config'"),
        ("backbone_config={model_type: nonesuch}", "model_type='nonesuch', unknown to transformers"),
        ("id2label=3", "configuration: "),
        ("num_queries", "write key=value"),
    ],
)
def test_wrong_overrides_are_one_line(override, message, capsys):
    arguments = ModelArguments(config_name=SWIN_TINY, config_overrides=[override])
    with pytest.raises(SystemExit) as left:
        run_command(lambda: build_config(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(lines) == 1 and message in lines[0], lines


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
    new = {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    weights = model.state_dict()
    assert new <= weights.keys() == renewed.state_dict().keys()
    for name, value in renewed.state_dict().items():
        if name not in new:
            assert torch.equal(value, weights[name]), name
    assert renewed.criterion.empty_weight.tolist() == pytest.approx([1, 1, 0.1])
    assert renewed.config.id2label == {0: "a", 1: "b"} and renewed.class_predictor.weight.std() > 0
    with pytest.raises(UserError, match="checkpoint of another model"):
        build_model(again, build_config(again, {0: "a", 1: "b"}), new_classes=False)


def test_checkpoints_of_other_models_are_refused(model, arguments, tmp_path):
    save_model_folder(model, build_processor(arguments, model.config), tmp_path)
    again = ModelArguments(model_name_or_path=str(tmp_path))
    deeper = ModelArguments(model_name_or_path=str(tmp_path), config_overrides=["decoder_layers=5"])
    with pytest.raises(UserError, match=r"missing or of another shape: .* and \d+ more: it is a checkpoint"):
        build_model(again, build_config(deeper))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="--model_name_or_path"):
        build_model(again, build_config(again))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="give --config_name"):
        build_model(again, build_config(again))


def test_crops_that_would_keep_no_window_are_refused(model):
    refuse_dead_hrca(model.config, 64, 64)  # 4 tokens, one in 2 is kept
    with pytest.raises(UserError, match=r"crops of 32x32 have 1 coarse tokens.*high_resolution_min_windows=1"):
        refuse_dead_hrca(model.config, 32, 32)
