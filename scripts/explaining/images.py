"""Images of the focus: heat over a dimmed image, the mask's outline, HRCA's windows; sheets of all layers."""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from scripts.drawing.visualization import contours
from scripts.explaining.focus import MASK_STRIDE, Look
from scripts.explaining.paths import FocusPath, Step


HEAT = matplotlib.colormaps["inferno"]  # grows evenly in lightness, told apart by colour-blind readers
WINDOW_COLOUR = (102, 204, 238)
MASK_COLOUR = (255, 255, 255)


def over_image(values: Tensor, seen: Look, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """A map over the network's whole input, as it lies over an image of `size` (width, height)."""
    height, width = seen.input_size
    rows, columns = seen.image_cells.shape
    padded = (
        round(columns * MASK_STRIDE * size[0] / width),
        round(rows * MASK_STRIDE * size[1] / height),
    )
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    grown = Image.fromarray(values.float().cpu().numpy()).resize(padded, method)
    return np.asarray(grown.crop((0, 0, *size)))


def dimmed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image small, grey and dark, so that heat stands out."""
    return ImageOps.grayscale(image.resize(size)).point(lambda value: round(0.5 * value)).convert("RGB")


def focus_image(image: Image.Image, step: Step, mask: Tensor, seen: Look, width: int) -> Image.Image:
    """Where a query looked in one layer, with its final mask's outline; bright is much, by the map's own maximum."""
    size = (width, max(1, round(width * image.height / image.width)))
    drawing = dimmed(image, size)
    focus = over_image(step.focus, seen, size, smooth=True)
    if focus.max() > 0:
        share = (focus / focus.max()).clip(0, 1)
        heat = HEAT(0.25 + 0.75 * share)[..., :3] * 255
        weight = share[..., None] ** 0.6
        drawing = Image.fromarray((np.asarray(drawing) * (1 - weight) + heat * weight).round().astype(np.uint8))
    outline = contours(over_image(mask, seen, size, smooth=False) > 0)
    pixels = np.array(drawing)
    pixels[outline] = MASK_COLOUR
    return with_windows(Image.fromarray(pixels), step.windows, seen)


def with_windows(drawing: Image.Image, windows: list[tuple[int, int, int, int]], seen: Look) -> Image.Image:
    """Outlines of HRCA's windows, given in pixels of the network's input."""
    height, width = seen.input_size
    draw = ImageDraw.Draw(drawing)
    for left, top, right, bottom in windows:
        if left >= width or top >= height:  # in the padding
            continue
        box = (left * drawing.width / width, top * drawing.height / height)
        end = (min(right, width) * drawing.width / width - 1, min(bottom, height) * drawing.height / height - 1)
        draw.rectangle((*box, *end), outline=WINDOW_COLOUR, width=max(1, drawing.width // 200))
    return drawing


def windows_image(image: Image.Image, step: Step, seen: Look, width: int) -> Image.Image:
    """The windows that one HRCA layer read for all queries, bright in the dimmed image."""
    size = (width, max(1, round(width * image.height / image.width)))
    small, drawing = image.convert("RGB").resize(size), dimmed(image, size)
    height, wide = seen.input_size
    for left, top, right, bottom in step.windows:
        x, y = size[0] / wide, size[1] / height
        box = (round(left * x), round(top * y), min(size[0], round(right * x)), min(size[1], round(bottom * y)))
        if box[0] < box[2] and box[1] < box[3]:
            drawing.paste(small.crop(box), box[:2])
    return with_windows(drawing, step.windows, seen)


def step_caption(step: Step) -> tuple[str, str, str]:
    """What stands under a step's image: which layer, how much of the focus lies in the mask, the answer after it."""
    if step.inside is None or step.even is None:
        looked = "no window kept: it looked nowhere"
    else:
        looked = f"{step.inside:.0%} in the mask (even: {step.even:.0%})"
    return f"Layer {step.number}: {step.reads}", looked, f"then {step.answer[0]} {step.answer[1]:.2f}"


def path_sheet(
    image: Image.Image, path: FocusPath, seen: Look, title: str, columns: int, width: int = 320
) -> Image.Image:
    """All layers of a path as one image to keep: a round of levels per row."""
    font, line, gap = ImageFont.load_default(15), 20, 8
    panels = [focus_image(image, step, path.segment.mask, seen, width) for step in path.steps]
    cell = panels[0].height + 3 * line + gap
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, 2 * line + rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for index, (panel, step) in enumerate(zip(panels, path.steps, strict=True)):
        x, y = gap + index % columns * (width + gap), 2 * line + index // columns * cell
        sheet.paste(panel, (x, y))
        for row, text in enumerate(step_caption(step)):
            draw.text((x, y + panel.height + row * line), text, fill="black" if row == 0 else "#444", font=font)
    return sheet
