"""The records of `benchmark.py --engines` as text and as Markdown."""

from __future__ import annotations

from typing import Any


def engine_rows(record: dict[str, Any]) -> list[list[str]]:
    """A heading, and a row per contestant: time, speed, labels; mIoU where it was measured."""
    scored = any("mean_iou" in row for row in record["contestants"].values())
    heads = [
        "engine, form",
        "ms: median (quartiles)",
        "speed",
        "equal labels, least of an image",
        "decisions turned",
        "file, MB",
    ]
    rows = [[*heads, "mIoU"] if scored else heads]
    for name, row in record["contestants"].items():
        low, median, high = (f"{1e3 * value:.0f}" for value in row["seconds"])
        turned = equal = "-"
        if "equal_labels" in row:
            equal = f"{100 * row['equal_labels']:.3f} %"
        if "decisions" in row:
            turned = f"{row['turned']} of {row['decisions']:,}"
            if not row["within_tolerance"]:
                turned += ", OUT OF TOLERANCE"
        size = f"{row['file_bytes'] / 1e6:.1f}" if "file_bytes" in row else "-"
        score = [f"{row['mean_iou']:.2f}" if "mean_iou" in row else "-"] if scored else []
        rows.append([name, f"{median} ({low}-{high})", f"{row['speedup'][1]:.2f}x", equal, turned, size, *score])
    return rows


def engines_table(record: dict[str, Any]) -> str:
    """The record as text."""
    rows = engine_rows(record)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([f"{described(record)}:", *lines])


def described(record: dict[str, Any]) -> str:
    """What was measured, and under what circumstances."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    labels = f"labels compared on {record['compared_on']}; " if record["compared_on"] else ""
    if record.get("calibrated_on"):
        labels += f"ranges of 8 bits from {record['calibrated_on']}; "
    measured = (
        f"{record['threads']} thread(s), {record['rounds']} rounds in turns, load average {record['load_average']:g}"
    )
    return f"{record['title']}; {labels}{measured}; {versions}"


def engines_markdown(parts: dict[str, dict[str, Any]]) -> str:
    """A table of all records, for the docs."""
    lines = []
    for record in parts.values():
        head, *rows = engine_rows(record)
        lines += [f"{described(record)}:", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines).rstrip()
