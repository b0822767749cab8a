"""Colours of classes: one stable palette, label maps as palette PNGs, overlays with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


# Paul Tol's bright, vibrant and muted schemes, told apart by colour-blind readers (personal.sron.nl/~pault).
COLOUR_BLIND_SAFE = (
    (0x44, 0x77, 0xAA),
    (0xEE, 0x66, 0x77),
    (0x22, 0x88, 0x33),
    (0xCC, 0xBB, 0x44),
    (0x66, 0xCC, 0xEE),
    (0xAA, 0x33, 0x77),
    (0xEE, 0x77, 0x33),
    (0x33, 0x22, 0x88),
    (0x44, 0xAA, 0x99),
    (0x88, 0x22, 0x55),
    (0xDD, 0xCC, 0x77),
    (0x99, 0x99, 0x33),
)
IGNORED_COLOUR = (0, 0, 0)
IGNORE_INDEX = 255


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of a class, the same in every picture; past twelve classes hues go round by the golden angle."""
    if index == IGNORE_INDEX:
        return IGNORED_COLOUR
    if index < len(COLOUR_BLIND_SAFE):
        return COLOUR_BLIND_SAFE[index]
    lightness = (0.45, 0.6, 0.75)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(index * 0.61803398875 % 1.0, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def colour_map(labels: np.ndarray) -> np.ndarray:
    """`(H, W)` ids -> `(H, W, 3)` uint8 colours."""
    ids, inverse = np.unique(labels, return_inverse=True)
    colours = np.array([class_colour(int(index)) for index in ids], dtype=np.uint8)
    return colours[inverse.reshape(labels.shape)]


def label_image(labels: np.ndarray) -> Image.Image:
    """Label map as a PNG-ready picture: pixel value = class id, with the palette where ids fit into a byte."""
    if labels.max(initial=0) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([channel for index in range(256) for channel in class_colour(index)])
    return image


def overlay(image: Image.Image, labels: np.ndarray, opacity: float = 0.55) -> Image.Image:
    """RGB picture with its label map laid over it; ignored pixels stay as they are."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    weight = np.where(labels == IGNORE_INDEX, 0.0, opacity)[..., None]
    mixed = pixels * (1 - weight) + colour_map(labels) * weight
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(entries: Sequence[tuple[int, str]], width: int) -> Image.Image:
    """Swatches with names, in rows that fit into `width` pixels (and never narrower than one entry)."""
    font = ImageFont.load_default(14)
    swatch, gap, row_height = 14, 8, 24
    sizes = [swatch + gap + int(font.getlength(name)) + 2 * gap for _, name in entries]
    width = max([width, *(size + 2 * gap for size in sizes)])
    places, x, y = [], gap, 0
    for size in sizes:
        if x + size > width and x > gap:
            x, y = gap, y + row_height
        places.append((x, y))
        x += size
    picture = Image.new("RGB", (width, y + row_height), "white")
    draw = ImageDraw.Draw(picture)
    for (index, name), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y + 5, x + swatch, y + 5 + swatch), fill=class_colour(index), outline="black")
        draw.text((x + swatch + gap, y + 3), name, fill="black", font=font)
    return picture


def with_legend(image: Image.Image, labels: np.ndarray, id2label: dict[int, str]) -> Image.Image:
    """Overlay of a picture with a legend of the classes in it below."""
    present = [int(index) for index in np.unique(labels) if index != IGNORE_INDEX]
    below = legend([(index, id2label.get(index, str(index))) for index in present], image.width)
    above = overlay(image, labels)
    sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height))
    return sheet
