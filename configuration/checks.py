"""What the configurations share: checks, and what of a model's outputs is no prediction."""

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
    """Check that the classes are numbered without a gap and that none of them is ignored."""
    id2label = config.id2label or {}
    numbered = bool(id2label) and sorted(id2label) == list(range(len(id2label)))
    require(config, "id2label", numbered, "number the classes 0, 1, 2, ... without a gap, at least one")
    fix = f"choose an id that is no class: id2label has {len(id2label)} classes"
    require(config, "ignore_value", ignore_value not in id2label, fix)
