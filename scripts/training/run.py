"""From arguments to everything that the training loop works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.processes import build_accelerator, on_main, raised_on_all
from scripts.data.albumentations_file import AlbumentationsFile
from scripts.data.arguments import CLASSES
from scripts.data.augmentation import training_augmentation
from scripts.data.first_look import FirstLook
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.loading import good_batches, worker_loader
from scripts.data.measuring import settle_images
from scripts.data.samples import BadSamples
from scripts.data.sources import check_class_count, check_ignored_id
from scripts.data.streaming import StreamBatches, TrainingCollator, TrainingSamples
from scripts.evaluation.average_precision import check_installed
from scripts.evaluation.degenerate import look_at_classes, no_class_names, refuse_one_class
from scripts.models.backbone_weights import load_with_table
from scripts.models.input_channels import set_num_channels
from scripts.models.loading import build_processor, refuse_dead_hrca, refuse_non_finite
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC, task_of
from scripts.models.warm_start import start_of
from scripts.storage.atomic import recover
from scripts.storage.lock import FolderLock
from scripts.training.arguments import (
    TrainArguments,
    check_arguments,
    check_task,
    check_trackers,
    check_values,
    planned_steps,
    with_batch_sizes,
    with_task,
)
from scripts.training.checkpointing import Progress, checkpoints, find_checkpoint, load_checkpoint
from scripts.training.class_weights import in_words, put_into, shares_needed
from scripts.training.fingerprint import training_settings
from scripts.training.memory import memory_estimate
from scripts.training.network import prepare_network
from scripts.training.optimization import average_of, build_parameter_groups, build_scheduler
from scripts.training.settings_from_data import settled
from scripts.training.stopping import StopSignals
from scripts.training.tracking import TrackedImages


NUM_TRACKED_IMAGES = 4


def augmentation_of(
    arguments: TrainArguments, class_shares: Sequence[float] | None = None, task: str = SEMANTIC
) -> Any:
    """The training augmentation that the arguments ask for.

    Args:
        class_shares: share of each class in all pixels, for `--rare_class_crops`.
    Raises:
        UserError: transforms of `--albumentations` that cannot be used.
    """
    unlabelled = (0, IGNORE_INDEX) if arguments.do_reduce_labels else (IGNORE_INDEX,)
    if task != SEMANTIC:
        unlabelled = (0,)  # where layers of segments have none
    if class_shares is not None and arguments.do_reduce_labels:
        class_shares = [0.0, *class_shares]  # by id of the label maps
    return training_augmentation(
        arguments.crop_height,
        arguments.crop_width,
        arguments.shortest_edges,
        arguments.longest_edge,
        arguments.scale_range,
        arguments.color_jitter,
        arguments.horizontal_flip,
        max_class_share=arguments.crop_max_class_share,
        unlabelled=unlabelled,
        vertical_flip=arguments.vertical_flip,
        rotation=arguments.rotation,
        blur=arguments.blur,
        rare_class_share=arguments.rare_class_crops,
        id_shares=class_shares,
        extra=AlbumentationsFile(arguments.albumentations, unlabelled) if arguments.albumentations else None,
        large_scale_jitter=arguments.large_scale_jitter,
    )


@dataclass
class Run:
    """What the loop works with.

    Args:
        data: the training split.
        model: as accelerate prepared it; `network` is the same without its wrappers.
        average: moving average of the weights, if there is one.
        augmentation: of training images and their label maps.
        memory: estimate of what one process needs.
        settings: what decides the result, see `training_settings`.
        signals: Ctrl-C and SIGTERM, kept for the loop.
        lock: what keeps other runs out of the output folder; the main process holds it.
        look: what the first label maps of the training split hold.
    """

    arguments: TrainArguments
    accelerator: Accelerator
    data: LabelledDataset
    model: Any
    processor: Any
    optimizer: Any
    scheduler: Any
    max_steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    average: AveragedModel | None = None
    augmentation: Any = None
    memory: str = ""
    progress: Progress = field(default_factory=Progress)
    bad_samples: BadSamples = field(default_factory=BadSamples)
    signals: StopSignals = field(default_factory=StopSignals)
    lock: FolderLock = field(default_factory=lambda: FolderLock("--output_dir", Path()))
    look: FirstLook = field(default_factory=FirstLook)

    @property
    def network(self) -> Any:
        """The model without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def result(self) -> Any:
        """The model that is evaluated and saved."""
        return self.network if self.average is None else self.average.module

    @property
    def states(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state of model, optimiser and random numbers."""
        average = {} if self.average is None else {"average": self.average}
        return {"scheduler": self.scheduler, "progress": self.progress, "bad_samples": self.bad_samples, **average}

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step, over processes and micro steps."""
        micro_batch = self.arguments.per_device_train_batch_size * self.accelerator.num_processes
        return micro_batch * self.accelerator.gradient_accumulation_steps

    @cached_property
    def validation(self) -> LabelledDataset:
        """The split to evaluate on, opened at the first evaluation."""
        return self.data.other_split(self.arguments.eval_split_name)

    @cached_property
    def images(self) -> TrackedImages:
        """Validation images that are drawn at every evaluation."""
        count = self.arguments.num_tracked_images
        if count is None:
            count = NUM_TRACKED_IMAGES if check_trackers(self.arguments.report_to) else 0
        return TrackedImages(self.accelerator, self.processor, self.validation, count, self.output_dir / "images")

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        return Path(self.arguments.output_dir or "")

    def batches(self) -> Iterator[dict[str, Any]]:
        """Training batches of this process, from where the run stands."""
        arguments, shards = self.arguments, None
        if self.data.shards is not None and (self.accelerator.num_processes > 1 or self.progress.index):
            shards = self.data.shards.listed(lambda count: on_main(self.accelerator, count))
        stream = StreamBatches(
            self.data.stream,
            arguments.per_device_train_batch_size,
            arguments.seed,
            arguments.shuffle_buffer_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=(self.progress.epoch, self.progress.index),
            shards=shards,
        )
        loader = worker_loader(
            TrainingSamples(
                self.data.row_format,
                self.network.config.num_labels,
                self.augmentation,
                arguments.seed,
                self.data.task,
                arguments.min_segment_area,
            ),
            stream,
            TrainingCollator(self.processor),
            arguments.dataloader_num_workers,
        )
        return iter(good_batches(loader))


def build_optimizer(model: Any, arguments: TrainArguments, max_steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over the reference's groups, and the schedule of their rates.

    Raises:
        UserError: a schedule that needs more settings than these, or a backbone without layers.
    """
    multiplier, layer_decay = arguments.backbone_lr_multiplier, arguments.backbone_layer_decay
    with errors_explained(f"--backbone_layer_decay {layer_decay}", ValueError):
        groups = build_parameter_groups(
            model, arguments.learning_rate, arguments.weight_decay, multiplier, layer_decay
        )
    optimizer = torch.optim.AdamW(
        [{key: group[key] for key in ("name", "params", "lr", "weight_decay")} for group in groups],
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
    scheduler = build_scheduler(
        optimizer,
        arguments.lr_scheduler_type,
        max_steps,
        arguments.num_warmup_steps,
        arguments.lr_power,
        arguments.lr_step_milestones or (),
    )
    return optimizer, scheduler


def refuse_used_folder(output_dir: Path, overwrite: bool = False) -> None:
    """Refuses to mix a new run's checkpoints with those of an earlier one, or to replace its models unasked.

    Args:
        overwrite: whether models of an earlier run may be replaced.
    Raises:
        UserError: there are some.
    """
    if found := checkpoints(output_dir):
        raise UserError(
            f"--output_dir {output_dir} holds {found[-1].name} of an earlier run: go on with "
            "--resume_from_checkpoint latest, or name another folder"
        )
    model = next((place for place in (output_dir, output_dir / "best") if (place / "config.json").is_file()), None)
    if model is not None and not overwrite:
        raise UserError(
            f"--output_dir {output_dir} holds {'a finished model' if model == output_dir else 'the best model'} of an "
            f"earlier run, and no checkpoint: name another folder, with --model_name_or_path {model} to train that "
            "model on, or give --overwrite_output_dir to train anew in its place"
        )


def check_sharded(arguments: TrainArguments, plugin: Any) -> None:
    """Refuses what processes that share weights (FSDP) cannot do.

    Raises:
        UserError: names the flag, or the setting of accelerate.
    """
    if arguments.ema_decay is not None:
        raise UserError("--ema_decay: sharded weights (FSDP) cannot be averaged: leave it out")
    if arguments.eval_steps:
        raise UserError("--eval_steps: processes that share weights (FSDP) need as many images each: leave it out")
    if plugin.state_dict_type.name != "FULL_STATE_DICT":  # torch unpickles the index of others in full
        raise UserError(
            f"fsdp_state_dict_type {plugin.state_dict_type.name}: checkpoints of that form can run code when they are "
            "read: set FULL_STATE_DICT, as in configs/accelerate/fsdp2.yaml"
        )


def set_up(arguments: TrainArguments) -> Run:
    """Everything before the first step; raises every user error that can be known by then.

    The output folder stays locked until `Run.lock` is released.
    """
    check_arguments(arguments)
    accelerator = build_accelerator(arguments.mixed_precision)
    lock = FolderLock("--output_dir", Path(arguments.output_dir or ""))
    on_main(accelerator, lock.take)
    try:
        run = prepared(arguments, accelerator)
    except BaseException:
        lock.release()
        raise
    run.lock = lock
    return run


def look_at_splits(data: LabelledDataset, names: Mapping[Any, str]) -> FirstLook:
    """What the first label maps of the training split hold; those of validation are looked at too if it is used.

    Raises:
        UserError: a split that cannot be trained on or be scored, see `look_at_classes`.
    """
    look = look_at_classes(data, names)
    if data.arguments.eval_steps:  # type: ignore[attr-defined]
        validation = data.other_split(data.arguments.eval_split_name)  # type: ignore[attr-defined]
        look_at_classes(validation, names, look)
    return look


def stuff_of_data(data: LabelledDataset) -> list[int]:
    """The classes that have no instances, by id."""
    classes = data.segment_classes
    return [] if classes is None else sorted(set(classes.id2label) - classes.things)


def prepared(arguments: TrainArguments, accelerator: Accelerator) -> Run:
    """`set_up` in a folder that is this run's alone."""
    if arguments.settings_from_data:
        machine = accelerator.device.type, accelerator.num_processes
        arguments = on_main(accelerator, lambda: settled(arguments, *machine))
        check_values(arguments)
    arguments = with_batch_sizes(arguments, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = arguments.gradient_accumulation_steps
    if accelerator.distributed_type == DistributedType.FSDP:
        check_sharded(arguments, accelerator.state.fsdp_plugin)
    output_dir = Path(arguments.output_dir or "")
    on_main(accelerator, lambda: recover(output_dir))
    if not arguments.resume_from_checkpoint:
        on_main(accelerator, lambda: refuse_used_folder(output_dir, arguments.overwrite_output_dir))
    set_seed(arguments.seed)

    # ---- data
    arguments = with_task(arguments)
    data = LabelledDataset(arguments, arguments.train_split_name)
    start = start_of(arguments)
    data.task = task_of(start.config())
    check_task(arguments, data.task)
    if data.task == INSTANCE and arguments.eval_steps:
        check_installed()
    # Of class maps a checkpoint's names will do: its numbers are those of the maps.
    names_of_model = arguments.model_name_or_path or arguments.warm_start
    if data.id2label is None and (data.encoding != CLASSES or not names_of_model):
        raise no_class_names(data)
    micro_batch = arguments.per_device_train_batch_size * accelerator.num_processes
    max_steps = planned_steps(arguments, data.num_examples, micro_batch * accelerator.gradient_accumulation_steps)

    # ---- model
    check_class_count(len(data.id2label or {}), arguments.do_reduce_labels)
    config = start.config(data.id2label)
    set_num_channels(config, arguments.num_channels)
    if data.palette:
        config.palette = data.palette
    if data.category_ids:
        config.category_ids = data.category_ids
    check_ignored_id(config)
    look = on_main(accelerator, lambda: look_at_splits(data, config.id2label or {}))
    settings_of_task: dict[str, Any] = {}
    if data.task == SEMANTIC:
        refuse_one_class(config.id2label or {})
    if arguments.task or data.task != SEMANTIC:
        stuff = stuff_of_data(data) if data.task == PANOPTIC else None
        settings_of_task = {"task": data.task, "label_ids_to_fuse": stuff}
    refuse_dead_hrca(config, arguments.crop_height, arguments.crop_width)
    shortest = arguments.eval_shortest_edge or min(arguments.crop_height, arguments.crop_width)
    processor = build_processor(
        start.source,
        config,
        size={"shortest_edge": shortest, "longest_edge": arguments.eval_longest_edge or 4 * shortest},
        do_reduce_labels=arguments.do_reduce_labels,
        ignore_index=IGNORE_INDEX,
        num_labels=config.num_labels,
        **{**start.processor_settings, **settings_of_task},
    )
    numbers = settle_images(
        arguments, data, config, processor, lambda measure: on_main(accelerator, measure), accelerator.print
    )
    arguments = replace(arguments, **numbers)
    shares = shares_needed(arguments, accelerator, data, config.id2label or {})
    put_into(config, arguments, shares)
    crops_by = shares if arguments.rare_class_crops else None
    augmentation = augmentation_of(arguments, crops_by, data.task)
    settings = training_settings(arguments, accelerator, data, config, max_steps, crops_by)
    checkpoint = None
    if wanted := arguments.resume_from_checkpoint:
        checkpoint = on_main(accelerator, lambda: find_checkpoint(wanted, output_dir, settings))
    model, origins = start.model(config)
    if origins:
        accelerator.print(origins)
    if unread := getattr(model.base_model.backbone, "unread_parameters", None):
        accelerator.print(f"frozen, for no feature map depends on it: {', '.join(unread)}")
    if arguments.backbone_weights:
        accelerator.print(load_with_table(model, arguments.backbone_weights))
    given = arguments.model_name_or_path or arguments.warm_start or arguments.backbone_weights
    given = given or "of the configuration's initialisation"
    refuse_non_finite(model, f"initial weights {given}")
    model = prepare_network(model, arguments, accelerator)
    average = None if arguments.ema_decay is None else average_of(model, arguments.ema_decay, accelerator.device)
    memory = ""
    if accelerator.is_main_process:
        micro, height, width = arguments.per_device_train_batch_size, arguments.crop_height, arguments.crop_width
        memory = memory_estimate(model.train(), micro, height, width, average is not None, accelerator)
    if arguments.torch_compile:
        model.base_model.compile()

    # ---- optimiser
    optimizer, scheduler = build_optimizer(model, arguments, max_steps)
    # The schedule is stepped here once per optimiser step; prepared by accelerate it would be once per process.
    model, optimizer = accelerator.prepare(model, optimizer)
    # Weights began alike on all processes; loss points and dropped paths are each process's own.
    set_seed(arguments.seed, device_specific=True)
    run = Run(
        arguments, accelerator, data, model, processor, optimizer, scheduler, max_steps, settings, average,
        augmentation, memory,
        bad_samples=BadSamples(arguments.max_bad_samples, data.num_examples), look=look,
    )  # fmt: skip
    if checkpoint is not None:
        load_checkpoint(accelerator, run.states, checkpoint)
        with raised_on_all(accelerator):
            for weights in (run.network, run.result):
                refuse_non_finite(weights, f"--resume_from_checkpoint {checkpoint}")
        accelerator.print(f"resumed from {checkpoint} at step {run.progress.step}")
    return run


def other_window(run: Run) -> str:
    """A hint where a model that reads images through windows (QLSeg) is trained on crops of another size."""
    config, crop = run.network.config, (run.arguments.crop_height, run.arguments.crop_width)
    if not getattr(config, "use_windows", False) or crop == (config.image_size, config.image_size):
        return ""
    side = config.image_size
    return f", but it will read windows of {side}x{side}: set crops or image_size to the same"


def start_in_words(arguments: TrainArguments) -> str:
    """What the weights start from."""
    whole = arguments.model_name_or_path or arguments.warm_start
    backbone = f"backbone {arguments.backbone_weights}" if arguments.backbone_weights else ""
    if whole or backbone:
        return ", ".join(filter(None, (whole, backbone)))
    return "backbone from scratch (--backbone_weights gives a trained one)"


def task_in_words(data: LabelledDataset) -> str:
    """What is trained, and of what."""
    classes = data.segment_classes if data.task != SEMANTIC else None
    if classes is None:
        return data.task
    stuff = len(stuff_of_data(data))
    kinds = f"{len(classes.id2label) - stuff} of the classes are things, {stuff} stuff"
    kinds = kinds if data.task == PANOPTIC else "all classes are things"
    return f"{data.task}, label maps hold {data.encoding}; {kinds}"


def describe(run: Run) -> str:
    """The run in one table, before it starts."""
    arguments, accelerator = run.arguments, run.accelerator
    names = list(run.network.config.id2label.values())
    examples = run.data.num_examples
    groups = run.optimizer.param_groups
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    epochs = f", {run.max_steps * run.images_per_step / examples:.1f} epochs" if examples else ""
    data = f"{arguments.dataset_name or arguments.train_images} [{arguments.train_split_name}]"
    micro_batch = f"{arguments.per_device_train_batch_size} x {accelerator.num_processes} processes"
    given = getattr(run.network.config, "class_weights", None)
    weights = [("class weights", in_words(given, run.network.config.id2label))] if given else []
    rows = [
        ("data", f"{data}, {examples or 'unknown'} samples"),
        ("classes", f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"),
        ("task", task_in_words(run.data)),
        ("labels", "reduced: 0 is ignored, 1 is the first class" if arguments.do_reduce_labels else "as stored"),
        ("start", start_in_words(arguments)),
        *weights,
        ("crop", f"{arguments.crop_height}x{arguments.crop_width}{other_window(run)}"),
        ("batch", f"{run.images_per_step} = {micro_batch} x {accelerator.gradient_accumulation_steps} micro steps"),
        ("steps", f"{run.max_steps}{epochs}"),
        ("parameters", f"{trained / 1e6:.2f} M trained"),
    ]
    for group in groups:
        text = f"{len(group['params'])} tensors, lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        rows.append((f"- {group['name']}", text))
    rows += [
        ("memory", run.memory),
        ("device", f"{accelerator.device}, mixed precision {accelerator.mixed_precision}"),
        ("output", str(run.output_dir)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
