"""What a recipe needs on this dataset and this machine: memory counted without computing, time from real steps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from accelerate.utils import send_to_device

from scripts.cli.errors import UserError
from scripts.cli.processes import build_accelerator
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.loading import StreamRow
from scripts.data.samples import RowFormat
from scripts.data.sources import check_class_count, check_ignored_id
from scripts.data.streaming import RowBatch, TrainingCollator, TrainingSamples
from scripts.dataset_check.counts import SplitCounts
from scripts.dataset_check.finding import Finding
from scripts.dataset_check.step_time import TIME_LIMIT, StepTimer, say
from scripts.models.input_channels import RGB, set_num_channels
from scripts.models.loading import build_processor, refuse_dead_hrca
from scripts.models.tasks import SEMANTIC, task_of
from scripts.models.warm_start import start_of
from scripts.training.arguments import TrainArguments, with_batch_sizes
from scripts.training.memory import activation_bytes, state_bytes
from scripts.training.network import prepare_network
from scripts.training.run import augmentation_of, build_optimizer


MAX_ROWS = 16  # undecoded, kept for the measured step
GIB = 2**30
WORKSPACE = 1.15  # the loss, and what kernels and the allocator need, as a factor


@dataclass
class Cost:
    """What a recipe needs on this machine.

    Args:
        facts: name -> text, for the report.
        numbers: the same for JSON, in seconds and bytes.
        findings: what the recipe cannot do with this dataset or machine.
    """

    facts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class RecipeCost:
    """The recipe's model on this machine.

    Raises:
        UserError: the recipe cannot work, whatever the data.
    """

    def __init__(self, arguments: TrainArguments, form: RowFormat, names: dict[int, str]) -> None:
        say("building the recipe's model")
        on_cpu = not torch.accelerator.is_available()
        if on_cpu and arguments.mixed_precision == "fp16":  # a CPU has none; bf16 takes as much memory
            arguments = replace(arguments, mixed_precision="bf16")
        self.accelerator = build_accelerator(arguments.mixed_precision)
        self.arguments = with_batch_sizes(arguments, self.accelerator.num_processes)
        check_class_count(len(names), arguments.do_reduce_labels)
        start = start_of(self.arguments)
        self.source, self.config = start.source, start.config(names)
        set_num_channels(self.config, arguments.num_channels)
        check_ignored_id(self.config)
        refuse_dead_hrca(self.config, arguments.crop_height, arguments.crop_width)
        model, _ = start.model(self.config)
        self.model = prepare_network(model, self.arguments, self.accelerator).train()
        self.form, self.task = form, task_of(self.config)
        self.rows: list[dict[str, Any]] = []

    def stored_range(self) -> Any:
        """The intensity range of the checkpoint that the recipe starts from; None if it has none."""
        named = self.arguments.model_name_or_path or self.arguments.warm_start
        return getattr(build_processor(self.source, self.config), "intensity_range", None) if named else None

    def keep(self, row: dict[str, Any]) -> None:
        """Keeps one of the first good rows for the measured step."""
        if len(self.rows) < min(MAX_ROWS, self.arguments.per_device_train_batch_size):
            self.rows.append(row)

    def estimate(self, splits: dict[str, SplitCounts], examples: int | None, timed: bool = True) -> Cost:
        """Memory, time and queries.

        Args:
            examples: training images, None if unknown.
            timed: whether training steps may be run to take their time.
        """
        arguments, cost = self.arguments, Cost()
        micro, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        batch = micro * accumulation * self.accelerator.num_processes
        steps = arguments.max_train_steps
        if steps is None and arguments.num_train_epochs and examples:
            steps = max(1, arguments.num_train_epochs * examples // batch)
        epochs = f", {steps * batch / examples:.1f} epochs" if steps and examples else ""
        size = f"{arguments.crop_height}x{arguments.crop_width}"
        named = arguments.recipe or arguments.config_name or arguments.model_name_or_path or arguments.warm_start
        cost.facts["recipe"] = f"{named}: {f'{steps} steps' if steps else 'steps'} of {batch} crops of {size}{epochs}"
        cost.numbers |= {"steps": steps, "batch": batch}
        say("counting the memory of a training step, without computing it")
        if not self._memory(cost):
            cost.facts["time"] = "not measured: the recipe does not fit on this machine"
        elif not timed:
            cost.facts["time"] = "not measured, by --no_timing"
        else:
            try:
                self._time(steps, accumulation, cost)
            except torch.OutOfMemoryError:
                cost.facts["time"] = "not measured: the step needs more memory than this machine has free"
                self._does_not_fit(
                    cost, "the loss and workspace of a step, too, are more than is free on this machine"
                )
        self._queries(splits, cost)
        return cost

    def _memory(self, cost: Cost) -> bool:
        """Notes the memory of one process; returns whether this machine has as much."""
        arguments = self.arguments
        micro, height, width = arguments.per_device_train_batch_size, arguments.crop_height, arguments.crop_width
        state = state_bytes(self.model, self.accelerator.num_processes, arguments.ema_decay is not None)
        activations = activation_bytes(self.model, micro, height, width, self.accelerator)
        cost.numbers["memory"] = {**state, "activations": activations}
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in state.items())
        if activations is None:
            cost.facts["memory"] = f"{sum(state.values()) / GIB:.2f} GiB and what the activations take ({parts})"
            return True
        total, free = sum(state.values()) + activations, self._free_bytes()
        cost.facts["memory"] = (
            f"{total / GIB:.2f} GiB per process ({parts}, activations {activations / GIB:.2f}), loss and workspace on "
            f"top; {free / GIB:.1f} GiB free on this machine's {self.accelerator.device.type}"
        )
        if total * WORKSPACE <= free:
            return True
        largest = int((free / WORKSPACE - sum(state.values())) / (activations / micro))
        smaller = f"--per_device_train_batch_size {largest}, or " if 0 < largest < micro else ""
        needs = f"the recipe needs {total / GIB:.1f} GiB per process and some for the loss"
        message = f"{needs}, {free / GIB:.1f} GiB are free on this machine"
        self._does_not_fit(cost, message, smaller, needed=total, free=free)
        return False

    def _does_not_fit(self, cost: Cost, message: str, smaller: str = "", **numbers: Any) -> None:
        fix = f"{smaller}--gradient_checkpointing, smaller crops, or a larger machine"
        cost.findings.append(Finding("warning", "does-not-fit", (), message, fix, numbers))

    def _free_bytes(self) -> int:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.mem_get_info(self.accelerator.device)[0]
        return psutil.virtual_memory().available

    def _time(self, steps: int | None, accumulation: int, cost: Cost) -> None:
        """Notes the seconds of loading and of a training step, measured on real samples."""
        say(
            f"timing a training step on this machine's {self.accelerator.device.type}: about {TIME_LIMIT:.0f} s at "
            "most; --no_timing leaves it out"
        )
        try:
            inputs, loading = self._inputs()
        except UserError as error:
            cost.facts["time"] = f"not measured: {error}"
            return
        device, micro = self.accelerator.device, self.arguments.per_device_train_batch_size
        model = self.model.to(device)
        keys = ("pixel_values", "pixel_mask", "mask_labels", "class_labels")
        inputs = send_to_device({key: inputs[key] for key in keys}, device)
        optimizer, _ = build_optimizer(model, self.arguments, steps or 1)
        step = StepTimer(model, optimizer, inputs, self.accelerator).measure()
        if step.seconds is None:
            cost.facts["time"] = step.how
            return
        seconds = step.seconds * accumulation
        count = torch.get_num_threads()
        threads = f" with {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
        whole = f": about {duration(steps * seconds)} for {steps} steps" if steps else ""
        cost.facts["time"] = (
            f"{'about ' if step.scaled else ''}{seconds:.2f} s per step on this machine's {device.type}{threads}"
            f"{busy()}, mixed precision {self.accelerator.mixed_precision}{whole} ({step.how})"
        )
        workers = max(1, self.arguments.dataloader_num_workers)
        takes, gives = micro * accumulation / seconds, workers / loading
        cost.facts["loading"] = (
            f"{1000 * loading:.0f} ms to decode and augment an image: {workers} worker{'s' * (workers > 1)} can give "
            f"{gives:.1f} images a second, the model takes {takes:.1f}"
        )
        if gives < takes:
            cost.facts["loading"] += f": --dataloader_num_workers {int(takes * loading) + 1} would keep up"
        cost.numbers |= {"seconds_per_step": seconds, "seconds_per_step_scaled_up": step.scaled}
        cost.numbers["seconds_to_load_an_image"] = loading
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            cost.facts["memory"] += f"; {peak / GIB:.2f} GiB measured at the step's peak"
            cost.numbers["peak_memory"] = peak

    def _inputs(self) -> tuple[dict[str, Any], float]:
        """A micro batch, as the trainer makes it, and the seconds that one of its images took.

        Raises:
            UserError: no sample can be used.
        """
        arguments, num_labels = self.arguments, self.config.num_labels or 0
        if not self.rows:
            raise UserError("no sample without a fault was read")
        augmentation, smallest = augmentation_of(arguments, task=self.task), arguments.min_segment_area
        samples = TrainingSamples(self.form, num_labels, augmentation, arguments.seed, self.task, smallest)
        labels = {"do_reduce_labels": arguments.do_reduce_labels, "ignore_index": IGNORE_INDEX}
        bands = self.form.image_form.num_bands
        # Any numbers do: the step is only timed.
        statistics = {"image_mean": [0.5] * bands, "image_std": [0.25] * bands, "do_convert_rgb": bands == RGB}
        processor = build_processor(self.source, self.config, **labels, num_labels=num_labels, **statistics)
        count = arguments.per_device_train_batch_size
        rows = [StreamRow(0, index, self.rows[index % len(self.rows)]) for index in range(count)]
        started = time.perf_counter()
        batch = samples.__getitems__(RowBatch(rows, rows[0], (0, 0)))
        loading = (time.perf_counter() - started) / count
        inputs = TrainingCollator(processor)(batch)
        if isinstance(inputs, UserError):
            raise inputs
        return inputs, loading

    def _queries(self, splits: dict[str, SplitCounts], cost: Cost) -> None:
        """Notes an image of more classes than the model can give masks to."""
        queries = getattr(self.config, "num_queries", None)
        most = max((max(counts.classes_per_map, default=0) for counts in splits.values()), default=0)
        if self.task == SEMANTIC and queries is not None and most > queries:
            message = f"an image has {most} classes, the model {queries} queries: some can never be found"
            fix = f"--config_overrides num_queries={2 * most}"
            cost.findings.append(Finding("warning", "more-classes-than-queries", (), message, fix, {"classes": most}))


def busy() -> str:
    """A remark if others use this machine, too, so that times say little; empty if not."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f", which was busy (load {load:.0f} on {cores} cores)" if load > 1.5 * cores else ""


def duration(seconds: float) -> str:
    """`40 s`, `35 min`, `12.3 h` or `4.1 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
