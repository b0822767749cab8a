"""A small procedural dataset: shapes on textured backgrounds, as parquet shards that `load_dataset` streams."""

from __future__ import annotations

import colorsys
import io
import json
import math
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFilter


CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")
# Hue of each shape, +-HUE_SPREAD: neighbours share colours, so that colour alone does not tell them apart.
HUES = {1: 0.00, 2: 0.06, 3: 0.33, 4: 0.39, 5: 0.66}
HUE_SPREAD = 0.06
HEIGHT, WIDTH = 128, 160


def texture(rng: np.random.Generator) -> Image.Image:
    """RGB background: smooth colours under stripes."""
    coarse = rng.integers(40, 216, size=(4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, dtype=np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 24)
    stripes = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    return Image.fromarray((pixels + 18 * stripes[..., None]).clip(0, 255).astype(np.uint8))


def outline(shape: int, x: float, y: float, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a polygon shape around (x, y)."""
    if shape == 2:
        turns = [0.125, 0.375, 0.625, 0.875]
        radii = [1.0] * 4
    elif shape == 3:
        turns, radii = [0.0, 1 / 3, 2 / 3], [1.15] * 3
    else:  # a plus sign: at each arm two outer corners and one inner
        turns, radii = [], []
        for arm in range(4):
            turns += [arm / 4 - 0.05, arm / 4 + 0.05, arm / 4 + 0.125]
            radii += [1.1, 1.1, 0.45]
    return [
        (x + radius * r * math.cos(2 * math.pi * t + angle), y + radius * r * math.sin(2 * math.pi * t + angle))
        for t, r in zip(turns, radii, strict=True)
    ]


def draw_sample(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An image of two to five shapes that may cover each other, and its label map; some edges are ignored (255)."""
    image, label = texture(rng), Image.new("L", (WIDTH, HEIGHT), 0)
    for _ in range(rng.integers(2, 6)):
        shape = int(rng.integers(1, len(CLASSES)))
        radius, angle = rng.uniform(12, 34), rng.uniform(0, 2 * math.pi)
        x, y = rng.uniform(10, WIDTH - 10), rng.uniform(10, HEIGHT - 10)
        mask = Image.new("L", (WIDTH, HEIGHT), 0)
        draw = ImageDraw.Draw(mask)
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == 1:
            draw.ellipse(box, fill=255)
        elif shape == 4:
            draw.ellipse(box, outline=255, width=max(4, int(radius * 0.35)))
        else:
            draw.polygon(outline(shape, x, y, radius, angle), fill=255)
        hue = HUES[shape] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
        colour = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.35, 0.9), rng.uniform(0.4, 1.0))
        image.paste(tuple(round(255 * channel) for channel in colour), mask=mask)
        label.paste(shape, mask=mask)
        # One pixel around some shapes belongs to no class, as in real label maps.
        if rng.random() < 0.3:
            edge = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) != np.asarray(mask)
            label.paste(255, mask=Image.fromarray(edge))
    grain = rng.normal(0, 14, size=(HEIGHT, WIDTH, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)), label


def encoded(image: Image.Image, kind: str) -> dict[str, bytes]:
    """An image as a row of an `Image` column holds it; `kind` is PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=92)
    return {"bytes": buffer.getvalue()}


def write_dataset(folder: Path, sizes: dict[str, int], shards: int = 2, seed: int = 0) -> None:
    """Writes `data/<split>-0000i-of-0000n.parquet` and `id2label.json`; samples depend on seed, split and index."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    )
    for number, (split, size) in enumerate(sizes.items()):
        rows = []
        for index in range(size):
            image, label = draw_sample(np.random.default_rng([seed, number, index]))
            name = f"{split}_{index:05d}"
            row = {"image": encoded(image, "JPEG"), "label": encoded(label, "PNG"), "image_id": name}
            rows.append(row)
        data = datasets.Dataset.from_list(rows, features=features)
        for shard in range(shards):
            file = folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            data.shard(shards, shard, contiguous=True).to_parquet(file)
    names = {str(index): name for index, name in enumerate(CLASSES)}
    (folder / "id2label.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
