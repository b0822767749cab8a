"""Plots of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from scripts.benchmarking.parts import TASKS, scaling_file
from scripts.storage.outputs import MARK


def draw(parts: dict[str, Any], file: Path) -> list[Path]:
    """Writes `file`, the timed parts, and beside it `*-scaling.png` if that was measured; returns what it wrote."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    timed = [record for record in parts.values() if "contestants" in record]
    if timed:
        written.append(save(draw_parts(timed), file))
    if "scaling" in parts:
        written.append(save(draw_scaling(parts["scaling"]), scaling_file(file)))
    return written


def save(figure: Figure, file: Path) -> Path:
    """Writes and closes the figure."""
    figure.savefig(file, dpi=110, format="png", metadata={"Software": MARK})
    plt.close(figure)
    return file


def draw_parts(records: list[dict[str, Any]]) -> Figure:
    """Per part a row: stages as stacked bars of time, with the floor as a line, and peak memory beside them."""
    heights = [len(record["contestants"]) + 1 for record in records]
    figure, axes = plt.subplots(
        len(records),
        2,
        figsize=(11, 0.42 * sum(heights) + 0.5 * len(records)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights, "width_ratios": [2, 1]},
    )
    stages = dict.fromkeys(
        stage for record in records for row in record["contestants"].values() for stage in row["stages"]
    )
    palette = matplotlib.colormaps["tab20"]
    colours = {stage: palette(index % 20) for index, stage in enumerate(stages)}
    for (times, memory), record in zip(axes, records):
        names = list(record["contestants"])[::-1]
        for name in names:
            left = 0.0
            for stage, values in record["contestants"][name]["stages"].items():
                label = stage if stage not in times.get_legend_handles_labels()[1] else None
                times.barh(name, 1e3 * values[1], left=left, color=colours[stage], label=label)
                left += 1e3 * values[1]
            memory.barh(name, (record["contestants"][name]["peak_memory"] or 0) / 2**20, color="0.55")
        if record["floor_seconds"]:
            times.axvline(1e3 * record["floor_seconds"], color="black", linestyle=":", label="floor")
        times.set_title(record["title"], fontsize=9, loc="left")
        times.margins(x=0.28)  # room for the legend
        times.legend(fontsize=6, loc="upper right")
        memory.set_yticks([])
        if not any(row["peak_memory"] for row in record["contestants"].values()):
            memory.set_axis_off()
        times.tick_params(labelsize=8)
        memory.tick_params(labelsize=8)
    axes[-1][0].set_xlabel("ms, median")
    axes[-1][1].set_xlabel("peak MiB over the loaded model")
    return figure


def draw_scaling(record: dict[str, Any]) -> Figure:
    """Time above, memory below, a column per axis."""
    names = list(dict.fromkeys(row["axis"] for row in record["rows"]))
    figure, axes = plt.subplots(2, len(names), figsize=(3 * len(names), 5), squeeze=False, layout="constrained")
    for column, axis in enumerate(names):
        for contestant in dict.fromkeys(row["contestant"] for row in record["rows"]):
            rows = [row for row in record["rows"] if (row["axis"], row["contestant"]) == (axis, contestant)]
            values = [row["value"] for row in rows]
            axes[0][column].plot(values, [row["seconds"][1] for row in rows], "o-", label=contestant)
            axes[1][column].plot(values, [(row["peak_memory"] or 0) / 2**20 for row in rows], "o-")
        axes[1][column].set_xlabel(axis)
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak MiB")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(f"{TASKS['inference']}: {record['title'].split(', ', 1)[1]}", fontsize=9)
    return figure
