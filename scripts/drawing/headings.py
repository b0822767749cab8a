"""Headings above the panels of a strip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.drawing.sheets import GAP, PANEL_SIZE, explained_strip
from scripts.drawing.visualization import joined


LARGEST_FONT, SMALLEST_FONT = 15, 8  # pixels
LETTERS = 6  # so many letters as high as wide: the longest heading fits over a panel


def headed_strip(image: Image.Image, truth: np.ndarray, prediction: np.ndarray, config: Any) -> Image.Image:
    """image | truth | prediction under their names, over a legend of the classes in it."""
    panel = image.copy()
    panel.thumbnail(PANEL_SIZE)
    return headed(explained_strip(image, truth, prediction, config), ("image", "truth", "prediction"), panel.width)


def headed(strip: Image.Image, headings: Sequence[str], panel_width: int) -> Image.Image:
    """A strip of panels, each `panel_width` wide and `GAP` from the next, with a heading above each."""
    size = max(SMALLEST_FONT, min(LARGEST_FONT, panel_width // LETTERS))
    line = Image.new("RGB", (strip.width, round(1.5 * size)), "white")
    for number, heading in enumerate(headings):
        place = (number * (panel_width + GAP) + 2, line.height / 2)
        ImageDraw.Draw(line).text(place, heading, fill="black", font=ImageFont.load_default(size), anchor="lm")
    return joined([line, strip], down=True)
