"""A street as its driver sees it, drawn: an example image that anybody may use."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


WIDTH, HEIGHT = 640, 480
MIDDLE, HORIZON = WIDTH // 2, 230
GLASS = (56, 64, 74)


def draw_street(rng: np.random.Generator) -> Image.Image:
    """Sky, houses, trees, pavements, road and cars."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (96, 95, 97))
    draw = ImageDraw.Draw(image)
    for y in range(HORIZON):
        shade = y / HORIZON
        draw.line((0, y, WIDTH, y), fill=(int(150 + 70 * shade), int(180 + 45 * shade), int(215 + 20 * shade)))
    for side in (-1, 1):
        pavement = ((26, HORIZON), (280, HEIGHT), (WIDTH, HEIGHT), (WIDTH, HORIZON + 90), (44, HORIZON))
        draw.polygon([(MIDDLE + side * x, y) for x, y in pavement], fill=(150, 143, 136))
        draw_houses(draw, rng, side)
    draw_tree(draw, rng, 96, HORIZON + 62, 62)
    draw_tree(draw, rng, 556, HORIZON + 70, 74)
    # Dashes of the line in the middle, from near to far, as shares of the way to the horizon.
    for near, far in ((1.0, 0.8), (0.62, 0.5), (0.36, 0.28), (0.18, 0.13)):
        upper, lower = (HORIZON + (HEIGHT - HORIZON) * share for share in (far, near))
        corners = [(-9 * near, lower), (9 * near, lower), (9 * far, upper), (-9 * far, upper)]
        draw.polygon([(MIDDLE + x, y) for x, y in corners], fill=(214, 212, 206))
    draw_car(draw, 246, 330, 88, (122, 28, 32))
    draw_car(draw, 404, 296, 52, (38, 52, 92))
    draw_car(draw, 296, 258, 26, (180, 182, 186))
    softened = np.asarray(image.filter(ImageFilter.GaussianBlur(1.1)), dtype=np.float64)
    grain = rng.normal(0, 5, size=(HEIGHT, WIDTH, 1))
    return Image.fromarray((softened + grain).clip(0, 255).astype(np.uint8))


def draw_houses(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    """A row of houses from the horizon to the left (-1) or right (1) edge of the image."""
    start, top = 40.0, HORIZON - 34.0
    while start < MIDDLE:
        end = start + rng.uniform(50, 90) * (0.6 + start / MIDDLE)
        end_top = max(0.0, top - (end - start) * rng.uniform(0.5, 0.9))
        corners = [(start, top), (end, end_top), (end, HORIZON + end / 4), (start, HORIZON + start / 5)]
        colour = tuple(int(value) for value in rng.uniform(95, 170) * np.array([1.0, 0.88, 0.78]))
        draw.polygon([(MIDDLE + side * x, y) for x, y in corners], fill=colour)
        for row in range(4):
            for column in (0.2, 0.6):
                left, size = start + (end - start) * column, (end - start) * 0.18
                upper = top + (HORIZON - top) * (0.12 + 0.27 * row)
                edges = sorted((MIDDLE + side * left, MIDDLE + side * (left + size)))
                draw.rectangle((edges[0], upper, edges[1], upper + (HORIZON - top) * 0.16), fill=GLASS)
        start, top = end, end_top


def draw_tree(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, foot: float, size: float) -> None:
    """A tree that stands at `(x, foot)`; its crown is about `2 * size` wide."""
    draw.rectangle((x - 5, foot - size, x + 5, foot), fill=(72, 56, 42))
    for _ in range(110):
        left, upper = x + rng.normal(0, size * 0.4), foot - size * 1.5 + rng.normal(0, size * 0.36)
        radius = rng.uniform(6, 16)
        green = (int(rng.integers(32, 66)), int(rng.integers(66, 108)), int(rng.integers(26, 52)))
        draw.ellipse((left - radius, upper - radius, left + radius, upper + radius), fill=green)


def draw_car(draw: ImageDraw.ImageDraw, x: float, foot: float, size: float, colour: tuple[int, int, int]) -> None:
    """A car from behind, `size` pixels wide, that stands at `(x, foot)`."""

    def box(left: float, upper: float, right: float, lower: float) -> tuple[float, float, float, float]:
        return x + left * size, foot - upper * size, x + right * size, foot - lower * size

    def trapezium(below: float, above: float, lower: float, upper: float) -> list[tuple[float, float]]:
        shares = ((-below, lower), (-above, upper), (above, upper), (below, lower))
        return [(x + across * size, foot - up * size) for across, up in shares]

    draw.ellipse(box(-0.5, 0.08, 0.5, -0.08), fill=(46, 46, 48))
    for left in (-0.45, 0.28):
        draw.rectangle(box(left, 0.2, left + 0.17, 0.0), fill=(22, 22, 24))
    draw.rounded_rectangle(box(-0.5, 0.45, 0.5, 0.08), size * 0.1, fill=colour)
    draw.polygon(trapezium(0.42, 0.3, 0.43, 0.72), fill=colour)
    draw.polygon(trapezium(0.34, 0.26, 0.44, 0.67), fill=GLASS)
    for left in (-0.48, 0.35):
        draw.rectangle(box(left, 0.36, left + 0.13, 0.26), fill=(205, 60, 50))
