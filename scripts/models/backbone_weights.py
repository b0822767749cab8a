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
from scripts.models.checkpoint_files import PICKLE_SUFFIXES, read_checkpoint
from scripts.models.input_channels import RGB, adapted, is_first_convolution, num_channels
from scripts.models.loaded_parts import table
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
# Where the backbone stands in the weights of a whole segmentation model, FASeg's own among them.
IN_SEGMENTATION_MODEL = re.compile(r"(?:[^.]+\.){0,2}backbone\.")
# Arguments of timm that only a backbone takes, and not the whole network.
OF_TIMM_FEATURES = {"feature_cls"}
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
    """The files of weights of a file, a folder, or a model on the Hub, which is fetched into the Hub's cache.

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


def read_weights(name: str) -> dict[str, Tensor]:
    """All tensors of a file, a folder, or a model on the Hub; PyTorch's own files are read without running code.

    Raises:
        UserError: they cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(name):
        try:
            weights.update(read_checkpoint(file) if file.suffix in PICKLE_SUFFIXES else load_file(file))
        except ConversionError as error:  # which names the file
            raise UserError(f"--backbone_weights {error}") from error
        except (OSError, SafetensorError) as error:
            raise UserError(f"--backbone_weights {name}: {file.name}: {error}") from error
    return weights


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
    theirs = theirs.get("backbone_config") or theirs  # of a whole segmentation model
    if not isinstance(ours, PreTrainedConfig) or theirs.get("model_type") != ours.model_type:
        return ""
    fields = type(ours)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - OF_OUTPUTS
    differing = {
        field: theirs[field] for field in sorted(fields & theirs.keys()) if theirs[field] != getattr(ours, field, None)
    }
    given = [f"backbone_config.{field}={json.dumps(value)}" for field, value in differing.items()]
    return f": its config.json wants --config_overrides {shlex.join(given)}" if given else ""


def load_backbone_weights(model: PreTrainedModel, name: str) -> str:
    """`load_with_table`, of which it returns the first line: what was loaded, is lacking and was left out."""
    return load_with_table(model, name).split("\n", 1)[0]


def load_with_table(model: PreTrainedModel, name: str) -> str:
    """Loads pretrained weights into the model's backbone; a classification head among them is left out, and so is
    what stands beside the backbone in a whole segmentation model.

    The names are the backbone's own, with or without a prefix that most share ("resnet.", "module.backbone."), those
    of another version of transformers, as it knows them, those of the whole network in timm, or, for ResNet and Swin
    in transformers, those of timm or torchvision.

    Args:
        name: file, folder or Hub id.
    Returns:
        One line that counts what was loaded, what the weights lack and what was left out, and a table of the same by
        parts where there is anything but loaded tensors.
    Raises:
        UserError: unreadable, nothing matches, a shape differs, or tensors are left over or lacking.
    """
    weights = read_weights(name)
    backbone = cast(nn.Module, model.base_model.backbone)
    expected = backbone.state_dict()
    whole = network_of_timm(model, backbone) if isinstance(backbone, TimmBackbone) else None
    part, outside = of_segmentation_model(weights)
    loaded, left_out = best_way(weights, backbone, expected, whole)
    of_part, left_in_part = best_way(part, backbone, expected, whole)
    if (len(of_part), -len(left_in_part)) > (len(loaded), -len(left_out)):
        loaded, left_out = of_part, left_in_part
    else:
        outside = []
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
    missing = sorted(expected.keys() - loaded.keys())
    beside = set(whole.state_dict()) if whole else set()  # what a whole network has and its backbone has not
    refuse_others(name, backbone, [key for key in left_out if key not in beside], missing)
    backbone.load_state_dict(loaded, strict=False)
    left_out = [*left_out, *outside]
    counts = [f"{len(loaded)} of {len(expected)} tensors loaded from {Path(name).name}"]
    for keys, what in ((missing, "of the backbone alone, new"), (left_out, "left out")):
        if keys:
            counts.append(f"{len(keys)} {what} ({', '.join(sorted({key.split('.')[0] for key in keys}))})")
    line = f"backbone weights: {', '.join(counts)}{remark}"
    if not missing and not left_out:
        return line
    return f"{line}\n{table((key for key in expected if key in loaded), missing, left_out)}"


def refuse_others(name: str, backbone: nn.Module, left_out: list[str], missing: list[str]) -> None:
    """Refuses weights with tensors that are of no part known to be left out, or without some that they should have.

    Raises:
        UserError: names the first one.
    """
    unknown = [key for key in left_out if not CLASSIFICATION_HEAD.match(key) and not BACKBONE_ONLY.search(key)]
    lacking = [key for key in missing if not BACKBONE_ONLY.search(key)]
    for what, keys in (("is not in the backbone", unknown), ("is lacking", lacking)):
        if keys:
            fix = other_fields(name, backbone) or ": another architecture?"
            raise UserError(f"--backbone_weights {name}: {keys[0]} {what} (and {len(keys) - 1} more){fix}")


def network_of_timm(model: PreTrainedModel, backbone: TimmBackbone) -> nn.Module:
    """The whole network of which timm's backbone is a part, as its shapes alone."""
    kwargs = model.config.timm_backbone_kwargs or {}
    kwargs = {key: value for key, value in kwargs.items() if key not in OF_TIMM_FEATURES}
    with torch.device("meta"):
        return timm.create_model(cast(str, backbone.config.backbone), in_chans=RGB, **kwargs)


def of_segmentation_model(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under `backbone.` by their names there, and the names of all others; none where there is no such
    part, or more than one."""
    prefixes = {match[0] for key in weights if (match := IN_SEGMENTATION_MODEL.match(key))}
    if len(prefixes) != 1:
        return {}, []
    (prefix,) = prefixes
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    around = prefix.removesuffix("backbone.")
    return inside, sorted(key.removeprefix(around) for key in weights if not key.startswith(prefix))


def best_way(
    weights: dict[str, Tensor], backbone: nn.Module, expected: Mapping[str, Tensor], whole: nn.Module | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Those tensors that belong to the backbone, and the names of the others, by the names that fit most of them.

    Args:
        whole: the network in timm that the backbone is part of, if it is timm's.
    """
    if not weights:
        return {}, []
    ways = [by_own_names(weights, expected), by_released_names(weights, expected)]
    if whole is not None:
        ways.append(by_timm(weights, expected, whole))
    elif type(backbone).__module__.startswith("transformers."):
        ways.append(by_transformers(weights, cast(PreTrainedModel, backbone)))
    return max(ways, key=lambda found: len(found[0]))


def by_transformers(weights: dict[str, Tensor], backbone: PreTrainedModel) -> tuple[dict[str, Tensor], list[str]]:
    """As transformers loads them, which knows the prefixes and older names of its models.

    Returns:
        as `by_own_names`. A tensor of another shape is among those of the backbone as it came.
    """
    config = copy.deepcopy(backbone.config)
    try:
        found, report = read_by_transformers(weights, type(backbone), config)
        if any(len(there) == 4 and there[1] == RGB != here[1] for _, there, here in report["mismatched_keys"]):
            config.num_channels = RGB  # as the file has them, so that its first convolution is kept
            found, report = read_by_transformers(weights, type(backbone), config)
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


def read_by_transformers(
    weights: Mapping[str, Tensor], backbone_class: type[nn.Module], config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A backbone with as many of the weights as fit, and which ones do not."""
    return cast(Any, backbone_class).from_pretrained(
        None, config=config, state_dict=dict(weights), ignore_mismatched_sizes=True, output_loading_info=True
    )


def by_timm(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], whole: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the whole network in timm, of which a backbone holds parts under other names: as `by_own_names`."""
    # timm's own reading of older names and of position tables of other sizes; its name is a convention of timm's.
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    best: tuple[dict[str, Tensor], list[str]] = {}, []
    for prefix in common_prefixes(weights):
        plain = {key.removeprefix(prefix): value for key, value in weights.items()}
        if convert:
            with suppress(Exception):  # of whatever it says to weights that it does not know: another architecture
                plain = convert(dict(plain), whole)
        loaded, left_out = {}, []
        for key, value in plain.items():
            # `stages.0.` is `stages_0.` where timm takes the network apart, and in `model.` or `body.` where not.
            spellings = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
            name = next((f"_backbone.{each}" for each in spellings if f"_backbone.{each}" in expected), None)
            if name is None:
                left_out.append(key)
            else:
                loaded[name] = value
        if len(loaded) > len(best[0]):
            best = loaded, sorted(left_out)
    return best


def common_prefixes(weights: Mapping[str, Tensor]) -> list[str]:
    """The first two parts of a name, and the first alone, if most tensors share them, and the empty prefix."""
    found = []
    for depth in (2, 1):
        counts = Counter("".join(f"{part}." for part in key.split(".")[:depth]) for key in weights)
        found += [prefix for prefix, count in counts.items() if 2 * count > len(weights)]
    return [*dict.fromkeys(found), ""]


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
