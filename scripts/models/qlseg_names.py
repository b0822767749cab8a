"""Official QLSeg state dicts as this project's, by name."""

from typing import Any

from torch import Tensor

from modeling_faseg import QLSegForSemanticSegmentation
from scripts.models.parameter_names import (
    ConversionError,
    Source,
    check_sizes,
    expected_tensors,
    listed,
    same_size,
    source_by,
    take_tensors,
)


# As in `parameter_names`; the official names count levels and fusions from 1.
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
    (_ATTENTION + r"self_attn\.(?P<third>[qkv])_proj\.", _DECODER + "self_attn.in_proj_"),
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

_SIZES = (
    ("decode_head.query_1.weight", 0, 0, "num_labels"),
    ("decode_head.query_1.weight", 1, 0, "hidden_dim"),
    ("backbone.patch_embed.projection.weight", 0, 0, "hidden_size"),
    ("decode_head.transformer.encoder.layers.0.linear1.weight", 0, 0, "encoder_feedforward_dim"),
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
    if source := source_by(_RULES, name):
        return source
    raise ConversionError(f"{name} has no counterpart in an official QLSeg checkpoint: check the config")


def official_parameter_names(config: Any) -> dict[str, str]:
    """`{this project's name: official name}` of every tensor of the model that `config` describes."""
    return {name: official_source(name).name for name in expected_tensors(QLSegForSemanticSegmentation, config)}


def convert_state_dict(official: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """This project's state dict of an official one.

    Args:
        official: official names and tensors (meta tensors are fine).
        config: `QLSegConfig` of the same architecture.
    Raises:
        ConversionError: for a checkpoint of another model, other sizes, missing or unexpected names.
    """
    _refuse_other_models(official)
    check_sizes(official, config, _SIZES, _DEPTHS)
    if "backbone.pos_embed" in official:
        grid = round((official["backbone.pos_embed"].shape[1] - 1) ** 0.5)
        same_size("image_size", grid * config.patch_size, config.image_size)
    expected = expected_tensors(QLSegForSemanticSegmentation, config)
    return take_tensors(official, expected, {name: official_source(name) for name in expected})


def _refuse_other_models(official: dict[str, Tensor]) -> None:
    if not official:
        raise ConversionError("the checkpoint holds no tensors")
    if not any(name.startswith("decode_head.QFM_1.") for name in official):
        raise ConversionError(
            "the checkpoint has no query fusion (decode_head.QFM_1): a backbone alone, or another model than QLSeg; "
            f"its names start {listed(sorted(official))}"
        )
