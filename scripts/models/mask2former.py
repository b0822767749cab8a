"""Mask2Former checkpoints of transformers as FASeg models: with both of FASeg's ideas off, the two are one model.

`FASegForUniversalSegmentation` without DFPQ and HRCA, with sine positions and a threshold of 0.5, computes what
`Mask2FormerForUniversalSegmentation` does. See docs/models.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from configuration import FASegConfig
from image_processing import FASegImageProcessor
from scripts.cli.errors import UserError
from scripts.models.model_files import check_model_files
from scripts.models.parameter_names import listed
from scripts.models.tasks import PANOPTIC, TASKS


# What makes FASeg a Mask2Former.
PLAIN = {
    "use_dynamic_positional_queries": False,
    "use_high_resolution_cross_attention": False,
    "positional_encoding_type": "sine",
    "attention_mask_threshold": 0.5,
}
# What this code has one way of doing.
FIXED = {"activation_function": "relu", "pre_norm": False, "common_stride": 4, "feature_strides": [4, 8, 16, 32]}
# Fields that both configurations have, under one name.
SHARED = (
    "backbone_config", "feature_size", "mask_feature_size", "hidden_dim", "encoder_layers", "encoder_feedforward_dim",
    "dim_feedforward", "num_attention_heads", "num_queries", "dropout", "enforce_input_projection", "ignore_value",
    "no_object_weight", "class_weight", "mask_weight", "dice_weight", "train_num_points", "oversample_ratio",
    "importance_sample_ratio", "use_auxiliary_loss", "output_auxiliary_logits", "init_std", "init_xavier_std",
    "id2label", "label2id",
)  # fmt: skip
# Settings that both image processors have, under one name.
COMMON_SETTINGS = (
    "size", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize", "resample",
)  # fmt: skip
# Other models of masks and queries, whose weights look alike and are not.
RELATIVES = ("maskformer", "oneformer", "eomt", "eomt_dinov3", "detr", "videomask2former")
PIXELS = r"model\.pixel_level_module\.decoder\."
# Names of Mask2Former's tensors -> names here; the first that fits.
NAMES = (
    (r"model\.pixel_level_module\.encoder\.", "model.backbone."),
    (PIXELS + r"encoder\.layers\.", "model.pixel_decoder.layers."),
    (PIXELS + r"input_projections\.(\d+)\.0\.", r"model.pixel_decoder.input_projections.\1.conv."),
    (PIXELS + r"input_projections\.(\d+)\.1\.", r"model.pixel_decoder.input_projections.\1.norm."),
    (PIXELS + r"adapter_1\.0\.", "model.pixel_decoder.lateral_projection.conv."),
    (PIXELS + r"adapter_1\.1\.", "model.pixel_decoder.lateral_projection.norm."),
    (PIXELS + r"layer_1\.0\.", "model.pixel_decoder.output_projection.conv."),
    (PIXELS + r"layer_1\.1\.", "model.pixel_decoder.output_projection.norm."),
    (PIXELS, "model.pixel_decoder."),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.",
        r"model.transformer_decoder.mask_embedder.layers.\1.",
    ),
    (r"model\.transformer_module\.(decoder\.)?", "model.transformer_decoder."),
)  # fmt: skip
# Of a Swin backbone, transformers builds one norm that no feature map goes through.
UNREAD = re.compile(r"model\.backbone\.(swin\.)?layernorm\.(weight|bias)")


def config_of(name: str) -> Mapping[str, Any]:
    """What the `config.json` of a folder or of a model on the Hub holds; empty where it cannot be read."""
    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError):
        return {}


def is_mask2former(name: str | None) -> bool:
    """Whether a folder or a name on the Hub is that of a Mask2Former checkpoint.

    Raises:
        UserError: it is of a model that looks like one and is none.
    """
    kind = config_of(name).get("model_type") if name else None
    if kind in RELATIVES:
        raise UserError(f"{name} is a checkpoint of {kind}, which this project cannot run: give one of mask2former")
    return kind == "mask2former"


def check_is_mask2former(flag: str, name: str) -> None:
    """Raises `UserError` where a flag names something else."""
    check_model_files(flag, name)
    found = config_of(name).get("model_type")
    if found != "mask2former":
        what = f"a checkpoint of {found}" if found else "no folder with a config.json, no model of the Hub in reach"
        raise UserError(f"{flag} {name}: {what}: name a Mask2Former of transformers")


def task_of(name: str, config: Any, given: str | None = None) -> str:
    """What a checkpoint was trained for: as `given`, else the last task that its name names.

    Raises:
        UserError: its name, without the folders above it, names no task.
    """
    if given:
        return given
    for known in (name, str(getattr(config, "_name_or_path", ""))):
        words = re.split(r"[^a-z]+", Path(known).name.lower())
        if named := [word for word in words if word in TASKS]:
            return named[-1]
    raise UserError(
        f"{name}: its name tells no task: give --task (or --config_overrides task=...): {', '.join(TASKS)}"
    )


def faseg_config(config: Any, task: str) -> FASegConfig:
    """The configuration that runs a Mask2Former of `config`.

    Raises:
        UserError: a setting that this code has not.
    """
    for field, only in FIXED.items():
        value = getattr(config, field)
        if (list(value) if isinstance(value, tuple) else value) != only:
            raise UserError(f"this Mask2Former has {field}={value!r}, and only {only!r} can be run here")
    values: dict[str, Any] = {field: getattr(config, field) for field in SHARED} | PLAIN
    # There the number counts predictions, of which the first comes before the first layer.
    layers = config.decoder_layers - 1
    if layers < 1:
        raise UserError(f"this Mask2Former has decoder_layers={config.decoder_layers}, and at least 2 are needed")
    return FASegConfig(**{**values, "decoder_layers": layers, "task": task})


def renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mask2Former's tensors under this project's names; one matrix of query, key and value becomes three."""
    result = {}
    for name, value in state_dict.items():
        for pattern, here in NAMES:
            name, found = re.subn("^" + pattern, here, name)
            if found:
                break
        name = name.replace("_attn.out_proj.", "_attn.o_proj.")
        if match := re.fullmatch(r"(.*cross_attn\.)in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[f"{match[1]}{letter}_proj.{match[2]}"] = part.clone()
        elif not UNREAD.fullmatch(name):
            result[name] = value
    return result


@contextmanager
def without_loading_report() -> Iterator[None]:
    """Silences what transformers reports of keys and shapes while it loads weights."""

    def silence(record: logging.LogRecord) -> bool:
        return False

    # A filter, not a level: where this logger has one of its own, transformers reports of sharding in its place.
    loading = logging.getLogger("transformers.modeling_utils")
    loading.addFilter(silence)
    try:
        yield
    finally:
        loading.removeFilter(silence)


def read_weights(name: str) -> dict[str, Tensor]:
    """The weights of a Mask2Former checkpoint under this project's names, all of them read by transformers.

    Raises:
        UserError: the checkpoint is out of reach or broken, or is not what its configuration says.
    """
    try:
        with without_loading_report():  # one line below takes its place
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
                name, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    model, info = loaded
    # A constant that older files leave out.
    missing = sorted(set(info["missing_keys"]) - {"criterion.empty_weight"})
    shapes = sorted(
        f"{key} {tuple(found)} instead of {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"]
    )
    for what, keys in (
        ("lacks", missing),
        ("holds what its config.json knows nothing of:", sorted(info["unexpected_keys"])),
        ("holds other sizes than its config.json:", shapes),
    ):
        if keys:
            raise UserError(f"{name}: the checkpoint {what} {listed(keys)}: it is damaged, or of another config.json")
    return renamed(model.state_dict())


def processor_settings(name: str, config: Any) -> dict[str, Any]:
    """Settings of a `FASegImageProcessor` that reads images as the checkpoint's own does.

    Raises:
        UserError: there is no `preprocessor_config.json`.
    """
    try:
        saved, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: no image processor: {' '.join(str(error).split())}") from error
    settings = {key: saved[key] for key in COMMON_SETTINGS if saved.get(key) is not None}
    size = settings.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    if isinstance(size, int):
        longest = saved.get("max_size", saved.get("_max_size", 1333))
        size = {"shortest_edge": size, "longest_edge": longest}
    reduced = saved.get("do_reduce_labels", saved.get("reduce_labels"))
    ignored = saved.get("ignore_index")
    stuff = saved.get("label_ids_to_fuse") or (known_stuff(config) if config.task == PANOPTIC else None)
    return {
        **settings,
        "size": size,
        "size_divisor": saved.get("size_divisor", saved.get("size_divisibility", 32)),
        "do_reduce_labels": bool(reduced),
        "ignore_index": 255 if ignored is None else ignored,
        "num_labels": len(config.id2label),
        "task": config.task,
        "label_ids_to_fuse": stuff,
    }


def known_stuff(config: Any) -> list[int] | None:
    """The classes of COCO's and Cityscapes' panoptic segmentation that have no instances; None of other data."""
    names = [config.id2label[index] for index in sorted(config.id2label)]
    if len(names) == 133 and names[0] == "person":
        return list(range(80, 133))
    if len(names) == 19 and names[0] == "road":
        return list(range(11))
    return None


def build_processor(name: str, config: Any, **settings: Any) -> FASegImageProcessor:
    """The image processor of a Mask2Former checkpoint; `settings` come first."""
    try:
        return FASegImageProcessor(**{**processor_settings(name, config), **settings})
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: its image processor cannot be taken over: {error}") from error
