"""A run's curves as one image, drawn from its `train_log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.storage.atomic import atomic_file


def read_log(file: Path) -> list[dict[str, Any]]:
    """Lines of a `train_log.jsonl`; a last line that a killed run left half-written is passed over."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw_curves(log_file: Path, image: Path) -> None:
    """Draws loss, validation mIoU, learning rates and speed over steps; the image is replaced atomically.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure  # half a second that commands without curves need not wait for

    lines = read_log(log_file)
    figure = Figure(figsize=(10, 6))  # the Agg canvas: no window, nothing shared
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.08, "top": 0.94, "wspace": 0.18, "hspace": 0.3}
    panels = figure.subplots(2, 2, gridspec_kw=margins).ravel()
    panels[0].set_title("loss, mean of the predictions")
    draw(panels[0], lines, "loss_per_prediction", "")
    panels[1].set_title("validation mIoU, %")
    draw(panels[1], lines, "mean_iou", "", factor=100, marker="o")
    panels[2].set_title("learning rate")
    for group in sorted({group for line in lines for group in line.get("learning_rates", ())}):
        draw(panels[2], [{**line, **line["learning_rates"]} for line in lines if "learning_rates" in line], group)
    panels[3].set_title("images per second")
    draw(panels[3], lines, "images_per_second", "")
    panels[3].set_ylim(bottom=0)
    for panel in panels:
        panel.grid(alpha=0.3)
        if not panel.lines:
            panel.text(0.5, 0.5, "none yet", transform=panel.transAxes, ha="center", color="0.4")
        if panel.get_legend_handles_labels()[1]:
            panel.legend()
    for panel in panels[2:]:
        panel.set_xlabel("step")
    with atomic_file(image) as partial:
        figure.savefig(partial, format="png", dpi=80)


def draw(
    panel: Any, lines: list[dict[str, Any]], key: str, label: str | None = None, factor: float = 1, marker: str = ""
) -> None:
    """One curve of the lines that hold `key`."""
    points = [(line["step"], factor * line[key]) for line in lines if line.get(key) is not None]
    if points:
        steps, values = zip(*points)
        label = key if label is None else label
        panel.plot(steps, values, marker=marker or ("." if len(points) == 1 else ""), label=label)
