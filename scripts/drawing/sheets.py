"""Several images side by side or below one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from scripts.drawing.visualization import Palette, below, colour_map, joined, model_palette, present_classes


PANEL_SIZE = (480, 480)
GAP = 4


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
    return joined(panels, GAP)


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips one below the other."""
    return joined(strips, GAP, down=True)
