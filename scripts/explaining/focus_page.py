"""The page of `scripts/explain.py`: what the model predicts, and where the queries behind it looked."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.drawing.charts import CHANCE, EVEN, INSIDE, OTHER, SCORE, Line, layer_chart
from scripts.drawing.page import class_cell, figure, image_tag, overlay_figure, table, with_overlay_choices, write_page
from scripts.drawing.visualization import Palette
from scripts.explaining.focus import Look, layer_names
from scripts.explaining.images import focus_image, step_caption, windows_image
from scripts.explaining.paths import FocusPath
from scripts.inference.segment_maps import SegmentMap
from scripts.models.tasks import SEMANTIC, task_of


IMAGE_WIDTH, STEP_WIDTH = 640, 300
STYLE = """
h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; } h3 { margin: 2rem 0 .3rem; }
.path img { image-rendering: auto; display: block; }
.overview { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)) minmax(9rem, 13rem); gap: 1rem; }
.windows { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; }
.overview figure img, .windows figure img { width: 100%; image-rendering: auto; }
.segment { display: grid; grid-template-columns: minmax(0, 2.4fr) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
.path { display: grid; grid-template-columns: repeat(var(--levels), minmax(0, 1fr)); gap: .6rem; }
.path figure img { width: 100%; } .path figcaption { font-size: .8rem; line-height: 1.35; }
.path figcaption b { color: var(--text); font-weight: 600; }
.heat { display: inline-block; width: 7rem; height: .8rem; vertical-align: -.05rem; border: 1px solid currentColor;
        background: linear-gradient(to right, #2d2d2d, #57106e, #bc3754, #f98e09, #fcffa4); }
.sign { display: inline-block; width: 1.5rem; height: .9rem; vertical-align: -.1rem; background: #2d2d2d;
        border: 3px solid #2d2d2d; box-shadow: inset 0 0 0 2px var(--sign); }
.segment > .chart { position: sticky; top: 1rem; } .stacked > .chart { max-width: 34rem; margin-bottom: 1rem; }
.chart .keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.key svg { vertical-align: .1rem; }
td:not(:first-child), th:not(:first-child) { font-variant-numeric: tabular-nums; } dt { font-weight: 600; }
dd { margin: 0 0 .5rem; }
td { white-space: nowrap; }
@media (max-width: 40rem) { .path { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 60rem) { .segment, .overview, .windows { grid-template-columns: minmax(0, 1fr); } }
"""


@dataclass(frozen=True)
class Explained:
    """One image as one model sees it.

    Args:
        labels: `(H, W)` class ids; of an instance or a panoptic model the ids of its segments, `IGNORE_INDEX` where
            there is none.
        names, palette: of these ids.
        segments: of an instance or a panoptic model.
    """

    seen: Look
    labels: np.ndarray
    paths: list[FocusPath]
    names: Mapping[int, str]
    palette: Palette
    segments: SegmentMap | None = None


@dataclass(frozen=True)
class Model:
    """What the page says of a model; `scores` are those of `FocusCounts` over all images of the page."""

    title: str
    config: Any
    palette: Palette
    scores: dict[str, Any]

    @property
    def reads(self) -> list[str]:
        """What each layer reads."""
        return layer_names(self.config)

    @property
    def levels(self) -> int:
        """Layers to a round."""
        return len(set(self.reads))

    def name(self, label: int) -> str:
        """Of a class."""
        return str(self.config.id2label[label])


def class_names(config: Any) -> dict[int, str]:
    """Class id -> name."""
    return {int(index): str(name) for index, name in config.id2label.items()}


def queries_kind(config: Any) -> str:
    """How the model's queries know where to look."""
    return "dynamic focus (DFPQ)" if config.use_dynamic_positional_queries else "plain learned queries"


# ---- the parts of the page ------------------------------------------------------------------------------------------


def introduction(model: Model, compared: Model | None) -> str:
    """What the page shows and how to read it."""
    config = model.config
    names = list(dict.fromkeys(model.reads))
    levels = ", ".join(name.removesuffix(" HRCA") for name in names)
    dynamic = (
        "After each look the query learns where it looked, and so where to look next: these are the model's dynamic "
        "focus-aware positional queries (DFPQ)."
        if config.use_dynamic_positional_queries
        else "Its queries start every look from the same learned place: this model was made without dynamic "
        "focus-aware positional queries (DFPQ)."
    )
    windows = (
        " The last of a round, HRCA, reads the finest level only in a few square windows, those that all queries "
        "together looked at most at the start of the round."
        if len(names) > 3
        else ""
    )
    second = f" <b>{html.escape(compared.title)}</b> is shown beside it for comparison." if compared else ""
    return f"""<p>The model <b>{html.escape(model.title)}</b> asks {config.num_queries} queries what there is in an
image. Each query looks at the image {config.decoder_layers} times, in one decoder layer after the other, in rounds
over the levels {levels} of the image's size. {dynamic}{windows} In the end each query has a class and a mask, and
the prediction is put together from them. Below, for the largest segments of each image: where the query that decided
it looked.{second}</p>
<h2>How to read it</h2><dl>
<dt><span class="heat"></span> heat</dt><dd>where the query looked, from nowhere to most; each image has its own
maximum.</dd>
<dt><span class="sign" style="--sign:#fff"></span> white outline</dt><dd>the query's final mask, which it has
only after the last layer.</dd>
<dt><span class="sign" style="--sign:#66ccee"></span> blue boxes</dt><dd>the windows that HRCA read, the same
for all queries. A query whose segment lies outside of them has to look elsewhere.</dd>
<dt>82% in the mask (even: 41%)</dt><dd>so much of the look fell into the final mask. &ldquo;Even&rdquo; is what it
would have been, had the query spread its look evenly over all that the layer let it see: a query may look only where
its mask of one layer before is, so that part of a high figure is given. What stands above &ldquo;even&rdquo; is its
own aim.</dd>
<dt>then car 0.93</dt><dd>the class that the query answers after the layer, with its score from 0 to 1;
&ldquo;nothing&rdquo; means that it stands for no segment yet.</dd></dl>"""


def consistency(models: Sequence[Model]) -> str:
    """Focus consistency by layer over all segments of the page's images."""
    first = models[0]
    rows = first.scores["layers"]
    strokes = (INSIDE, OTHER)
    lines = [
        Line(f"in the mask: {model.title}", [row["inside"] for row in model.scores["layers"]], *stroke)
        for model, stroke in zip(models, strokes, strict=False)
    ]
    lines.append(Line(f"if spread evenly: {first.title}", [row["even"] for row in rows], *EVEN))
    lines.append(Line("chance: the masks' share of the images", [row["chance"] for row in rows], *CHANCE))
    longest = max(models, key=lambda model: len(model.reads)).reads
    chart = layer_chart(lines, longest, "focus in the final mask, by layer")
    head = ["layer", "reads"]
    for model in models:
        prefix = f"{html.escape(model.title)}: " if len(models) > 1 else ""
        head += [f"{prefix}in the mask", "even"]
    cells = [
        [
            str(number + 1),
            reads,
            *(
                percent(model.scores["layers"][number][key]) if number < len(model.reads) else "-"
                for model in models
                for key in ("inside", "even")
            ),
        ]
        for number, reads in enumerate(longest)
    ]
    counted = " and ".join(
        f"{(count := model.scores['segments'])} segment{'s' * (count != 1)} of {html.escape(model.title)}"
        for model in models
    )
    return f"""<h2>Do the queries look where their segments are?</h2>
<p>The share of each layer's look that falls into the query's final mask, as a mean over {counted} in
{first.scores["images"]} image{"s" if first.scores["images"] > 1 else ""}: the focus consistency. The grey ground
marks HRCA's layers, which count by what they look at in their windows.</p>
<div class="{"segment" if len(models) == 1 else "stacked"}">{chart}{table(cells, head)}</div>"""


def percent(value: float | None) -> str:
    """A share in 0..1 as text."""
    return "-" if value is None else f"{value:.0%}"


def segment_block(image: Image.Image, path: FocusPath, explained: Explained, model: Model, title: str) -> str:
    """One path: its images in rounds, and its chart."""
    segment = path.segment
    images = []
    for step in path.steps:
        layer, looked, answer = step_caption(step)
        panel = focus_image(image, step, segment.mask, explained.seen, STEP_WIDTH)
        caption = f"<b>{html.escape(layer)}</b><br>{html.escape(looked)}<br>{html.escape(answer)}"
        tag = image_tag(panel, f"{model.name(segment.label)}, {layer}", lossless=False)
        images.append(f"<figure>{tag}<figcaption>{caption}</figcaption></figure>")
    name = model.name(segment.label)
    lines = [
        Line("of the look in the final mask", [step.inside for step in path.steps], *INSIDE),
        Line("if spread evenly", [step.even for step in path.steps], *EVEN),
        Line("chance: the mask's share of the image", [step.chance for step in path.steps], *CHANCE),
        Line(f"score of {name} after the layer", [step.score for step in path.steps], *SCORE),
    ]
    chart = layer_chart(lines, model.reads, f"focus and score of {name}, by layer")
    facts = (
        f"query {segment.query} decides {segment.area:.1%} of the image as {html.escape(name)}, "
        f"with a class score of {segment.score:.2f}"
    )
    return (
        f"<p class='quiet'>{html.escape(title)}{facts}</p><div class='segment'>"
        f"<div class='path' style='--levels:{model.levels}'>{''.join(images)}</div>{chart}</div>"
    )


def resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class ids at `size` (width, height)."""
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def overview(image: Image.Image, explained: Explained, model: Model) -> str:
    """The image, the prediction with its legend, and the windows of each round."""
    shown = image.convert("RGB")
    shown.thumbnail((2 * IMAGE_WIDTH, 2 * IMAGE_WIDTH))
    labels = resized(explained.labels, shown.size)
    ids, counts = np.unique(explained.labels, return_counts=True)
    order = np.argsort(-counts)
    legend = "".join(
        f"<div>{class_cell(int(ids[place]), explained.names[int(ids[place])], explained.palette)} "
        f"<span class='quiet'>{counts[place] / explained.labels.size:.1%}</span></div>"
        for place in order
        if ids[place] in explained.names
    )
    parts = [
        f"<div class='overview'>{figure(shown, 'image', lossless=False)}"
        f"{overlay_figure(shown, labels, 'prediction', explained.palette)}"
        f"<div class='legend'>{legend}</div></div>"
    ]
    steps = explained.paths[0].steps if explained.paths else []
    read = [step for step in steps if "HRCA" in step.reads]
    if any(step.windows for step in read):
        windows = (
            figure(
                windows_image(image, step, explained.seen, IMAGE_WIDTH),
                f"layer {step.number}: {len(step.windows)} window{'s' if len(step.windows) > 1 else ''}",
                lossless=False,
            )
            for step in read
        )
        parts.append(f"<h3>What HRCA read of the finest level</h3><div class='windows'>{''.join(windows)}</div>")
    elif read:
        parts.append(
            "<p>HRCA kept no window: the image is too small for this model's "
            f"high_resolution_reduction of {model.config.high_resolution_reduction}.</p>"
        )
    return "".join(parts)


def write_focus_page(file: Path, models: Sequence[Model], images: Sequence[str]) -> None:
    """Writes the page.

    Args:
        models: the model, and perhaps the one it is compared with.
        images: HTML of each, of `image_section`.
    """
    first, second = models[0], models[1] if len(models) > 1 else None
    are_classes = task_of(first.config) == SEMANTIC
    overlays = with_overlay_choices("".join(images), class_names(first.config) if are_classes else None)
    body = introduction(first, second) + consistency(models) + overlays
    write_page(file, "Where the model looks", body, STYLE)


def image_section(
    title: str,
    image: Image.Image,
    explained: Explained,
    model: Model,
    other: tuple[Explained, Model, list[FocusPath | None]] | None = None,
) -> str:
    """Everything about one image.

    Args:
        other: of the model to compare with, what it sees in the image, and its path for each of `explained.paths`.
    """
    parts = [f"<h2>{html.escape(title)}</h2>", overview(image, explained, model)]
    if other:
        theirs, their_model, _ = other
        small = image.convert("RGB")
        small.thumbnail((2 * IMAGE_WIDTH, 2 * IMAGE_WIDTH))
        labels = resized(theirs.labels, small.size)
        shown = overlay_figure(small, labels, f"prediction of {their_model.title}", theirs.palette)
        parts.append(f"<h3>The other model's prediction</h3><div class='overview'>{shown}</div>")
    for number, path in enumerate(explained.paths):
        label = path.segment.label
        parts.append(f"<h3>{class_cell(label, model.name(label), model.palette)}</h3>")
        prefix = f"{model.title}: " if other else ""
        parts.append(segment_block(image, path, explained, model, prefix))
        if other:
            theirs, their_model, counterparts = other
            their_path = counterparts[number]
            if their_path is None:
                parts.append(f"<p class='quiet'>{html.escape(their_model.title)} found no such segment here.</p>")
            else:
                parts.append(segment_block(image, their_path, theirs, their_model, f"{their_model.title}: "))
    if not explained.paths:
        parts.append("<p>No query has a mask of its own here: there is no segment to follow.</p>")
    return "".join(parts)
