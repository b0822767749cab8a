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


def ablation_markdown(file: Path) -> str:
    """A row per variant of `scripts/ablation.py`: mIoU of each seed, their mean and standard deviation."""
    variants = json.loads(file.read_text(encoding="utf-8"))["variants"]
    lines = ["| decoder | mIoU of each seed | mean | standard deviation |", "|---|---|---|---|"]
    for name, row in variants.items():
        seeds = ", ".join(number(value) for value in row["mean_iou_by_seed"].values())
        lines.append(f"| {name} | {seeds} | {number(row['mean'])} | {number(row['standard_deviation'])} |")
    return "\n".join(lines)


def with_results(readme: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """`readme` with `table` between its markers."""
    before, rest = readme.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def with_all_tables(readme: str, folder: Path) -> str:
    """`readme` with the results table, and each file of a benchmark or an ablation between the markers of its name."""
    readme = with_results(readme, results_markdown(folder))
    tables = {file.stem: benchmark_markdown(file) for file in sorted(folder.glob(f"{BENCHMARK}*.json"))}
    tables |= {
        f"ablation-{file.stem}": ablation_markdown(file) for file in sorted((folder / "ablation").glob("*.json"))
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin in readme:
            readme = with_results(readme, table, begin, end)
    return readme


def main() -> None:
    """Entry point."""
    file = ROOT / "README.md"
    file.write_text(with_all_tables(file.read_text(encoding="utf-8"), ROOT / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
