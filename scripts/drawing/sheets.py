"""Several images side by side or below one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from scripts.drawing.visualization import Palette, below, colour_map, model_palette, present_classes


PANEL_SIZE = (480, 480)
GAP = 4


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images on white."""
    sheet = Image.new("RGB", (left.width + 8 + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 8, 0))
    return sheet


def explained_strip(image: Image.Image, truth: np.ndarray, prediction: np.ndarray, config: Any) -> Image.Image:
    """A strip in the colours of the model's dataset, over a legend of the classes in it."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    palette = model_palette(config)
    return below(strip(image, truth, prediction, palette), present_classes([truth, prediction], names), palette)


def strip(
    image: Image.Image, truth: np.ndarray, prediction: np.ndarray, palette: Palette | None = None
) -> Image.Image:
    """image | truth | prediction side by side, each at most `PANEL_SIZE`; ignored pixels of the truth are black."""
    maps = [Image.fromarray(colour_map(labels, palette)) for labels in (truth, prediction)]
    panels = [image.convert("RGB"), *maps]
    for index, panel in enumerate(panels):
        panel.thumbnail(PANEL_SIZE, Image.Resampling.NEAREST if index else Image.Resampling.BILINEAR)
    sheet = Image.new("RGB", (sum(panel.width + GAP for panel in panels) - GAP, panels[0].height), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + GAP
    return sheet


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips one below the other."""
    height = sum(image.height + GAP for image in strips) - GAP
    sheet = Image.new("RGB", (max(image.width for image in strips), height), "white")
    top = 0
    for image in strips:
        sheet.paste(image, (0, top))
        top += image.height + GAP
    return sheet
