"""Writes README's tables and the catalogue of models from `results/` and `hub_cards/`.

`python scripts/readme_results.py` writes README.md and hub_cards/README.md; `--check` writes nothing and exits with 1
where one of them is not what it would write, after a change of results or cards, or a figure edited by hand, and where
README's image was made by another demo than this one.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
import json
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarking.report import benchmark_markdown
from scripts.cli.parser import parse_arguments, run_command
from scripts.error_report.demo_page import README_IMAGE, readme_image_is_stale
from scripts.sharing.cards import NOT_MEASURED, published_figures, read_card
from scripts.sharing.papers import PAPERS


ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MODELS = "<!-- models:begin -->", "<!-- models:end -->"
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


def lens_markdown(rows: list[dict[str, Any]]) -> str:
    """A row per habit of reading the same weights."""
    lines = ["| read | mIoU |", "|---|---|"]
    return "\n".join([*lines, *(f"| {row['habit']} | {number(row['detectron2'])} |" for row in rows)])


def focus_markdown(consistency: dict[str, Any]) -> str:
    """A row per decoder layer: how much of the queries' look falls into their final masks."""
    lines = ["| layer | reads | inside, % | evenly, % | chance, % |", "|---|---|---|---|---|"]
    for row in consistency["layers"]:
        figures = " | ".join(number(row[name]) for name in ("inside", "even", "chance"))
        lines.append(f"| {row['layer']} | {row['reads']} | {figures} |")
    return "\n".join(lines)


def details_markdown(folder: Path) -> dict[str, str]:
    """Name of the table -> table, of what some results files hold beside their row."""
    tables = {}
    for file in sorted(folder.glob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        if rows := results.get("protocol_lens"):
            tables[f"lens-{file.stem}"] = lens_markdown(rows)
        if consistency := results.get("focus_consistency"):
            tables[f"focus-{file.stem}"] = focus_markdown(consistency)
    return tables


def models_markdown(cards: Path, results: Path, link: str) -> str:
    """A row per model id: published figures, as published, and measured ones from the results file of its name.

    Args:
        link: what stands before a model id in the address of its folder.
    """
    lines = [
        "| model | backbone | data | parameters | mIoU published, single / multi-scale | mIoU measured | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in sorted(cards.glob("*/card.yaml")):
        model_id, facts = file.parent.name, read_card(file)
        published = published_figures(model_id, cards / "published.yaml")
        measured_file = results / f"{model_id}.json"
        measured = json.loads(measured_file.read_text(encoding="utf-8")) if measured_file.is_file() else {}
        counted = f"{measured['parameters'] / 1e6:.1f} M" if measured.get("parameters") else "-"
        parameters = f"{published['parameters_millions']} M" if published.get("parameters_millions") else counted
        figures = [number(published.get(key)) for key in ("mean_iou", "mean_iou_multi_scale")]
        lines.append(
            f"| [{model_id}]({link}{model_id}) | {facts.backbone} | {facts.dataset['name']} | {parameters} | "
            f"{' / '.join(figures) if published else '-'} | "
            f"{number(measured['mean_iou']) if measured.get('mean_iou') is not None else NOT_MEASURED} | "
            f"{facts.license} |"
        )
    return "\n".join(lines)


def catalogue_markdown(cards: Path, results: Path) -> str:
    """The whole of hub_cards/README.md."""
    sources = ", ".join(f"[{paper.family}]({paper.source})" for paper in PAPERS)
    return f"""# Models

Written by `python scripts/readme_results.py`; edit `<model id>/card.yaml`, `published.yaml` or the results instead.

{models_markdown(cards, results, "")}

"Published" are the authors' figures for their own weights ({sources}), not reproduced
here. "Measured" is the mean IoU in `results/<model id>.json`, single scale, which names the weights, protocol and
command; "{NOT_MEASURED}" means that there is no such file.

Each folder holds `config.json` and `preprocessor_config.json` (`AutoConfig.from_pretrained("hub_cards/<model id>")`
builds the architecture) and `card.yaml`, the facts of its model card. `scripts/export_hub.py --model_id <model id>`
makes a repository for the Hub of them and a checkpoint, with a card after `template.md`; `--card FILE` does so for a
model of your own.
"""


def with_results(readme: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """`readme` with `table` between its markers."""
    before, rest = readme.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def with_all_tables(readme: str, folder: Path, cards: Path = ROOT / "hub_cards") -> str:
    """`readme` with the tables of results and models, and those of benchmarks and ablations, between their markers."""
    readme = with_results(readme, results_markdown(folder))
    if MODELS[0] in readme:
        readme = with_results(readme, models_markdown(cards, folder, "hub_cards/"), *MODELS)
    tables = {file.stem: benchmark_markdown(file) for file in sorted(folder.glob(f"{BENCHMARK}*.json"))}
    tables |= {
        f"ablation-{file.stem}": ablation_markdown(file) for file in sorted((folder / "ablation").glob("*.json"))
    }
    tables |= details_markdown(folder)
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin in readme:
            readme = with_results(readme, table, begin, end)
    return readme


def generated_pages(root: Path) -> dict[Path, str]:
    """What README.md and hub_cards/README.md of a checkout should hold."""
    readme, cards, results = root / "README.md", root / "hub_cards", root / "results"
    return {
        readme: with_all_tables(readme.read_text(encoding="utf-8"), results, cards),
        cards / "README.md": catalogue_markdown(cards, results),
    }


def stale_lines(file: Path, wanted: str) -> list[str]:
    """Lines that a page has and should not, and the other way round."""
    found = file.read_text(encoding="utf-8") if file.is_file() else ""
    changes = difflib.unified_diff(found.splitlines(), wanted.splitlines(), lineterm="", n=0)
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


@dataclass
class ReadmeArguments:
    """Write the tables of README.md and hub_cards/README.md."""

    check: bool = field(default=False, metadata={"help": "Write nothing; exit with 1 where a page is stale."})


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(ReadmeArguments)
    code = 0
    for file, wanted in generated_pages(ROOT).items():
        if not arguments.check:
            file.write_text(wanted, encoding="utf-8")
        elif lines := stale_lines(file, wanted):
            name = file.relative_to(ROOT).as_posix()
            print(
                f"{name} is not what results/ and hub_cards/ say: run python scripts/readme_results.py",
                *lines,
                sep="\n",
            )
            code = 1
    if arguments.check and readme_image_is_stale(ROOT):
        print(f"{README_IMAGE} is not of this demo: run python scripts/demo.py --readme_image {README_IMAGE}")
        code = 1
    return code


if __name__ == "__main__":
    run_command(main)
