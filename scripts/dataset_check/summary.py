"""The check as text for a terminal and as JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.dataset_check.cost import Cost
from scripts.dataset_check.counts import SplitCounts, quantiles
from scripts.dataset_check.finding import Evidence, Finding
from scripts.dataset_check.label_rule import IGNORED


RAREST = 5


def verdict(findings: list[Finding]) -> str:
    """`clean`, or how many findings of which level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning", "note")}
    parts = [f"{count} {level}{'s' * (count > 1)}" for level, count in counts.items() if count]
    if not counts["error"] and not counts["warning"]:
        return "clean" + (f" ({', '.join(parts)})" if parts else "")
    return ", ".join(parts)


def facts_of_split(counts: SplitCounts) -> dict[str, str]:
    """What a split is like: name -> text."""
    sizes = counts.sizes.most_common(3)
    size_text = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes)
    if len(counts.sizes) > 3:
        widths, heights = zip(*counts.sizes, strict=True)
        size_text = f"{min(widths)}..{max(widths)} x {min(heights)}..{max(heights)}, most often {size_text}"
    total = sum(counts.class_pixels.values())
    facts = {
        "samples": f"{counts.samples}" + ("" if counts.complete else " read, there may be more"),
        "sizes": size_text,
        "image modes": modes(counts.image_modes),
        "map modes": modes(counts.map_modes),
    }
    if total:
        least, median, most = quantiles(counts.classes_per_map)
        without = "pixels of no segment" if counts.segmented else "ignored pixels"
        facts[without] = f"{100 * counts.class_pixels[IGNORED] / total:.1f} %"
        facts["classes per image"] = f"{least} to {most}, median {median}"
        per_map = counts.segments_per_map if counts.segmented else counts.regions_per_map
        least, median, most = quantiles(per_map)
        what = "segments per image" if counts.segmented else "connected areas per image"
        facts[what] = f"{least} to {most}, median {median}"
    if counts.segmented:
        facts["segments"] = ", ".join(f"{counts.segment_sizes[size]} {size}" for size in ("small", "medium", "large"))
        facts["crowd regions"] = f"{counts.class_crowds.total()}"
    return facts


def modes(counter: Mapping[str, int]) -> str:
    """`RGB (10), L (1)`."""
    return ", ".join(f"{mode} ({count})" for mode, count in sorted(counter.items(), key=lambda item: -item[1]))


def class_shares(evidence: Evidence) -> list[tuple[int, str, float, int]]:
    """`(class, name, percent of the pixels of all classes, maps with it)`, by id."""
    labelled = max(1, sum(pixels for index, pixels in evidence.class_pixels.items() if index >= 0))
    names = evidence.names or {index: f"id {index + evidence.rule.first}" for index in sorted(evidence.class_pixels)}
    return [
        (index, name, 100 * evidence.class_pixels[index] / labelled, evidence.class_maps[index])
        for index, name in names.items()
        if index >= 0
    ]


def balance(evidence: Evidence) -> str:
    """The commonest and the rarest classes in one line."""
    shares = sorted((row for row in class_shares(evidence) if row[2] > 0), key=lambda row: row[2])
    if not shares:
        return "no pixel of any class"

    def listed(rows: list[tuple[int, str, float, int]]) -> str:
        return ", ".join(
            f"{name} {share:.3g} % in {maps} map{'s' * (maps > 1)}{segments_in_words(evidence, index)}"
            for index, name, share, maps in rows
        )

    if len(shares) <= 2 * RAREST:
        return listed(shares[::-1])
    return f"{listed(shares[: -RAREST - 1 : -1])}; rarest: {listed(shares[:RAREST])}"


def segments_in_words(evidence: Evidence, index: int) -> str:
    """`, 5 segments` of a class, where maps hold segments."""
    number = evidence.class_segments[index]
    return "" if evidence.segments is None else f", {number} segment{'s' * (number != 1)}"


def as_text(title: str, evidence: Evidence, findings: list[Finding], cost: Cost) -> str:
    """Facts, one line per finding, and the verdict."""
    lines = []
    for split, counts in evidence.splits.items():
        facts = "; ".join(f"{name}: {text}" for name, text in facts_of_split(counts).items() if text)
        lines.append(f"{split}: {facts}")
    if evidence.names:
        seen = len(evidence.names) - len(evidence.absent())
        lines.append(f"classes: {seen} of {len(evidence.names)} occur: {balance(evidence)}")
    else:
        lines.append(f"ids: {balance(evidence)}")
    lines += [f"{name}: {text}" for name, text in cost.facts.items()]
    lines += [finding.line() for finding in findings]
    lines.append(f"{title}: {verdict(findings)}")
    return "\n".join(lines)


def as_json(title: str, evidence: Evidence, findings: list[Finding], cost: Cost) -> dict[str, Any]:
    """Everything that was counted."""
    return {
        "dataset": title,
        "verdict": verdict(findings),
        "findings": [
            {key: value for key, value in vars(finding).items() if key != "examples"} for finding in findings
        ],
        "classes": [
            {"id": index + evidence.rule.first, "name": name, "percent": round(share, 4), "maps": maps}
            | segments_json(evidence, index)
            for index, name, share, maps in class_shares(evidence)
        ],
        "splits": {split: split_json(counts) for split, counts in evidence.splits.items()},
        "recipe": cost.numbers,
    }


def segments_json(evidence: Evidence, index: int) -> dict[str, Any]:
    """How many segments a class has, where maps hold segments."""
    if evidence.segments is None:
        return {}
    return {
        "thing": index in evidence.segments.form.classes.things,
        "segments": evidence.class_segments[index],
        "crowd_regions": evidence.class_crowds[index],
    }


def split_json(counts: SplitCounts) -> dict[str, Any]:
    """The counters of one split."""
    segments = {
        "segments_per_map": {str(number): maps for number, maps in sorted(counts.segments_per_map.items())},
        "segment_sizes": dict(counts.segment_sizes),
        "class_segments": {str(index): number for index, number in sorted(counts.class_segments.items())},
        "crowd_regions": counts.class_crowds.total(),
    }
    return {
        "samples": counts.samples,
        "complete": counts.complete,
        "sizes": {f"{width}x{height}": number for (width, height), number in counts.sizes.most_common(100)},
        "image_modes": dict(counts.image_modes),
        "map_modes": dict(counts.map_modes),
        "ids": {str(index): pixels for index, pixels in sorted(counts.ids.items())},
        "maps_with_id": {str(index): maps for index, maps in sorted(counts.maps_with.items())},
        "ignored_pixels": counts.class_pixels[IGNORED],
        "class_pixels": {str(index): pixels for index, pixels in sorted(counts.class_pixels.items()) if index >= 0},
        "classes_per_map": {str(number): maps for number, maps in sorted(counts.classes_per_map.items())},
        "regions_per_map": {str(number): maps for number, maps in sorted(counts.regions_per_map.items())},
        **(segments if counts.segmented else {}),
    }
