"""The flags of `scripts/train.py`, their checks, and what follows from them alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import check_at_least, check_folder, project_path, shipped_recipes
from scripts.data.arguments import DatasetArguments
from scripts.models.arguments import ModelArguments
from scripts.training.optimization import SCHEDULES
from scripts.training.tracking import check_trackers


@dataclass
class TrainArguments(ModelArguments, DatasetArguments):
    """Train a segmentation model on a streamed dataset; a YAML recipe gives defaults, flags win."""

    recipe: str | None = field(
        default=None, metadata={"help": f"YAML file, or one of {', '.join(shipped_recipes())}."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where checkpoints, log and model go."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str = field(default="validation", metadata={"help": "Split of --eval_steps."})
    backbone_weights: str | None = field(
        default=None,
        metadata={"help": "Pretrained backbone: safetensors file, folder, or Hub id such as microsoft/resnet-50."},
    )

    crop_height: int = field(default=512, metadata={"help": "Height of the training crops."})
    crop_width: int = field(default=512, metadata={"help": "Width of the training crops."})
    crop_max_class_share: float = field(
        default=1.0,
        metadata={"help": "Draw a crop anew, up to ten times, while one class covers this share of it; 1: never."},
    )
    shortest_edges: list[int] | None = field(
        default=None,
        metadata={"help": "Shorter sides to choose from; by default 0.5 to 2 times the crop's in 16 steps."},
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Bound of the longer side; by default 4 crops."})
    scale_range: list[float] | None = field(
        default=None, metadata={"help": "LOW HIGH: factor on the image's own size, in place of --shortest_edges."}
    )
    color_jitter: bool = field(default=True, metadata={"help": "SSD's colour distortion."})
    eval_shortest_edge: int | None = field(
        default=None, metadata={"help": "Shorter side at evaluation; by default the crop's shorter side."}
    )
    eval_longest_edge: int | None = field(
        default=None, metadata={"help": "Bound of the longer side at evaluation; by default 4 times the shorter."}
    )

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Batch per process and micro step."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro steps per optimiser step."})
    total_train_batch_size: int | None = field(
        default=None, metadata={"help": "Batch over processes and micro steps: sets --gradient_accumulation_steps."}
    )
    num_train_epochs: int | None = field(
        default=None, metadata={"help": "Passes over the split, if its size is known."}
    )
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimiser steps; wins over epochs."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of the head."})
    backbone_lr_multiplier: float = field(default=0.1, metadata={"help": "Times this for the backbone."})
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Do not train the backbone; its batch norms keep their statistics."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not of norms, embeddings and position tables."})
    adam_beta1: float = field(default=0.9, metadata={"help": "First beta of AdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Second beta of AdamW."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Epsilon of AdamW."})
    max_grad_norm: float = field(default=0.01, metadata={"help": "L2 norm that gradients are clipped to; 0 for none."})
    lr_scheduler_type: str = field(default="poly", metadata={"help": "poly, or a name of transformers.get_scheduler."})
    lr_power: float = field(default=0.9, metadata={"help": "Power of the poly schedule."})
    num_warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, bf16 or fp16; else accelerate's setting."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Evaluate and save a moving average of the weights, of this decay per step."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice instead of keeping them."}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the network, without the loss."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, augmentation and loss points."})

    shuffle_buffer_size: int = field(default=512, metadata={"help": "Rows that the stream is shuffled within."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that decode and augment."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between lines of train_log.jsonl."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers, several if you like: trackio, tensorboard, wandb; none."},
    )
    num_tracked_images: int | None = field(
        default=None,
        metadata={"help": "Validation images drawn at each evaluation; by default 4 with a tracker, else 0."},
    )
    eval_steps: int | None = field(default=None, metadata={"help": "Steps between evaluations; none by default."})
    checkpointing_steps: int | None = field(default=None, metadata={"help": "Steps between checkpoints."})
    checkpoints_total_limit: int | None = field(default=2, metadata={"help": "Newest checkpoints that are kept."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest' or a checkpoint's folder."})


def check_arguments(arguments: TrainArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    check_folder("--output_dir", Path(arguments.output_dir))
    check_values(arguments)


def check_values(arguments: TrainArguments) -> None:
    """Raises `UserError` at numbers and names that no training can work with."""
    if arguments.scale_range and (len(arguments.scale_range) != 2 or not 0 < min(arguments.scale_range)):
        raise UserError(f"--scale_range {arguments.scale_range}: give two positive factors, LOW HIGH")
    if not 0 < arguments.crop_max_class_share <= 1:
        raise UserError(f"--crop_max_class_share {arguments.crop_max_class_share}: give a share above 0, 1 for none")
    sizes = ("crop_height", "crop_width", "shortest_edges", "longest_edge", "eval_shortest_edge", "eval_longest_edge")
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
    lengths = ("max_train_steps", "num_train_epochs", "checkpointing_steps", "eval_steps", "logging_steps")
    check_at_least(arguments, 1, *sizes, *batches, *lengths, "shuffle_buffer_size", "checkpoints_total_limit")
    rates = ("learning_rate", "backbone_lr_multiplier", "weight_decay", "adam_epsilon", "max_grad_norm", "lr_power")
    check_at_least(arguments, 0, *rates, "num_warmup_steps", "dataloader_num_workers", "seed", "num_tracked_images")
    check_trackers(arguments.report_to)
    if arguments.num_tracked_images and not arguments.eval_steps:
        raise UserError("--num_tracked_images: drawn when the model is evaluated: give --eval_steps")
    if not arguments.learning_rate > 0:
        raise UserError(f"--learning_rate {arguments.learning_rate}: give a number above 0")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give a number from 0 to below 1")
    if arguments.ema_decay is not None and not 0 <= arguments.ema_decay < 1:
        raise UserError(f"--ema_decay {arguments.ema_decay}: give a number from 0 to below 1")
    if arguments.seed >= 2**31:
        raise UserError(f"--seed {arguments.seed}: give less than {2**31}")
    if arguments.lr_scheduler_type not in SCHEDULES:
        raise UserError(f"--lr_scheduler_type {arguments.lr_scheduler_type!r}: give one of {', '.join(SCHEDULES)}")


def with_batch_sizes(arguments: TrainArguments, num_processes: int) -> TrainArguments:
    """`arguments` with the micro batch and number of micro steps that are used on this many processes.

    Raises:
        UserError: `total_train_batch_size` cannot be shared out.
    """
    total, micro = arguments.total_train_batch_size, arguments.per_device_train_batch_size
    if total is None:
        return arguments
    if total < micro * num_processes and total % num_processes == 0:
        micro = total // num_processes
    if total % (micro * num_processes):
        raise UserError(
            f"--total_train_batch_size {total} is no multiple of {num_processes} processes "
            f"x --per_device_train_batch_size {micro}"
        )
    steps = total // (micro * num_processes)
    return replace(arguments, per_device_train_batch_size=micro, gradient_accumulation_steps=steps)


def planned_steps(arguments: TrainArguments, examples: int | None, total_batch: int) -> int:
    """Optimiser steps of the run.

    Args:
        examples: of the training split, None if the stream does not tell.
        total_batch: images per optimiser step.
    """
    if arguments.max_train_steps is not None:
        return arguments.max_train_steps
    if arguments.num_train_epochs is None:
        raise UserError("no length: give --max_train_steps or --num_train_epochs")
    if examples is None:
        raise UserError("--num_train_epochs: the stream does not tell its size: give --max_train_steps")
    return max(1, arguments.num_train_epochs * examples // total_batch)


def saved_recipe(arguments: TrainArguments) -> dict[str, Any]:
    """What is kept beside the model: the settings without this machine's folders."""
    places = ("output_dir", "recipe", "resume_from_checkpoint")
    recipe = {key: value for key, value in asdict(arguments).items() if value is not None and key not in places}
    folders = ("train_images", "train_masks", "eval_images", "eval_masks")
    for key in (
        "backbone_weights",
        "class_map",
        "config_name",
        "dataset_name",
        "id2label",
        "model_name_or_path",
        *folders,
    ):
        if key in recipe and Path(project_path(recipe[key])).exists():
            recipe[key] = Path(recipe[key]).resolve().name
    return recipe
