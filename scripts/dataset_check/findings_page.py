"""The check as one HTML page: verdict, findings with images, classes, splits, overlays."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.data.ignored import IGNORE_INDEX
from scripts.dataset_check.cost import Cost
from scripts.dataset_check.counts import NearDuplicate, SplitCounts
from scripts.dataset_check.finding import NAMES, Evidence, Finding, sentence
from scripts.dataset_check.sample import shown_ids
from scripts.dataset_check.sample_facts import SampleFacts
from scripts.dataset_check.summary import class_shares, facts_of_split, verdict
from scripts.drawing.page import (
    class_cell,
    facts_table,
    figure,
    overlay_figure,
    row,
    table,
    with_overlay_choices,
    write_page,
)
from scripts.drawing.visualization import Palette, colour_map, contours


STYLE = """
.finding { border-left: .4rem solid var(--level); padding: .1rem 0 .1rem 1rem; margin: 1.5rem 0; }
.error { --level: #c33; } .warning { --level: #d90; } .note { --level: #47a; }
.finding h3 { margin: .2rem 0; } .finding p { margin: .3rem 0; }
.level { text-transform: uppercase; font-size: .8rem; }
.bar { display: inline-block; height: .7rem; background: #47a; vertical-align: middle; min-width: 1px; }
.legend span.entry { display: inline-block; max-width: 100%; margin: 0 1.2rem .2rem 0; }
.verdict { font-size: 1.2rem; } .row { margin: 1rem 0; } .row figure { flex: 0 1 16.4rem; }
"""


def write_report(
    file: Path, title: str, evidence: Evidence, findings: list[Finding], cost: Cost, palette: Palette | None = None
) -> None:
    """Writes the page.

    Args:
        palette: the dataset's own colours.
    """
    body = [f'<p class="verdict">Verdict: <strong>{html.escape(verdict(findings))}</strong></p>']
    body.append(
        "<p>An <em>error</em> would stop a training or spoil it, a <em>warning</em> is worth a look, a <em>note</em> "
        "is good to know. In all images a class has one colour; black in a map is ignored; lines part segments.</p>"
        f"<details><summary>What was looked for</summary>{facts_table(NAMES)}</details>"
    )
    body += [finding_section(finding, evidence, palette) for finding in findings]
    body += [pairs_section(counts) for counts in evidence.splits.values() if counts.duplicates]
    if cost.facts:
        body.append(f"<h2>What the recipe needs</h2>{facts_table(cost.facts)}")
    splits = "".join(split_section(counts, evidence, palette) for counts in evidence.splits.values())
    body.append(with_overlay_choices(splits, class_names(evidence)))
    body.append(f"<h2>Classes</h2>{classes_table(evidence, palette)}")
    write_page(file, f"Data check: {title}", "\n".join(body), STYLE)


def finding_section(finding: Finding, evidence: Evidence, palette: Palette | None) -> str:
    """One finding with its fix and the samples that show it."""
    where = f" (seen in {', '.join(finding.splits)})" if finding.splits else ""
    figures = [figure for sample in finding.examples for figure in sample_figures(sample, evidence, palette)]
    return (
        f'<section class="finding {finding.level}"><h3><span class="level">{finding.level}</span> '
        f"{html.escape(finding.name)}</h3>"
        f'<p class="quiet">{html.escape(NAMES[finding.name])}{html.escape(where)}</p>'
        f"<p>{html.escape(sentence(finding.message))}</p><p><strong>Fix:</strong> {html.escape(finding.fix)}.</p>"
        f"{row(figures) if figures else ''}{legend(finding.examples, evidence, palette)}</section>"
    )


def sample_figures(sample: SampleFacts, evidence: Evidence, palette: Palette | None) -> Iterable[str]:
    """The image, and its map or both in one where they fit."""
    if sample.image is not None:
        width, height = sample.image_size or sample.image.size
        yield figure(sample.image, f"{sample.name}, {width}x{height}", lossless=False)
    if sample.colour_map is not None:
        yield figure(sample.colour_map, f"{sample.name}, map as stored")
    elif sample.labels is not None:
        yield map_figure(sample, sample.labels, evidence, palette)


def map_figure(sample: SampleFacts, labels: np.ndarray, evidence: Evidence, palette: Palette | None) -> str:
    """The map in the colours of its classes; white lines part its segments."""
    drawn = colour_map(shown_ids(labels, evidence.rule.num_labels), palette)
    if sample.segments is not None and sample.segments.numbers is not None:
        drawn[contours(sample.segments.numbers)] = 255
    return figure(Image.fromarray(drawn), f"{sample.name}, map")


def overlay_figures(sample: SampleFacts, evidence: Evidence, palette: Palette | None) -> Iterable[str]:
    """The map over its image, and alone."""
    if sample.image is None or sample.labels is None:
        return
    labels = shown_ids(sample.labels, evidence.rule.num_labels)
    numbers = sample.segments.numbers if sample.segments is not None else None
    yield overlay_figure(sample.image, labels, f"{sample.name}, overlay", palette, numbers)
    yield map_figure(sample, sample.labels, evidence, palette)


def legend(samples: Iterable[SampleFacts], evidence: Evidence, palette: Palette | None) -> str:
    """Swatches of the classes in the samples' maps."""
    maps = [shown_ids(sample.labels, evidence.rule.num_labels) for sample in samples if sample.labels is not None]
    present = sorted({int(index) for labels in maps for index in np.unique(labels)})
    names = class_names(evidence)
    entries = [f'<span class="entry">{class_cell(k, names.get(k, f"id {k}"), palette)}</span>' for k in present]
    return f'<p class="legend">{"".join(entries)}</p>' if entries else ""


def class_names(evidence: Evidence) -> dict[int, str]:
    """What the ids of shown maps stand for."""
    names = {**(evidence.names or {}), IGNORE_INDEX: "ignored"}
    if evidence.names:
        names[evidence.rule.num_labels] = "no class (id out of range)"
    return names


def pairs_section(counts: SplitCounts) -> str:
    """Near-duplicates side by side."""
    figures = [figure for pair in counts.duplicates for figure in pair_figures(pair, counts.split)]
    return f"<h2>Images in both splits</h2>{row(figures)}"


def pair_figures(pair: NearDuplicate, split: str) -> Iterable[str]:
    """An image and the one of the other split that it is nearly equal to."""
    yield figure(pair.image, f"{pair.name} in {split}", lossless=False)
    if pair.other_image is not None:
        how = f"{pair.bits} of 256 bits differ{', mirrored' if pair.mirrored else ''}"
        yield figure(pair.other_image, f"{pair.other} in the other split: {how}", lossless=False)


def split_section(counts: SplitCounts, evidence: Evidence, palette: Palette | None) -> str:
    """What a split is like, and some of its samples, drawn at random."""
    figures = [figure for sample in counts.overlays for figure in overlay_figures(sample, evidence, palette)]
    shown = f"{row(figures)}{legend(counts.overlays, evidence, palette)}" if figures else ""
    return f"<h2>Split {html.escape(counts.split)}</h2>{facts_table(facts_of_split(counts))}{shown}"


def classes_table(evidence: Evidence, palette: Palette | None) -> str:
    """Every class: id, share of the labelled pixels in all and in each split, maps with it."""
    shares = class_shares(evidence)
    most = max((share for _, _, share, _ in shares), default=0) or 1
    splits = list(evidence.splits.values())
    rows = []
    for index, name, share, maps in shares:
        if maps:
            cells = [f"{index + evidence.rule.first}", class_cell(index, name, palette), f"{share:.3g} %", f"{maps}"]
            if evidence.segments is not None:
                cells += [f"{evidence.class_segments[index]}", f"{evidence.class_crowds[index]}"]
            cells += [f"{100 * counts.class_pixels[index] / max(1, counts.labelled):.3g} %" for counts in splits]
            rows.append([*cells, f'<span class="bar" style="width:{12 * share / most:.2f}rem"></span>'])
    head = ["stored id" if evidence.segments is None else "id", "class", "of labelled pixels", "maps with it"]
    head += ["segments", "crowd regions"] if evidence.segments is not None else []
    absent = [f"{name} ({index + evidence.rule.first})" for index, name, _, maps in shares if not maps]
    never = f"<p>Never seen, {len(absent)} of {len(shares)}: {html.escape(', '.join(absent))}.</p>" if absent else ""
    return table(rows, [*head, *(f"in {html.escape(counts.split)}" for counts in splits), ""]) + never
