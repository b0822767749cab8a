"""What the demo leaves to look at: its report, one HTML file, and README's image."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from scripts.cli.parser import PROJECT_ROOT
from scripts.drawing.page import class_cell, facts_table, figure, row, write_page
from scripts.drawing.sheets import explained_strip, stacked
from scripts.drawing.visualization import colour_map, model_palette
from scripts.error_report.charts import STYLE as BARS_STYLE
from scripts.error_report.charts import class_bars, curve
from scripts.explaining.focus import Look
from scripts.explaining.focus_page import STYLE as FOCUS_STYLE
from scripts.explaining.focus_page import Explained, Model, class_names, segment_block
from scripts.explaining.images import path_sheet
from scripts.explaining.paths import FocusPath
from scripts.storage.digests import sha256


EXAMPLE_SEED = 16
EXAMPLE_SIZE = (296, 394)  # three of them side by side are as wide as README's image
README_IMAGE = "docs/demo.png"
README_IMAGE_SOURCES = (
    "scripts/recipes/demo.yaml",
    "scripts/data/synthetic_scenes.py",
    "scripts/drawing/sheets.py",
    "scripts/error_report/demo_page.py",
    "scripts/explaining/images.py",
)
STYLE = """
.summary { display: flex; flex-wrap: wrap; gap: 1rem 4rem; } .summary > :last-child { flex: 0 1 27rem; }
.summary h3 { margin-top: 0; } .row img { image-rendering: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 1rem; } .key svg { display: inline; width: 30px; }
"""


@dataclass(frozen=True)
class Example:
    """A scene that no split holds: its image, true and predicted label map, and the path of one query's focus.

    Attributes:
        path: None where no query has a mask of its own, as before training.
    """

    image: Image.Image
    truth: np.ndarray
    labels: np.ndarray
    seen: Look
    path: FocusPath | None
    model: Model


def write_report(
    file: Path, facts: dict[str, str], results: dict[str, Any], log: list[dict[str, Any]], example: Example
) -> None:
    """Writes the page.

    Args:
        facts: what stands at the top, name -> text.
        results: of `scripts.evaluation.results.build_results`.
        log: lines of `train_log.jsonl`.
    """
    model, palette = example.model, example.model.palette
    maps = [Image.fromarray(colour_map(labels, palette)) for labels in (example.truth, example.labels)]
    captions = ("image", "truth", "prediction, through pipeline()")
    panels = row(figure(panel, caption) for panel, caption in zip((example.image, *maps), captions, strict=True))
    key = "".join(f"<span>{class_cell(index, name, palette)}</span>" for index, name in model.config.id2label.items())
    losses = [(entry["step"], entry["loss_per_prediction"]) for entry in log if "loss_per_prediction" in entry]
    bars = [(name, row["iou"] or 0.0, f"accuracy {row['accuracy']} %") for name, row in results["per_class"].items()]
    body = f"""<p>A small FASeg, trained from scratch on a stream of generated images and evaluated on others.</p>
<div class="summary"><div>{facts_table(facts)}</div><div><h3>IoU per class, %</h3>{class_bars(bars, "IoU per class")}
</div></div>
<h2>A scene it has never seen</h2>{panels}<p class='legend'>{key}</p>
{focus_section(example, example.path) if example.path else ""}
<h2>Loss by step, mean of the decoder's predictions</h2>{curve(losses, "training loss by step")}"""
    write_page(file, "FASeg demo", body, BARS_STYLE + FOCUS_STYLE + STYLE)


def focus_section(example: Example, path: FocusPath) -> str:
    """Where one query looked, layer by layer, with what that shows of the model."""
    config, name = example.model.config, html.escape(example.model.name(path.segment.label))
    explained = Explained(example.seen, example.labels, [path], class_names(config), model_palette(config))
    return f"""<h2>Where the query behind one {name} looked</h2>
<p>The prediction is put together from queries, each with a class and a mask. A query looks at the image in one decoder
layer after the other, from coarse to fine, and where it looked tells it where to look next (DFPQ); the finest level is
read only in a few windows, those that the queries looked at most (HRCA, blue). Bright: where it looked. White outline:
the mask it has in the end.</p>
{segment_block(example.image, path, explained, example.model, "")}"""


def write_readme_image(file: Path, example: Example) -> None:
    """Image, truth and prediction above a focus path; the file tells which sources drew it."""
    strip = explained_strip(example.image, example.truth, example.labels, example.model.config)
    titles = Image.new("RGB", (strip.width, 24), "white")
    for index, title in enumerate(("image", "truth", "prediction")):
        place = (index * strip.width // 3 + 2, 3)
        ImageDraw.Draw(titles).text(place, title, fill="black", font=ImageFont.load_default(15))
    sheets = [titles, strip]
    if example.path:
        name, levels = example.model.name(example.path.segment.label), example.model.levels
        title = f"where the query behind a {name} looked, layer by layer (blue: HRCA's windows, white: its final mask)"
        width = (strip.width - 8) // levels - 8
        sheets.append(path_sheet(example.image, example.path, example.seen, title, levels, width))
    digest = PngInfo()
    digest.add_text("sources", readme_image_digest(PROJECT_ROOT))
    stacked(sheets).save(file, pnginfo=digest, optimize=True)


def readme_image_digest(root: Path) -> str:
    """Of the sources that decide what README's image shows; it stands in the image's file."""
    return sha256(*(root / name for name in README_IMAGE_SOURCES))


def readme_image_is_stale(root: Path) -> bool:
    """Whether the image of a checkout was not made by its demo, or by the demo before a change of these sources."""
    with Image.open(root / README_IMAGE) as image:
        return image.info.get("sources") != readme_image_digest(root)
