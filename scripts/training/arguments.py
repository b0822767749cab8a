"""The flags of `scripts/train.py`, their checks, and what follows from them alone."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from scripts.cli.errors import UserError
from scripts.cli.parser import (
    ReadPath,
    check_at_least,
    check_at_most,
    check_folder,
    check_recipe_read,
    flag,
    parse_overrides,
    path_flag,
    shipped_recipes,
)
from scripts.data.arguments import HELD_BACK, DatasetArguments, check_dataset_flags, parse_range
from scripts.models.arguments import ModelArguments
from scripts.models.tasks import SEMANTIC, TASKS
from scripts.storage.shared_text import without_credentials


Arguments = TypeVar("Arguments", bound="TrainArguments")
# The names of transformers' `SchedulerType` but "reduce_lr_on_plateau", which needs a figure at every step, and two of
# detectron2's, poly and multistep.
SCHEDULES = (
    "poly", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy", "multistep",
)  # fmt: skip
# More moves float32 weights out of its range, or torch refuses it in the middle of a step.
HIGHEST_RATE = 1e6
HIGHEST_SCALE = 100  # an image of 1000 pixels would have 100,000
LEAST_EPSILON = 1e-30  # AdamW divides by it, and float32 still tells it from zero
MOST_CHANNELS = 1024  # of hyperspectral images
HIGHEST_MEAN = 1000  # on the scale 0..1
LEAST_STD = 1e-6
# Flags for label maps of classes alone.
OF_CLASS_MAPS = ("rare_class_crops", "crop_max_class_share", "mask_colors")
TRACKERS = ("tensorboard", "trackio", "wandb")
AUTO = "auto"


@dataclass
class TrainArguments(ModelArguments, DatasetArguments):
    """Train a segmentation model on a streamed dataset. A YAML recipe may give the values of flags; flags on the
    command line win."""

    # The fields that flags or a recipe gave; the others have their defaults.
    given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    recipe: str | None = flag(None, f"YAML file with values of these flags, or one of {', '.join(shipped_recipes())}.")
    output_dir: str | None = flag(None, "Folder that gets the checkpoints, the log and the trained model.")
    eval_split_name: str = flag("validation", "Split of the dataset that --eval_steps evaluates on.")
    settings_from_data: bool = flag(
        False,
        "Choose sizes, steps, batch and learning rate from the data and the machine, where no flag or recipe gives "
        "them; each is printed with its reason.",
    )
    task: str | None = flag(
        None,
        "What is trained: semantic (a class per pixel), instance (one mask per object) or panoptic (both); by default "
        "what the checkpoint or the configuration is for.",
    )
    min_segment_area: int = flag(
        1, "Pixels that a segment must have left in a crop to be learnt, in instance and panoptic training."
    )
    backbone_weights: str | None = path_flag(
        "Pretrained weights of the backbone alone: a file (.safetensors, .pth, .pt, .bin), a folder, or a name on the "
        "Hub such as microsoft/resnet-50."
    )
    warm_start: str | None = path_flag(
        "Mask2Former to start from, or FASeg without DFPQ and HRCA, a folder or a name on the Hub: a FASeg with both "
        "gets its weights, and trains on."
    )

    num_channels: int | None = flag(
        None,
        "Bands of the images, in place of the model's own number (3, RGB); pretrained weights of RGB are adapted to "
        "it.",
    )
    image_mean: list[float] | None = flag(
        None,
        "Mean of each band on the scale 0..1; by default the checkpoint's or ImageNet's, or measured where these have "
        "another number of bands.",
    )
    image_std: list[float] | None = flag(None, "Standard deviation of each band, as --image_mean.")

    crop_height: int = flag(512, "Height of the training crops in pixels.")
    crop_width: int = flag(512, "Width of the training crops in pixels.")
    crop_max_class_share: float = flag(
        1.0,
        "Largest share of a crop that one class may cover: otherwise another crop is drawn, up to ten times. 1 "
        "accepts every crop.",
    )
    rare_class_crops: float = flag(
        0.0,
        "Share of the crops, 0 to 1, that are laid around a pixel of a class drawn from those in the image, each as "
        "likely as it is rare in the data set.",
    )
    class_weights: list[str] | None = flag(
        None,
        "Weights of the classes in the loss: auto, inverse to the square root of each class's share of the pixels, or "
        "NAME=W ... for some of them, the others being 1.",
    )
    class_counts: str | None = path_flag(
        "JSON file that check_dataset.py --json wrote of this data set: its counts of pixels stand in for a "
        "look at the first 1000 label maps, which --class_weights auto and --rare_class_crops take otherwise."
    )
    shortest_edges: list[int] | None = flag(
        None,
        "Lengths in pixels to which the shorter side of an image is resized, one drawn at random; by default 16 "
        "lengths from 0.5 to 2 times the crop's shorter side.",
    )
    longest_edge: int | None = flag(
        None, "Most pixels that the longer side of a resized image may have; by default 4 times the crop's."
    )
    scale_range: list[float] | None = flag(
        None,
        "Two factors, LOW HIGH, between which the one that an image's own size is multiplied by is drawn, in "
        "place of --shortest_edges: 0.5 2.0.",
    )
    large_scale_jitter: list[float] | None = flag(
        None,
        "Two factors, LOW HIGH, between which the one is drawn that multiplies the size at which an image just fits "
        "into the crop, in place of --shortest_edges: 0.1 2.0, as for COCO's instances.",
    )
    color_jitter: bool = flag(
        True, "Change brightness, contrast, saturation and hue of the training images at random."
    )
    horizontal_flip: float = flag(0.5, "Probability that a training image is mirrored, left and right exchanged.")
    vertical_flip: float = flag(0.0, "Probability that a training image is mirrored, top and bottom exchanged.")
    rotation: float = flag(
        0.0, "Degrees up to which a training image is turned to either side before it is cropped; corners are ignored."
    )
    blur: float = flag(0.0, "Probability that a training image is blurred by a Gaussian of 0.1 to 2 pixels.")
    albumentations: str | None = path_flag(
        "JSON or YAML file of transforms that albumentations.save wrote, applied to each crop; the package has to be "
        "installed."
    )
    eval_shortest_edge: int | None = flag(
        None, "Pixels of an image's shorter side at evaluation; by default the shorter side of the crop."
    )
    eval_longest_edge: int | None = flag(
        None, "Most pixels of an image's longer side at evaluation; by default 4 times the shorter side."
    )

    per_device_train_batch_size: int = flag(8, "Images that one process takes at a time (a micro batch).")
    gradient_accumulation_steps: int = flag(1, "Micro batches whose gradients make up one step of the optimiser.")
    total_train_batch_size: int | None = flag(
        None, "Images per step over all processes and micro batches; sets --gradient_accumulation_steps to fit."
    )
    num_train_epochs: int | None = flag(None, "How often the whole split is passed through, if its size is known.")
    max_train_steps: int | None = flag(
        None, "How many steps of the optimiser are trained; takes the place of --num_train_epochs."
    )
    learning_rate: float = flag(1e-4, "Learning rate of the head at its highest.")
    backbone_lr_multiplier: float = flag(0.1, "Multiplier of the backbone's learning rate.")
    backbone_layer_decay: float = flag(
        1.0,
        "What each layer's learning rate is multiplied by to give that of the layer before, above 0 and up to 1: the "
        "last block (or stage) of the backbone has the backbone's rate, its stem the lowest; 1 for one rate.",
    )
    freeze_backbone: bool = flag(
        False,
        "Leave the backbone as it is, the statistics of its batch norms included; it runs without dropout and keeps "
        "nothing for the backward pass.",
    )
    weight_decay: float = flag(0.05, "Weight decay of AdamW; norms, embeddings and position tables have none.")
    adam_beta1: float = flag(0.9, "First beta of AdamW.")
    adam_beta2: float = flag(0.999, "Second beta of AdamW.")
    adam_epsilon: float = flag(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = flag(0.01, "L2 norm to which all gradients together are clipped; 0 clips nothing.")
    lr_scheduler_type: str = flag("poly", f"Schedule of the learning rate: {', '.join(SCHEDULES)}.")
    lr_step_milestones: list[int] | None = flag(
        None, "Steps after which the multistep schedule divides the learning rate by ten: 327778 355092."
    )
    lr_power: float = flag(0.9, "Exponent of the poly schedule, (1 - step / steps) to this power.")
    num_warmup_steps: int = flag(0, "Steps over which the learning rate grows from zero at the start.")
    mixed_precision: str | None = flag(
        None, "Precision of the computation: no, bf16 or fp16; by default what accelerate is set to."
    )
    ema_decay: float | None = flag(
        None,
        "Evaluate and save an exponential moving average of the weights in their place, with this decay per step: "
        "0.999.",
    )
    gradient_checkpointing: bool = flag(
        False, "Save memory: compute activations again in the backward pass instead of keeping them."
    )
    torch_compile: bool = flag(False, "Compile the network, without the loss, by torch.compile.")
    seed: int = flag(0, "Seed of initial weights, order of samples, augmentation and the points of the loss.")

    shuffle_buffer_size: int = flag(512, "Samples of the stream among which the next one is drawn at random.")
    dataloader_num_workers: int = flag(1, "Processes that decode and augment images beside each training process.")
    logging_steps: int = flag(10, "Steps between two lines of train_log.jsonl.")
    report_to: list[str] = flag(
        ["none"], f"Trackers that show the run, one or several: {', '.join(TRACKERS)}; or none."
    )
    num_tracked_images: int | None = flag(
        None,
        "Validation images that are drawn with their predictions at each evaluation; by default 4 with a tracker, "
        "else 0.",
    )
    eval_steps: int | None = flag(None, "Steps between two evaluations; without it the model is not evaluated.")
    early_stopping_patience: int | None = flag(
        None,
        "Evaluations in a row without a better figure (mIoU, AP or PQ, by the task) after which training ends; needs "
        "--eval_steps.",
    )
    early_stopping_threshold: float = flag(
        0.0,
        "By how much the figure, 0 to 1, has to rise above the best to count as better for --early_stopping_patience.",
    )
    checkpointing_steps: int | None = flag(
        None, "Steps between two checkpoints; without it none is written on the way."
    )
    checkpoints_total_limit: int | None = flag(2, "How many checkpoints are kept, the newest ones.")
    resume_from_checkpoint: str | None = flag(
        None, "Checkpoint to go on from: its folder, or 'latest' for the newest in --output_dir."
    )
    overwrite_output_dir: bool = flag(
        False, "Train anew into an --output_dir with a finished model, which the new one replaces."
    )


def check_arguments(arguments: TrainArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    check_folder("--output_dir", Path(arguments.output_dir))
    check_values(arguments)


def check_values(arguments: TrainArguments) -> None:
    """Raises `UserError` at numbers and names that no training can work with."""
    check_recipe_read(arguments)
    check_dataset_flags(arguments)
    if arguments.train_val_split is not None and arguments.eval_split_name != HELD_BACK:
        raise UserError(
            f"--train_val_split {arguments.train_val_split:g} makes the split {HELD_BACK!r}, but --eval_split_name is "
            f"{arguments.eval_split_name!r}: give one of both"
        )
    if arguments.task not in (None, *TASKS):
        raise UserError(f"--task {arguments.task}: choose one of {', '.join(TASKS)}")
    for name in ("model_name_or_path", "config_name", "backbone_weights"):
        if arguments.warm_start and getattr(arguments, name):
            raise UserError(f"--warm_start and --{name} both name where the model comes from: give one")
    named_task = parse_overrides(arguments.config_overrides).get("task")
    if arguments.task and named_task not in (None, arguments.task):
        raise UserError(f"--task {arguments.task} and --config_overrides task={named_task}: give one")
    for name in ("scale_range", "large_scale_jitter"):
        scales = getattr(arguments, name)
        if scales and not (len(scales) == 2 and 0 < scales[0] <= scales[1] <= HIGHEST_SCALE):
            raise UserError(f"--{name} {scales}: give two factors above 0 and up to {HIGHEST_SCALE}, LOW HIGH")
    if arguments.scale_range and arguments.large_scale_jitter:
        raise UserError("--scale_range and --large_scale_jitter both say how images are scaled: give one")
    if not 0 < arguments.crop_max_class_share <= 1:
        raise UserError(f"--crop_max_class_share {arguments.crop_max_class_share}: give a share above 0, 1 for none")
    check_extras(arguments)
    check_at_least(arguments, 1, "num_channels")
    check_at_most(arguments, MOST_CHANNELS, "num_channels")
    if (arguments.image_mean is None) != (arguments.image_std is None):
        raise UserError("--image_mean and --image_std belong together: give both, or neither")
    check_at_most(arguments, HIGHEST_MEAN, "image_mean", "image_std")
    check_at_least(arguments, -HIGHEST_MEAN, "image_mean")
    check_at_least(arguments, LEAST_STD, "image_std")
    parse_range(arguments.intensity_range)
    sizes = ("crop_height", "crop_width", "shortest_edges", "longest_edge", "eval_shortest_edge", "eval_longest_edge")
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
    lengths = ("max_train_steps", "num_train_epochs", "checkpointing_steps", "eval_steps", "logging_steps")
    others = ("shuffle_buffer_size", "checkpoints_total_limit", "min_segment_area", "lr_step_milestones")
    check_at_least(arguments, 1, *sizes, *batches, *lengths, *others)
    rates = ("learning_rate", "backbone_lr_multiplier", "weight_decay", "adam_epsilon", "max_grad_norm", "lr_power")
    counts = ("num_warmup_steps", "dataloader_num_workers", "seed", "num_tracked_images", "max_bad_samples")
    check_at_least(arguments, 0, *rates, *counts)
    check_at_most(arguments, HIGHEST_RATE, *rates)
    check_trackers(arguments.report_to)
    if arguments.num_tracked_images and not evaluates(arguments):
        raise UserError("--num_tracked_images: drawn when the model is evaluated: give --eval_steps")
    if not arguments.learning_rate > 0:
        raise UserError(f"--learning_rate {arguments.learning_rate}: give a number above 0")
    if not 0 < arguments.backbone_layer_decay <= 1:
        raise UserError(f"--backbone_layer_decay {arguments.backbone_layer_decay}: give a number above 0, 1 for none")
    if arguments.freeze_backbone and arguments.backbone_layer_decay != 1:
        raise UserError("--freeze_backbone and --backbone_layer_decay: a frozen backbone has no rates: give one")
    check_at_least(arguments, LEAST_EPSILON, "adam_epsilon")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give a number from 0 to below 1")
    if arguments.ema_decay is not None and not 0 <= arguments.ema_decay < 1:
        raise UserError(f"--ema_decay {arguments.ema_decay}: give a number from 0 to below 1")
    if arguments.seed >= 2**31:
        raise UserError(f"--seed {arguments.seed}: give less than {2**31}")
    if arguments.lr_scheduler_type not in SCHEDULES:
        raise UserError(f"--lr_scheduler_type {arguments.lr_scheduler_type!r}: give one of {', '.join(SCHEDULES)}")
    if (arguments.lr_scheduler_type == "multistep") != bool(arguments.lr_step_milestones):
        raise UserError(
            "--lr_scheduler_type multistep and --lr_step_milestones belong together: give both, or neither"
        )


def with_task(arguments: Arguments) -> Arguments:
    """The arguments whose configuration is of `--task`, if that is given."""
    if not arguments.task or "task" in parse_overrides(arguments.config_overrides):
        return arguments
    told = replace(arguments, config_overrides=[*arguments.config_overrides, f"task={arguments.task}"])
    told.given = arguments.given
    return told


def check_task(arguments: TrainArguments, task: str) -> None:
    """Refuses flags that have no meaning for what is trained.

    Raises:
        UserError: names the flag and the reason.
    """
    if task == SEMANTIC:
        if arguments.min_segment_area != 1:
            raise UserError("--min_segment_area: it is of segments, which --task instance and panoptic learn")
        return
    for name in OF_CLASS_MAPS:
        value = getattr(arguments, name)
        if value and value != getattr(TrainArguments, name):
            raise UserError(f"--{name}: it is for a class per pixel, but --task {task} learns segments: leave it out")


def evaluates(arguments: TrainArguments) -> bool:
    """Whether there will be evaluations; so it is assumed where the data are still to be asked."""
    return bool(arguments.eval_steps) or arguments.settings_from_data


def check_extras(arguments: TrainArguments) -> None:
    """Raises `UserError` at wrong values of what the reference does not have: more augmentation, weights of classes,
    early stopping."""
    shares = ("rare_class_crops", "horizontal_flip", "vertical_flip", "blur", "early_stopping_threshold")
    check_at_least(arguments, 0, *shares, "rotation")
    check_at_most(arguments, 1, *shares)
    check_at_most(arguments, 180, "rotation")
    check_at_least(arguments, 1, "early_stopping_patience")
    if arguments.early_stopping_patience and not evaluates(arguments):
        raise UserError("--early_stopping_patience: it counts evaluations: give --eval_steps")
    if arguments.early_stopping_threshold and not arguments.early_stopping_patience:
        raise UserError("--early_stopping_threshold: give --early_stopping_patience, which it is for")
    weights = named_weights(arguments.class_weights or [])
    if weights is not None and arguments.class_counts and not arguments.rare_class_crops:
        raise UserError("--class_counts: read for --class_weights auto and --rare_class_crops: give one of them")
    if arguments.class_weights and "class_weights" in parse_overrides(arguments.config_overrides):
        raise UserError("--class_weights and class_weights of --config_overrides are the same setting: give one")


def named_weights(values: Sequence[str]) -> dict[str, float] | None:
    """`["car=2", "pole=5"]` -> `{"car": 2.0, "pole": 5.0}`; None for `["auto"]`.

    Raises:
        UserError: an item of another form, a weight that is no number of 0 or more, or a name given twice.
    """
    if list(values) == [AUTO]:
        return None
    weights: dict[str, float] = {}
    for item in values:
        name, equals, text = item.rpartition("=")
        if not equals or not name:
            raise UserError(f"--class_weights {item}: give {AUTO} alone, or NAME=W for each class, such as car=2")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise UserError(f"--class_weights {item}: {text!r} is no weight: give a number of 0 or more")
        if name in weights:
            raise UserError(f"--class_weights {item}: {name!r} has a weight already: give one")
        weights[name] = weight
    return weights


def check_trackers(report_to: Sequence[str]) -> list[str]:
    """The trackers of `--report_to`, without `none` and repetitions.

    Raises:
        UserError: one that is unknown, or whose package is not installed.
    """
    names = [name for name in dict.fromkeys(report_to) if name != "none"]
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"give {', '.join(TRACKERS)} or none"
            raise UserError(f"--report_to {name}: unknown tracker: {hint}")
        package = importlib.util.find_spec(name)
        if package is None or package.origin is None:  # a folder of that name, which wandb leaves, is no package
            raise UserError(f"--report_to {name}: not installed: pip install {name}")
    return names


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
    """What is kept beside the model: the settings without this machine's folders, and URLs without a password."""
    places = ("given", "output_dir", "recipe", "resume_from_checkpoint")
    recipe = {key: value for key, value in asdict(arguments).items() if value is not None and key not in places}
    for each in fields(arguments):
        if each.name in recipe and each.metadata.get("action") is ReadPath and Path(recipe[each.name]).exists():
            recipe[each.name] = Path(recipe[each.name]).resolve().name
    return {key: without_credentials(value) if isinstance(value, str) else value for key, value in recipe.items()}
