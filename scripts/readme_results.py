"""Writes README's results table from the files in `results/`: `python scripts/readme_results.py`."""

from __future__ import annotations

import json
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def results_markdown(folder: Path) -> str:
    """A row per results file: what was evaluated on what, its mIoU and pixel accuracy, and the command."""
    lines = [
        "| results file | dataset, split | images | mIoU | pixel accuracy | command |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(folder.glob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        lines.append(
            f"| [{file.stem}](results/{file.name}) | {results['dataset']}, {results['split']} | {results['images']} | "
            f"{results['mean_iou']:.1f} | {results['overall_accuracy']:.1f} | `{results['command']}` |"
        )
    return "\n".join(lines)


def with_results(readme: str, table: str) -> str:
    """`readme` with `table` between its markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Entry point."""
    file = ROOT / "README.md"
    readme = file.read_text(encoding="utf-8")
    file.write_text(with_results(readme, results_markdown(ROOT / "results")), encoding="utf-8")


if __name__ == "__main__":
    main()
