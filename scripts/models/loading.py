"""From arguments to a model and its processor, and from those to a folder that `from_pretrained` reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

import image_processing  # noqa: F401 - registers the processors
import modeling_faseg  # noqa: F401 - registers the models
from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import parse_overrides
from scripts.cli.processes import say_once
from scripts.models import mask2former
from scripts.models.arguments import ModelArguments
from scripts.models.backbone_fields import after_overrides
from scripts.models.backbone_weights import hub_reason
from scripts.models.families import family_of
from scripts.models.input_channels import adapt_first_convolution
from scripts.models.licences import FIELDS, inherited, origin_of
from scripts.models.model_files import check_model_files
from scripts.models.tasks import task_of


# What changes with the classes.
LABEL_DEPENDENT = re.compile(
    r"(class_predictor\.|criterion\.empty_weight$|^model\.decoder\.queries\.)"
    r"|^decoder\.classifier\.|\.semantic_layer\.blocks\.\d+\.(query|key)\."
)


def build_config(arguments: ModelArguments, id2label: dict[int, str] | None = None) -> PreTrainedConfig:
    """Configuration of the arguments with overrides and classes put in.

    Raises:
        UserError: it cannot be read, or an override names no field.
        StrictDataclassError: a field's value is wrong.
    """
    name = arguments.model_name_or_path or arguments.config_name
    if name:
        base = read_config(arguments, name)
        if mask2former.is_mask2former(name):
            task = cast(Any, base).task
            licence = origin_of(base).get("license", "unknown")
            say_once(  # training asks for the task before it knows the classes
                f"{name} is a Mask2Former: run as FASeg without DFPQ and HRCA, for {task} segmentation; licence of "
                f"its weights: {licence}"
            )
        left_out = {"transformers_version"} if arguments.model_name_or_path else {"transformers_version", *FIELDS}
        values = {key: value for key, value in base.to_dict().items() if key not in left_out}
        config = with_changes(type(base), values, arguments.config_overrides, id2label)
        if arguments.model_name_or_path:
            refuse_other_sharing(arguments, base, config)
        return config
    if arguments.model_type not in CONFIG_MAPPING:
        raise UserError(f"--model_type {arguments.model_type}: unknown to transformers; 'faseg' is this project's")
    return with_changes(CONFIG_MAPPING[arguments.model_type], {}, arguments.config_overrides, id2label)


def refuse_other_sharing(arguments: ModelArguments, base: PreTrainedConfig, config: PreTrainedConfig) -> None:
    """Refuses a checkpoint's weights for a model whose HRCA layers run other layers' weights than its own do.

    Raises:
        UserError: names both values.
    """
    found, wanted = (getattr(each, "high_resolution_sharing", "none") for each in (base, config))
    if found != wanted:
        raise UserError(
            f"--config_overrides high_resolution_sharing={wanted}: {arguments.model_name_or_path} was trained with "
            f"{found!r}, and its layers are of no use with another: leave it out, or train a new model with it"
        )


def read_config(arguments: ModelArguments, name: str) -> PreTrainedConfig:
    """Configuration of a folder or of a name on the Hub; that of a FASeg for a Mask2Former.

    Raises:
        UserError: it cannot be read.
    """
    flag = arguments.checkpoint_flag if arguments.model_name_or_path else "--config_name"
    check_model_files(flag, name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error) if Path(name).exists() else hub_reason(error, "config.json")
        raise UserError(f"{flag} {name}: {reason}") from error
    if not mask2former.is_mask2former(name):
        return config
    task = mask2former.task_of(name, config, parse_overrides(arguments.config_overrides).get("task"))
    found = mask2former.faseg_config(config, task)
    for field, value in inherited(name, config, mask2former.config_of(name).get("_name_or_path")).items():
        setattr(found, field, value)
    return found


def with_changes(
    config_class: type[PreTrainedConfig],
    values: dict[str, Any],
    overrides: list[str],
    id2label: dict[int, str] | None = None,
) -> PreTrainedConfig:
    """A configuration of these values, after overrides and with the classes of `id2label`.

    Raises:
        UserError: an override names no field.
        StrictDataclassError: a field's value is wrong.
    """
    overridden = parse_overrides(overrides)
    check_model_task(config_class, overridden)
    for key, value in overridden.items():
        check_field(key, config_class, values)
        same_backbone = isinstance(value, dict) and value.get("model_type") in (None, _model_type(values.get(key)))
        before = values[key] if same_backbone and isinstance(values.get(key), dict) else {}
        values[key] = after_overrides(before, value) if isinstance(value, dict) else value
        if (model_type := _model_type(values[key])) in CONFIG_MAPPING:
            for field_name in value:
                check_field(field_name, CONFIG_MAPPING[model_type], before, f"{key}.")
    if id2label is not None:
        if id2label != {int(index): name for index, name in (values.get("id2label") or {}).items()}:
            values.pop("palette", None)  # colours of other classes
            values.pop("category_ids", None)
            if "class_weights" not in overridden and values.pop("class_weights", None):
                print("class_weights of the configuration are of other classes and are left out")
        values["id2label"] = id2label
        values["label2id"] = {label: index for index, label in id2label.items()}
        if isinstance(backbone := values.get("backbone_config"), dict) and "num_semantic_classes" in backbone:
            values["backbone_config"] = {**backbone, "num_semantic_classes": len(id2label)}
    try:
        return config_class(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"configuration: {error}") from error


def check_model_task(config_class: type[PreTrainedConfig], overridden: dict[str, Any]) -> None:
    """Refuses a task that models of the class cannot learn; of those that learn one alone no field says so.

    Raises:
        UserError: names the task and what can learn it.
    """
    tasks = family_of(config_class).tasks
    if len(tasks) > 1:
        return
    task = overridden.pop("task", tasks[0])
    if task not in tasks:
        raise UserError(
            f"task {task}: a {config_class.model_type} gives each pixel a class and tells no instances apart, so it "
            f"learns {tasks[0]} segmentation only: take a faseg"
        )


def check_field(key: str, config_class: type[PreTrainedConfig], values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses an override of what is neither a field of the class nor one of the `values` that it is built from.

    Raises:
        UserError: names the closest field.
    """
    known = [name for name in config_class().to_dict() if name != "transformers_version"]
    if key in known or key in values:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f": did you mean {prefix + close[0]!r}?" if close else ""
    raise UserError(f"--config_overrides: {config_class.__name__} has no field {prefix + key!r}{hint}")


def _model_type(value: Any) -> Any:
    return value.get("model_type") if isinstance(value, dict) else None


def build_model(arguments: ModelArguments, config: PreTrainedConfig, new_classes: bool = True) -> PreTrainedModel:
    """Model of `config`, with the weights of `model_name_or_path` if that is given.

    Args:
        new_classes: whether the class head may start anew where the checkpoint has other classes, and the first
            convolution be adapted where it reads RGB and the model other bands.
    Raises:
        UserError: the checkpoint is unreadable, or is not one of this model.
    """
    if not arguments.model_name_or_path:
        try:
            return AutoModelForUniversalSegmentation.from_config(config)
        except (ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
            raise UserError(f"model: {error}") from error
    name = arguments.model_name_or_path
    source: dict[str, Any] = {"pretrained_model_name_or_path": name, "trust_remote_code": arguments.trust_remote_code}
    model_class: Any = AutoModelForUniversalSegmentation
    if mask2former.is_mask2former(name):
        model_class = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
        source = {"pretrained_model_name_or_path": None, "state_dict": mask2former.read_weights(name)}
    try:
        model, info = model_class.from_pretrained(
            **source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError, SafetensorError) as error:
        hint = " (for new weights give --config_name)" if isinstance(error, OSError) else ""
        raise UserError(f"{arguments.checkpoint_flag} {name}: {error}{hint}") from error
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lacking -= resized_positions(arguments, name, model, lacking)
    if new_classes:
        shapes = {key: (found, wanted) for key, found, wanted in info["mismatched_keys"]}
        lacking -= adapt_first_convolution(model, shapes, lambda: source.get("state_dict") or whole_weights(arguments))
    renewed = {key for key in lacking if new_classes and LABEL_DEPENDENT.search(key)}
    if lacking - renewed:
        raise UserError(
            f"{arguments.checkpoint_flag} {name}: missing or of another shape: {listed(lacking - renewed)}: it is a "
            "checkpoint of another model"
        )
    if renewed:
        print(f"new class head for {config.num_labels} classes: {listed(renewed)}")
    return model


def whole_weights(arguments: ModelArguments) -> dict[str, Any]:
    """The checkpoint's tensors as its own configuration has them."""
    own = AutoModelForUniversalSegmentation.from_pretrained(
        str(arguments.model_name_or_path), trust_remote_code=arguments.trust_remote_code
    )
    return own.state_dict()


def listed(names: Collection[str]) -> str:
    """The first of some names of tensors, and how many more there are."""
    more = len(names) - 1
    return f"{min(names)}{f' and {more} more' if more else ''}"


def resized_positions(
    arguments: ModelArguments, name: str, model: PreTrainedModel, lacking: Collection[str]
) -> set[str]:
    """Gives a plain ViT the checkpoint's position embeddings, brought to its own window (QLSeg with another
    `image_size`). Returns the names of the tensors that it filled, out of those that are `lacking`."""
    tables = {key for key in lacking if key.endswith("backbone.pos_embed")}
    if tables:
        whole = AutoModelForUniversalSegmentation.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
        backbone, own = cast(Any, model.base_model.backbone), cast(Any, whole.base_model.backbone)
        fitted = backbone.fit_pretrained({"pos_embed": own.pos_embed.detach()})["pos_embed"]
        if fitted.shape != backbone.pos_embed.shape:  # of another width
            return set()
        backbone.pos_embed.data.copy_(fitted)
        print(f"position embeddings resized to windows of {model.config.image_size}")
    return tables


def build_processor(arguments: ModelArguments, config: PreTrainedConfig, **settings: Any) -> Any:
    """Processor stored with the model or configuration, else a new one of the configuration's kind.

    Args:
        settings: attributes to set, such as `size` and `do_reduce_labels`.
    """
    name = arguments.model_name_or_path or arguments.config_name
    if name and mask2former.is_mask2former(name):
        return mask2former.build_processor(name, config, **settings)
    if name:
        try:
            return AutoImageProcessor.from_pretrained(name, trust_remote_code=arguments.trust_remote_code, **settings)
        except (OSError, ValueError) as error:
            if arguments.model_name_or_path:
                raise UserError(f"{arguments.checkpoint_flag} {name}: no image processor: {error}") from error
    settings = {"task": task_of(config), **family_of(config).processor, **settings}
    processor_classes: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    with errors_explained("image processor", ValueError):
        return processor_classes["torchvision"](**settings)


def refuse_dead_hrca(config: PreTrainedConfig, height: int, width: int) -> None:
    """Refuses crops on which high-resolution cross-attention would keep no window at all.

    Raises:
        UserError: with the least change that keeps one.
    """
    if not getattr(config, "use_high_resolution_cross_attention", False) or config.high_resolution_min_windows:
        return
    tokens = -(-height // 32) * -(-width // 32)
    if tokens // config.high_resolution_reduction == 0:
        raise UserError(
            f"crops of {height}x{width} have {tokens} coarse tokens, so high_resolution_reduction="
            f"{config.high_resolution_reduction} keeps no window: set high_resolution_reduction to at most {tokens}, "
            "or high_resolution_min_windows=1"
        )


def refuse_non_finite(model: PreTrainedModel, what: str, fix: str = "") -> None:
    """Refuses weights and buffers with NaN or infinite values, with which every prediction would be the same.

    Args:
        what: where the model is from, or when it became so.
        fix: what the message ends in.
    Raises:
        UserError: names the first tensor.
    """
    numbers = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    bad = [name for name, value in numbers.items() if not value.isfinite().all()]
    if bad:
        more = f", as do {len(bad) - 1} other tensors" if len(bad) > 1 else ""
        raise UserError(f"{what}: {bad[0]} holds values that are NaN or infinite{more}{fix}")


def save_model_folder(model: PreTrainedModel, processor: Any, folder: Path, state_dict: dict | None = None) -> None:
    """Writes weights, configuration, processor and their code."""
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)
