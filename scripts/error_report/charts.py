"""Charts of the error report as inline SVG: bars, columns, reliability; colours from the page, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

from scripts.error_report.counts import CONFIDENCE_BINS, Calibration


STYLE = """
:root { --bar: #47a; --bad: #d55e00; --track: #8883; }
@media (prefers-color-scheme: dark) { :root { --bar: #6ad; --bad: #f80; } }
svg { display: block; width: 100%; height: auto; } svg text { fill: currentColor; }
svg .quiet { fill: var(--quiet); } svg .bar { fill: var(--bar); } svg .bad { fill: var(--bad); }
svg .track { fill: var(--track); } svg .count { fill: var(--quiet); }
svg .line { stroke: var(--line); } svg .dashes { stroke: currentColor; }
.class-bars { display: grid; grid-template-columns: fit-content(45%) minmax(0, 1fr) auto; gap: .15rem .6rem;
              align-items: center; font-size: .85rem; line-height: 1.3; }
.class-bars > * { min-width: 0; overflow-wrap: anywhere; text-align: right; }
.class-bars .track { background: var(--track); height: .75rem; }
.class-bars .bar { background: var(--bar); height: 100%; }
"""
NAME_LENGTH = 28
LEAST_TEXT = 11  # pixels: what is smaller cannot be read


def svg(width: float, height: float, label: str, parts: Sequence[str], font_size: int = 13) -> str:
    """A drawing that shrinks with the page while its words can be read, then scrolls by itself, and never grows.

    Args:
        label: stands for it where it cannot be seen.
    """
    least = math.ceil(width * LEAST_TEXT / font_size)
    return (
        f'<div class="wide"><svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}" '
        f'font-size="{font_size}" style="min-width:{least}px;max-width:{width:g}px">{"".join(parts)}</svg></div>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text whose baseline is at y."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{html.escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """A rectangle; `title` shows under the pointer."""
    below = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}">{below}</rect>'


def grid(left: float, right: float, top: float, plot: float, words: Callable[[float], str]) -> list[str]:
    """Lines across a plot `plot` high, at the bottom, half way and the top; `words`: of what stands left of each."""
    parts = []
    for share in (0, 0.5, 1):
        y = top + plot * (1 - share)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:g}" y2="{y:g}" class="line"/>')
        parts.append(text(left - 6, y + 4, words(share), "end", "quiet"))
    return parts


def curve(points: Sequence[tuple[float, float]], label: str) -> str:
    """A line chart over steps; the vertical axis starts at zero."""
    left, top, width, plot = 56, 10, 574, 182
    last, highest = (max(values) or 1 for values in zip(*points, strict=True))
    path = " ".join(f"{left + width * x / last:.1f},{top + plot * (1 - y / highest):.1f}" for x, y in points)
    parts = [
        *grid(left, left + width, top, plot, lambda share: f"{highest * share:.3g}"),
        f'<polyline points="{path}" fill="none" stroke="#47a" stroke-width="2"/>',
        text(left, top + plot + 20, "step 0"),
        text(left + width, top + plot + 20, f"step {last:.0f}", "end"),
    ]
    return svg(left + width + 10, top + plot + 28, label, parts, font_size=12)


def shortened(name: str) -> str:
    """A name that fits beside a row of the confusion matrix."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "\u2026"


def class_bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars of 0..100, one below the other; long names take several lines.

    Args:
        rows: name, percentage, and what the pointer shows.
    """
    lines = "".join(
        f'<span class="name">{html.escape(name)}</span><div class="track" title="{html.escape(title)}">'
        f'<div class="bar" style="width:{percentage:.1f}%"></div></div><span class="figure">{percentage:.1f}</span>'
        for name, percentage, title in rows
    )
    return f'<div class="class-bars" role="group" aria-label="{html.escape(label)}">{lines}</div>'


def columns(items: Sequence[tuple[str, str, float, str]], label: str, below: str) -> str:
    """Columns of percentages side by side; the axis goes from 0 to a round figure above the highest.

    Args:
        items: two lines under the column, its percentage (nan: no column), what the pointer shows.
        below: what the lines under the columns mean.
    """
    width, plot, top, left = 760, 180, 22, 56
    highest = max([value for _, _, value, _ in items if not math.isnan(value)], default=0)
    end = next((end for end in (1, 2, 5, 10, 20, 50) if highest <= end), 100)
    step = (width - left) / max(len(items), 1)
    parts = grid(left, width, top, plot, lambda share: f"{end * share:g} %")
    for number, (first, second, value, title) in enumerate(items):
        x = left + step * number
        if not math.isnan(value):
            tall = plot * value / end
            parts.append(box(x + step * 0.14, top + plot - tall, step * 0.72, tall, "bad", title))
            parts.append(text(x + step / 2, top + plot - tall - 5, f"{value:.1f}", "middle"))
        parts.append(text(x + step / 2, top + plot + 18, first, "middle"))
        parts.append(text(x + step / 2, top + plot + 34, second, "middle", "quiet"))
    parts.append(text(left + (width - left) / 2, top + plot + 56, below, "middle", "quiet"))
    return svg(width, top + plot + 64, label, parts)


def reliability(calibration: Calibration, label: str) -> str:
    """Share of right pixels by confidence, against the diagonal, and below it the share of all pixels."""
    left, top, side, gap, low = 50, 28, 320, 70, 70
    width = left + side + 30
    share = calibration.pixels / max(int(calibration.pixels.sum()), 1)
    highest = max(float(share.max()), 1e-9)
    step = side / CONFIDENCE_BINS
    parts = grid(left, left + side, top, side, lambda share: f"{100 * share:.0f} %")
    for share_sure in (0, 0.5, 1):
        parts.append(text(left + side * share_sure, top + side + 16, f"{100 * share_sure:.0f} %", "middle", "quiet"))
    base = top + side + gap + low
    for number in range(CONFIDENCE_BINS):
        x = left + step * number
        if calibration.pixels[number]:
            right, sure = float(calibration.accuracy[number]), float(calibration.confidence[number])
            title = f"{100 * sure:.1f} % sure, {100 * right:.1f} % right, {100 * share[number]:.1f} % of the pixels"
            parts.append(box(x + 1, top + side * (1 - right), step - 2, side * right, "bar", title))
            tall = low * float(share[number]) / highest
            parts.append(box(x + 1, base - tall, step - 2, tall, "count", title))
    parts.append(
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" class="dashes" stroke-dasharray="5 4"/>'
    )
    parts += [
        text(left, top - 12, "share of right pixels (dashes: perfect)"),
        text(left + side / 2, top + side + 34, "confidence", "middle"),
        text(left, top + side + gap - 8, "share of all pixels"),
        text(left - 6, base - low + 4, f"{100 * highest:.0f} %", "end", "quiet"),
        f'<line x1="{left}" x2="{left + side}" y1="{base:g}" y2="{base:g}" class="line"/>',
    ]
    return svg(width, base + 8, label, parts)


def heat(share: float, right: bool) -> str:
    """Background of a cell of the confusion matrix, stronger with its share in 0..1."""
    strength = 75 * float(np.sqrt(min(max(share, 0.0), 1.0)))
    return f"background:color-mix(in srgb, var({'--bar' if right else '--bad'}) {strength:.0f}%, transparent)"
