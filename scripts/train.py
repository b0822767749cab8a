"""Trains a segmentation model on a streamed dataset.

Runs alike as `python scripts/train.py`, `python -m scripts.train` and `accelerate launch scripts/train.py`, with a
recipe, flags, or both (flags win): `python scripts/train.py faseg-mobilenetv2-camvid --dataset_name DATA`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from tqdm import tqdm

from scripts.evaluation.inference import evaluate_split
from scripts.evaluation.mean_iou import scores_from_confusion
from scripts.training.augmentation import training_augmentation
from scripts.training.checkpointing import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from scripts.training.command_line import (
    UserError,
    build_accelerator,
    check_at_least,
    check_folder,
    parse_arguments,
    project_path,
    run_command,
)
from scripts.training.data import (
    IGNORE_INDEX,
    DatasetArguments,
    StreamBatches,
    TrainingCollator,
    TrainingSamples,
    check_ignored_id,
    good_batches,
    load_classes,
    load_split,
    number_of_examples,
    worker_loader,
)
from scripts.training.model_folder import (
    ModelArguments,
    build_config,
    build_model,
    build_processor,
    load_backbone_weights,
    refuse_dead_hrca,
    save_model_folder,
)
from scripts.training.optimization import SCHEDULES, build_parameter_groups, build_scheduler


# --------------------------------------------------------------------------------------------------------- arguments


@dataclass
class TrainArguments(ModelArguments, DatasetArguments):
    """Train a segmentation model on a streamed dataset; a YAML recipe gives defaults, flags win."""

    recipe: str | None = field(default=None, metadata={"help": "YAML file, or name of one in scripts/recipes."})
    output_dir: str | None = field(default=None, metadata={"help": "Where checkpoints, log and model go."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str = field(default="validation", metadata={"help": "Split of --eval_steps."})
    backbone_weights: str | None = field(
        default=None,
        metadata={"help": "safetensors file with pretrained backbone weights, timm's or transformers' names."},
    )

    crop_height: int = field(default=512, metadata={"help": "Height of the training crops."})
    crop_width: int = field(default=512, metadata={"help": "Width of the training crops."})
    shortest_edges: list[int] | None = field(
        default=None,
        metadata={"help": "Shorter sides to choose from; by default 0.5 to 2 times the crop's in 16 steps."},
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Bound of the longer side; by default 4 crops."})
    scale_range: list[float] | None = field(
        default=None, metadata={"help": "LOW HIGH: factor on the picture's own size, in place of --shortest_edges."}
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
    seed: int = field(default=0, metadata={"help": "Of weights, order, augmentation and loss points."})

    shuffle_buffer_size: int = field(default=512, metadata={"help": "Rows that the stream is shuffled within."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that decode and augment."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between lines of train_log.jsonl."})
    eval_steps: int | None = field(default=None, metadata={"help": "Steps between evaluations; none by default."})
    checkpointing_steps: int | None = field(default=None, metadata={"help": "Steps between checkpoints."})
    checkpoints_total_limit: int | None = field(default=2, metadata={"help": "Newest checkpoints that are kept."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest' or a checkpoint's folder."})


def check_arguments(arguments: TrainArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    if arguments.scale_range and (len(arguments.scale_range) != 2 or not 0 < min(arguments.scale_range)):
        raise UserError(f"--scale_range {arguments.scale_range}: give two positive factors, LOW HIGH")
    check_folder("--output_dir", Path(arguments.output_dir))
    sizes = ("crop_height", "crop_width", "shortest_edges", "longest_edge", "eval_shortest_edge", "eval_longest_edge")
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
    lengths = ("max_train_steps", "num_train_epochs", "checkpointing_steps", "eval_steps", "logging_steps")
    check_at_least(arguments, 1, *sizes, *batches, *lengths, "shuffle_buffer_size", "checkpoints_total_limit")
    rates = ("learning_rate", "backbone_lr_multiplier", "weight_decay", "adam_epsilon", "max_grad_norm", "lr_power")
    check_at_least(arguments, 0, *rates, "num_warmup_steps", "dataloader_num_workers", "seed")
    if not arguments.learning_rate > 0:
        raise UserError(f"--learning_rate {arguments.learning_rate}: give a number above 0")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give a number from 0 to below 1")
    if arguments.seed >= 2**31:
        raise UserError(f"--seed {arguments.seed}: give less than {2**31}")
    if arguments.lr_scheduler_type not in SCHEDULES:
        raise UserError(f"--lr_scheduler_type {arguments.lr_scheduler_type!r}: give one of {', '.join(SCHEDULES)}")


def accumulation_steps(arguments: TrainArguments, num_processes: int) -> int:
    """Micro steps per optimiser step on this many processes."""
    if arguments.total_train_batch_size is None:
        return arguments.gradient_accumulation_steps
    per_micro_step = arguments.per_device_train_batch_size * num_processes
    if arguments.total_train_batch_size % per_micro_step:
        raise UserError(
            f"--total_train_batch_size {arguments.total_train_batch_size} is no multiple of {num_processes} processes "
            f"x --per_device_train_batch_size {arguments.per_device_train_batch_size}"
        )
    return arguments.total_train_batch_size // per_micro_step


def planned_steps(arguments: TrainArguments, data: datasets.IterableDataset, total_batch: int) -> int:
    """Optimiser steps of the run."""
    if arguments.max_train_steps is not None:
        return arguments.max_train_steps
    if arguments.num_train_epochs is None:
        raise UserError("no length: give --max_train_steps or --num_train_epochs")
    examples = number_of_examples(data, arguments.train_split_name)
    if examples is None:
        raise UserError("--num_train_epochs: the stream does not tell its size: give --max_train_steps")
    return max(1, arguments.num_train_epochs * examples // total_batch)


# -------------------------------------------------------------------------------------------- data, model, optimiser


@dataclass
class Run:
    """What the loop works with."""

    arguments: TrainArguments
    accelerator: Accelerator
    data: datasets.IterableDataset
    model: Any
    processor: Any
    optimizer: Any
    scheduler: Any
    progress: Progress
    max_steps: int
    total_batch: int

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        return Path(self.arguments.output_dir or "")

    def batches(self) -> Iterator[dict[str, Any]]:
        """Training batches of this process, from where the run stands."""
        arguments = self.arguments
        augmentation = training_augmentation(
            arguments.crop_height,
            arguments.crop_width,
            arguments.shortest_edges,
            arguments.longest_edge,
            arguments.scale_range,
            arguments.color_jitter,
        )
        num_labels = self.accelerator.unwrap_model(self.model).config.num_labels
        stream = StreamBatches(
            self.data,
            arguments.per_device_train_batch_size,
            arguments.seed,
            arguments.shuffle_buffer_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=(self.progress.epoch, self.progress.index),
        )
        loader = worker_loader(
            TrainingSamples(arguments, num_labels, augmentation, arguments.seed),
            stream,
            TrainingCollator(self.processor, arguments.do_reduce_labels),
            arguments.dataloader_num_workers,
        )
        return iter(good_batches(loader))


def frozen_batch_norm(config: Any) -> bool:
    """Whether the backbone's batch norms are constants, which need no synchronising."""
    return bool(getattr(config, "freeze_backbone_batch_norm", False))


def set_up(arguments: TrainArguments) -> Run:
    """Everything before the first step; raises every user error that can be known by then."""
    check_arguments(arguments)
    accelerator = build_accelerator(arguments.mixed_precision)
    accelerator.gradient_accumulation_steps = accumulation_steps(arguments, accelerator.num_processes)
    set_seed(arguments.seed)

    # ---- data
    data = load_split(arguments, arguments.train_split_name)
    id2label = load_classes(arguments, data)
    if id2label is None and not arguments.model_name_or_path:
        raise UserError("no class names: give --id2label, or put id2label.json beside the data")
    micro_batch = arguments.per_device_train_batch_size * accelerator.num_processes
    total_batch = micro_batch * accelerator.gradient_accumulation_steps
    max_steps = planned_steps(arguments, data, total_batch)

    # ---- model
    config = build_config(arguments, id2label)
    check_ignored_id(config)
    refuse_dead_hrca(config, arguments.crop_height, arguments.crop_width)
    shortest = arguments.eval_shortest_edge or min(arguments.crop_height, arguments.crop_width)
    processor = build_processor(
        arguments,
        config,
        size={"shortest_edge": shortest, "longest_edge": arguments.eval_longest_edge or 4 * shortest},
        do_reduce_labels=arguments.do_reduce_labels,
        ignore_index=IGNORE_INDEX,
        num_labels=config.num_labels,
    )
    model = build_model(arguments, config)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda" and not frozen_batch_norm(config):
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if arguments.backbone_weights:
        accelerator.print(load_backbone_weights(model, arguments.backbone_weights))

    # ---- optimiser
    groups = build_parameter_groups(
        model, arguments.learning_rate, arguments.weight_decay, arguments.backbone_lr_multiplier
    )
    optimizer = torch.optim.AdamW(
        [{key: group[key] for key in ("name", "params", "lr", "weight_decay")} for group in groups],
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
    scheduler = build_scheduler(
        optimizer, arguments.lr_scheduler_type, max_steps, arguments.num_warmup_steps, arguments.lr_power
    )
    # Stepped here once per optimiser step; prepared by accelerate it would be stepped once per process.
    model, optimizer = accelerator.prepare(model, optimizer)
    # Weights began alike on all processes; loss points and dropped paths are each process's own.
    set_seed(arguments.seed, device_specific=True)
    progress = Progress(seed=arguments.seed)
    accelerator.register_for_checkpointing(scheduler, progress)
    run = Run(arguments, accelerator, data, model, processor, optimizer, scheduler, progress, max_steps, total_batch)
    if arguments.resume_from_checkpoint:
        folder = find_checkpoint(arguments.resume_from_checkpoint, run.output_dir)
        load_checkpoint(accelerator, folder)
        if progress.seed != arguments.seed:
            raise UserError(f"{folder} was trained with --seed {progress.seed}, not {arguments.seed}")
        accelerator.print(f"resumed from {folder} at step {progress.step}")
    return run


def describe(run: Run) -> str:
    """The run in one table, before it starts."""
    arguments, accelerator = run.arguments, run.accelerator
    names = list(accelerator.unwrap_model(run.model).config.id2label.values())
    examples = number_of_examples(run.data, arguments.train_split_name)
    groups = run.optimizer.param_groups
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    rows = [
        ("data", f"{arguments.dataset_name} [{arguments.train_split_name}], {examples or 'unknown'} samples"),
        ("classes", f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"),
        ("crop", f"{arguments.crop_height}x{arguments.crop_width}"),
        (
            "batch",
            f"{run.total_batch} = {arguments.per_device_train_batch_size} x {accelerator.num_processes} processes "
            f"x {accelerator.gradient_accumulation_steps} micro steps",
        ),
        (
            "steps",
            f"{run.max_steps}" + (f", {run.max_steps * run.total_batch / examples:.1f} epochs" if examples else ""),
        ),
        ("parameters", f"{trained / 1e6:.2f} M trained"),
    ]
    for group in groups:
        text = f"{len(group['params'])} tensors, lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        rows.append((f"- {group['name']}", text))
    rows += [
        ("device", f"{accelerator.device}, mixed precision {accelerator.mixed_precision}"),
        ("output", str(run.output_dir)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


# -------------------------------------------------------------------------------------------------------------- loop


class TrainLog:
    """`train_log.jsonl`, one line per logging step; also sums what happens between two lines.

    Lines of steps that a resumed run repeats are dropped. Other processes than the main one write nothing.
    """

    def __init__(self, path: Path, first_step: int, is_main_process: bool) -> None:
        self.path = path if is_main_process else None
        self.last: dict[str, Any] = {}
        self.reset()
        if self.path is not None:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and first_step else []
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def reset(self) -> None:
        """Starts the sums anew."""
        self.sums: dict[str, float] = {}
        self.count = 0
        self.started = time.perf_counter()

    def add(self, waited: float, terms: dict[str, float]) -> None:
        """Adds one micro step."""
        self.count += 1
        for name, value in {**terms, "data_wait_seconds": waited}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of every sum over the micro steps since the last reset."""
        return {name: value / self.count for name, value in self.sums.items()}

    def write(self, **values: Any) -> None:
        """Appends one line; numbers are kept to six digits."""
        self.last = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()
        }
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.last) + "\n")


def optimizer_step(run: Run, batches: Iterator[dict[str, Any]], log: TrainLog) -> float:
    """One optimiser step over its micro steps; returns the gradient norm before clipping."""
    accelerator, arguments = run.accelerator, run.arguments
    norm = float("nan")
    for _ in range(accelerator.gradient_accumulation_steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        names, position = batch.pop("names"), batch.pop("position")
        inputs = send_to_device(batch, accelerator.device)
        with accelerator.accumulate(run.model):
            outputs = run.model(**inputs)
            loss = outputs.loss.item()
            if not math.isfinite(loss):
                raise UserError(f"loss is {loss} at step {run.progress.step + 1}, samples {', '.join(names)}")
            accelerator.backward(outputs.loss)
            if accelerator.sync_gradients:
                limit = arguments.max_grad_norm or float("inf")
                norm = float(accelerator.clip_grad_norm_(run.model.parameters(), limit))
            run.optimizer.step()
            run.optimizer.zero_grad()
        # The last layer's terms bear their bare names; the earlier layers' end in _0, _1, ...
        terms = {key: value.item() for key, value in outputs.loss_dict.items() if not key[-1].isdigit()}
        log.add(waited, {"loss": loss, **terms})
    run.scheduler.step()
    run.progress.step += 1
    run.progress.epoch, run.progress.index = position
    return norm


def evaluate_now(run: Run, log: TrainLog) -> None:
    """Evaluates on the validation split and logs the result."""
    accelerator, arguments = run.accelerator, run.arguments
    confusion, _ = evaluate_split(run.model, run.processor, arguments, arguments.eval_split_name, accelerator)
    scores = scores_from_confusion(confusion)
    accelerator.print(f"step {run.progress.step}: mIoU {100 * scores['mean_iou']:.2f}")
    log.write(step=run.progress.step, mean_iou=scores["mean_iou"], overall_accuracy=scores["overall_accuracy"])


def loop(run: Run) -> dict[str, Any]:
    """Trains to the last step; returns the last line of the log."""
    accelerator, arguments, progress = run.accelerator, run.arguments, run.progress
    log = TrainLog(run.output_dir / "train_log.jsonl", progress.step, accelerator.is_main_process)
    batches = run.batches()
    run.model.train()
    with tqdm(
        total=run.max_steps,
        initial=progress.step,
        desc="train",
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
    ) as bar:
        while progress.step < run.max_steps:
            rate = run.scheduler.get_last_lr()[-1]
            norm = optimizer_step(run, batches, log)
            bar.update()
            is_last = progress.step == run.max_steps
            if progress.step % arguments.logging_steps == 0 or is_last:
                means, seconds = log.means(), time.perf_counter() - log.started
                images = log.count * arguments.per_device_train_batch_size * accelerator.num_processes
                bar.set_postfix(loss=f"{means['loss']:.3f}", lr=f"{rate:.2e}")
                log.write(
                    step=progress.step, epoch=progress.epoch, learning_rate=rate, grad_norm=norm,
                    images_per_second=images / seconds, **means,
                )  # fmt: skip
                log.reset()
            if arguments.checkpointing_steps and progress.step % arguments.checkpointing_steps == 0:
                save_checkpoint(accelerator, run.output_dir, progress.step, arguments.checkpoints_total_limit)
            if arguments.eval_steps and (progress.step % arguments.eval_steps == 0 or is_last):
                evaluate_now(run, log)
                run.model.train()
                log.reset()
    return log.last


# -------------------------------------------------------------------------------------------------------------- save


def saved_recipe(arguments: TrainArguments) -> dict[str, Any]:
    """What is kept beside the model: the settings without this machine's folders."""
    places = ("output_dir", "recipe", "resume_from_checkpoint")
    recipe = {key: value for key, value in asdict(arguments).items() if value is not None and key not in places}
    for key in ("backbone_weights", "config_name", "dataset_name", "id2label", "model_name_or_path"):
        if key in recipe and Path(project_path(recipe[key])).exists():
            recipe[key] = Path(recipe[key]).resolve().name
    return recipe


def train(arguments: TrainArguments) -> dict[str, Any]:
    """The whole run; returns the last line of the log."""
    run = set_up(arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    if accelerator.is_main_process:
        recipe = yaml.safe_dump(saved_recipe(arguments), sort_keys=False)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "recipe.yaml").write_text(recipe, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output_dir {output_dir}: {error}") from error
        print(describe(run), flush=True)
    accelerator.wait_for_everyone()
    last = loop(run)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model_folder(accelerator.unwrap_model(run.model), run.processor, output_dir)
        print(f"model and processor saved in {output_dir}")
    accelerator.end_training()
    return last


def main() -> None:
    """Entry point."""
    train(parse_arguments(TrainArguments))


if __name__ == "__main__":
    run_command(main)
