"""The folders of `hub_cards/` describe the released models, to the unit."""

import functools
import json

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

import image_processing  # noqa: F401 - registers the processors
from modeling_faseg import FASegForUniversalSegmentation
from scripts.convert_checkpoint import HUB_CARDS, RELEASED_FILES
from scripts.models.parameter_names import convert_state_dict, official_parameter_names
from scripts.training.optimization import build_parameter_groups


# model id: (official variant, trainable parameters, classes, shortest and longest edge, labels stored one too high)
RELEASED = {
    "faseg-resnet50-ade20k": ("ade20k_r50", 50_511_639, 150, (512, 2048), True),
    "faseg-swin-tiny-ade20k": ("ade20k_swin_tiny", 53_922_065, 150, (512, 2048), True),
    "faseg-swin-base-ade20k-640": ("ade20k_swin_base_in21k_640", 113_412_815, 150, (640, 2560), True),
    "faseg-swin-large-ade20k-640": ("ade20k_swin_large_in21k_640", 221_995_787, 150, (640, 2560), True),
    "faseg-resnet50-cityscapes": ("cityscapes_r50", 50_531_092, 19, (1024, 2048), False),
}


@pytest.fixture(scope="module", params=RELEASED)
def released(request):
    """`(model id, config, model on the meta device)`."""
    return request.param, *on_meta(request.param)


@functools.cache
def on_meta(model_id):
    config = AutoConfig.from_pretrained(HUB_CARDS / model_id)
    with torch.device("meta"):
        return config, FASegForUniversalSegmentation(config)


def official_shapes(shared, model_id):
    keys = json.loads((shared / "keys" / "faseg" / f"{RELEASED[model_id][0]}.json").read_text())["keys"]
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in keys.items()}


def test_every_released_file_has_a_card():
    assert set(RELEASED) == set(RELEASED_FILES)
    assert set(RELEASED) <= {path.name for path in HUB_CARDS.iterdir()}


def test_trainable_parameters(released):
    model_id, config, model = released
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == RELEASED[model_id][1]
    # The reference holds frozen batch norms as buffers, this project as frozen parameters.
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    assert frozen == (53_120 if config.freeze_backbone_batch_norm else 0)
    assert config.freeze_backbone_batch_norm == (model_id == "faseg-resnet50-ade20k")


def test_every_official_tensor_finds_its_place(released, shared):
    model_id, config, model = released
    official = official_shapes(shared, model_id)
    converted = convert_state_dict(official, config)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(converted[name].shape == value.shape for name, value in expected.items())
    used = set(official_parameter_names(config).values())
    left_out = {name.rsplit(".", 1)[-1] for name in official if name not in used}
    assert left_out <= {"relative_position_index"}


def test_labels(released):
    model_id, config, _ = released
    assert config.num_labels == RELEASED[model_id][2]
    assert sorted(config.id2label) == list(range(config.num_labels))
    assert len(set(config.id2label.values())) == config.num_labels
    assert config.id2label[0] == ("road" if "cityscapes" in model_id else "wall")
    assert config.id2label[config.num_labels - 1] == ("bicycle" if "cityscapes" in model_id else "flag")


def test_processor(released):
    model_id, config, _ = released
    *_, (shortest, longest), reduce_labels = RELEASED[model_id]
    processor = AutoImageProcessor.from_pretrained(HUB_CARDS / model_id)
    assert dict(processor.size) == {"shortest_edge": shortest, "longest_edge": longest}
    assert processor.do_reduce_labels is reduce_labels
    assert processor.num_labels == config.num_labels
    assert processor.task == config.task == "semantic"
    assert (processor.size_divisor, processor.ignore_index) == (32, config.ignore_value)


def test_training_choices_of_the_reference(released):
    model_id, config, _ = released
    assert (config.decoder_layers, config.encoder_layers, config.num_queries) == (13, 6, 100)
    assert config.high_resolution_reduction == 32
    assert config.backbone_config.model_type == ("swin" if "swin" in model_id else "resnet")
    if "swin" in model_id:
        assert config.backbone_config.drop_path_rate == 0.3


@pytest.mark.golden
@pytest.mark.parametrize("model_id", ["faseg-resnet50-ade20k", "faseg-swin-tiny-ade20k", "faseg-resnet50-cityscapes"])
def test_optimiser_groups(model_id, shared):
    """The same tensors with the same learning rate and weight decay as in the reference."""
    config, model = on_meta(model_id)
    recorded = shared / "golden" / "faseg" / f"optimizer_groups_{RELEASED[model_id][0]}.json"
    expected = {name: set(members) for name, members in json.loads(recorded.read_text())["groups"].items()}
    official = official_parameter_names(config)
    found: dict[str, set[str]] = {}
    for group in build_parameter_groups(model, learning_rate=1e-4, weight_decay=0.05):
        members = found.setdefault(f"lr={group['lr']:.12g} wd={group['weight_decay']:.12g}", set())
        members.update(official[name] for name in group["parameter_names"])
    normalized = {}
    for name, members in expected.items():
        rate, decay = (float(part.partition("=")[2]) for part in name.split())
        normalized[f"lr={rate:.12g} wd={decay:.12g}"] = members
    assert found == normalized
