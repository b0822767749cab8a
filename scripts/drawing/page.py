"""One-file HTML pages: the style all of the project's reports share, images inside, tables and simple charts."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.drawing.visualization import IGNORE_INDEX, OPACITY, Colour, Palette, class_colour, contours
from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK


STYLE = """
:root { color-scheme: light dark; --text: #222; --quiet: #595959; --line: #8884; --ground: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --quiet: #aaa; --ground: #181818; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--text); background: var(--ground); overflow-wrap: break-word; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
.wide { overflow-x: auto; }
figure { margin: 0; flex: 1 1 14rem; min-width: 0; } figure img { width: 100%; image-rendering: pixelated; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figcaption, .quiet { color: var(--quiet); }
.layers { position: relative; line-height: 0; } .layers img { image-rendering: auto; }
.layers span { position: absolute; inset: 0; background-size: 100% 100%; image-rendering: pixelated; }
.choices label { margin-right: 1.5rem; white-space: nowrap; } .choices select { max-width: 14rem; }
body:has(#contours-only:checked) .tint { display: none; }
.swatch { display: inline-block; width: .9rem; height: .9rem; margin-right: .4rem; border: 1px solid currentColor; }
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """A whole page. `body` is HTML; `style` is added to the shared one."""
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="{MARK}">
<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}{style}</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def write_page(file: Path, title: str, body: str, style: str = "") -> None:
    """Writes the page atomically."""
    with atomic_file(file) as partial:
        partial.write_text(html_page(title, body, style), encoding="utf-8")


def image_tag(image: Image.Image, alt: str, lossless: bool = True) -> str:
    """An `<img>` with the image inside: as PNG, or as JPEG (photos; a tenth of the size)."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/{"png" if lossless else "jpeg"};base64,{data}">'


def figure(image: Image.Image, caption: str, lossless: bool = True) -> str:
    """An image with its caption, which is its alternative text, too."""
    return f"<figure>{image_tag(image, caption, lossless)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def overlay_figure(
    image: Image.Image,
    labels: np.ndarray,
    caption: str,
    palette: Palette | None = None,
    segments: np.ndarray | None = None,
) -> str:
    """As `figure` of `visualization.overlay`, but in layers, which `with_overlay_choices` lets a reader take off.

    Args:
        image: shown as large as the label map.
        labels: `(H, W)` class ids; ignored pixels stay untinted.
        segments: `(H, W)`, another number on each segment, which are outlined in place of the classes.
    """
    layers = [image_tag(image.resize(labels.shape[::-1]), caption, lossless=False)]
    edges = contours(labels if segments is None else segments) & (labels != IGNORE_INDEX)
    for index in np.unique(labels[labels != IGNORE_INDEX]).tolist():
        inside = labels == index
        layers.append(_layer(inside & ~edges, class_colour(index, palette), OPACITY, f"tint class-{index}"))
        layers.append(_layer(inside & edges, class_colour(index, palette), 1, "contour"))
    drawn = f'<div class="layers">{"".join(layers)}</div>'
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _layer(mask: np.ndarray, colour: Colour, opacity: float, kind: str) -> str:
    """A mask in one colour, to lie over an image; no `<img>`, for it says nothing by itself."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, *colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=1, transparency=bytes([0, round(255 * opacity)]))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<span class="{kind}" style="background-image:url(data:image/png;base64,{data})"></span>'


def with_overlay_choices(body: str, names: Mapping[int, str] | None) -> str:
    """A page's body under what a reader may choose for its overlays; as it is where it has none.

    Args:
        names: class id -> name; None where the overlays are of segments, whose ids mean nothing in another image.
    """
    present = sorted({int(index) for index in re.findall(r'<span class="tint class-(\d+)"', body)})
    if not present:
        return body
    untinted = rules = ""
    if names is not None:
        options = "".join(
            f'<option value="{index}">{html.escape(names.get(index, f"id {index}"))}</option>' for index in present
        )
        untinted = (
            f' <label>untinted class <select id="untinted"><option value="">none</option>{options}</select></label>'
        )
        rules = "".join(
            f'body:has(#untinted option[value="{index}"]:checked) .class-{index} {{ display: none; }}'
            for index in present
        )
    return (
        f'<style>{rules}</style><p class="choices">In overlays: <label><input type="checkbox" id="contours-only"> '
        f"contours only</label>{untinted}</p>{body}"
    )


def row(figures: Iterable[str]) -> str:
    """Figures side by side, wrapped where the window is narrow."""
    return f'<div class="row">{"".join(figures)}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of HTML cells; the caller escapes text. Scrolls by itself where it is wider than the page."""
    top = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table>{top}{lines}</table></div>'


def facts_table(facts: dict[str, str]) -> str:
    """Name and text, a row each."""
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items()
    )
    return f'<div class="wide"><table>{lines}</table></div>'


def class_cell(index: int, name: str, palette: Palette | None = None) -> str:
    """A class's swatch and name."""
    return f"<span class='swatch' style='background:rgb{class_colour(index, palette)}'></span>{html.escape(name)}"
