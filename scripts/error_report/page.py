"""The error report as one HTML page, from what was counted."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.drawing.page import class_cell, facts_table, figure, html_page, row, table
from scripts.drawing.visualization import Palette, label_image
from scripts.error_report.charts import STYLE as CHARTS_STYLE
from scripts.error_report.charts import class_bars, columns, reliability
from scripts.error_report.confusion import STYLE as MATRIX_STYLE
from scripts.error_report.confusion import csv_link, largest_confusions, largest_table, matrix, shown_classes
from scripts.error_report.counts import CONFIDENCE_BINS, DISTANCES, Calibration, SizeGroup, shares
from scripts.error_report.images import RankedImage


BARS_IN_ONE_COLUMN = 30  # more go into two
FEW = 12
WEAKEST = 3  # classes named as the weakest; of no more classes than that, none is
LEGEND_CLASSES = 14
ABOUT = 0.01
NEAR = 4  # pixels from a boundary, in the summary

STYLE = f"""{CHARTS_STYLE}{MATRIX_STYLE}
.bars {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem;
         align-items: start; }}
.chart {{ max-width: 48rem; }} .narrow {{ max-width: 24rem; }} h2 {{ margin-top: 2.5rem; }}
.keys span.key {{ display: inline-block; max-width: 100%; margin-right: 1rem; }} summary {{ cursor: pointer; }}
"""


@dataclass
class Findings:
    """Everything that the page shows.

    Args:
        results: of `results.build_results`.
        confusion: `(K, K + 1)`, see `evaluate_split`.
        distances: `(2, bands)`, see `DistanceCounts`.
        softmax: whether the model's probabilities are a softmax of its scores, see `inference/predictors.py`.
        worst, best: images, worst and best first.
    """

    results: dict[str, Any]
    names: list[str]
    palette: Palette
    confusion: np.ndarray
    distances: np.ndarray
    sizes: list[SizeGroup]
    calibration: Calibration
    softmax: bool
    worst: list[RankedImage]
    best: list[RankedImage]

    def class_cell(self, index: int) -> str:
        """A class's swatch and name."""
        return class_cell(index, self.names[index], self.palette)


def percent(share: float) -> str:
    """A share in 0..1 as text."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A percentage of a results file as text."""
    return "-" if value is None else f"{value:.1f} %"


def report_html(found: Findings) -> str:
    """The whole page."""
    results = found.results
    sections = [
        summary(found),
        section("classes", "IoU of each class", classes(found)),
        section("confusion", "What is taken for what", confusion(found)),
        section("distance", "How far from a boundary the errors are", distance(found)),
        section("size", "How large the missed segments are", sizes(found)),
        section("calibration", "Is the model as sure as it is right?", calibration(found.calibration, found.softmax)),
        section("worst", "Worst images", images(found, found.worst)),
        section("best", "Best images", images(found, found.best)),
        section("measured", "How this was measured", facts_table(measured(results))),
    ]
    return html_page(f"What {results['checkpoint']} gets wrong", "\n".join(sections), STYLE)


def section(anchor: str, heading: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{html.escape(heading)}</h2>\n{body}</section>'


def paragraph(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The figures of a chart, folded away; cells are HTML."""
    return f"<details><summary>the same as a table</summary>{table(rows, head)}</details>"


def charted(words: str, chart: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "chart") -> str:
    return f'{paragraph(words)}<div class="{kind}">{chart}</div>{as_table(head, rows)}'


# ---- the parts of the page ------------------------------------------------------------------------------------------


def summary(found: Findings) -> str:
    """What the rest of the page says, in a few lines."""
    results, names = found.results, found.names
    interval = results.get("interval", {})
    known = [(values["iou"], name) for name, values in results["per_class"].items() if values["iou"] is not None]
    few = len(known) <= WEAKEST
    weakest = ", ".join(f"{name} {iou:.1f} %" for iou, name in sorted(known)[:WEAKEST])
    spread = ""
    if interval.get("low") is not None:
        ends = f"{number(interval['low'])} to {number(interval['high'])}"
        spread = f" ({100 * interval['confidence']:.0f} % interval over other draws of images: {ends})"
    lines = [
        f"mean IoU {number(results['mean_iou'])}{spread}, {number(results['overall_accuracy'])} of the pixels right",
        f"{'IoU of the classes' if few else 'weakest classes by IoU'}: {weakest or '-'}",
    ]
    if pairs := largest_confusions(found.confusion, 1):
        (pair,) = pairs
        lines.append(
            f"largest confusion: {percent(pair.share_of_class)} of {names[pair.truth]} is taken for "
            f"{names[pair.prediction]}, which makes {percent(pair.share_of_errors)} of all wrong pixels"
        )
    pixels, wrong = found.distances
    near = DISTANCES.index(NEAR) + 1
    if wrong.any():
        lines.append(
            f"{percent(wrong[:near].sum() / wrong.sum())} of the wrong pixels lie at most {NEAR} px from a boundary, "
            f"where {percent(pixels[:near].sum() / pixels.sum())} of all pixels lie"
        )
    lines.append(sureness(found.calibration))
    dataset, split, images = results["dataset"], results["split"], results["images"]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    intro = f"Semantic segmentation of {images} images of {dataset}, split {split}, against their label maps."
    return f"{paragraph(intro)}<ul>{items}</ul>"


def sureness(found: Calibration) -> str:
    """Whether confidence is too high or too low, in a sentence."""
    if not found.pixels.any():
        return "no pixel of the truth has a class"
    gap = found.mean_confidence - found.mean_accuracy
    error = found.expected_calibration_error
    verdict = "too sure" if gap > 0 else "not sure enough"
    if abs(gap) < ABOUT:
        everywhere = error < 2 * ABOUT
        verdict = "about as sure as it is right" + ("" if everywhere else " on average, but not at each confidence")
    return (
        f"the model is {verdict}: {percent(found.mean_confidence)} sure on average, {percent(found.mean_accuracy)} "
        f"right; expected calibration error {100 * error:.1f} points"
    )


def classes(found: Findings) -> str:
    """Bars from the weakest class to the strongest, and all figures of each class."""
    per_class = found.results["per_class"]
    pixels = found.confusion.sum(axis=1)
    total = max(int(pixels.sum()), 1)
    order = sorted(
        (index for index, name in enumerate(found.names) if per_class[name]["iou"] is not None),
        key=lambda index: (per_class[found.names[index]]["iou"], index),
    )
    bars = []
    for index in order:
        name, iou = found.names[index], per_class[found.names[index]]["iou"]
        bars.append((name, iou, f"{name}: IoU {iou:.2f} %, {percent(pixels[index] / total)} of the pixels"))
    charts = []
    length = len(bars) if len(bars) <= BARS_IN_ONE_COLUMN else -(-len(bars) // 2)
    for start in range(0, len(bars), max(length, 1)):
        part = bars[start : start + length]
        label = f"IoU in per cent, from {part[0][0]} {part[0][1]:.1f} to {part[-1][0]} {part[-1][1]:.1f}"
        charts.append(class_bars(part, label))
    keys = {"iou": "IoU, %", "accuracy": "pixels found, %", "boundary_iou": "boundary IoU, %"}
    keys = {key: text for key, text in keys.items() if all(key in values for values in per_class.values())}
    rows = []
    for index, name in enumerate(found.names):
        figures = [per_class[name][key] for key in keys]
        texts = ["-" if value is None else f"{value:.2f}" for value in figures]
        rows.append([found.class_cell(index), *texts, f"{100 * pixels[index] / total:.2f}"])
    absent = [name for index, name in enumerate(found.names) if not pixels[index]]
    words = "Intersection over union of prediction and truth, over all images, in per cent; weakest classes first."
    note = paragraph(f"Without a pixel in the truth, so in no mean: {', '.join(absent)}.") if absent else ""
    if len(absent) > FEW:
        note = f"<details><summary>{len(absent)} classes have no pixel in the truth</summary>{note}</details>"
    return (
        f'{paragraph(words)}<div class="bars">{"".join(charts)}</div>{note}'
        f"{as_table(['class', *keys.values(), 'share of the truth, %'], rows)}"
    )


def confusion(found: Findings) -> str:
    """The matrix, its largest entries, and all of it to take away."""
    cells = [found.class_cell(index) for index in range(len(found.names))]
    shown = shown_classes(found.confusion)
    present = int((found.confusion.sum(axis=1) + found.confusion.sum(axis=0)[: len(found.names)] > 0).sum())
    part = f"The {len(shown)} of {present} classes with the most wrong pixels." if len(shown) < present else ""
    pairs = largest_confusions(found.confusion)
    largest = largest_table(pairs, cells) if pairs else paragraph("No pixel is wrong.")
    return (
        f"{paragraph(part) if part else ''}{matrix(found.confusion, found.names)}"
        f"<h3>Largest confusions</h3>{largest}<p>{csv_link(found.confusion, found.names)}</p>"
    )


def distance_bands() -> list[str]:
    """The bands of `DistanceCounts` as text."""
    starts = [1, *(last + 1 for last in DISTANCES)]
    bands = [str(last) if first == last else f"{first}-{last}" for first, last in zip(starts, DISTANCES)]
    return [*bands, f"over {DISTANCES[-1]}"]


def distance(found: Findings) -> str:
    pixels, wrong = found.distances
    rates, of_errors, of_pixels = shares(wrong, pixels), wrong / max(wrong.sum(), 1), pixels / max(pixels.sum(), 1)
    items, rows = [], []
    for band, rate, error_share, pixel_share in zip(distance_bands(), rates, of_errors, of_pixels, strict=True):
        title = f"{band} px from a boundary: {percent(rate)} wrong, {percent(error_share)} of all wrong pixels"
        items.append((f"{band} px", f"({percent(error_share)})", 100 * rate, title))
        rows.append((f"{band} px", *(percent(share) for share in (rate, error_share, pixel_share))))
    words = (
        "Of the pixels at each distance from the nearest pixel of another label of the truth, how many are wrong "
        "(columns, in %), and in brackets their share of all wrong pixels. Ignored pixels count nowhere, but their "
        "outline is a boundary. Errors far from any boundary are whole regions taken for something else."
    )
    label = f"wrong pixels by distance: {', '.join(f'{name} {percent(rate / 100)}' for name, _, rate, _ in items)}"
    chart = columns(items, label, "distance from the nearest boundary of the truth")
    return charted(words, chart, ("distance", "wrong", "share of all wrong pixels", "share of all pixels"), rows)


def size_text(group: SizeGroup) -> str:
    """The areas of a group in pixels."""
    if group.largest is None:
        return "all sizes" if group.smallest == 1 else f"from {compact(group.smallest)}"
    return f"to {compact(group.largest)}"


def compact(area: int) -> str:
    """A number of pixels in a few characters."""
    for unit, sign in ((1_000_000, "M"), (1_000, "k")):
        if area >= 10 * unit or (unit == 1_000_000 and area >= unit):
            return f"{area / unit:.3g}{sign}"
    return str(area)


def sizes(found: Findings) -> str:
    items, rows = [], []
    for group in found.sizes:
        rate = group.wrong / group.pixels
        bounds = f"{group.smallest} to {group.largest} px" if group.largest else f"{group.smallest} px and more"
        title = f"{group.segments} segments of {bounds}: {percent(rate)} of their pixels wrong"
        items.append((size_text(group), f"n = {compact(group.segments)}", 100 * rate, title))
        rows.append((bounds, str(group.segments), percent(rate), percent(group.mean_iou)))
    words = (
        "A segment is a connected region of one class in the truth. Segments in order of size, in groups of about as "
        "many: how many of their pixels are wrong (columns, in %)."
    )
    label = f"wrong pixels by area in pixels: {', '.join(f'{name} {rate:.1f} %' for name, _, rate, _ in items)}"
    chart = columns(items, label, "area of the segment in pixels (n: number of segments)")
    return charted(words, chart, ("area", "segments", "pixels wrong", "mean IoU"), rows)


def calibration(found: Calibration, softmax: bool) -> str:
    """The reliability diagram, and what is calibrated."""
    kind = (
        "The confidence of a pixel is the probability of its class: the softmax over all classes of the scores that "
        "the label map is made of, averaged over windows before and over sizes after."
        if softmax
        else "The confidence of a pixel is the share of its class in the semantic scores of all classes, after "
        "windows and sizes are averaged. These scores are what the label map is made of; they are sums over queries "
        "and no probabilities by themselves."
    )
    rows = []
    for index, pixels in enumerate(found.pixels):
        bounds = f"{100 * index / CONFIDENCE_BINS:.0f} to {100 * (index + 1) / CONFIDENCE_BINS:.0f} %"
        rows.append((bounds, str(int(pixels)), percent(found.confidence[index]), percent(found.accuracy[index])))
    sure = sureness(found)
    words = (
        f"{kind} If the model says 80 %, then 80 % of such pixels should be right: a bar below "
        f"the dashes means too sure. {sure[0].upper()}{sure[1:]} (the mean over pixels of the gap between confidence "
        f"and share of right ones, in {CONFIDENCE_BINS} bins)."
    )
    label = (
        f"share of right pixels by confidence; mean confidence {percent(found.mean_confidence)}, "
        f"right {percent(found.mean_accuracy)}"
    )
    head = ("confidence", "pixels", "mean confidence", "right")
    return charted(words, reliability(found, label), head, rows, kind="narrow")


def images(found: Findings, ranked: Sequence[RankedImage]) -> str:
    """Image, truth, prediction and errors of each image, with a legend."""
    if not ranked:
        return paragraph("There are too few images for this list.")
    parts = [paragraph("By mean IoU over the classes in the image's truth.")]
    for place, image in enumerate(ranked, 1):
        heading = f"{place}. {image.name}"
        scores = f"mean IoU {percent(image.mean_iou)}, {percent(image.accuracy)} of the pixels right"
        entries = image.classes[:LEGEND_CLASSES]
        keys = "".join(f"<span class='key'>{found.class_cell(index)}</span>" for index in entries)
        if (more := len(image.classes) - LEGEND_CLASSES) > 0:
            keys += f"and {more} more"
        panels = [
            figure(image.image, "image", lossless=False),
            figure(label_image(image.truth, found.palette), "truth (black: ignored)"),
            figure(label_image(image.prediction, found.palette), "prediction"),
            figure(image.errors, "errors: orange is wrong, grey right, black ignored", lossless=False),
        ]
        parts.append(
            f"<h3>{html.escape(heading)} <span class='quiet'>{html.escape(scores)}</span></h3>{row(panels)}"
            f"<p class='keys quiet'>{keys}</p>"
        )
    return "".join(parts)


def measured(results: Mapping[str, Any]) -> dict[str, str]:
    """What makes the figures reproducible."""
    protocol = dict(results["protocol"])
    name = protocol.pop("name")
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in protocol.items())
    facts = {
        "checkpoint": results["checkpoint"],
        "weights, SHA-256": results["weights_sha256"] or "-",
        "dataset": f"{results['dataset']}, split {results['split']}, {results['images']} images",
        "left out": f"{len(results['skipped'])} images that could not be read" if results["skipped"] else "nothing",
        "protocol": f"{name}: {details}",
        "rule": results["metric"],
        "precision": results["mixed_precision"],
        "command": results["command"],
    }
    return {key: str(value) for key, value in facts.items()}
