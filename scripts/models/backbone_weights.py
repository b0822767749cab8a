"""Pretrained backbones: from a file, a folder or the Hub, under transformers' or timm's names."""

from __future__ import annotations

import copy
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TimmBackbone

from scripts.cli.errors import UserError, causes
from scripts.models.input_channels import RGB, adapted, is_first_convolution, num_channels
from scripts.models.model_files import INDEX, KINDS, read_model_file
from scripts.models.parameter_names import ConversionError, Source, official_source


WHOLE = "model.safetensors"
# What an error of the Hub means; the first that fits, for some are of several kinds.
HUB_ERRORS: dict[type[Exception], str] = {
    GatedRepoError: "accept its terms on the Hub and log in (hf auth login)",
    RepositoryNotFoundError: "no such file, folder or model on the Hub",
    LocalEntryNotFoundError: "no such file or folder, not in the Hub's cache, and the Hub is out of reach",
    OfflineModeIsEnabled: "no such file or folder, not in the Hub's cache, and the Hub is out of reach",
    EntryNotFoundError: "the model on the Hub has no {file}",
    HFValidationError: "no such file or folder, and no name of the Hub",
}
# What a checkpoint of classification, or of images and text, has and a backbone has not (transformers' names, and
# timm's where its network is one of transformers').
CLASSIFICATION_HEAD = re.compile(
    r"^((conv_head|bn2|classifier|head|fc|pooler|layernorm|layer_norm|norm|last_convolution|text_model)\.|temperature$)"
)
# What a backbone has and a classification checkpoint may lack: output norms, semantic layers and batch counters.
BACKBONE_ONLY = re.compile(r"(hidden_states_norms\.|\.semantic_layer\.|num_batches_tracked$|relative_position_index$)")
# Fields of a backbone's configuration that say what is read of it, not what it is.
OF_OUTPUTS = {"out_features", "out_indices", "stage_names", "reshape_hidden_states", "apply_layernorm"}
# timm's and torchvision's ResNet -> the released checkpoints' names, by which both sides can be compared.
TIMM_RESNET = (
    (r"conv1\.", "backbone.stem.conv1."),
    (r"bn1\.", "backbone.stem.conv1.norm."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", r"backbone.res{0}.\2.conv\3."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", r"backbone.res{0}.\2.conv\3.norm."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", r"backbone.res{0}.\2.shortcut."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", r"backbone.res{0}.\2.shortcut.norm."),
)


def hub_reason(error: Exception, file: str) -> str:
    """Why `file` of a name on the Hub could not be read, if it is the Hub's doing; else what the error says."""
    found = (words for kind, words in HUB_ERRORS.items() if any(isinstance(cause, kind) for cause in causes(error)))
    return next((words.format(file=file) for words in found), str(error))


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a file, a folder, or a model on the Hub, which is fetched into the Hub's cache.

    Raises:
        UserError: there are none, or the Hub is out of reach.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [path / file for file in (WHOLE, INDEX) if (path / file).is_file()]
        if not found:
            raise UserError(f"--backbone_weights {name}: the folder holds neither {WHOLE} nor {INDEX}")
        return [path / shard for shard in shards(found[0])] if found[0].name == INDEX else found[:1]
    if name.endswith(".safetensors") or path.is_absolute() or name.startswith("."):
        raise UserError(f"--backbone_weights {name}: no such file or folder")
    try:
        try:
            return [Path(hf_hub_download(name, WHOLE))]
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            index = Path(hf_hub_download(name, INDEX))
            return [Path(hf_hub_download(name, shard)) for shard in shards(index)]
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = hub_reason(error, WHOLE)
        raise UserError(f"--backbone_weights {name}: {reason}") from error


def shards(index: Path) -> list[str]:
    """Files that a `model.safetensors.index.json` lists.

    Raises:
        UserError: it cannot be read, lists none, or names files elsewhere.
    """
    name = f"--backbone_weights: {index}"
    weight_map = read_model_file(index, name, KINDS[INDEX]).get("weight_map")
    if not weight_map:
        raise UserError(f"{name} has no weight_map, so it names no weights")
    return sorted(set(weight_map.values()))


def other_fields(name: str, backbone: nn.Module) -> str:
    """What `--config_overrides` has to say for the backbone to be the one that the weights' `config.json` describes;
    empty where there is none of the same kind, or nothing differs."""
    ours = getattr(backbone, "config", None)
    try:
        theirs, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError):  # a file of weights alone
        return ""
    if not isinstance(ours, PreTrainedConfig) or theirs.get("model_type") != ours.model_type:
        return ""
    fields = type(ours)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - OF_OUTPUTS
    differing = {
        field: theirs[field] for field in sorted(fields & theirs.keys()) if theirs[field] != getattr(ours, field, None)
    }
    given = [f"backbone_config.{field}={json.dumps(value)}" for field, value in differing.items()]
    return f": its config.json wants --config_overrides {shlex.join(given)}" if given else ""


def load_backbone_weights(model: PreTrainedModel, name: str) -> str:
    """Loads pretrained weights into the model's backbone; a classification head among them is left out.

    The names are the backbone's own, with or without a prefix that most share ("resnet.", "swin."), those of another
    version of transformers, as it knows them, those of the whole network in timm, or, for ResNet and Swin in
    transformers, those of timm or torchvision.

    Args:
        name: file, folder or Hub id.
    Returns:
        One line that counts what was loaded, what the weights lack and what was left out.
    Raises:
        UserError: unreadable, nothing matches, a shape differs, or tensors are left over or lacking.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(name):
        try:
            weights.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"--backbone_weights {name}: {file.name}: {error}") from error
    backbone = cast(nn.Module, model.base_model.backbone)
    expected = backbone.state_dict()
    ways = [by_own_names(weights, expected), by_released_names(weights, expected)]
    beside: set[str] = set()  # what a whole network has and its backbone has not
    if isinstance(backbone, TimmBackbone):
        with torch.device("meta"):
            kwargs = model.config.timm_backbone_kwargs or {}
            whole = timm.create_model(cast(str, backbone.config.backbone), in_chans=RGB, **kwargs)
        ways.append(by_timm(weights, expected, whole))
        beside = set(whole.state_dict())
    elif type(backbone).__module__.startswith("transformers."):
        ways.append(by_transformers(weights, cast(PreTrainedModel, backbone)))
    loaded, left_out = max(ways, key=lambda found: len(found[0]))
    if not loaded:
        raise UserError(
            f"--backbone_weights {name}: none of its {len(weights)} tensors is one of the backbone's "
            f"({min(expected)}, ...): weights of another architecture"
        )
    if fit := getattr(backbone, "fit_pretrained", None):
        loaded = fit(loaded)
    channels, remark = num_channels(model.config), ""
    for key, value in loaded.items():
        if is_first_convolution(value.shape, expected[key].shape, channels):
            loaded = {**loaded, key: adapted(value, channels)}
            remark = f"; {key} adapted from {RGB} to {channels} bands"
    for key, value in loaded.items():
        if value.shape != expected[key].shape:
            shapes = f"{key} has shape {tuple(value.shape)}, need {tuple(expected[key].shape)}"
            raise UserError(f"--backbone_weights {name}: {shapes}{other_fields(name, backbone)}")
    named = (key for key in left_out if key not in beside)
    unknown = [key for key in named if not CLASSIFICATION_HEAD.match(key) and not BACKBONE_ONLY.search(key)]
    missing = sorted(expected.keys() - loaded.keys())
    lacking = [key for key in missing if not BACKBONE_ONLY.search(key)]
    for what, keys in (("is not in the backbone", unknown), ("is lacking", lacking)):
        if keys:
            fix = other_fields(name, backbone) or ": another architecture?"
            raise UserError(f"--backbone_weights {name}: {keys[0]} {what} (and {len(keys) - 1} more){fix}")
    backbone.load_state_dict(loaded, strict=False)
    counts = [f"{len(loaded)} of {len(expected)} tensors loaded from {Path(name).name}"]
    for keys, what in ((missing, "of the backbone alone, new"), (left_out, "left out")):
        if keys:
            counts.append(f"{len(keys)} {what} ({', '.join(sorted({key.split('.')[0] for key in keys}))})")
    return f"backbone weights: {', '.join(counts)}{remark}"


def by_transformers(weights: dict[str, Tensor], backbone: PreTrainedModel) -> tuple[dict[str, Tensor], list[str]]:
    """As transformers loads them, which knows the prefixes and older names of its models.

    Returns:
        as `by_own_names`. A tensor of another shape is among those of the backbone as it came.
    """
    config = copy.deepcopy(backbone.config)
    if hasattr(config, "num_channels"):
        config.num_channels = RGB
    try:
        found, report = cast(Any, type(backbone)).from_pretrained(
            None, config=config, state_dict=dict(weights), ignore_mismatched_sizes=True, output_loading_info=True
        )
    except RuntimeError:  # of weights that its conversions do not fit: another architecture
        return {}, []
    expected, own = backbone.state_dict().keys(), found.state_dict()
    other_shape = {name: torch.empty(shape, device="meta") for name, shape, _ in report["mismatched_keys"]}
    loaded = {name: value for name, value in own.items() if name in expected and name not in report["missing_keys"]}
    # Pixio's backbone has the final norm twice, of which transformers fills the one that no map reads.
    loaded |= {name: weights[name] for name in report["missing_keys"] if name in weights}
    left_out = {*report["unexpected_keys"], *(own.keys() - expected)}
    prefix = f"{backbone.base_model_prefix}."
    return {**loaded, **other_shape}, sorted(name.removeprefix(prefix) for name in left_out)


def by_timm(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], whole: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the whole network in timm, of which a backbone holds parts under other names: as `by_own_names`."""
    # timm's own reading of older names and of position tables of other sizes; its name is a convention of timm's.
    if convert := getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None):
        with suppress(KeyError, RuntimeError, TypeError):  # weights that it does not know: another architecture
            weights = convert(dict(weights), whole)
    loaded, left_out = {}, []
    for key, value in weights.items():
        # `stages.0.` is `stages_0.` where timm takes the network apart, and in `model.` or `body.` where it does not.
        spellings = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
        name = next((f"_backbone.{each}" for each in spellings if f"_backbone.{each}" in expected), None)
        if name is None:
            left_out.append(key)
        else:
            loaded[name] = value
    return loaded, sorted(left_out)


def common_prefixes(weights: Mapping[str, Tensor]) -> list[str]:
    """The first part of a name if most tensors share it, and the empty prefix."""
    first_parts = Counter(key.split(".", 1)[0] + "." for key in weights)
    return [*(part for part, count in first_parts.items() if 2 * count > len(weights)), ""]


def by_own_names(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under the backbone's names but for a prefix: `(those of the backbone, names of the others)`."""
    inner = {""} | {key.split(".", 1)[0] + "." for key in expected}  # TimmBackbone keeps its net in `_backbone.`
    best: tuple[dict[str, Tensor], list[str]] = {}, []
    for prefix in common_prefixes(weights):
        for target in sorted(inner):
            names = {key: target + key.removeprefix(prefix) for key in weights}
            loaded = {name: weights[key] for key, name in names.items() if name in expected}
            if len(loaded) > len(best[0]):
                best = loaded, sorted(name.removeprefix(target) for name in names.values() if name not in expected)
    return best


def by_released_names(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """ResNet or Swin weights by way of the names in the released checkpoints, which all spellings are turned into."""
    wanted = {key: source for key in expected if (source := released_name(f"model.backbone.{key}"))}
    best: tuple[dict[str, Tensor], list[str]] = {}, []
    for prefix in common_prefixes(weights):
        sources = {}
        for key in weights:
            plain = key.removeprefix(prefix)
            sources[key] = released_name(f"model.backbone.{plain}") or timm_source(plain)
        place = {source: key for key, source in sources.items() if source}
        loaded, used = {}, set()
        for key, source in wanted.items():
            packed = Source(source.name)
            if source in place:
                loaded[key] = weights[place[source]]
                used.add(place[source])
            elif source.third is not None and packed in place:
                loaded[key] = weights[place[packed]].chunk(3)[source.third].clone()
                used.add(place[packed])
        if len(loaded) > len(best[0]):
            best = loaded, sorted(key.removeprefix(prefix) for key in weights if key not in used)
    return best


def released_name(name: str) -> Source | None:
    """`official_source`, or None where there is none."""
    try:
        return official_source(name)
    except ConversionError:
        return None


def timm_source(name: str) -> Source | None:
    """The released checkpoints' name of a tensor of timm's ResNet or Swin.

    timm's Swin merges patches at the beginning of a stage, the released one at the end of the stage before.
    """
    for pattern, template in TIMM_RESNET:
        if match := re.match(pattern, name):
            stage = int(match[1]) + 1 if match.groups() else 0
            return Source(match.expand(template.replace("{0}", str(stage))) + name[match.end() :])
    if match := re.match(r"layers\.(\d)\.downsample\.", name):
        return Source(f"backbone.layers.{int(match[1]) - 1}.downsample.{name[match.end() :]}")
    if re.match(r"(patch_embed|layers\.\d\.blocks)\.", name):
        return Source(f"backbone.{name}")
    return None
