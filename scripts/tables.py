"""Writes the tables of README.md, docs/*.md and hub_cards/README.md from `results/` and `hub_cards/`.

`python scripts/tables.py` writes the pages; `--check` writes nothing and exits with 1 where a page is not what it
would write: after a change of results or cards, or of a figure by hand. A table stands between the comments
`<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.benchmarking.engine_tables import engines_markdown
from scripts.benchmarking.tables import backbones_markdown, benchmark_markdown, read_parts
from scripts.cli.errors import UserError
from scripts.cli.parser import IS_CHECKOUT, flag, parse_arguments, run_command
from scripts.models.tasks import SEMANTIC
from scripts.sharing.card_facts import read_card, read_published
from scripts.sharing.cards import NOT_MEASURED
from scripts.sharing.papers import PAPERS
from scripts.sharing.results_files import PER_CLASS, task_of_results
from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import read_json


ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"<!-- (?P<name>[\w-]+):begin -->.*?<!-- (?P=name):end -->", re.DOTALL)
# How the names of scripts/benchmark.py's files begin; the rest is the device.
BENCHMARK, BACKBONES, ENGINES = MEASURED = ("benchmark-", "backbones-", "engines-")


def number(value: float | None) -> str:
    """One decimal; a dash where there was nothing to measure."""
    return "-" if value is None else f"{value:.1f}"


def markdown(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table under the titles `head`."""
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Model id -> what `scripts/eval.py` measured of it."""
    files = [file for file in sorted(folder.glob("*.json")) if not file.name.startswith(MEASURED)]
    return {file.stem: read_json(file, kinds={}) for file in files}


def claim_markdown(folder: Path) -> str:
    """README's first sentence, with the figures that it claims."""
    mean_iou = number(read_results(folder)["faseg-mobilenetv2-camvid"]["mean_iou"])
    benchmark = read_parts(folder / f"{BENCHMARK}cpu.json")
    speed_up = benchmark["parts"]["resnet50-512"]["contestants"]["FASeg"]["speedup"][1]
    return textwrap.fill(
        "Train, check and share models that label every pixel of your images, with Transformers' own calls: "
        f"[FASeg](https://arxiv.org/abs/2204.01244) (CVPR 2023) reaches **{mean_iou} mIoU on CamVid's validation "
        "images after 35 minutes of training on two CPU cores** from an ImageNet backbone, and on a CPU makes the "
        f"label map of an image of 512x512 **{speed_up:.2f} times as fast as Transformers' Mask2Former** with "
        "the same ResNet-50.",
        width=119,
        break_on_hyphens=False,
    )


def summary_markdown(cards: Path, results: Path, root: str) -> str:
    """README's ten rows at most: the models that were measured here, then FASeg's released ones.

    Args:
        root: what stands before a path of the project in the addresses of the page.
    """
    measured, everything = read_results(results), read_published(cards / "published.yaml")
    published = {name: everything[name] for name in sorted(everything) if name.startswith("faseg-")}
    rows = []
    shown = [name for name in measured if (cards / name).is_dir()]
    for model_id in [*shown, *(name for name in published if name not in shown)][:10]:
        facts = read_card(cards / model_id / "card.yaml")
        figures = [measured.get(model_id, {}).get("mean_iou"), published.get(model_id, {}).get("mean_iou")]
        model = f"[{model_id}]({root}hub_cards/{model_id})"
        data, recipe = "{name} {split}".format(**facts.dataset), f"[recipe]({root}scripts/recipes/{model_id}.yaml)"
        rows.append([model, data, *map(number, figures), recipe])
    return markdown(["model", "data", "mIoU measured here", "mIoU published", "recipe"], rows)


def results_markdown(folder: Path, root: str) -> str:
    """A row per results file: what was evaluated on what, and its main figures; below, the commands."""
    measured = read_results(folder)
    titles = {"mean_iou": "mIoU", "overall_accuracy": "pixel accuracy"}
    of_segments = {"panoptic_quality": "PQ", "average_precision": "AP"}
    titles |= {key: title for key, title in of_segments.items() if any(key in found for found in measured.values())}
    rows = []
    for name, results in measured.items():
        figures = [number(results.get(key)) for key in titles]
        data = f"{results['dataset']}, {results['split']}"
        rows.append([f"[{name}]({root}results/{name}.json)", data, results["images"], *figures])
    table = markdown(["results file", "dataset, split", "images", *titles.values()], rows)
    commands = [
        results["command"].replace(" --dataset_name", " \\\n    --dataset_name") for results in measured.values()
    ]
    return "\n".join([table, "", "```bash", *commands, "```"])


def ablation_markdown(file: Path) -> str:
    """A row per variant of `scripts/ablation.py`: mIoU of each seed, mean and standard deviation, steps and time."""
    variants = read_json(file, kinds={"variants": dict[str, dict[str, Any]]}, needed=["variants"])["variants"]
    rows = []
    for name, row in variants.items():
        seeds = ", ".join(number(value) for value in row["mean_iou_by_seed"].values())
        times = [row.get("steps", "-"), number(row.get("processor_minutes"))]
        rows.append([name, seeds, number(row["mean"]), number(row["standard_deviation"]), *times])
    head = ["decoder", "mIoU of each seed", "mean", "standard deviation", "steps", "processor minutes"]
    if not any("steps" in row for row in variants.values()):  # an older file
        head, rows = head[:-2], [row[:-2] for row in rows]
    return markdown(head, rows)


def lens_markdown(rows: list[dict[str, Any]]) -> str:
    """A row per habit of reading the same weights."""
    return markdown(["read", "mIoU"], ([row["habit"], number(row["detectron2"])] for row in rows))


def classes_markdown(results: dict[str, Any]) -> str:
    """A row per class of an instance or a panoptic model, and one of all."""
    titles = PER_CLASS[task_of_results(results)]
    rows = [[label, *(number(row.get(key)) for key in titles)] for label, row in results["per_class"].items()]
    return markdown(["class", *titles.values()], [*rows, ["all", *(number(results.get(key)) for key in titles)]])


def focus_markdown(consistency: dict[str, Any]) -> str:
    """A row per decoder layer: how much of the queries' look falls into their final masks."""
    rows = (
        [row["layer"], row["reads"], *(number(row[name]) for name in ("inside", "even", "chance"))]
        for row in consistency["layers"]
    )
    return markdown(["layer", "reads", "inside, %", "evenly, %", "chance, %"], rows)


def models_markdown(cards: Path, results: Path, link: str) -> str:
    """A row per model id: published figures, as published, and measured ones from the results file of its name.

    Args:
        link: what stands before a model id in the address of its folder.
    """
    head = ["model", "backbone", "data", "parameters", "mIoU published, single / multi-scale", "mIoU measured"]
    rows = []
    all_measured, all_published = read_results(results), read_published(cards / "published.yaml")
    for file in sorted(cards.glob("*/card.yaml")):
        model_id, facts = file.parent.name, read_card(file)
        published = all_published.get(model_id, {})
        measured = all_measured.get(model_id, {})
        counted = f"{measured['parameters'] / 1e6:.1f} M" if measured.get("parameters") else "-"
        parameters = f"{published['parameters_millions']} M" if published.get("parameters_millions") else counted
        figures = " / ".join(number(published.get(key)) for key in ("mean_iou", "mean_iou_multi_scale"))
        found = number(measured["mean_iou"]) if measured.get("mean_iou") is not None else NOT_MEASURED
        model = f"[{model_id}]({link}{model_id})"
        cells = [facts.backbone, facts.dataset["name"], parameters, figures if published else "-", found]
        rows.append([model, *cells, facts.licence])
    return markdown([*head, "licence of the weights"], rows)


def catalogue_markdown(cards: Path, results: Path) -> str:
    """The whole of hub_cards/README.md."""
    sources = ", ".join(f"[{paper.family}]({paper.source})" for paper in PAPERS)
    return f"""# Models

Written by `python scripts/tables.py`; edit `<model id>/card.yaml`, `published.yaml` or the results instead.

{models_markdown(cards, results, "")}

"Published" are the authors' figures for their own weights ({sources}), not reproduced
here. "Measured" is the mean IoU in `results/<model id>.json`, single scale, which names the weights, protocol and
command; "{NOT_MEASURED}" means that there is no such file.

Each folder holds `config.json` and `preprocessor_config.json` (`AutoConfig.from_pretrained("hub_cards/<model id>")`
builds the architecture) and `card.yaml`, the facts of its model card. `scripts/export_hub.py --model_id <model id>`
makes a repository for the Hub of them and a checkpoint, with a card after `template.md`; `--card FILE` does so for a
model of your own.
"""


def all_tables(root: Path, up: str) -> dict[str, str]:
    """Name -> table, of all that the files of a checkout hold.

    Args:
        up: what stands before a path of the project in the addresses of the page: "" for README.md, "../" for docs/.
    """
    cards, results = root / "hub_cards", root / "results"
    tables = {
        "claim": claim_markdown(results),
        "summary": summary_markdown(cards, results, up),
        "results": results_markdown(results, up),
        "models": models_markdown(cards, results, f"{up}hub_cards/"),
    }
    tables |= {file.stem: benchmark_markdown(file) for file in results.glob(f"{BENCHMARK}*.json")}
    tables |= {file.stem: engines_markdown(read_parts(file)["parts"]) for file in results.glob(f"{ENGINES}*.json")}
    tables |= {file.stem: backbones_markdown(file) for file in results.glob(f"{BACKBONES}*.json")}
    tables |= {f"ablation-{file.stem}": ablation_markdown(file) for file in (results / "ablation").glob("*.json")}
    for name, measured in read_results(results).items():
        if task_of_results(measured) != SEMANTIC:
            tables[f"classes-{name}"] = classes_markdown(measured)
        if rows := measured.get("protocol_lens"):
            tables[f"lens-{name}"] = lens_markdown(rows)
        if consistency := measured.get("focus_consistency"):
            tables[f"focus-{name}"] = focus_markdown(consistency)
    return tables


def with_tables(page: str, tables: dict[str, str]) -> str:
    """`page` with the tables that it has markers for.

    Raises:
        UserError: a marker of no table.
    """

    def filled(marked: re.Match[str]) -> str:
        name = marked["name"]
        if name not in tables:
            raise UserError(f"<!-- {name}:begin -->: no such table; there are {', '.join(tables)}")
        return f"<!-- {name}:begin -->\n{tables[name]}\n<!-- {name}:end -->"

    return MARKED.sub(filled, page)


def generated_pages(root: Path) -> dict[Path, str]:
    """What the pages of a checkout should hold."""
    docs, from_docs = sorted((root / "docs").glob("*.md")), all_tables(root, "../")
    tables = {root / "README.md": all_tables(root, ""), **dict.fromkeys(docs, from_docs)}
    wanted = {file: with_tables(file.read_text(encoding="utf-8"), held) for file, held in tables.items()}
    return {**wanted, root / "hub_cards" / "README.md": catalogue_markdown(root / "hub_cards", root / "results")}


def stale_lines(file: Path, wanted: str) -> list[str]:
    """Lines that a page has and should not, and the other way round."""
    found = file.read_text(encoding="utf-8") if file.is_file() else ""
    changes = difflib.unified_diff(found.splitlines(), wanted.splitlines(), lineterm="", n=0)
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


@dataclass
class TablesArguments:
    """Write the tables of README.md, docs/*.md and hub_cards/README.md from results/ and hub_cards/."""

    check: bool = flag(False, "Write nothing; leave with exit code 1 if a page or README's image is not up to date.")


def main() -> int:
    arguments = parse_arguments(TablesArguments)
    if not IS_CHECKOUT:
        raise UserError("README.md, docs/ and results/ are in a checkout alone: run python scripts/tables.py there")
    from scripts.error_report.demo_page import README_IMAGE, readme_image_is_stale

    code = 0
    for file, wanted in generated_pages(ROOT).items():
        if not arguments.check:
            with atomic_file(file) as partial:
                partial.write_text(wanted, encoding="utf-8")
        elif lines := stale_lines(file, wanted):
            name = file.relative_to(ROOT).as_posix()
            print(f"{name} is not what results/ and hub_cards/ say: run python scripts/tables.py", *lines, sep="\n")
            code = 1
    if arguments.check and readme_image_is_stale(ROOT):
        print(f"{README_IMAGE} is not of this demo: run python scripts/demo.py --readme_image {README_IMAGE}")
        code = 1
    return code


if __name__ == "__main__":
    run_command(main)
