"""Writes README's tables from the files in `results/`: `python scripts/readme_results.py`."""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json

from scripts.benchmarking.report import benchmark_markdown


ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
BENCHMARK = "benchmark-"  # how the names of scripts/benchmark.py's files begin; the rest is the device


def number(value: float | None) -> str:
    """One decimal; a dash where there was nothing to measure."""
    return "-" if value is None else f"{value:.1f}"


def results_markdown(folder: Path) -> str:
    """A row per results file: what was evaluated on what, its mIoU and pixel accuracy, and the command."""
    lines = [
        "| results file | dataset, split | images | mIoU | pixel accuracy | command |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(folder.glob("*.json")):
        if file.name.startswith(BENCHMARK):
            continue
        results = json.loads(file.read_text(encoding="utf-8"))
        lines.append(
            f"| [{file.stem}](results/{file.name}) | {results['dataset']}, {results['split']} | {results['images']} | "
            f"{number(results['mean_iou'])} | {number(results['overall_accuracy'])} | `{results['command']}` |"
        )
    return "\n".join(lines)


def with_results(readme: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """`readme` with `table` between its markers."""
    before, rest = readme.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def with_all_tables(readme: str, folder: Path) -> str:
    """`readme` with the results table, and each `benchmark-<device>.json` between the markers that bear its name."""
    readme = with_results(readme, results_markdown(folder))
    for file in sorted(folder.glob(f"{BENCHMARK}*.json")):
        begin, end = f"<!-- {file.stem}:begin -->", f"<!-- {file.stem}:end -->"
        if begin in readme:
            readme = with_results(readme, benchmark_markdown(file), begin, end)
    return readme


def main() -> None:
    """Entry point."""
    file = ROOT / "README.md"
    file.write_text(with_all_tables(file.read_text(encoding="utf-8"), ROOT / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
