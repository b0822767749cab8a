"""The folders `hub_cards/qlseg-*` and their recipes describe the five released QLSeg models, to the unit."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

from modeling_faseg import QLSegForSemanticSegmentation
from scripts.cli.parser import parse_arguments
from scripts.convert_checkpoint import HUB_CARDS
from scripts.models.families import FAMILIES
from scripts.models.loading import build_config
from scripts.models.parameter_names import ConversionError
from scripts.models.qlseg_names import convert_state_dict, official_parameter_names
from scripts.training.arguments import TrainArguments, check_arguments
from scripts.training.optimization import build_parameter_groups


# model id: (keys, parameters, classes, labels stored one too high, crop, stride, shorter side, normalised by 127.5)
RELEASED = {
    "qlseg-vit-base-ade20k": ("vit-b_jax_512x512_160k_ade20k", 171_111_406, 150, True, 512, 341, 512, False),
    "qlseg-vit-large-ade20k-640": ("vit-l_jax_640x640_160k_ade20k", None, 150, True, 640, 608, 640, True),
    "qlseg-vit-large-coco-stuff10k": ("vit-l_jax_512x512_80k_cocostuff10k", None, 171, True, 512, 341, 512, True),
    "qlseg-vit-large-pascal-context59": ("vit-l_jax_480x480_80k_pc-59", None, 59, True, 480, 320, 520, True),
    "qlseg-vit-large-pascal-context60": ("vit-l_jax_480x480_80k_pc", None, 60, False, 480, 320, 520, True),
}
# model id: (steps, weight decay, power, batch, backbone's stochastic depth)
RECIPES = {
    "qlseg-vit-base-ade20k": (160_000, 0.01, 1, 8, 0.1),
    "qlseg-vit-large-ade20k-640": (160_000, 0.01, 1, 8, 0.3),
    "qlseg-vit-large-coco-stuff10k": (80_000, 0.02, 2, 8, 0.3),
    "qlseg-vit-large-pascal-context59": (80_000, 0.03, 1, 16, 0.3),
    "qlseg-vit-large-pascal-context60": (80_000, 0.03, 1, 16, 0.3),
}


@pytest.fixture(scope="module", params=RELEASED)
def released(request):
    """`(model id, config, model on the meta device)`."""
    config = AutoConfig.from_pretrained(HUB_CARDS / request.param)
    with torch.device("meta"):
        return request.param, config, QLSegForSemanticSegmentation(config)


def official_keys(shared, model_id):
    return json.loads((shared / "keys" / "qlseg" / f"qlseg_{RELEASED[model_id][0]}.json").read_text())


def official_tensors(keys):
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in keys["keys"].items()}


def test_every_released_model_has_a_card():
    found = {file.parent.name for file in HUB_CARDS.glob("qlseg-*/config.json")}
    assert set(RELEASED) == set(FAMILIES["qlseg"].released_pages) == found


def test_parameters_and_names(released, shared):
    model_id, config, model = released
    keys = official_keys(shared, model_id)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == keys["num_parameters"] == keys["num_trainable"]
    assert RELEASED[model_id][1] in (None, parameters)
    converted = convert_state_dict(official_tensors(keys), config)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(converted[name].shape == value.shape for name, value in expected.items())
    assert set(official_parameter_names(config).values()) == set(keys["keys"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("qlseg-vit-large-pascal-context60", "num_labels=60, the config num_labels=59"),
        ("qlseg-vit-base-ade20k", "num_labels=150, the config num_labels=59"),
    ],
)
def test_checkpoint_of_another_model_is_refused(other, message, shared):
    config = AutoConfig.from_pretrained(HUB_CARDS / "qlseg-vit-large-pascal-context59")
    with pytest.raises(ConversionError, match=message):
        convert_state_dict(official_tensors(official_keys(shared, other)), config)


def test_checkpoint_of_another_system_is_refused():
    config = AutoConfig.from_pretrained(HUB_CARDS / "qlseg-vit-base-ade20k")
    with pytest.raises(ConversionError, match="no query fusion"):
        convert_state_dict({"decode_head.conv_seg.weight": torch.zeros(150, 256, 1, 1)}, config)


def test_configuration_and_processor(released):
    model_id, config, _ = released
    _, _, num_labels, reduced, crop, stride, shorter, plain = RELEASED[model_id]
    assert (config.num_labels, config.image_size, config.window_stride) == (num_labels, crop, stride)
    assert len(set(config.id2label.values())) == num_labels
    assert config.drop_path_rate == RECIPES[model_id][-1]
    processor = AutoImageProcessor.from_pretrained(HUB_CARDS / model_id)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (shorter, None)
    assert processor.do_reduce_labels is reduced and processor.num_labels == num_labels
    assert processor.size_divisor == config.patch_size == 16
    mean, std = ([0.5] * 3, [0.5] * 3) if plain else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (list(processor.image_mean), list(processor.image_std)) == (mean, std)


def test_recipe(released):
    model_id, config, _ = released
    steps, decay, power, batch, _ = RECIPES[model_id]
    arguments = parse_arguments(TrainArguments, [model_id, "--dataset_name", "data", "--output_dir", "out"])
    check_arguments(arguments)
    assert build_config(arguments).to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    found = (arguments.max_train_steps, arguments.weight_decay, arguments.lr_power, arguments.total_train_batch_size)
    assert found == (steps, decay, power, batch)
    assert (arguments.num_warmup_steps, arguments.max_grad_norm, arguments.lr_scheduler_type) == (1500, 35, "poly")
    assert (arguments.crop_height, arguments.crop_width) == (config.image_size, config.image_size)
    assert arguments.eval_shortest_edge == RELEASED[model_id][6] and arguments.crop_max_class_share == 0.75
    assert arguments.do_reduce_labels is RELEASED[model_id][3]


def test_optimiser_groups(released):
    """Everything of the head decays at ten times the backbone's rate; of the backbone all but its norms decays."""
    model_id, config, model = released
    decay = RECIPES[model_id][1]
    official = official_parameter_names(config)
    rules: dict[str, tuple[float, float]] = {}
    for group in build_parameter_groups(model, learning_rate=1e-4, weight_decay=decay, backbone_lr_multiplier=0.1):
        rules |= {official[name]: (group["lr"], group["weight_decay"]) for name in group["parameter_names"]}
    assert len(rules) == len(set(official.values())) - 1  # the weights of the loss's classes are no parameter
    for name, rule in rules.items():
        if "head" in name:
            assert rule == (1e-4, decay), name
        else:
            assert rule == (pytest.approx(1e-5), 0.0 if ".ln" in name else decay), name
