"""Official FASeg state dicts as this project's, by name.

Every parameter of this project's model has one official source: a whole tensor, or a third of a packed query-key-value
tensor. The rules below read from this project's name to the official one; a rule replaces the start of a name and what
follows (`weight`, `bias`, `running_mean`, ...) stays. Its group `third`, if any, is the `q`, `k` or `v` of a packed
tensor. `{\\1+2}` and `{\\1-1}` are computed: the two sides count from different numbers.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modeling_faseg import FASegForUniversalSegmentation


class ConversionError(ValueError):
    """A checkpoint that cannot become this model; the message is one line and says what to do."""


class Source(NamedTuple):
    """Where a tensor comes from: an official name, and which third of it (0 query, 1 key, 2 value; None: all)."""

    name: str
    third: int | None = None


_ENCODER_LAYER = r"model\.pixel_decoder\.layers\.(\d+)\."
_OFFICIAL_ENCODER_LAYER = r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1."
_DECODER_LAYER = r"model\.transformer_decoder\.layers\.(\d+)\."
_OFFICIAL_CROSS = r"sem_seg_head.predictor.transformer_cross_attention_layers.\1."
_OFFICIAL_SELF = r"sem_seg_head.predictor.transformer_self_attention_layers.\1."
_OFFICIAL_FEED_FORWARD = r"sem_seg_head.predictor.transformer_ffn_layers.\1."
_RESNET_LAYER = r"model\.backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\."
# transformers renamed Swin's modules in the 5.x series: both spellings are read.
_SWIN = r"model\.backbone\.(?:swin\.)?"
_SWIN_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_OFFICIAL_SWIN_BLOCK = r"backbone.layers.\1.blocks.\2."

_RULES = (
    # FASeg's head
    (r"model\.pixel_decoder\.input_projections\.(\d+)\.conv\.", r"sem_seg_head.pixel_decoder.input_proj.\1.0."),
    (r"model\.pixel_decoder\.input_projections\.(\d+)\.norm\.", r"sem_seg_head.pixel_decoder.input_proj.\1.1."),
    (r"model\.pixel_decoder\.position_encodings\.", r"sem_seg_head.pixel_decoder.pos_linear."),
    (r"model\.pixel_decoder\.level_embed", r"sem_seg_head.pixel_decoder.transformer.level_embed"),
    (_ENCODER_LAYER + r"self_attn\.", _OFFICIAL_ENCODER_LAYER + r"self_attn."),
    (_ENCODER_LAYER + r"self_attn_layer_norm\.", _OFFICIAL_ENCODER_LAYER + r"norm1."),
    (_ENCODER_LAYER + r"final_layer_norm\.", _OFFICIAL_ENCODER_LAYER + r"norm2."),
    (_ENCODER_LAYER + r"fc([12])\.", _OFFICIAL_ENCODER_LAYER + r"linear\2."),
    (r"model\.pixel_decoder\.lateral_projection\.(?:conv\.)?", r"sem_seg_head.pixel_decoder.adapter_1."),
    (r"model\.pixel_decoder\.output_projection\.(?:conv\.)?", r"sem_seg_head.pixel_decoder.layer_1."),
    (r"model\.pixel_decoder\.mask_projection\.", r"sem_seg_head.pixel_decoder.mask_features."),
    (r"model\.transformer_decoder\.queries_features\.", r"sem_seg_head.predictor.query_feat."),
    (r"model\.transformer_decoder\.queries_embedder\.", r"sem_seg_head.predictor.query_embed."),
    (r"model\.transformer_decoder\.level_embed\.", r"sem_seg_head.predictor.level_embed."),
    (r"model\.transformer_decoder\.input_projections\.", r"sem_seg_head.predictor.input_proj."),
    (_DECODER_LAYER + r"cross_attn\.(?P<third>[qkv])_proj\.", _OFFICIAL_CROSS + r"multihead_attn.in_proj_"),
    (_DECODER_LAYER + r"cross_attn\.o_proj\.", _OFFICIAL_CROSS + r"multihead_attn.out_proj."),
    (_DECODER_LAYER + r"cross_attn_layer_norm\.", _OFFICIAL_CROSS + r"norm."),
    (_DECODER_LAYER + r"self_attn\.(?P<third>[qkv])_proj\.", _OFFICIAL_SELF + r"self_attn.in_proj_"),
    (_DECODER_LAYER + r"self_attn\.o_proj\.", _OFFICIAL_SELF + r"self_attn.out_proj."),
    (_DECODER_LAYER + r"self_attn_layer_norm\.", _OFFICIAL_SELF + r"norm."),
    (_DECODER_LAYER + r"fc([12])\.", _OFFICIAL_FEED_FORWARD + r"linear\2."),
    (_DECODER_LAYER + r"final_layer_norm\.", _OFFICIAL_FEED_FORWARD + r"norm."),
    (r"model\.transformer_decoder\.layernorm\.", r"sem_seg_head.predictor.decoder_norm."),
    (r"model\.transformer_decoder\.focus_queries\.fc1\.", r"sem_seg_head.predictor.adapt_pos2d.0."),
    (r"model\.transformer_decoder\.focus_queries\.fc2\.", r"sem_seg_head.predictor.adapt_pos2d.2."),
    (r"model\.transformer_decoder\.mask_embedder\.", r"sem_seg_head.predictor.mask_embed."),
    (r"class_predictor\.", r"sem_seg_head.predictor.class_embed."),
    (r"criterion\.", r"criterion."),
    # ResNet
    (r"model\.backbone\.embedder\.embedder\.convolution\.", r"backbone.stem.conv1."),
    (r"model\.backbone\.embedder\.embedder\.normalization\.", r"backbone.stem.conv1.norm."),
    (_RESNET_LAYER + r"shortcut\.convolution\.", r"backbone.res{\1+2}.\2.shortcut."),
    (_RESNET_LAYER + r"shortcut\.normalization\.", r"backbone.res{\1+2}.\2.shortcut.norm."),
    (_RESNET_LAYER + r"layer\.(\d+)\.convolution\.", r"backbone.res{\1+2}.\2.conv{\3+1}."),
    (_RESNET_LAYER + r"layer\.(\d+)\.normalization\.", r"backbone.res{\1+2}.\2.conv{\3+1}.norm."),
    # Swin
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.", r"backbone.patch_embed.proj."),
    (_SWIN + r"embeddings\.norm\.", r"backbone.patch_embed.norm."),
    (_SWIN_BLOCK + r"layernorm_before\.", _OFFICIAL_SWIN_BLOCK + r"norm1."),
    (_SWIN_BLOCK + r"layernorm_after\.", _OFFICIAL_SWIN_BLOCK + r"norm2."),
    (_SWIN_BLOCK + r"attention\.(?:self\.|relative_position_bias\.)(?=relative_)", _OFFICIAL_SWIN_BLOCK + r"attn."),
    (
        _SWIN_BLOCK + r"attention\.(?:self\.)?(?P<third>[qkv])(?:_proj|uery|ey|alue)\.",
        _OFFICIAL_SWIN_BLOCK + r"attn.qkv.",
    ),
    (_SWIN_BLOCK + r"attention\.(?:o_proj|output\.dense)\.", _OFFICIAL_SWIN_BLOCK + r"attn.proj."),
    (_SWIN_BLOCK + r"(?:mlp\.fc1|intermediate\.dense)\.", _OFFICIAL_SWIN_BLOCK + r"mlp.fc1."),
    (_SWIN_BLOCK + r"(?:mlp\.fc2|output\.dense)\.", _OFFICIAL_SWIN_BLOCK + r"mlp.fc2."),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.", r"backbone.layers.\1.downsample."),
    (r"model\.backbone\.hidden_states_norms\.stage(\d+)\.", r"backbone.norm{\1-1}."),
)

# Official entries that carry no trained value: constants that the model computes, and the image normalisation, which
# the processor does.
_IGNORED = re.compile(r"(.*\.)?(relative_position_index|num_batches_tracked|pixel_mean|pixel_std)")

# Constants that this project's models keep as tensors and compute themselves: a trimmed checkpoint may lack them.
_COMPUTED = re.compile(r"(.*\.)?(relative_position_index|criterion\.empty_weight)")

# (official tensor, axis, amount to subtract, config field), and (a layer of official tensors, config field): read from
# a checkpoint, they must be what the config says.
_SIZES = (
    ("sem_seg_head.predictor.class_embed.weight", 0, 1, "num_labels"),
    ("sem_seg_head.predictor.query_feat.weight", 1, 0, "hidden_dim"),
    ("sem_seg_head.predictor.query_feat.weight", 0, 0, "num_queries"),
    ("sem_seg_head.pixel_decoder.mask_features.weight", 0, 0, "mask_feature_size"),
    ("sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1.weight", 0, 0, "encoder_feedforward_dim"),
    ("sem_seg_head.predictor.transformer_ffn_layers.0.linear1.weight", 0, 0, "dim_feedforward"),
)
_DEPTHS = (
    (r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.", "encoder_layers"),
    (r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.", "decoder_layers"),
)


def source_by(rules: Iterable[tuple[str, str]], name: str) -> Source | None:
    """The official tensor by the first rule that fits `name`, if any does."""
    for pattern, template in rules:
        if match := re.match(pattern, name):
            shifted = re.sub(
                r"\{\\(\d)([+-]\d)\}", lambda number: str(int(match[int(number[1])]) + int(number[2])), template
            )
            third = match.groupdict().get("third")
            return Source(match.expand(shifted) + name[match.end() :], "qkv".index(third) if third else None)
    return None


def official_source(name: str) -> Source:
    """The official tensor that fills `name` of this project's model.

    Raises:
        ConversionError: where the official model has no such tensor.
    """
    if source := source_by(_RULES, name):
        return source
    raise ConversionError(
        f"{name} has no counterpart in an official checkpoint: these have a ResNet or Swin backbone, conditional "
        "positional encodings, DFPQ and HRCA; check the config"
    )


def official_parameter_names(config: Any) -> dict[str, str]:
    """`{this project's name: official name}` of every tensor in the state dict of the model that `config` describes.

    Query, key and value projections share one official name.
    """
    return {name: official_source(name).name for name in expected_tensors(FASegForUniversalSegmentation, config)}


def convert_state_dict(official: dict[str, Tensor], config: Any, head_only: bool = False) -> dict[str, Tensor]:
    """This project's state dict of an official one.

    Args:
        official: official names and tensors (meta tensors are fine).
        config: `FASegConfig` of the same architecture.
        head_only: the official dict holds no backbone and no `criterion.*`, and neither will the answer.
    Raises:
        ConversionError: for a checkpoint of another model, other sizes, missing or unexpected names.
    """
    _refuse_other_models(official)
    if config.high_resolution_sharing != "none":
        raise ConversionError(
            f"the config has high_resolution_sharing={config.high_resolution_sharing!r}, but each layer of the "
            "checkpoint has weights of its own: set it to 'none'"
        )
    check_sizes(official, config, _SIZES, _DEPTHS)
    expected = expected_tensors(FASegForUniversalSegmentation, config)
    if head_only:
        beside = ("model.backbone.", "criterion.")
        expected = {name: value for name, value in expected.items() if not name.startswith(beside)}
    return take_tensors(official, expected, {name: official_source(name) for name in expected})


def take_tensors(
    official: dict[str, Tensor], expected: dict[str, Tensor], sources: dict[str, Source]
) -> dict[str, Tensor]:
    """A state dict of the names, shapes and types of `expected`, filled from the official one.

    A constant that the official one lacks is left out: the model of the config has it.

    Raises:
        ConversionError: missing or unexpected names, other shapes.
    """
    has_counters = any(name.endswith(".num_batches_tracked") for name in official)

    missing = sorted(
        {
            source.name
            for source in sources.values()
            if source.name not in official
            # Frozen batch norms of the reference count nothing.
            and not (source.name.endswith(".num_batches_tracked") and not has_counters)
            and not _COMPUTED.fullmatch(source.name)
        }
    )
    consumed = {source.name for source in sources.values()}
    unexpected = sorted(name for name in official if name not in consumed and not _IGNORED.fullmatch(name))
    if missing or unexpected:
        raise ConversionError(
            "the checkpoint and the config describe different models"
            + (f"; missing from the checkpoint: {listed(missing)}" if missing else "")
            + (f"; unknown to the config: {listed(unexpected)}" if unexpected else "")
        )

    converted = {}
    for name, target in expected.items():
        source = sources[name]
        if source.name not in official and _COMPUTED.fullmatch(source.name):
            continue
        if source.name not in official:
            converted[name] = torch.zeros_like(target, device="cpu")
            continue
        value = official[source.name]
        if source.third is not None:
            if value.shape[0] % 3:
                raise ConversionError(f"{source.name} has shape {tuple(value.shape)}: not three equal parts")
            value = value.chunk(3)[source.third].clone()
        if source.name.endswith("relative_position_index"):
            value = value.reshape(target.shape)
        if value.shape != target.shape:
            raise ConversionError(
                f"{source.name} has shape {tuple(official[source.name].shape)}, but {name} of the config's model "
                f"{tuple(target.shape)}: is it the checkpoint of another config?"
            )
        converted[name] = value.to(target.dtype)
    return converted


def expected_tensors(model_class: Any, config: Any) -> dict[str, Tensor]:
    """Names and (meta) tensors of the state dict of the model that `config` describes."""
    with torch.device("meta"):
        return model_class(config).state_dict()


def _refuse_other_models(official: dict[str, Tensor]) -> None:
    if not official:
        raise ConversionError("the checkpoint holds no tensors")
    if not any(name.startswith("sem_seg_head.predictor.") for name in official):
        if any(name.startswith("decode_head.") for name in official):
            raise ConversionError("the checkpoint is of a decode_head model (SeMask, QLSeg or another), not of FASeg")
        raise ConversionError(
            "the checkpoint has no head weights (sem_seg_head.predictor.*): a backbone alone, or another "
            f"model; its names start {listed(sorted(official))}"
        )
    lacking = [
        part
        for part in ("sem_seg_head.pixel_decoder.pos_linear", "sem_seg_head.predictor.adapt_pos2d")
        if not any(name.startswith(part + ".") for name in official)
    ]
    if lacking:
        raise ConversionError(
            f"the checkpoint has no {' and no '.join(lacking)}: it looks like Mask2Former, not FASeg, of which "
            "these are the positional encoding and the dynamic queries"
        )


def check_sizes(
    official: dict[str, Tensor],
    config: Any,
    sizes: Iterable[tuple[str, int, int, str]],
    depths: Iterable[tuple[str, str]],
) -> None:
    """Compare sizes that have a name of their own before tensors are compared: the error then names the field."""
    for name, axis, offset, field in sizes:
        value = official.get(name)
        if value is not None and value.ndim > axis:
            same_size(field, value.shape[axis] - offset, getattr(config, field))
    for pattern, field in depths:
        indices = [int(match.group(1)) for name in official if (match := re.match(pattern, name))]
        same_size(field, max(indices, default=-1) + 1, getattr(config, field))


def same_size(field: str, found: int, wanted: int) -> None:
    """Raises a `ConversionError` that names the field where a checkpoint differs from the config."""
    if found != wanted:
        raise ConversionError(
            f"the checkpoint has {field}={found}, the config {field}={wanted}: use that checkpoint's config"
        )


def listed(names: list[str], limit: int = 4) -> str:
    """The first of the names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
