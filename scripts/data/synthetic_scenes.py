"""A small procedural data set: country roads under the sky, as parquet shards that `load_dataset` streams.

Images are drawn `SUPERSAMPLING` times as large as they end, for smooth edges; their label maps are exact. Lengths are
in heights of the image, so that a scene looks the same at every size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFilter


CLASSES = ("sky", "terrain", "road", "tree", "house", "car")
SKY, TERRAIN, ROAD, TREE, HOUSE, CAR = range(len(CLASSES))
PALETTE = ("#a8cbe8", "#b5cf7c", "#77747f", "#3f7d52", "#e0a458", "#c8453b")
SIZE = (128, 160)
SUPERSAMPLING = 3

# The sky at its top and above the horizon, the sun, the light on all below.
MOODS = (
    ((92, 148, 205), (214, 230, 236), (255, 250, 226), (1.0, 1.0, 0.98)),  # noon
    ((104, 146, 190), (250, 222, 190), (255, 232, 170), (1.04, 0.98, 0.9)),  # morning
    ((96, 104, 160), (246, 190, 160), (255, 206, 130), (1.02, 0.92, 0.88)),  # evening
    ((130, 172, 196), (232, 236, 226), (255, 255, 244), (0.96, 0.98, 1.0)),  # haze
)
GRASS = ((126, 158, 82), (150, 168, 88), (104, 146, 86), (174, 168, 98))
LEAVES = ((52, 98, 58), (70, 112, 52), (44, 88, 70), (88, 112, 44), (168, 104, 44))
WALLS = ((240, 226, 200), (226, 190, 150), (236, 236, 228), (206, 216, 222), (222, 166, 140), (240, 214, 150))
ROOFS = ((166, 74, 58), (140, 62, 56), (94, 78, 84), (184, 98, 66))
PAINTS = ((196, 48, 44), (40, 84, 156), (232, 182, 46), (240, 240, 238), (34, 122, 116), (52, 54, 62))
GLASS = (70, 86, 102)

Colour = tuple[float, ...]
Points = Sequence[tuple[float, float]]
Frame = tuple[float, float, float, float]  # where (0, 0) lies from left and top, and lengths across and down


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))


def block(below: float, above: float, lower: float, upper: float) -> Points:
    """A trapezoid from height `lower` to `upper`, `below` and `above` to either side of the middle."""
    return ((-below, lower), (-above, upper), (above, upper), (below, lower))


class Scene:
    """An image and its label map, drawn together, from far to near.

    Attributes:
        width: of the image; its height is 1.
        horizon: where the plain ends, from the top.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.scale = rng, size[0] * SUPERSAMPLING
        self.width, self.horizon = size[1] / size[0], rng.uniform(0.38, 0.5)
        canvas = (size[1] * SUPERSAMPLING, size[0] * SUPERSAMPLING)
        first, second = rng.choice(len(MOODS), 2, replace=False)
        share = rng.uniform(0, 0.5)
        moods = zip(MOODS[first], MOODS[second], strict=True)
        self.zenith, self.haze, self.sun, self.light = (mixed(a, b, share) for a, b in moods)
        self.image, self.label = Image.new("RGB", canvas), Image.new("L", canvas, SKY)
        self.pen, self.label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)
        self.sunny_side = rng.choice((-1, 1))

    def pick(self, colours: tuple[Colour, ...], spread: float = 12) -> Colour:
        """One of the colours in this scene's light, a little off."""
        colour = np.array(colours[self.rng.integers(len(colours))]) + self.rng.normal(0, spread / 2, 3)
        return tuple(colour * self.light)

    def far(self, colour: Colour, distance: float) -> Colour:
        """A colour as the air between makes it look; distance 0 to 1."""
        return mixed(colour, self.haze, 0.75 * distance)

    # ---- brushes

    def polygon(self, points: Points, colour: Colour, label: int, frame: Frame = (0, 0, 1, 1)) -> None:
        """A plain polygon, its points within `frame`."""
        x, y, wide, high = frame
        corners = [((x + across * wide) * self.scale, (y + down * high) * self.scale) for across, down in points]
        self.pen.polygon(corners, fill=tuple(round(value) for value in colour))
        self.label_pen.polygon(corners, fill=label)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, label: int) -> None:
        """A plain ellipse around `(x, y)`."""
        box = [value * self.scale for value in (x - rx, y - ry, x + rx, y + ry)]
        self.pen.ellipse(box, fill=tuple(round(value) for value in colour))
        self.label_pen.ellipse(box, fill=label)

    def shaded(self, points: Points, upper: Colour, lower: Colour, label: int) -> None:
        """A polygon whose colour changes from its top to its bottom."""
        corners = [(x * self.scale, y * self.scale) for x, y in points]
        mask = Image.new("1", self.image.size)
        ImageDraw.Draw(mask).polygon(corners, fill=1)
        self.label.paste(label, mask=mask)
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        share = ((np.arange(self.image.height) - top) / (bottom - top)).clip(0, 1)[:, None]
        column = np.array(upper) * (1 - share) + np.array(lower) * share
        gradient = Image.fromarray(column.clip(0, 255).astype(np.uint8)[:, None]).resize(self.image.size)
        self.image.paste(gradient, mask=mask)

    def soft(self, x: float, y: float, rx: float, ry: float, colour: Colour, opacity: float) -> None:
        """A blurred ellipse of light or shadow; the label map stays as it is."""
        edges = (x - 2.2 * rx, y - 2.2 * ry, x + 2.2 * rx, y + 2.2 * ry)
        left, top, right, bottom = (round(value * self.scale) for value in edges)
        squares = np.linspace(-2.2, 2.2, 24) ** 2
        fading = Image.fromarray((255 * opacity * np.exp(-squares[:, None] - squares)).astype(np.uint8))
        mask = fading.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC)
        self.image.paste(tuple(round(value) for value in colour), (left, top), mask)

    # ---- what there is

    def sky(self) -> None:
        """A gradient with the sun and clouds."""
        uniform, normal, bottom = self.rng.uniform, self.rng.normal, self.horizon + 0.05
        self.shaded([(0, 0), (self.width, 0), (self.width, bottom), (0, bottom)], self.zenith, self.haze, SKY)
        x, y = self.width * (0.5 + self.sunny_side * uniform(0.15, 0.42)), uniform(0.06, 0.24)
        self.soft(x, y, 0.22, 0.22, self.sun, 0.7)
        self.ellipse(x, y, 0.045, 0.045, mixed(self.sun, (255, 255, 255), 0.4), SKY)
        for _ in range(self.rng.integers(1, 5)):
            x, y, length = uniform(0, self.width), uniform(0.04, 0.26), uniform(0.08, 0.2)
            for _ in range(5):
                across, up = normal(0, length / 2), normal(0, 0.012)
                self.soft(x + across, y + up, length / 2, 0.022, (255, 252, 248), 0.45)

    def hills(self) -> None:
        """Two ridges, the farther one bluer, and the plain with its meadows."""
        uniform, horizon, steps = self.rng.uniform, self.horizon, np.linspace(0, self.width, 40)
        for distance, height in ((0.62, 0.17), (0.38, 0.09)):
            waves: Any = sum(uniform(0.3, 1) / k * np.sin(k * steps * 3 + uniform(0, 6.3)) for k in (1, 2, 3, 5))
            ridge = zip(steps, horizon - height * (0.55 + 0.3 * waves), strict=True)
            colour = self.far(mixed(self.pick(((92, 126, 96),)), (84, 104, 150), distance), distance)
            outline = [*ridge, (self.width, horizon + 0.02), (0, horizon + 0.02)]
            self.shaded(outline, colour, self.far(colour, 0.35), TERRAIN)
        grass, plain = self.pick(GRASS), [(0, horizon), (self.width, horizon), (self.width, 1), (0, 1)]
        self.shaded(plain, self.far(grass, 0.45), mixed(grass, (30, 60, 20), 0.15), TERRAIN)
        for _ in range(9):  # meadows lighter and darker, flat as they lie
            near = uniform(0, 1) ** 2
            tint = mixed(self.pick(GRASS), self.pick(GRASS), 0.5)
            y = horizon + 0.03 + (0.97 - horizon) * near
            self.soft(uniform(0, self.width), y, 0.1 + 0.4 * near, 0.012 + 0.05 * near, tint, 0.55)

    def road(self) -> None:
        """From the horizon to the viewer, in a bend."""
        self.road_end, self.bend = self.width * self.rng.uniform(0.3, 0.7), self.rng.normal(0, 0.12)
        self.road_start = self.width * self.rng.uniform(0.38, 0.62)
        asphalt, verge, ways = self.pick(((112, 110, 114),), 8), (206, 198, 180), np.linspace(0, 1, 24)
        surface = (self.far(asphalt, 0.4), mixed(asphalt, (40, 40, 46), 0.3))
        for spread, colours in ((1.12, (verge, verge)), (1.0, surface)):
            left = [(self.on_road(way, -spread), self.ground(way)) for way in ways]
            right = [(self.on_road(way, spread), self.ground(way)) for way in ways[::-1]]
            upper, lower = (tuple(np.array(colour) * self.light) for colour in colours)
            self.shaded([*left, *right], upper, lower, ROAD)
        way = 0.02
        while way < 1:  # dashes in the middle, by perspective longer when near
            end = min(1.0, way * 1.32)
            places = [(way, -0.025), (way, 0.025), (end, 0.025), (end, -0.025)]
            corners = [(self.on_road(near, side), self.ground(near)) for near, side in places]
            self.polygon(corners, self.far((238, 234, 222), 0.4 * (1 - way)), ROAD)
            way = end * 1.3

    def ground(self, near: float) -> float:
        """Height in the image of the plain's point that is `near`: 0 at the horizon, 1 at the viewer."""
        return self.horizon + 0.012 + (1 - self.horizon) * near

    def on_road(self, near: float, side: float) -> float:
        """Horizontal place on the road; -1 and 1 are its edges."""
        middle = self.road_end + (self.road_start - self.road_end) * near + self.bend * np.sin(np.pi * near) * 0.8
        return float(middle + side * (0.012 + 0.4 * near))

    def tree(self, x: float, foot: float, size: float, distance: float) -> None:
        """A round tree or a fir, `size` high."""
        leaves, frame = self.far(self.pick(LEAVES), distance), (x, foot, size, -size)
        self.soft(x - 0.1 * size * self.sunny_side, foot, 0.4 * size, 0.07 * size, (40, 52, 40), 0.45)
        self.polygon(block(0.045, 0.045, 0, 0.5), self.far((92, 68, 50), distance), TREE, frame)
        if self.rng.random() < 0.35:
            for level in range(4):
                lower, half = 0.14 + 0.19 * level, 0.29 - 0.055 * level
                self.polygon(block(half, 0, lower, lower + 0.3), mixed(leaves, (20, 40, 40), 0.25), TREE, frame)
                lit = [(0, lower), (half * self.sunny_side, lower), (0, lower + 0.3)]
                self.polygon(lit, leaves, TREE, frame)
            return
        for layer, shade in enumerate((-0.3, 0.0, 0.22)):
            for _ in range(12):
                angle, away = self.rng.uniform(0, 6.3), np.sqrt(self.rng.random()) * (1 - 0.25 * layer)
                across = 0.24 * away * np.cos(angle) + 0.07 * layer * self.sunny_side
                up = 0.64 + 0.2 * away * np.sin(angle) + 0.05 * layer
                radius = size * self.rng.uniform(0.09, 0.13) * (1 - 0.2 * layer)
                target = (255, 246, 190) if shade > 0 else (16, 36, 36)
                colour = mixed(leaves, target, abs(shade) * self.rng.uniform(0.8, 1.2))
                self.ellipse(x + across * size, foot - up * size, radius, radius, colour, TREE)

    def house(self, x: float, foot: float, size: float, distance: float) -> None:
        """A house with its gable and one long side, about `1.6 * size` wide."""
        wall, roof = (self.far(self.pick(colours), distance) for colours in (WALLS, ROOFS))
        away = 1 if x < self.on_road(0.5, 0) else -1  # the long side looks to the road
        self.soft(x + 0.2 * size * away, foot, size, 0.09 * size, (40, 48, 44), 0.45)
        shadow, glass = mixed(wall, (70, 70, 100), 0.28), self.far(GLASS, distance)
        gable, side = (shadow, wall) if away == self.sunny_side else (wall, shadow)
        for colour, *corners in (
            (mixed(roof, (60, 50, 50), 0.4), (0.75, 1.15), (0.87, 1.15), (0.87, 0.8), (0.75, 0.8)),
            (side, (0, 0), (1, 0.06), (1, 0.56), (0, 0.6)),
            (gable, (-0.6, 0.05), (0, 0), (0, 0.6), (-0.3, 1), (-0.6, 0.58)),
            (roof, (0.04, 0.54), (1.07, 0.5), (0.72, 0.94), (-0.31, 1.04)),
            (
                mixed(roof, (40, 30, 40), 0.35),
                (-0.31, 1.04),
                (-0.66, 0.54),
                (-0.62, 0.5),
                (-0.3, 0.95),
                (0, 0.54),
                (0.04, 0.54),
            ),
            (glass, (0.18, 0.2), (0.38, 0.21), (0.38, 0.42), (0.18, 0.42)),
            (glass, (0.62, 0.2), (0.82, 0.21), (0.82, 0.42), (0.62, 0.42)),
            (self.far((110, 76, 56), distance), (-0.46, 0.04), (-0.26, 0.02), (-0.26, 0.38), (-0.46, 0.38)),
            (glass, (-0.38, 0.56), (-0.22, 0.56), (-0.22, 0.74), (-0.38, 0.74)),
        ):
            self.polygon(corners, colour, HOUSE, (x, foot, away * size, -size))

    def car(self, x: float, foot: float, size: float, distance: float) -> None:
        """A car from behind, `size` wide."""
        paint, frame = self.far(self.pick(PAINTS), distance), (x, foot, size, -size)
        self.soft(x, foot, 0.6 * size, 0.1 * size, (24, 24, 28), 0.7)
        for left in (-0.36, 0.36):
            wheel = [(left + across, up) for across, up in block(0.09, 0.09, 0, 0.2)]
            self.polygon(wheel, self.far((30, 30, 34), distance), CAR, frame)
        self.polygon(block(0.46, 0.5, 0.09, 0.2), mixed(paint, (20, 20, 30), 0.35), CAR, frame)
        self.polygon(block(0.5, 0.48, 0.2, 0.46), paint, CAR, frame)
        self.polygon(block(0.44, 0.3, 0.45, 0.76), mixed(paint, (255, 255, 255), 0.16), CAR, frame)
        self.polygon(block(0.36, 0.26, 0.47, 0.7), self.far(GLASS, distance), CAR, frame)
        for left in (-0.4, 0.4):
            self.ellipse(x + left * size, foot - 0.33 * size, 0.07 * size, 0.05 * size, (226, 74, 56), CAR)
        self.polygon(block(0.12, 0.12, 0.2, 0.28), (236, 234, 226), CAR, frame)

    def things(self) -> None:
        """Trees and houses beside the road, cars on it, from far to near."""
        places, uniform = [], self.rng.uniform
        for side in (-1, 1):
            near = uniform(0.02, 0.08)
            while near < 0.62:
                is_tree = self.rng.random() < 0.6
                space = uniform(0.25, 1.1) if is_tree else uniform(0.75, 1.3)
                size = (0.07 + 0.62 * near) * uniform(0.85, 1.25) * (1.25 if is_tree else 0.72)
                x = self.on_road(near, 0) + side * (0.012 + 0.4 * near + space * size)
                places.append((near, self.tree if is_tree else self.house, x, size))
                near += uniform(0.05, 0.24)
        for lane in (-0.5, 0.5):
            if self.rng.random() < 0.8:
                near = uniform(0.14, 0.85)
                places.append((near, self.car, self.on_road(near, lane), 0.03 + 0.32 * near))
        for near, kind, x, size in sorted(places, key=lambda place: place[0]):
            kind(x, self.ground(near), size, max(0.0, 0.45 - near))

    def finished(self) -> tuple[Image.Image, Image.Image]:
        """The image and its label map at their size."""
        middle = SUPERSAMPLING // 2
        label = np.array(self.label)[middle::SUPERSAMPLING, middle::SUPERSAMPLING]
        if self.rng.random() < 0.3:  # the edges of some maps belong to no class, as in real ones
            label[np.asarray(Image.fromarray(label).filter(ImageFilter.MaxFilter(3))) != label] = 255
        image = np.asarray(self.image.reduce(SUPERSAMPLING), dtype=np.float32)
        grain = self.rng.normal(0, 2.5, size=(*label.shape, 1))
        return Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)), Image.fromarray(label)


def draw_sample(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[Image.Image, Image.Image]:
    """An image of `size` (height, width) and its label map; the edges in some maps are ignored (255)."""
    scene = Scene(rng, size)
    scene.sky()
    scene.hills()
    scene.road()
    scene.things()
    return scene.finished()


def encoded(image: Image.Image, kind: str) -> dict[str, bytes]:
    """An image as a row of an `Image` column holds it; `kind` is PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=92)
    return {"bytes": buffer.getvalue()}


def write_dataset(folder: Path, sizes: dict[str, int], shards: int = 2, seed: int = 0) -> None:
    """Writes `data/<split>-0000i-of-0000n.parquet`, `id2label.json` and `palette.json`.

    A sample depends on seed, split and index alone.
    """
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    )
    for number, (split, size) in enumerate(sizes.items()):
        rows = []
        for index in range(size):
            image, label = draw_sample(np.random.default_rng([seed, number, index]))
            name = f"{split}_{index:05d}"
            rows.append({"image": encoded(image, "JPEG"), "label": encoded(label, "PNG"), "image_id": name})
        write_shards(folder, split, rows, features, shards)
    palette = dict(enumerate(PALETTE))
    write_beside(folder, {"id2label.json": dict(enumerate(CLASSES)), "palette.json": palette})


def write_shards(
    folder: Path, split: str, rows: list[dict[str, Any]], features: datasets.Features, shards: int
) -> None:
    """Writes `folder/data/<split>-0000i-of-0000n.parquet`."""
    data = datasets.Dataset.from_list(rows, features=features)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        file = folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        data.shard(shards, shard, contiguous=True).to_parquet(file)


def write_beside(folder: Path, files: dict[str, Any]) -> None:
    """Writes JSON files into the folder of a data set, by their names."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
