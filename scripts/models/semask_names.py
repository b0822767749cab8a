"""Official SeMask-FPN state dicts as this project's, by name; the rules of `parameter_names` hold for plain Swin."""

import re
from typing import Any

from torch import Tensor

from modeling_faseg import SeMaskForSemanticSegmentation
from scripts.models.parameter_names import (
    ConversionError,
    Source,
    expected_tensors,
    listed,
    same_size,
    source_by,
    take_tensors,
)
from scripts.models.parameter_names import official_source as swin_source


_SEMANTIC_LAYER = r"backbone\.encoder\.layers\.(\d+)\.semantic_layer\."
_SEMANTIC_BLOCK = _SEMANTIC_LAYER + r"blocks\.(\d+)\."
_OFFICIAL_BLOCK = r"backbone.layers.\1.semantic_layer.class_injection.\2."
_RULES = (
    (_SEMANTIC_LAYER + r"norm\.", r"backbone.layers.\1.semantic_layer.norm1."),
    (_SEMANTIC_BLOCK + r"query\.", _OFFICIAL_BLOCK + "mlp_cls_q."),
    (_SEMANTIC_BLOCK + r"key\.", _OFFICIAL_BLOCK + "mlp_cls_k."),
    (_SEMANTIC_BLOCK + r"value\.", _OFFICIAL_BLOCK + "mlp_v."),
    (_SEMANTIC_BLOCK + r"output\.", _OFFICIAL_BLOCK + "mlp_res."),
    (_SEMANTIC_BLOCK + r"gamma", _OFFICIAL_BLOCK + "gamma"),
    (r"decoder\.classifier\.", r"decode_head.conv_seg."),
)
_CONVOLUTION = re.compile(r"decoder\.stages\.(\d+)\.(\d+)\.(conv|norm)\.")
# A convolution and a doubling take turns in the official list, and its norm is called bn.
_OFFICIAL_PART = {"conv": "conv", "norm": "bn"}
_SEMANTIC_CLASSES = "backbone.layers.0.semantic_layer.class_injection.0.mlp_cls_q.weight"


def official_source(name: str) -> Source:
    """The official tensor that fills `name` of `SeMaskForSemanticSegmentation`.

    Raises:
        ConversionError: where the official model has no such tensor.
    """
    if match := _CONVOLUTION.match(name):
        stage, step, part = match.groups()
        start = f"decode_head.scale_heads.{stage}.{2 * int(step)}.{_OFFICIAL_PART[part]}."
        return Source(start + name[match.end() :])
    return source_by(_RULES, name) or swin_source(f"model.{name}")


def convert_state_dict(official: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """This project's state dict of an official one, and its number of semantic classes put into `config`.

    Args:
        official: official names and tensors (meta tensors are fine).
        config: `SeMaskConfig` of the same architecture.
    Raises:
        ConversionError: for a checkpoint of another model, other sizes, missing or unexpected names.
    """
    _refuse_other_models(official)
    same_size("num_labels", len(official["decode_head.conv_seg.weight"]), config.num_labels)
    # The released COCO-Stuff configurations say 150 here, which cannot have trained 171 classes.
    config.backbone_config.num_semantic_classes = len(official[_SEMANTIC_CLASSES])
    expected = expected_tensors(SeMaskForSemanticSegmentation, config)
    return take_tensors(official, expected, {name: official_source(name) for name in expected})


def _refuse_other_models(official: dict[str, Tensor]) -> None:
    if not official:
        raise ConversionError("the checkpoint holds no tensors")
    if any(name.startswith("sem_seg_head.") for name in official):
        raise ConversionError(
            "the checkpoint is of a mask-classification model (sem_seg_head.*), FASeg or SeMask-Mask2Former, not of "
            "SeMask-FPN"
        )
    if "decode_head.conv_seg.weight" not in official:
        raise ConversionError(
            "the checkpoint has no head weights (decode_head.conv_seg): a backbone alone, whose predictions would be "
            f"noise, or another model; its names start {listed(sorted(official))}"
        )
    if _SEMANTIC_CLASSES not in official:
        raise ConversionError("the checkpoint has no semantic layers: it is of another decode_head model, not SeMask")
