"""Official QLSeg state dicts as this project's, by name."""

import re
from typing import Any

import torch
from torch import Tensor

from scripts.models.parameter_names import ConversionError, Source, listed, same_size, take_tensors


# This project's name -> the official one; a rule replaces the start of a name. `{\1+1}` is computed: the official
# names count levels and fusions from 1.
_BLOCK = r"model\.backbone\.blocks\.(\d+)\."
_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_ATTENTION = r"model\.decoder\.stages\.(\d+)\.levels\.(\d+)\.(\d+)\."
_DECODER = r"decode_head.atm_\1_decoder_{\2+1}.layers.\3."
_RULES = (
    (r"model\.backbone\.(cls_token|pos_embed)", r"backbone.\1"),
    (r"model\.backbone\.patch_embed\.proj\.", r"backbone.patch_embed.projection."),
    (_BLOCK + r"norm([12])\.", r"backbone.layers.\1.ln\2."),
    (_BLOCK + r"attn\.qkv\.", r"backbone.layers.\1.attn.attn.in_proj_"),
    (_BLOCK + r"attn\.proj\.", r"backbone.layers.\1.attn.attn.out_proj."),
    (_BLOCK + r"mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
    (_BLOCK + r"mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
    (r"model\.encoder\.input_projections\.", r"decode_head.pd_input_proj."),
    (r"model\.encoder\.level_embed", r"decode_head.transformer.level_embed"),
    (_ENCODER + r"self_attn\.", r"decode_head.transformer.encoder.layers.\1.self_attn."),
    (_ENCODER + r"self_attn_layer_norm\.", r"decode_head.transformer.encoder.layers.\1.norm1."),
    (_ENCODER + r"final_layer_norm\.", r"decode_head.transformer.encoder.layers.\1.norm2."),
    (_ENCODER + r"fc([12])\.", r"decode_head.transformer.encoder.layers.\1.linear\2."),
    (r"model\.decoder\.input_projections\.(\d+)\.", r"decode_head.input_proj_{\1+1}."),
    (r"model\.decoder\.input_norms\.(\d+)\.", r"decode_head.proj_norm_{\1+1}."),
    (r"model\.decoder\.queries\.(\d+)\.", r"decode_head.query_{\1+1}."),
    (r"model\.decoder\.stages\.(\d+)\.fusion\.", r"decode_head.QFM_{\1+1}."),
    (_ATTENTION + r"self_attn\.o_proj\.", _DECODER + "self_attn.out_proj."),
    (_ATTENTION + r"self_attn_layer_norm\.", _DECODER + "norm1."),
    (_ATTENTION + r"cross_attn\.o_proj\.", _DECODER + "multihead_attn.proj."),
    (_ATTENTION + r"cross_attn\.([qkv])_proj\.", _DECODER + r"multihead_attn.\4."),
    (_ATTENTION + r"cross_attn_layer_norm\.", _DECODER + "norm2."),
    (_ATTENTION + r"fc([12])\.", _DECODER + r"linear\4."),
    (_ATTENTION + r"final_layer_norm\.", _DECODER + "norm3."),
    (r"class_predictor\.", r"decode_head.class_embed."),
    (r"criterion\.", r"decode_head.loss_decode.criterion."),
)
# The official tensor holds query, key and value one below the other.
_PACKED = re.compile(_ATTENTION + r"self_attn\.([qkv])_proj\.(weight|bias)")

# (official tensor, axis, config field): read from a checkpoint, they must be what the config says.
_SIZES = (
    ("decode_head.query_1.weight", 0, "num_labels"),
    ("decode_head.query_1.weight", 1, "hidden_dim"),
    ("backbone.patch_embed.projection.weight", 0, "hidden_size"),
    ("decode_head.transformer.encoder.layers.0.linear1.weight", 0, "encoder_feedforward_dim"),
)
_DEPTHS = (
    (r"backbone\.layers\.(\d+)\.", "num_hidden_layers"),
    (r"decode_head\.transformer\.encoder\.layers\.(\d+)\.", "encoder_layers"),
    (r"decode_head\.atm_(\d+)_decoder_", "decoder_stages"),
    (r"decode_head\.atm_0_decoder_1\.layers\.(\d+)\.", "decoder_layers"),
)


def official_source(name: str) -> Source:
    """The official tensor that fills `name` of `QLSegForSemanticSegmentation`.

    Raises:
        ConversionError: where the official model has no such tensor.
    """
    if match := _PACKED.fullmatch(name):
        official = _expand(match, _DECODER) + f"self_attn.in_proj_{match[5]}"
        return Source(official, "qkv".index(match[4]))
    for pattern, template in _RULES:
        if match := re.match(pattern, name):
            return Source(_expand(match, template) + name[match.end() :])
    raise ConversionError(f"{name} has no counterpart in an official QLSeg checkpoint: check the config")


def official_parameter_names(config: Any) -> dict[str, str]:
    """`{this project's name: official name}` of every tensor of the model that `config` describes."""
    return {name: official_source(name).name for name in _expected(config)}


def convert_state_dict(official: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """This project's state dict of an official one.

    Args:
        official: official names and tensors (meta tensors are fine).
        config: `QLSegConfig` of the same architecture.
    Raises:
        ConversionError: for a checkpoint of another model, other sizes, missing or unexpected names.
    """
    _refuse_other_models(official)
    for name, axis, field in _SIZES:
        if name in official:
            same_size(field, official[name].shape[axis], getattr(config, field))
    for pattern, field in _DEPTHS:
        indices = [int(match[1]) for name in official if (match := re.match(pattern, name))]
        same_size(field, max(indices, default=-1) + 1, getattr(config, field))
    if "backbone.pos_embed" in official:
        grid = round((official["backbone.pos_embed"].shape[1] - 1) ** 0.5)
        same_size("image_size", grid * config.patch_size, config.image_size)
    expected = _expected(config)
    return take_tensors(official, expected, {name: official_source(name) for name in expected})


def _expected(config: Any) -> dict[str, Tensor]:
    """Names and (meta) tensors of the model's state dict."""
    from modeling_faseg import QLSegForSemanticSegmentation

    with torch.device("meta"):
        return QLSegForSemanticSegmentation(config).state_dict()


def _expand(match: re.Match[str], template: str) -> str:
    r"""`match.expand` that also computes `{\1+1}`."""
    counted = re.sub(r"\{\\(\d)\+1\}", lambda number: str(int(match.group(int(number[1]))) + 1), template)
    return match.expand(counted)


def _refuse_other_models(official: dict[str, Tensor]) -> None:
    if not official:
        raise ConversionError("the checkpoint holds no tensors")
    if not any(name.startswith("decode_head.QFM_1.") for name in official):
        what = "no query fusion (decode_head.QFM_1)"
        raise ConversionError(
            f"the checkpoint has {what}: a backbone alone, or another model than QLSeg; its names start "
            f"{listed(sorted(official))}"
        )
