"""Configurations: refused with the field's name, or saved, loaded, built and run."""

import json
import math

import torch
from hostile import anything, tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import answered
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_config

from configuration import FASegConfig, QLSegConfig, SeMaskConfig
from modeling_faseg import (
    FASegForUniversalSegmentation,
    QLSegForSemanticSegmentation,
    SeMaskForSemanticSegmentation,
)


SEMASK = {"model_type": "semask_swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 4], "window_size": 4}
QLSEG = {
    "image_size": 64, "window_stride": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "out_indices": [0, 1, 2], "mlp_ratio": 2, "encoder_layers": 1, "encoder_attention_heads": 4,
    "encoder_feedforward_dim": 32, "hidden_dim": 16, "decoder_attention_heads": 2, "decoder_stages": 2,
    "decoder_layers": 2,
}  # fmt: skip
FAMILIES = {
    "faseg": (FASegConfig, FASegForUniversalSegmentation, tiny_config().to_diff_dict()),
    "semask": (
        SeMaskConfig,
        SeMaskForSemanticSegmentation,
        {"backbone_config": SEMASK, "decoder_hidden_size": 16, "num_labels": 3},
    ),
    "qlseg": (QLSegConfig, QLSegForSemanticSegmentation, {**QLSEG, "num_labels": 3}),
}
BACKBONES = st.sampled_from(
    [TINY_RESNET, TINY_SWIN, SEMASK, {}, {"model_type": "no_such"}, {**TINY_RESNET, "depths": []}]
)
NO_LABELS: list[object] = [["a", "b"], {}, None, "ab", 5, {0: {"a": {}}}, {-1: "a"}, {"x": "a"}, {0: 1}]
LABELS = st.sampled_from([{0: "a"}, {0: "a", 1: "a"}, {1: "a"}, {"0": "a", "1": "b"}, *NO_LABELS])
SMALL = 300  # a larger number is refused or not by its kind: building a million layers shows nothing more


@st.composite
def overrides(draw):
    """A family, and one to three fields of it with other values."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    kind = FAMILIES[family][0]
    names = [name for name, declared in kind.__annotations__.items() if "ClassVar" not in str(declared)]
    fields = {}
    for name in draw(st.lists(st.sampled_from([*sorted(names), "id2label", "num_labels"]), min_size=1, max_size=3)):
        pool = {"backbone_config": BACKBONES, "id2label": LABELS}.get(name, anything)
        near = st.sampled_from([getattr(kind(), name, 3)])
        fields[name] = draw(st.one_of(pool, near))
    return family, fields


def is_small(value) -> bool:
    """Whether all numbers in a value are."""
    if isinstance(value, dict):
        return all(map(is_small, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_small, value))
    return not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) <= SMALL


@tried(60)
@given(overrides())
def test_a_configuration_is_refused_or_holds(case):
    family, fields = case
    kind, model_class, base = FAMILIES[family]
    config, refusal = answered(lambda: kind(**{**base, **fields}))
    if refusal:
        return
    saved = config.to_dict()
    again = kind.from_dict(json.loads(json.dumps(saved))).to_dict()
    assert again == saved or repr(again) == repr(saved)  # a nan is unlike itself
    if not all(map(is_small, fields.values())):
        return
    with torch.device("meta"):
        answered(lambda: model_class(config))
    model, refusal = answered(lambda: model_class(config))
    if refusal:
        return
    with torch.no_grad():
        side = getattr(config, "image_size", 64)
        outputs, refusal = answered(lambda: model.eval()(torch.rand(1, 3, side, side)))
    if not refusal:
        scores = outputs.class_queries_logits if "class_queries_logits" in outputs else outputs.logits
        classes = scores.shape[-1] - 1 if family == "faseg" else scores.shape[1]
        assert classes == config.num_labels and scores.isfinite().all()
