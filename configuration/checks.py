"""What the configurations share: checks, and what of a model's outputs is no prediction."""

import copy
import math
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.backbone_utils import consolidate_backbone_kwargs_to_config
from transformers.configuration_utils import PreTrainedConfig


# For `keys_to_ignore_at_inference`: what transformers' Trainer does not gather over the evaluation set for a
# `compute_metrics`. Logits and scores are left.
NO_PREDICTIONS = [
    "auxiliary_logits",
    "encoder_last_hidden_state",
    "pixel_decoder_last_hidden_state",
    "transformer_decoder_last_hidden_state",
    "encoder_hidden_states",
    "pixel_decoder_hidden_states",
    "transformer_decoder_hidden_states",
    "hidden_states",
    "attentions",
    "focus_maps",
    "positional_queries",
    "hrca_windows",
    "semantic_maps",
    "loss_dict",
]


MOST_LABELS = 2**16  # as many ids as a label map of 16 bits holds; transformers makes a name for each


class Checked:
    """Mixin of a configuration: `from_pretrained` refuses the checkpoints of other models, which transformers only
    warns of and then fills with random weights; so are classes and backbones refused that transformers cannot read.
    A `backbone_config` that is left out becomes the class's `default_backbone`, if it has one."""

    backbone_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        count = kwargs.get("num_labels")
        if "num_labels" in kwargs and (type(count) is not int or not 1 <= count <= MOST_LABELS):
            fix = f"give a whole number of classes from 1 to {MOST_LABELS}, or leave it out"
            raise ValueError(f"num_labels={count!r}: {fix}")
        check_labels(getattr(self, "id2label", None))
        if default := getattr(self, "default_backbone", None):
            check_backbone(self.backbone_config)
            settings = copy.deepcopy(default)
            self.backbone_config, kwargs = consolidate_backbone_kwargs_to_config(
                self.backbone_config,
                default_config_type=settings.pop("model_type"),
                default_config_kwargs=settings,
                **kwargs,
            )
        super().__post_init__(**kwargs)  # type: ignore[misc]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """As transformers'. Raises a `ValueError` for the configuration of another model."""
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        kind, own = found.get("model_type"), cls.model_type  # type: ignore[attr-defined]
        if kind not in (None, own):
            fix = "load it with AutoModelForUniversalSegmentation"
            if kind == "mask2former":
                fix = "convert it: python scripts/convert_checkpoint.py --mask2former "
                fix += f"{pretrained_model_name_or_path} --output_dir FOLDER"
            raise ValueError(f"{pretrained_model_name_or_path} is a checkpoint of {kind}, not of {own}: {fix}")
        return found, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', which sets what is given last: `class_weights` come together with the classes that they
        are for, so that `from_pretrained(folder, num_labels=3, class_weights=None)` drops those of other classes."""
        if "class_weights" in kwargs:
            config_dict = {**config_dict, "class_weights": kwargs.pop("class_weights")}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]


def check_labels(id2label: Any) -> None:
    """Raise a `ValueError` unless classes, if given, are a dictionary of ids and names."""
    if id2label is None:
        return
    fix = "give a dictionary of ids and names, such as {0: 'road', 1: 'tree'}"
    if not isinstance(id2label, dict):
        raise ValueError(f"id2label={id2label!r}: {fix}")
    for index, name in id2label.items():
        if not isinstance(name, str) or not str(index).removeprefix("-").isdecimal():
            raise ValueError(f"id2label has {index!r}: {name!r}: {fix}")


def check_backbone(backbone_config: Any) -> None:
    """Raise a `ValueError` for a dictionary that is no configuration of a model."""
    if isinstance(backbone_config, dict) and (kind := backbone_config.get("model_type")) not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has model_type={kind!r}, unknown to transformers: set it to 'resnet', 'swin', "
            "'convnextv2', 'timm_backbone', ..."
        )


def require(config: PreTrainedConfig, name: str, condition: bool, fix: str) -> None:
    """Raise a `ValueError` that names the field, its value and the fix unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={getattr(config, name)!r}: {fix}")


def require_counts(config: PreTrainedConfig, config_class: type, but: tuple[str, ...]) -> None:
    """Check that the whole numbers that `config_class` declares are at least 1, all `but` these."""
    for name, kind in config_class.__annotations__.items():
        if kind is int and name not in but:
            require(config, name, getattr(config, name) >= 1, "set it to at least 1")


def require_classes(config: PreTrainedConfig, ignore_value: int) -> None:
    """Check that the classes are numbered without a gap, that none of them is ignored, and their weights."""
    check_labels(config.id2label)
    id2label = config.id2label or {}
    numbered = bool(id2label) and sorted(id2label) == list(range(len(id2label)))
    require(config, "id2label", numbered, "number the classes 0, 1, 2, ... without a gap, at least one")
    fix = f"choose an id that is no class: id2label has {len(id2label)} classes"
    require(config, "ignore_value", ignore_value not in id2label, fix)
    weights = getattr(config, "class_weights", None)
    if weights is not None:
        fix = f"give one number for each of the {len(id2label)} classes, or None for equal weights"
        require(config, "class_weights", len(weights) == len(id2label), fix)
        usable = all(0 <= weight < math.inf for weight in weights) and any(weights)
        require(config, "class_weights", usable, "give numbers of 0 or more, not all of them 0")
