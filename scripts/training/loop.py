"""The training loop, and the whole run around it."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import DistributedType
from accelerate.utils import broadcast, gather_object, send_to_device
from tqdm import tqdm

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import start_of
from scripts.cli.processes import on_main, raised_on_all
from scripts.evaluation.degenerate import absent_classes
from scripts.models.loading import refuse_non_finite, save_model_folder
from scripts.models.tasks import SEMANTIC
from scripts.storage.atomic import (
    DISK_FULL,
    WRITE_ERRORS,
    atomic_file,
    atomic_files,
    atomic_folder,
    write_errors_explained,
    write_failure,
)
from scripts.training.arguments import TrainArguments, check_trackers, saved_recipe
from scripts.training.checkpointing import checkpoints, save_checkpoint
from scripts.training.figures import FIGURES
from scripts.training.fingerprint import check_data_unchanged
from scripts.training.log import STOPPED_EARLY, TrainLog
from scripts.training.run import Run, describe, set_up
from scripts.training.stopping import Stopped
from scripts.training.tracking import finish_trackers, start_trackers


# -------------------------------------------------------------------------------------------------------------- step


@dataclass
class Step:
    """What one optimiser step did.

    Args:
        terms: `loss` and the unweighted terms of every layer, per micro step of this process.
        waited: seconds that each micro step waited for its batch.
        names: samples of each micro step.
        overfull: images with more segments than the model has queries.
        grad_norm: L2 norm of all gradients before clipping.
        stop: signal that some process got, 0 if none.
    """

    terms: list[dict[str, float]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    overfull: int = 0
    grad_norm: float = math.nan
    stop: int = 0


def training_step(run: Run, batches: Iterator[dict[str, Any]], received_signal: int = 0) -> Step:
    """One optimiser step over its micro steps. Weights stay as they are if a loss is not finite.

    Where the step itself leaves weights that are not finite, the run ends before anything is saved of them.

    Mask losses are divided by the mean number of masks per process of each micro step, so more micro steps weigh
    masks a little differently than one larger batch does; as many processes of one micro step are the reference.

    Raises:
        UserError: a loss, a gradient or a new weight is not finite, or too many samples were bad; in all processes
            alike.
    """
    accelerator, step = run.accelerator, Step()
    losses: list[torch.Tensor] = []
    names_of_terms: list[str] = []
    position = (run.progress.epoch, run.progress.index)
    for _ in range(accelerator.gradient_accumulation_steps):
        started = time.perf_counter()
        batch = next(batches)
        step.waited.append(time.perf_counter() - started)
        step.names.append(batch.pop("names"))
        step.bad += batch.pop("bad", [])
        position = batch.pop("position")
        run.progress.classes |= set(batch.pop("classes", ()))
        counts = [len(classes) for classes in batch["class_labels"]]
        step.overfull += sum(count > getattr(run.network.config, "num_queries", math.inf) for count in counts)
        run.progress.most_segments = max(run.progress.most_segments, *counts)
        with accelerator.accumulate(run.model):
            where = f"step {run.progress.step + 1}, samples {', '.join(step.names[-1])}"
            # Of the matcher, at logits that are not finite.
            with errors_explained(where, ValueError), small_crops_explained(run.arguments):
                outputs = run.model(**send_to_device(batch, accelerator.device))
            accelerator.backward(outputs.loss)
        names_of_terms = ["loss", *outputs.loss_dict]
        losses.append(torch.stack([outputs.loss, *outputs.loss_dict.values()]).detach().float())
    norm = accelerator.clip_grad_norm_(run.model.parameters(), run.arguments.max_grad_norm or math.inf)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2 gives each process its part
    step.grad_norm, *values = torch.cat([torch.as_tensor(norm).float().reshape(1), *losses]).tolist()
    width = len(names_of_terms)
    step.terms = [dict(zip(names_of_terms, values[first : first + width])) for first in range(0, len(values), width)]
    step.stop = agree(run, step, received_signal)
    run.optimizer.step()
    check_update(run)
    run.optimizer.zero_grad()
    run.scheduler.step()
    if run.average is not None:
        run.average.update_parameters(run.network)
    run.progress.step += 1
    run.progress.epoch, run.progress.index = position
    return step


@contextmanager
def small_crops_explained(arguments: TrainArguments) -> Iterator[None]:
    """Says which flags leave a batch norm with one value per channel, where torch names a shape."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--crop_height {arguments.crop_height} --crop_width {arguments.crop_width} "
            f"--per_device_train_batch_size {arguments.per_device_train_batch_size}: a batch norm gets a single value "
            "per channel: give larger crops or a larger batch"
        ) from error


def agree(run: Run, step: Step, received_signal: int) -> int:
    """What all processes must know before the weights move: non-finite losses, bad samples, a signal; and how many
    images had more segments than queries.

    Returns:
        The signal that some process got, or 0.
    Raises:
        UserError: training cannot go on.
    """
    accelerator = run.accelerator
    # With a loss scale an infinite gradient is ordinary: the scaler skips the step and lowers the scale.
    finite = accelerator.scaler is not None or math.isfinite(step.grad_norm)
    finite = finite and all(math.isfinite(value) for terms in step.terms for value in terms.values())
    stops = received_signal == signal.SIGINT, received_signal == signal.SIGTERM
    got = [not finite, bool(step.bad), *stops, step.overfull]
    if accelerator.num_processes > 1:
        got = accelerator.reduce(torch.tensor(got, dtype=torch.int32, device=accelerator.device), "sum").tolist()
    not_finite, any_bad, interrupted, terminated, overfull = got
    run.progress.overfull += overfull
    if not_finite:
        reports = gather_object([what_is_not_finite(step, accelerator.process_index)])
        what = "; ".join(filter(None, reports)) or f"gradient norm is {step.grad_norm}, all losses are finite"
        raise UserError(f"step {run.progress.step + 1}: {what}; the weights are those of the step before")
    bad = gather_object(step.bad) if any_bad else []
    with nullcontext() if accelerator.is_main_process else redirect_stderr(io.StringIO()):
        run.bad_samples.add(bad, seen=run.images_per_step)
    return int(signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0)


def check_update(run: Run) -> None:
    """Refuses to go on with weights, or statistics of batch norms, that the step has made NaN or infinite.

    Raises:
        UserError: names the first tensor and what to go on from; in all processes alike.
    """
    numbers = [value for value in run.network.state_dict().values() if value.is_floating_point() and value.numel()]
    largest = torch.nn.utils.get_total_norm(numbers, norm_type=math.inf)
    largest = largest.full_tensor() if hasattr(largest, "full_tensor") else largest
    broken = (~largest.isfinite()).to(torch.int32)
    if run.accelerator.num_processes > 1:
        broken = run.accelerator.reduce(broken.to(run.accelerator.device), "sum")
    if broken.item():
        rate = max(group["lr"] for group in run.optimizer.param_groups)
        when = f"step {run.progress.step + 1}, after an update with learning rate {rate:.3g}"
        with raised_on_all(run.accelerator):
            refuse_non_finite(run.network, when, f"; lower --learning_rate{kept_checkpoint(run)}")


def what_is_not_finite(step: Step, process: int) -> str:
    """The terms of this process that are NaN or infinite and the samples that they came from; else an empty line."""
    parts = []
    for terms, names in zip(step.terms, step.names, strict=True):
        wrong = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        if wrong:
            more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
            parts.append(f"{', '.join(wrong[:6])}{more}, samples {', '.join(names)}")
    return "; ".join(parts) + (f" (process {process})" if parts and process else "")


# -------------------------------------------------------------------------------------------------- evaluate and save


def evaluate_if_due(run: Run, log: TrainLog) -> None:
    """Evaluates on the validation split if this step asks for it, logs the result and keeps the best model."""
    accelerator, arguments, progress = run.accelerator, run.arguments, run.progress
    is_last = progress.step == run.max_steps
    if not arguments.eval_steps or not (progress.step % arguments.eval_steps == 0 or is_last):
        return
    if progress.evaluated == progress.step:
        return
    with log.paused():
        if accelerator.num_processes > 1:  # each process keeps statistics of its own; the first one's are saved
            for buffer in run.result.buffers():
                broadcast(buffer)
        figure = FIGURES[run.data.task]
        scores = figure.evaluate(run.result, run.processor, run.validation, accelerator)
        score = scores[figure.name]
        accelerator.print(f"step {progress.step}: {figure.words} {100 * score:.2f}")
        log.write(step=progress.step, **{key: None if math.isnan(value) else value for key, value in scores.items()})
        progress.evaluated = progress.step
        run.images.write(run.result, progress.step)
        progress.count_evaluation(score, arguments.early_stopping_threshold)
        if score > progress.best_score:
            progress.best_step, progress.best_score = progress.step, score
            on_main(accelerator, lambda: save_best(run))
        log.draw()
    run.model.train()


def improves_no_more(run: Run) -> bool:
    """Whether early stopping ends the run here. Every process finds the same: the figure is that of all together."""
    patience = run.arguments.early_stopping_patience
    return patience is not None and run.progress.not_improved >= patience


def say_stopped_early(run: Run, log: TrainLog) -> None:
    """Says on the terminal and in the log why the run ends before its last step."""
    progress, threshold = run.progress, run.arguments.early_stopping_threshold
    rise = f"rise of {FIGURES[run.data.task].words}" + (f" by more than {threshold:g}" if threshold else "")
    run.accelerator.print(
        f"stopped early at step {progress.step} of {run.max_steps}: no {rise} in {progress.not_improved} evaluations; "
        f"the best was {100 * progress.best_score:.2f} at step {progress.best_step}, kept in {run.output_dir / 'best'}"
    )
    log.write(step=progress.step, best_step=progress.best_step, **{STOPPED_EARLY: progress.not_improved})


def check_classes_seen(run: Run, whole_epoch: bool) -> None:
    """Says so if training has seen one class only, or never a class that is named.

    Args:
        whole_epoch: whether every sample went by; then it stops at what the first look could not know.
    Raises:
        UserError: none occurred, or not all in an epoch, in all processes alike.
    """
    seen = set(gather_object(sorted(run.progress.classes)))
    names = run.network.config.id2label
    if not seen:
        raise UserError(
            f"split {run.data.split!r}: no label map held {'a segment' if run.data.segment_classes else 'a pixel'} of "
            "any class, all were ignored, so there is nothing to learn: check the ids of the label maps with "
            f"{start_of('check_dataset')}"
        )
    absent = [index for index in names if index not in seen]
    if whole_epoch and absent and not run.look.whole and not run.arguments.allow_absent_classes:
        raise UserError(f"split {run.data.split!r}: {absent_classes(absent, names, 'a whole epoch')}")
    if len(seen) == 1 and run.progress.epoch < 2 and run.data.task == SEMANTIC:
        name = names[seen.pop()]
        text = f"warning: training has seen no other class than {name!r}: a model of it says that everywhere"
        run.accelerator.print(text, file=sys.stderr)


def say_overfull(run: Run) -> None:
    """Says how many images had more segments than the model has queries, and what helps; nothing if none had."""
    if not run.progress.overfull:  # a sum over processes, so that all of them go on, or none
        return
    most = max(gather_object([run.progress.most_segments]))
    if run.accelerator.is_main_process:
        queries, seen = run.network.config.num_queries, run.progress.step * run.images_per_step
        tqdm.write(
            f"warning: {run.progress.overfull} of {seen} images had more segments than the model's {queries} queries, "
            f"up to {most}: what was left over taught nothing; --config_overrides num_queries={most} makes enough",
            file=sys.stderr,
        )


def check_classes_after_epoch(run: Run, log: TrainLog) -> None:
    """`check_classes_seen`; where it stops the run, what was trained is kept in a checkpoint."""
    try:
        check_classes_seen(run, whole_epoch=True)
    except UserError as error:
        raise UserError(f"{error}; {save(run, log)} keeps what was trained") from error


def save_best(run: Run) -> None:
    """Writes `best`, a folder for `from_pretrained` with `best.json`, in place of the one before.

    Raises:
        UserError: it cannot be written; the one before is kept.
    """
    best = {"step": run.progress.best_step, FIGURES[run.data.task].name: run.progress.best_score}
    folder = run.output_dir / "best"
    with write_errors_explained(folder), atomic_folder(folder) as partial:
        save_model_folder(run.result, run.processor, partial)
        (partial / "best.json").write_text(json.dumps(best) + "\n", encoding="utf-8")


def save(run: Run, log: TrainLog) -> Path:
    """Writes a checkpoint of the run as it stands."""
    with log.paused():
        run.progress.logs = gather_object([log.state_dict()])
        run.progress.classes = set(gather_object(sorted(run.progress.classes)))
        run.progress.most_segments = max(gather_object([run.progress.most_segments]))
        limit = run.arguments.checkpoints_total_limit
        folder = save_checkpoint(run.accelerator, run.states, run.output_dir, run.progress.step, limit, run.settings)
        log.draw()
    return folder


# -------------------------------------------------------------------------------------------------------------- loop


def loop(run: Run) -> dict[str, Any]:
    """Trains to the last step; returns the last line of the log.

    Raises:
        Stopped: by a signal, after a checkpoint was written.
    """
    accelerator, arguments, progress = run.accelerator, run.arguments, run.progress
    log = TrainLog(run.output_dir / "train_log.jsonl", progress.step, accelerator, progress.evaluated)
    if progress.logs:
        log.load_state_dict(progress.logs[accelerator.process_index])
    bar = tqdm(
        total=run.max_steps, initial=progress.step, desc="train", unit="step", dynamic_ncols=True,
        disable=not accelerator.is_main_process,
    )  # fmt: skip
    with bar:
        run.model.train()
        evaluate_if_due(run, log)  # a signal may have come before the evaluation of the step that was saved
        batches = run.batches()
        while progress.step < run.max_steps and not improves_no_more(run):
            rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
            epoch = progress.epoch
            step = training_step(run, batches, run.signals.received)
            if progress.epoch > epoch:
                check_classes_after_epoch(run, log)
                if epoch == 0:
                    say_overfull(run)
                on_main(accelerator, lambda: check_data_unchanged(run.data, run.settings))
            bar.update()
            for waited, terms in zip(step.waited, step.terms, strict=True):
                log.add(waited, terms)
            if progress.step % arguments.logging_steps == 0 or progress.step == run.max_steps:
                images = log.count * arguments.per_device_train_batch_size * accelerator.num_processes
                line = log.write_step(progress.step, progress.epoch, rates, step.grad_norm, images)
                bar.set_postfix(loss=f"{line['loss_per_prediction']:.3f}", lr=f"{line['learning_rate']:.2e}")
            if step.stop:
                raise Stopped(step.stop, progress.step, str(save(run, log)))
            evaluate_if_due(run, log)
            if arguments.checkpointing_steps and progress.step % arguments.checkpointing_steps == 0:
                save(run, log)
    if progress.epoch == 0:
        check_classes_seen(run, whole_epoch=False)
    say_overfull(run)
    if progress.step < run.max_steps:
        say_stopped_early(run, log)
    log.draw(at_once=True)
    return log.last


# --------------------------------------------------------------------------------------------------------- whole run


def announce(run: Run) -> None:
    """Writes the effective recipe beside the checkpoints and prints the run in a table."""
    recipe = yaml.safe_dump(saved_recipe(run.arguments), sort_keys=False)
    with (
        errors_explained(f"--output_dir {run.output_dir}", OSError),
        atomic_file(run.output_dir / "recipe.yaml") as file,
    ):
        file.write_text(recipe, encoding="utf-8")
    print(describe(run), flush=True)


def kept_checkpoint(run: Run) -> str:
    """How to go on after a failure."""
    kept = checkpoints(run.output_dir)
    return f"; {kept[-1]} is kept: go on with --resume_from_checkpoint latest" if kept else ""


def finish(run: Run, weights: dict[str, Any] | None) -> None:
    """Writes model and processor into the output folder, `config.json` last.

    Args:
        weights: gathered from all processes where each holds a part; else the model's own are taken.
    """
    try:
        # There may have been more shards.
        with atomic_files(run.output_dir, last="config.json", replaced="model*.safetensors*") as folder:
            save_model_folder(run.result, run.processor, folder, weights)
    except WRITE_ERRORS as error:
        reason = write_failure(error, run.output_dir)
        raise UserError(f"model not written: {reason}{kept_checkpoint(run)}") from error
    print(f"model and processor saved in {run.output_dir}")


def train(arguments: TrainArguments) -> dict[str, Any]:
    """The whole run; returns the last line of the log.

    Raises:
        Stopped: by a signal, after a checkpoint was written.
    """
    run = set_up(arguments)
    try:
        return train_and_save(run)
    finally:
        run.lock.release()


def train_and_save(run: Run) -> dict[str, Any]:
    """`train` once everything is set up."""
    arguments = run.arguments
    on_main(run.accelerator, lambda: announce(run))
    recipe = saved_recipe(arguments)
    start_trackers(run.accelerator, check_trackers(arguments.report_to), run.output_dir, run.progress.step, recipe)
    with run.signals:  # also in the last save, which a first signal lets end
        try:
            last = loop(run)
        except Exception as error:
            finish_trackers(run.accelerator)
            if (reason := cannot_write(error, run.output_dir)) is None:
                raise
            raise UserError(f"{reason}{kept_checkpoint(run)}") from error
        sharded = run.accelerator.distributed_type == DistributedType.FSDP
        weights = run.accelerator.get_state_dict(run.model) if sharded else None
        on_main(run.accelerator, lambda: finish(run, weights))
        run.accelerator.end_training()
    return last


def cannot_write(error: Exception, folder: Path) -> str | None:
    """Which file in the folder could not be written and why, if that is what the error is about."""
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL:
        return f"{folder}: the disk is full"
    if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(folder):
        return f"{error.filename}: {error.strerror}"
    return None
