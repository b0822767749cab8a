"""What decides the result of a run: kept in its checkpoints, compared when one is resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT
from scripts.data.labelled_dataset import LabelledDataset
from scripts.evaluation.results import package_versions
from scripts.models.licences import FIELDS
from scripts.storage.digests import sha256
from scripts.training.arguments import TrainArguments


# These may change, since they decide where and how a run works,
FREE = {
    "allow_absent_classes", "allow_links", "allow_urls", "checkpointing_steps", "checkpoints_total_limit",
    "dataloader_num_workers", "dataset_name", "eval_annotations", "eval_class_masks", "eval_images", "eval_masks",
    "given", "max_bad_samples", "num_train_epochs", "output_dir", "overwrite_output_dir", "recipe",
    "resume_from_checkpoint", "total_train_batch_size", "train_annotations", "train_class_masks", "train_images",
    "train_masks", "trust_remote_code",
    # what it reports,
    "eval_longest_edge", "eval_shortest_edge", "eval_split_name", "eval_steps", "logging_steps", "num_tracked_images",
    "report_to",
    # or, like the initial weights, what a checkpoint holds itself.
    "backbone_weights", "config_name", "config_overrides", "id2label", "model_name_or_path", "model_type",
    "task", "warm_start",
    # What was counted, or found out of the data, stands there itself.
    "class_counts", "label_encoding", "thing_classes",
}  # fmt: skip
# Of those that report, what early stopping goes by.
STOP_BY = ("eval_longest_edge", "eval_shortest_edge", "eval_split_name", "eval_steps")
# What begins so may differ too, but is named: the same flags may then give other numbers.
VERSION = "version: "
# How processes share the samples of an epoch; by batches where the setting is lacking, or one process has them all.
SHARING, BY_SHARDS, BY_BATCHES = "samples shared among processes by", "shards", "batches"
CODE = ("configuration", "image_processing", "modeling_faseg", "scripts/data", "scripts/models", "scripts/training")
# Of no account in a model's configuration.
NOT_OF_THE_MODEL = {
    "_name_or_path", "architectures", "auto_map", "category_ids", "dtype", "palette", "torch_dtype",
    "transformers_version", *FIELDS,
}  # fmt: skip


def training_settings(
    arguments: TrainArguments,
    accelerator: Accelerator,
    data: LabelledDataset,
    config: Any,
    max_steps: int,
    class_shares: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Everything that decides the losses and weights of a run, as JSON holds it.

    Args:
        arguments: with the batch sizes that are in use.
        class_shares: of all pixels, if crops go by them.
    """
    free = FREE - set(STOP_BY) if arguments.early_stopping_patience else FREE
    flags = {f"--{name}": value for name, value in asdict(arguments).items() if name not in free}
    for name in ("class_map", "mask_colors", "albumentations"):
        file = getattr(arguments, name)
        if file and Path(file).is_file():
            flags[f"--{name}"] = sha256(Path(file))
    if data.mask_colours is not None:
        colours = sorted(data.mask_colours.ids.items())
        flags["colours of the label maps"] = hashlib.sha256(json.dumps(colours).encode()).hexdigest()
    flags["--max_train_steps"] = max_steps
    flags["--mixed_precision"] = accelerator.mixed_precision
    computing = ("pillow", "scipy", "timm", *(["albumentations"] if arguments.albumentations else []))
    model = {key: value for key, value in config.to_dict().items() if key not in NOT_OF_THE_MODEL}
    settings = {
        **flags,
        "device": accelerator.device.type,
        "number of processes": accelerator.num_processes,
        SHARING: BY_SHARDS if data.shards is not None and accelerator.num_processes > 1 else BY_BATCHES,
        **data_settings(data),
        **{f"model: {name}": value for name, value in model.items()},
        **segment_settings(data),
        **({} if class_shares is None else {"shares of the classes": class_shares}),
        **{f"{VERSION}{name}": value for name, value in package_versions(*computing).items()},
        f"{VERSION}the project's code": code_digest(),
    }
    return json.loads(json.dumps(settings, default=str))


def segment_settings(data: LabelledDataset) -> dict[str, Any]:
    """How segments are read, where label maps hold some."""
    classes = data.segment_classes
    if classes is None:
        return {}
    things = sorted(classes.id2label[index] for index in classes.things)
    return {"label maps hold": data.encoding, "things": things}


def data_settings(data: LabelledDataset) -> dict[str, Any]:
    """What tells the data from others, see `LabelledDataset.identity`."""
    return {f"data: {name}": value for name, value in data.identity().items()}


def code_digest() -> str:
    """The first digits of the SHA-256 over all files of the project that decide losses and weights."""
    return sha256(*(file for place in CODE for file in sorted((PROJECT_ROOT / place).rglob("*.py"))))[:16]


def check_data_unchanged(data: LabelledDataset, settings: dict[str, Any]) -> None:
    """Refuses to go on with files that are no longer those that the run began with.

    Raises:
        UserError: they are not, or are gone.
    """
    for name, value in data_settings(data).items():
        if settings.get(name) != value:
            raise UserError(
                f"the data set has changed while it was trained on: {name} {short(settings.get(name))}, not "
                f"{short(value)}: bring back the files as they were, or train anew"
            )


def check_settings(checkpoint: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to go on with settings that would give another result than the run never stopped.

    Other versions of the code and of libraries are named on standard error, since their results mostly differ a
    little. A flag that the version of the checkpoint did not know had its default, and processes shared samples by
    batches. Other settings that only one of the two knows (another version, or a Hub that does not answer) are not
    compared.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    saved = defaults() | saved
    differing, versions = [], []
    for name in {**saved, **current}:
        change = f"{name.removeprefix(VERSION)} {short(saved.get(name))}, not {short(current.get(name))}"
        if name.startswith(VERSION) and saved.get(name) != current.get(name):
            versions.append(change)
        elif name in saved and name in current and saved[name] != current[name]:
            differing.append(change)
    if versions:
        print(
            f"warning: {checkpoint} was trained with {'; '.join(versions)}: the run goes on, but not exactly as if "
            "it had never stopped",
            file=sys.stderr,
        )
    if differing:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: it was trained with {'; '.join(differing)}: to go on exactly "
            "give the same, else start anew with --model_name_or_path"
        )


def defaults() -> dict[str, Any]:
    """What decides a result, as it is where a checkpoint does not tell: flags without being given, and the sharing."""
    arguments = {f"--{name}": value for name, value in asdict(TrainArguments()).items() if name not in FREE}
    return json.loads(json.dumps({**arguments, SHARING: BY_BATCHES}))


def short(value: Any) -> str:
    """`value` in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
