"""FASegConfig: defaults, errors that name field, value and fix, saving."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_config
from transformers import AutoConfig, Mask2FormerConfig

from configuration import FASegConfig, QLSegConfig, SeMaskConfig
from modeling_faseg import FASegForUniversalSegmentation


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_size": 64}, "feature_size=64: set it to hidden_dim=32"),
        (
            {"hidden_dim": 48, "feature_size": 48, "num_attention_heads": 4},
            "feature_size=48: set it to a multiple of 32",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads=5: set it to a divisor of hidden_dim=32"),
        ({"num_queries": 0}, "num_queries=0: set it to at least 1"),
        ({"attention_mask_threshold": 1.5}, "attention_mask_threshold=1.5: set it between 0 and 1"),
        ({"init_std": -1.0}, "init_std=-1.0: set it to 0 or more"),
        ({"oversample_ratio": 0.5}, "oversample_ratio=0.5: set it to 1 or more"),
        ({"num_labels": 300}, "ignore_value=255: choose an id that is no class"),
        ({"timm_backbone_kwargs": {"pad_type": "same"}}, "timm_backbone_kwargs=.*: set it to None"),
        (
            {"use_high_resolution_cross_attention": False, "high_resolution_min_windows": 1},
            "high_resolution_min_windows=1: set it to 0",
        ),
        (
            {"use_high_resolution_cross_attention": False, "high_resolution_sharing": "shared"},
            "high_resolution_sharing='shared': set it to \"none\"",
        ),
        ({"high_resolution_sharing": "all"}, "high_resolution_sharing"),
        (
            {"decoder_layers": 3, "high_resolution_sharing": "shared"},
            "decoder_layers=3, fewer than 4, leaves no layer",
        ),
        ({"task": "depth"}, "task"),
        ({"positional_encoding_type": "rotary"}, "positional_encoding_type"),
        ({"num_queries": "100"}, "num_queries"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize("kind", [FASegConfig, SeMaskConfig])
@pytest.mark.parametrize("backbone", [{"model_type": "nope"}, {"depths": [1]}, {}])
def test_unknown_backbone_types_are_named(kind, backbone):
    with pytest.raises(ValueError, match=r"backbone_config has model_type=('nope'|None), unknown to transformers"):
        kind(backbone_config=backbone)


@pytest.mark.parametrize("kind", [FASegConfig, SeMaskConfig, QLSegConfig])
@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({0: "a", 2: "b"}, r"id2label={0: 'a', 2: 'b'}: number the classes"),
        (["a", "b"], r"id2label=\['a', 'b'\]: give a dictionary"),
        ("ab", "id2label='ab': give a dictionary"),
        (5, "id2label=5: give a dictionary"),
        ({0: {"a": {}}}, "id2label has 0: {'a': {}}: give a dictionary"),
        ({"x": "a"}, "id2label has 'x': 'a': give a dictionary"),
    ],
)
def test_classes_that_cannot_be_are_refused(kind, id2label, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        kind(id2label=id2label)
    assert kind(id2label={"0": "a", "1": "b"}).num_labels == 2


@pytest.mark.parametrize("kind", [FASegConfig, SeMaskConfig, QLSegConfig])
@pytest.mark.parametrize("count", [None, 0, -1, 2.5, "3", True, 2**31])
def test_counts_of_classes_that_cannot_be_are_refused(kind, count):
    with pytest.raises(ValueError, match=r"num_labels=.*: give a whole number of classes"):
        kind(num_labels=count)


def test_the_model_checks_fields_that_were_assigned_later():
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(StrictDataclassError, match="num_attention_heads=5"):
        FASegForUniversalSegmentation(config)


def test_fields_shared_with_mask2former_have_its_defaults():
    ours, theirs = FASegConfig(), Mask2FormerConfig()
    shared = (set(FASegConfig.__annotations__) & set(Mask2FormerConfig.__annotations__)) - {"backbone_config"}
    assert len(shared) > 20
    differing = {name for name in shared if getattr(ours, name) != getattr(theirs, name)}
    assert differing == {"decoder_layers"}
    assert ours.decoder_layers == 13


def test_saved_and_loaded(tmp_path):
    config = tiny_config(task="panoptic", high_resolution_reduction=7)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FASegConfig
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)} or (
        loaded.to_diff_dict() == config.to_diff_dict()
    )
