"""What a training run writes about itself: `train_log.jsonl`, its curves, and the same to the trackers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import parse_json


try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS_BETWEEN_CURVES = 30.0
# One of these is in every line of an evaluation, and in no other; with its name in the curves.
EVALUATIONS = {"mean_iou": "mIoU", "average_precision": "AP", "panoptic_quality": "PQ"}
STOPPED_EARLY = "stopped_early"  # is in the last line of a run that early stopping ended: evaluations without a rise
# What two equal runs may differ in.


def peak_memory_gib(device: torch.device) -> float | None:
    """Most memory that this process has held: on the GPU if it trains there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, KiB elsewhere


def per_layer(terms: Mapping[str, float]) -> dict[str, list[float]]:
    """`{"loss_mask_0": a, "loss_mask": b, ...}` -> `{"loss_mask": [a, b], ...}`, the first prediction first."""
    kinds = [name for name in terms if name != "loss" and not name[-1].isdigit()]
    layers = {}
    for kind in kinds:
        earlier = sorted(int(name.rpartition("_")[2]) for name in terms if name.rstrip("0123456789") == f"{kind}_")
        layers[kind] = [terms[f"{kind}_{index}"] for index in earlier] + [terms[kind]]
    return layers


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a log line under names such as `layers/loss_mask/03`, for the trackers."""
    result: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            result |= flat({f"{index:02}": item for index, item in enumerate(value)}, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result[prefix + key] = value
    return result


def six_digits(value: Any) -> Any:
    """`value` with its floats, also those inside lists and dictionaries, kept to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: six_digits(item) for key, item in value.items()}
    return [six_digits(item) for item in value] if isinstance(value, list) else value


def read_log(file: Path) -> list[dict[str, Any]]:
    """Lines of a `train_log.jsonl`; a last line that a killed run left half-written is passed over.

    Other lines that are none of a log are left out too, and named on standard error.
    """
    lines: list[dict[str, Any]] = []
    texts = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    for number, text in enumerate(texts, 1):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif number < len(texts):  # else it is what follows the last line break: nothing, or half a line
            print(f"{file}: line {number} is no line of a training log and is left out", file=sys.stderr)
    return lines


class TrainLog:
    """`train_log.jsonl`, one line per logging step; also sums what happens between two lines.

    Lines that a resumed run writes again are dropped, so that its curves go on where they were. Every line goes to the
    trackers too, and all of them to `curves.png` beside the log. Only the main process writes.

    Args:
        first_step: finished steps of the run that goes on, 0 of a new one.
        evaluated: the last of them that it need not evaluate again; all of them by default.
    """

    def __init__(self, path: Path, first_step: int, accelerator: Accelerator, evaluated: int | None = None) -> None:
        self.path = path if accelerator.is_main_process else None
        self.accelerator = accelerator
        self.last: dict[str, Any] = {}
        self.drawn = time.perf_counter()
        self.reset()
        if self.path is not None:
            last_evaluated = first_step if evaluated is None else evaluated
            kept = [
                line
                for line in (read_log(path) if first_step else [])
                if STOPPED_EARLY not in line
                and line["step"] <= (last_evaluated if EVALUATIONS.keys() & line.keys() else first_step)
            ]
            with atomic_file(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def reset(self) -> None:
        """Starts the sums anew."""
        self.sums: dict[str, float] = {}
        self.count = 0
        self.started = time.perf_counter()

    def add(self, waited: float, terms: Mapping[str, float]) -> None:
        """Adds one micro step: seconds it waited for its batch, `loss`, and the unweighted terms of every layer."""
        self.count += 1
        for name, value in {**terms, "data_wait_seconds": waited}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def state_dict(self) -> dict[str, Any]:
        """What this process has summed up since the last line, for a checkpoint."""
        seconds = time.perf_counter() - self.started
        return {"sums": dict(self.sums), "count": self.count, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the sums of a checkpoint."""
        self.sums, self.count = dict(state["sums"]), state["count"]
        self.started = time.perf_counter() - state["seconds"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside, such as that of a checkpoint, is no part of images per second."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def means(self) -> dict[str, float]:
        """Mean of every sum over the micro steps since the last reset and over the processes."""
        means = torch.tensor(list(self.sums.values()), dtype=torch.float64) / self.count
        if self.accelerator.num_processes > 1:
            on_device = means.float().to(self.accelerator.device)
            means = self.accelerator.reduce(on_device, reduction="mean").cpu()
        return dict(zip(self.sums, means.tolist()))

    def write_step(
        self, step: int, epoch: int, learning_rates: dict[str, float], grad_norm: float, images: int
    ) -> dict[str, Any]:
        """Writes what happened since the last reset, and resets; returns the line.

        `loss` is the weighted sum over the predictions of all layers (14 of them in FASeg), which is what makes it
        look large; `loss_per_prediction` is its mean. `loss_mask` and its like are the last layer's, unweighted;
        `layers` holds those of every layer.

        Args:
            learning_rates: of each group in the last step; that of the last group is also `learning_rate`.
            images: images since the last reset, over all processes.
        """
        seconds = time.perf_counter() - self.started
        means = self.means()
        waited = means.pop("data_wait_seconds")
        layers = per_layer(means)
        predictions = max((len(values) for values in layers.values()), default=1)
        self.write(
            step=step,
            epoch=epoch,
            learning_rate=list(learning_rates.values())[-1],
            grad_norm=grad_norm,
            images_per_second=images / seconds,
            loss=means["loss"],
            loss_per_prediction=means["loss"] / predictions,
            **{kind: values[-1] for kind, values in layers.items()},
            data_wait_seconds=waited,
            data_wait_share=waited * self.count / seconds,
            peak_memory_gib=peak_memory_gib(self.accelerator.device),
            learning_rates=learning_rates,
            layers=layers,
        )
        self.reset()
        return self.last

    def write(self, **values: Any) -> None:
        """Appends one line, numbers kept to six digits, and sends it to the trackers."""
        self.last = six_digits(values)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.last) + "\n")
        self.accelerator.log(
            flat({key: value for key, value in self.last.items() if key != "step"}), step=values["step"]
        )

    def draw(self, at_once: bool = False) -> None:
        """Draws the log as `curves.png` beside it, unless that was done within the last half minute."""
        if self.path is None or not (at_once or time.perf_counter() - self.drawn > SECONDS_BETWEEN_CURVES):
            return
        try:
            draw_curves(self.path, self.path.with_name("curves.png"))
        except OSError as error:  # an image is not worth a run
            print(f"curves.png not drawn: {error}", file=sys.stderr)
        self.drawn = time.perf_counter()


def draw_curves(log_file: Path, image: Path) -> None:
    """Draws loss, learning rates, speed and, once there was an evaluation, its figure over steps.

    The image is replaced atomically.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure  # half a second that commands without curves need not wait for

    lines = read_log(log_file)
    figure_of_task = next((name for name in EVALUATIONS if any(line.get(name) is not None for line in lines)), None)
    figure = Figure(figsize=(10, 6))  # the Agg canvas: no window, nothing shared
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.08, "top": 0.94, "wspace": 0.18, "hspace": 0.3}
    layout: Any = [["loss", "figure" if figure_of_task else "loss"], ["rate", "speed"]]
    panels = figure.subplot_mosaic(layout, gridspec_kw=margins)
    panels["loss"].set_title("loss, mean of the predictions")
    draw_curve(panels["loss"], lines, "loss_per_prediction", "")
    if figure_of_task:
        panels["figure"].set_title(f"validation {EVALUATIONS[figure_of_task]}, %")
        draw_curve(panels["figure"], lines, figure_of_task, "", factor=100, marker="o")
    panels["rate"].set_title("learning rate")
    of_rates = [{**line, **line["learning_rates"]} for line in lines if "learning_rates" in line]
    for group in sorted({group for line in of_rates for group in line["learning_rates"]}):
        draw_curve(panels["rate"], of_rates, group)
    panels["speed"].set_title("images per second")
    draw_curve(panels["speed"], lines, "images_per_second", "")
    panels["speed"].set_ylim(bottom=0)
    for panel in panels.values():
        panel.grid(alpha=0.3)
        if not panel.lines:
            panel.text(0.5, 0.5, "none yet", transform=panel.transAxes, ha="center", color="0.4")
        if panel.get_legend_handles_labels()[1]:
            panel.legend()
    for name in ("rate", "speed"):
        panels[name].set_xlabel("step")
    with atomic_file(image) as partial:
        figure.savefig(partial, format="png", dpi=80)


def draw_curve(
    panel: Any, lines: list[dict[str, Any]], key: str, label: str | None = None, factor: float = 1, marker: str = ""
) -> None:
    """One curve of the lines that hold `key`."""
    points = [(line["step"], factor * line[key]) for line in lines if line.get(key) is not None]
    if points:
        steps, values = zip(*points)
        label = key if label is None else label
        panel.plot(steps, values, marker=marker or ("." if len(points) == 1 else ""), label=label)
