"""The results file, its tables as text and as Markdown, and its plots."""

from __future__ import annotations

import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from scripts.cli.errors import errors_explained
from scripts.evaluation.results import write_results
from scripts.storage.json_files import read_json


def merge(file: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Puts `record` into the results file in place of an earlier one of that name; returns the file's content.

    Raises:
        UserError: the file is there but no results file of this command, or cannot be written.
    """
    results = read_parts(file, f"--output_file {file}") if file.is_file() else {"parts": {}}
    results["parts"][name] = record
    with errors_explained(f"--output_file {file}", OSError, ValueError, TypeError):
        write_results(results, file)
    return results


def read_parts(file: Path, name: str | None = None) -> dict[str, Any]:
    """A results file of this command; `name` is what errors call it.

    Raises:
        UserError: it is something else.
    """
    return read_json(file, name, {"parts": dict[str, dict[str, Any]]}, ["parts"])


def megabytes(count: int | None) -> str:
    """Bytes as MiB, or a dash."""
    return "-" if count is None else f"{count / 2**20:.0f}"


def milliseconds(values: list[float]) -> str:
    """Median and quartiles in milliseconds, to at least two figures."""
    digits = 0 if values[1] >= 0.1 else 1 if values[1] >= 0.01 else 2
    low, median, high = (f"{1e3 * value:.{digits}f}" for value in values)
    return f"{median} ({low}-{high})"


def part_table(record: dict[str, Any]) -> str:
    """A record as text: totals, stages with their share of the floor, and what it had to show."""
    if record["kind"] == "scaling":
        return scaling_table(record)
    if record["kind"] == "training memory":
        return training_memory_table(record)
    rate = record["matmul_rate"][1] / 1e9
    lines = [
        record["title"],
        f"{record['rounds']} rounds on {record['device_name']}, {record['threads']} threads, load average "
        f"{record['load_average']:.1f}; matrix products at {rate:.0f} G multiply-adds/s",
    ]
    if record["floor_seconds"]:
        needed = sum(record["multiply_adds"].values()) / 1e9
        lines.append(f"floor: {needed:.1f} G multiply-adds / rate = {1e3 * record['floor_seconds']:.0f} ms")
    lines.append(
        f"{'':<28}{'ms: median (quartiles)':>28}{'speed-up':>10}{'floor/time':>12}{'peak MiB':>10}{'memory':>8}"
    )
    for name, row in record["contestants"].items():
        shares = row.get("share_of_floor", {})
        memory = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        lines.append(
            f"{name:<28}{milliseconds(row['total']):>28}{row['speedup'][1]:>9.2f}x{percent(shares.get('total')):>12}"
            f"{megabytes(row['peak_memory']):>10}{memory:>8}"
        )
        for stage, values in row["stages"].items():
            lines.append(f"  {stage:<26}{milliseconds(values):>28}{'':>10}{percent(shares.get(stage)):>12}")
        if "synchronisations" in row:
            lines.append(f"  waits for the GPU: {row['synchronisations']} per run")
    if apart := record.get("outputs_apart"):
        lines.append(
            f"equal weights, one input: class logits at most {apart['class logits']:.1e} apart, mask logits "
            f"{apart['mask logits']:.1e}, {100 * apart['labels']:.3f} % of the pixels labelled otherwise"
        )
    lines += [f"{name}: not run, {reason}" for name, reason in record["skipped"].items()]
    lines += [target_line(target, record) for target in record["targets"]]
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share in percent, or nothing."""
    return "" if share is None else f"{100 * share:.0f} %"


def target_line(target: dict[str, Any], record: dict[str, Any]) -> str:
    """What was to be shown, and whether it was."""
    memory = "" if target["at_most_memory"] is None else f", at most {target['at_most_memory']:g} of its memory"
    wanted = f"{target['contestant']} at least {target['at_least']:g}x as fast as {record['baseline']}{memory}"
    return f"{ {True: 'met', False: 'FALLS SHORT', None: 'not run'}[target['met']] }: {wanted}"


def scaling_table(record: dict[str, Any]) -> str:
    """Seconds and memory per axis."""
    lines = [
        record["title"],
        f"{'axis':<10}{'value':>7}  {'contestant':<18}{'ms: median (quartiles)':>28}{'peak MiB':>10}",
    ]
    for row in record["rows"]:
        lines.append(
            f"{row['axis']:<10}{row['value']:>7}  {row['contestant']:<18}{milliseconds(row['seconds']):>28}"
            f"{megabytes(row['peak_memory']):>10}"
        )
    return "\n".join(lines)


def training_memory_table(record: dict[str, Any]) -> str:
    """Largest batch per device, by size of its memory."""
    title = record["title"] + ": largest batch per device (estimated: 16 bytes per parameter and what autograd saves)"
    widths = (11, 11, 11, 13)
    lines = [
        f"{recipe:<30}" + "".join(f"{cell:>{width}}" for cell, width in zip_longest(cells, widths, fillvalue=8))
        for recipe, *cells in memory_rows(record, "MiB/image")
    ]
    return "\n".join([title, *lines])


def memory_rows(record: dict[str, Any], per_image: str) -> list[list[str]]:
    """A heading, then per row recipe, crop, precision, fixed MiB, MiB `per_image`, largest batch by size of device."""
    sizes = next((list(row["largest_batch"]) for row in record["rows"] if row["largest_batch"]), [])
    rows = [["recipe", "crop", "precision", "fixed MiB", per_image, *(f"{size} GB" for size in sizes)]]
    for row in record["rows"]:
        crop, precision = f"{row['height']}x{row['width']}", "mixed" if row["mixed"] else "float32"
        batches = (str(row["largest_batch"].get(size, "-")) for size in sizes)
        rows.append([row["recipe"], crop, precision, megabytes(row["fixed"]), megabytes(row["per_image"]), *batches])
    return rows


# ---------------------------------------------------------------------------------------------------------- Markdown


def benchmark_markdown(file: Path) -> str:
    """README's tables from a results file: a row per part and contestant, and what fits for training."""
    parts = read_parts(file)["parts"]
    timed = [record for record in parts.values() if "contestants" in record]
    lines = []
    if timed:
        lines += [
            "| what | contestant | ms: median (quartiles) | speed-up | peak MiB | of its memory | floor/time |",
            "|---|---|---|---|---|---|---|",
        ]
    for record in timed:
        title = record["title"]
        for name, row in record["contestants"].items():
            is_baseline = name == record["baseline"]
            memory = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
            speedup = "1" if is_baseline else f"{row['speedup'][1]:.2f}x"
            share = percent(row.get("share_of_floor", {}).get("total"))
            lines.append(
                f"| {title} | {name} | {milliseconds(row['total'])} | {speedup} | {megabytes(row['peak_memory'])} | "
                f"{'1' if is_baseline else memory} | {share} |"
            )
            title = ""
    for record in parts.values():
        if record["kind"] == "training memory":
            rows = [f"| {' | '.join(row[:3] + row[4:])} |" for row in memory_rows(record, "MiB per image")]
            lines += ["", rows[0], "|" + "---|" * (rows[0].count("|") - 1), *rows[1:]]
    return "\n".join(lines)


def backbones_markdown(file: Path) -> str:
    """The tables of docs/backbones.md from a results file: the backbones that work, then those that are refused."""
    records = read_parts(file)["parts"]
    refused = {name: record for name, record in records.items() if record["outcome"] == "refused"}
    lines = [
        f"{len(records) - len(refused)} work, {len(refused)} are refused.",
        "",
        "| backbone | works | tensors filled | left out of the file | strides | parameters | time, of ResNet-50's | "
        "`--config_overrides` |",
        f"|{'---|' * 8}",
    ]
    for name, record in records.items():
        if name in refused:
            continue
        made = f"adapted: {'; '.join(record['adaptations'])}" if record["adaptations"] else "works"
        weights = record.get("weights")
        filled = f"{weights['loaded']} of {weights['expected']}" if weights else "not tried"
        left_out = ", ".join(weights["left_out"]) or "-" if weights else "-"
        time = f"{record['relative_time'][1]:.2f}" if "relative_time" in record else "-"
        numbers = [", ".join(map(str, record["strides"])), millions(record["parameters"]), time]
        flags = f"`{shlex.join(overrides(record['fields']))}`"
        lines.append(f"| {' | '.join([named(name, record), made, filled, left_out, *numbers, flags])} |")
    lines += ["", "| refused | strides | parameters | what the refusal says |", "|---|---|---|---|"]
    for name, record in refused.items():
        strides = ", ".join(map(str, record["strides"] or ["-"]))
        said = record["refusal"].replace("|", r"\|")
        lines.append(f"| {named(name, record)} | {strides} | {millions(record['parameters'])} | {said} |")
    timed = [record for record in records.values() if "relative_time" in record]
    if timed:
        lines += ["", measured_how(timed)]
    return "\n".join(lines)


def overrides(fields: dict[str, Any]) -> list[str]:
    """Fields of a configuration as `--config_overrides` takes them; a dot reaches into nested ones."""
    items = []
    for key, value in fields.items():
        if isinstance(value, dict):
            items += [f"{key}.{item}" for item in overrides(value)]
        else:
            items.append(f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1000).split(chr(10))[0]}")
    return items


def named(name: str, record: dict[str, Any]) -> str:
    """A backbone's name and its library."""
    return f"`{name}` ({record['library']})"


def millions(count: int | None) -> str:
    """A number of parameters in millions, or a dash."""
    return "-" if count is None else f"{count / 1e6:.1f} M"


def measured_how(records: list[dict[str, Any]]) -> str:
    """On what, and in how many rounds, the times of backbones were measured."""
    names = sorted({record["device_name"] for record in records})
    rounds = sorted({record["rounds"] for record in records})
    versions = sorted({f"transformers {record['versions']['transformers']}" for record in records})
    loads = [record["load_average"] for record in records]
    seconds = sorted(record["reference_seconds"][1] for record in records)
    return (
        f"Times are medians of {' to '.join(map(str, rounds[:: max(1, len(rounds) - 1)]))} rounds on "
        f"{', '.join(names)}, one thread, with {', '.join(versions)}; ResNet-50 took {1e3 * seconds[0]:.0f} to "
        f"{1e3 * seconds[-1]:.0f} ms. The machine was shared: its load average was {min(loads):.0f} to "
        f"{max(loads):.0f}."
    )
