"""Charts over decoder layers as SVG, readable in light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A share in 0..1 per layer, None where there is none.

    Attributes:
        dash: of the stroke, as SVG has it: lines differ in more than colour.
    """

    name: str
    values: Sequence[float | None]
    colour: str
    dash: str = ""


INSIDE = ("#2a8fd0", "")
SCORE = ("#e07b00", "6 3")
EVEN = ("#8a8a8a", "4 3")
CHANCE = ("#8a8a8a", "1 3")
OTHER = ("#b0569e", "8 3")


def layer_chart(lines: Sequence[Line], reads: Sequence[str], label: str, width: int = 380, height: int = 230) -> str:
    """Lines over layers from 0 to 100 %, with a key below; HRCA's layers stand on a grey ground.

    Args:
        reads: what each layer reads, see `layer_names`.
        label: what the chart shows, for those who cannot see it.
    """
    left, right, top, bottom = 44, 12, 10, 40
    step = (width - left - right) / max(1, len(reads) - 1)

    def x(layer: int) -> float:
        return left + step * layer

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share)

    parts = []
    for layer, name in enumerate(reads):
        if "HRCA" in name:
            band = f'x="{x(layer) - step / 2:.1f}" width="{step:.1f}" y="{top}" height="{height - top - bottom}"'
            parts.append(f'<rect {band} fill="#8883"/>')
        parts.append(f'<text x="{x(layer):.1f}" y="{height - 24}" text-anchor="middle">{layer + 1}</text>')
    for share in (0.0, 0.5, 1.0):
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#8886"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{y(share):.1f}" text-anchor="end" dy="4">{share:.0%}</text>')
    parts.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 6}" text-anchor="middle">layer</text>')
    for line in lines:
        parts.append(_path(line, x, y))
    key = "".join(
        f'<span class="key"><svg width="30" height="10" viewBox="0 0 30 10" aria-hidden="true"><line x1="0" x2="30" '
        f'y1="5" y2="5" stroke="{line.colour}" stroke-width="3" stroke-dasharray="{line.dash}"/></svg> '
        f"{html.escape(line.name)}</span>"
        for line in lines
    )
    return (
        f'<div class="chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}" '
        f'font-size="13" fill="currentColor" style="width:100%;max-width:{width * 1.4:.0f}px">{"".join(parts)}</svg>'
        f'<div class="keys">{key}</div></div>'
    )


def _path(line: Line, x: Callable[[int], float], y: Callable[[float], float]) -> str:
    """A line with a gap where a value is missing, and a dot at each value."""
    commands, dots, drawing = [], [], False
    for layer, value in enumerate(line.values):
        if value is None:
            drawing = False
            continue
        place = f"{x(layer):.1f} {y(value):.1f}"
        commands.append(f"{'L' if drawing else 'M'}{place}")
        dots.append(f'<circle cx="{x(layer):.1f}" cy="{y(value):.1f}" r="2.5" fill="{line.colour}"/>')
        drawing = True
    return (
        f'<path d="{" ".join(commands)}" fill="none" stroke="{line.colour}" stroke-width="2.5" '
        f'stroke-dasharray="{line.dash}"/>{"".join(dots)}'
    )
