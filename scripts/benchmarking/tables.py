"""The results file, its tables as text and as Markdown, and its plots."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

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
