"""The demo's one-page HTML report: loss curve, IoU per class, image | truth | prediction; all in one file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.visualization import class_colour, colour_map


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
figure { margin: 0; flex: 1 1 14rem; } figure img { width: 100%; image-rendering: pixelated; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figcaption { color: #555; }
.swatch { display: inline-block; width: .9rem; height: .9rem; margin-right: .4rem; border: 1px solid #222; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } figcaption { color: #aaa; } }
"""


def picture_tag(image: Image.Image, alt: str) -> str:
    """An `<img>` with the picture inside."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def curve(points: Sequence[tuple[float, float]], label: str, width: int = 640, height: int = 220) -> str:
    """A line chart as SVG; the vertical axis starts at zero."""
    left, bottom, top = 56, 28, 10
    last = max(x for x, _ in points) or 1
    highest = max(y for _, y in points) or 1

    def place(x: float, y: float) -> str:
        return f"{left + (width - left - 10) * x / last:.1f},{top + (height - top - bottom) * (1 - y / highest):.1f}"

    lines = []
    for share in (0.0, 0.5, 1.0):
        y = place(0, highest * share).split(",")[1]
        lines.append(f'<line x1="{left}" x2="{width - 10}" y1="{y}" y2="{y}" stroke="#8884"/>')
        lines.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dy="4">{highest * share:.0f}</text>')
    path = " ".join(place(x, y) for x, y in points)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}" font-size="12" '
        f'fill="currentColor" style="max-width:{width}px">{"".join(lines)}'
        f'<polyline points="{path}" fill="none" stroke="#47a" stroke-width="2"/>'
        f'<text x="{left}" y="{height - 8}">step 0</text>'
        f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">step {last:.0f}</text></svg>'
    )


def write_report(
    output_dir: Path,
    facts: dict[str, Any],
    results: dict[str, Any],
    log_file: Path,
    example: tuple[Image.Image, np.ndarray, np.ndarray],
    id2label: dict[int, str],
) -> None:
    """Writes `output_dir/report.html`.

    Args:
        facts: what stands at the top, name -> text.
        results: of `scripts.evaluation.results.build_results`.
        log_file: `train_log.jsonl`.
        example: picture, true label map and predicted label map of the same size.
    """
    log = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    losses = [(row["step"], row["loss"]) for row in log if "loss" in row]
    fact_rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items()
    )
    class_rows = "".join(
        "<tr><td><span class='swatch' style='background:rgb{}'></span>{}</td><td>{}</td></tr>".format(
            class_colour(index), html.escape(name), results["per_class"][name]["iou"]
        )
        for index, name in id2label.items()
    )
    picture, truth, labels = example
    panels = [
        (picture, "image"),
        (Image.fromarray(colour_map(truth)), "truth (black: ignored)"),
        (Image.fromarray(colour_map(labels)), "prediction, through pipeline()"),
    ]
    figures = "".join(
        f"<figure>{picture_tag(image, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in panels
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>FASeg demo</title><style>{STYLE}</style></head><body>
<h1>FASeg demo</h1>
<p>A small FASeg, trained from scratch on a stream of generated pictures and evaluated on others.</p>
<table>{fact_rows}</table>
<h2>A validation picture</h2><div class="row">{figures}</div>
<h2>Loss, summed over the decoder's predictions</h2>{curve(losses, "training loss by step")}
<h2>IoU per class, %</h2><table>{class_rows}</table>
</body></html>
"""
    (output_dir / "report.html").write_text(page, encoding="utf-8")
