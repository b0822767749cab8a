"""Overlays on which the segments of one class are told apart: each has its own shade, its number, and a line of the
legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from scripts.drawing.headings import headed
from scripts.drawing.sheets import GAP, PANEL_SIZE
from scripts.drawing.visualization import (
    IGNORE_INDEX,
    Palette,
    joined,
    legend,
    model_palette,
    overlay,
    segment_colours,
)


MOST_LISTED = 48  # lines of a legend
NO_SWATCH = -1
LEAST_ROOM = 0.7  # of a number's height, from the segment's inner middle to its border
THUMBNAIL = 160  # pixels of a segment's longer side in which that middle is looked for


@dataclass(frozen=True)
class DrawnSegment:
    """A segment of a map of ids, `label` its class; `is_thing` says whether its number is drawn."""

    id: int
    label: int
    score: float | None
    is_thing: bool


def drawing_numbers(ids: np.ndarray) -> np.ndarray:
    """A map of ids `(H, W)`, 0 where there is none, as the drawings of label maps take it: 255 there."""
    return np.where(ids == 0, IGNORE_INDEX, ids + (ids >= IGNORE_INDEX)).astype(np.int32)


def drawing_number(id_: int) -> int:
    """What `drawing_numbers` makes of one id from 1."""
    return id_ + (id_ >= IGNORE_INDEX)


def with_segments(
    image: Image.Image,
    ids: np.ndarray,
    segments: Sequence[DrawnSegment],
    names: Mapping[int, str],
    palette: Palette | None = None,
) -> Image.Image:
    """An image under its segments, with a legend of their numbers, classes and scores below.

    Args:
        ids: `(H, W)` ids of the segments, 0 where there is none.
        names: class id -> name.
        palette: of classes.
    """
    numbers = drawing_numbers(ids)
    colours = segment_colours({drawing_number(each.id): each.label for each in segments}, palette)
    drawn = overlay(image, numbers, palette=colours)
    height = max(11, round(image.width / 60))
    font = ImageFont.load_default(height)
    pen = ImageDraw.Draw(drawn)
    boxes = ndimage.find_objects(ids, max_label=max((each.id for each in segments), default=0) or 1)
    for each in segments:
        box = boxes[each.id - 1] if each.is_thing else None
        if box is not None and (middle := inner_middle(ids[box] == each.id, LEAST_ROOM * height)):
            place = (box[1].start + middle[0], box[0].start + middle[1])
            pen.text(place, str(each.id), "white", font, "mm", stroke_width=2, stroke_fill="black")
    entries = [(drawing_number(each.id), entry(each, names)) for each in segments[:MOST_LISTED]]
    if len(segments) > MOST_LISTED:
        entries.append((NO_SWATCH, f"and {len(segments) - MOST_LISTED} more"))
    if not segments:
        entries = [(NO_SWATCH, "nothing found")]
    return joined([drawn, legend(entries, drawn.width, {**colours, NO_SWATCH: (255, 255, 255)})], down=True)


def entry(segment: DrawnSegment, names: Mapping[int, str]) -> str:
    """What a legend says of a segment."""
    number = f"{segment.id} " if segment.is_thing else ""
    score = "" if segment.score is None else f" {segment.score:.2f}"
    return f"{number}{names.get(segment.label, segment.label)}{score}"


def strip_of_segments(
    image: Image.Image, maps: Sequence[tuple[np.ndarray, Sequence[DrawnSegment]]], config: Any
) -> Image.Image:
    """image | truth | prediction under their names, each at most `PANEL_SIZE`, over legends of their own.

    Args:
        maps: of truth and prediction: `(H, W)` int32 ids, 0 where there is no segment, and the segments.
    """
    panel = image.convert("RGB")
    panel.thumbnail(PANEL_SIZE)
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    drawn = []
    for ids, segments in maps:
        small = np.array(Image.fromarray(ids).resize(panel.size, Image.Resampling.NEAREST))
        drawn.append(with_segments(panel, small, segments, names, model_palette(config)))
    return headed(joined([panel, *drawn], GAP), ("image", "truth", "prediction"), panel.width)


def inner_middle(inside: np.ndarray, least: float) -> tuple[int, int] | None:
    """`(x, y)` of the pixel of a mask `(h, w)` that is farthest from its border; None if `least` pixels or fewer."""
    step = max(1, max(inside.shape) // THUMBNAIL)
    distances = ndimage.distance_transform_edt(np.pad(inside[::step, ::step], 1))
    row, column = np.unravel_index(distances.argmax(), distances.shape)
    if distances[row, column] * step <= least:
        return None
    return int(column - 1) * step, int(row - 1) * step
