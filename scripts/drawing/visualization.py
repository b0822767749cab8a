"""Colours of classes, one set for every image of the project: label maps as PNGs, overlays, contours, legends.

A dataset's own colours come from `palette.json` beside its `id2label.json`: `{"0": "#804080", ...}` or a list by id,
of `"#rrggbb"` or `[red, green, blue]`. The trainer keeps them in the model's configuration as `palette`.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


Colour = tuple[int, int, int]
Palette = Mapping[int, Colour]

# Each colour is as far from those before it as could be found, and from the black of ignored pixels, in CIEDE2000, as
# seen with and without a colour-vision deficiency (protan, deutan, tritan): 15 at least among the first dozen. A class
# keeps its colour however many there are.
COLOURS = bytes.fromhex(
    "334c8000ffccb21900b299ffcce600e66600994ce6198080804c4c66b2b2cc9980ffccff0000665511004433449977660000dd7788bb"
    "ccff99bbbb55bb447799bbaa553333eebb99dd0033ccaadd9977ff4400993366227744bb779955666699557744003355998888bbcccc"
    "888899ffff666666667700ff664466ff8800772211ee55ccbbdd77777799aa8877445555bbffbb99aa55333377558844eeaaff550044"
    "bbbbcc4433aaaa9999ffeedd664433773344eeccbb5599dd8866bb886677aabb77cc5500ee3344bbcc3377bb2299666655559944dd99"
    "665566443322bb66aabb5588ff88bbeeee7788ddee1122669999886633557766554466ff4400bb5555003333ddff7799aa7777995533"
    "ddeeff555577aa88aabb99aa444422aaddccbb33225588dd226655aa88ff7744dd88558800443344cceebb99ccbb8833777755ddbbbb"
    "ccff00004466aaee9977aa66330044000088eebbddaacc771177338855bbffcc55ee668844998899334499eeaa2288aaaaccaa998866"
    "bb88bb667766778855554499ee4499bbaacc9911887711446633bb77226699aaee99aa99778877eeccddeeddcc77cc8855eebb11cc44"
    "bb00ff4466aa22441199ccbb9988cc556611cc2288111155aadd8800ee55aa0077cc66bbbbee8866118888bbbbaaaaaa77eeff33aadd"
    "dd6655ccaa6633883388882200bb77882222dd224422aa99aa3366447777991144cc66229966ff44007799ddaaccffcc3344ccbb9944"
    "9966cc334455eeaa8822bbaa660055ddff88bb11aaaaffaa66ff66775555ee99330033110000ff9955cc662299aadd00555544889966"
    "ee11996677dd88aabbcceebbaaaa886699445533008800cc0011aaddaaeebb2255770066dd55888888eebb55aacc5555aaaaff550088"
    "aa11eeff7722ccddee000077dd33666611776611bb442211ccbb00ddccee4455ff8899ee887733ffbbcc5544448844ccaabb9955ddcc"
    "11116688bbdd55668899cc665555aa9999aacc11114411cc7733ddffbb55ee5577aaccddccccff0055336699aacc3300997799005577"
    "aa33227700aaddccaa"
)
IGNORED_COLOUR = (0, 0, 0)
IGNORE_INDEX = 255
OPACITY = 0.55
STRIP = 64  # rows that are coloured at a time
LONGEST_NAME = 200  # letters of a class's name in a legend
GOLDEN = 0.618034  # steps of it, without their whole part, fill an interval evenly however many there are


# ---- colours --------------------------------------------------------------------------------------------------------


def parse_colour(value: Any) -> Colour:
    """`"#rrggbb"` or three numbers in 0..255.

    Raises:
        ValueError: it is neither.
    """
    try:
        if isinstance(value, str):
            numbers = list(bytes.fromhex(value.removeprefix("#")))
        else:
            numbers = [int(number) for number in value]
        red, green, blue = numbers
        if not all(0 <= number <= 255 for number in numbers):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f'{value!r} is no colour: write "#rrggbb" or [red, green, blue] in 0..255') from None
    return red, green, blue


def parse_palette(value: Any) -> dict[int, Colour]:
    """Colours by class id, of a mapping or a list by id; None and gaps leave a class to the project's own colours.

    Raises:
        ValueError: it holds something that is no colour, or ids that are no numbers.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"a palette of {type(value).__name__}: write a mapping of id to colour, or a list by id")
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    palette = {}
    for index, colour in entries:
        try:
            number = int(index)
        except (TypeError, ValueError):
            raise ValueError(f"a palette with {index!r} for the id of a class: write a number") from None
        if colour is not None:
            palette[number] = parse_colour(colour)
    return palette


def model_palette(config: Any) -> dict[int, Colour]:
    """The colours that a model's configuration holds, those of its dataset; often none."""
    try:
        return parse_palette(getattr(config, "palette", None))
    except ValueError:  # a foreign model's, of another form
        return {}


def class_colour(index: int, palette: Palette | None = None) -> Colour:
    """RGB of a class, the same in every image."""
    if index == IGNORE_INDEX:
        return IGNORED_COLOUR
    if palette and index in palette:
        return palette[index]
    start = 3 * (index % (len(COLOURS) // 3))
    return COLOURS[start], COLOURS[start + 1], COLOURS[start + 2]


def segment_colours(classes: Mapping[int, int], palette: Palette | None = None) -> dict[int, Colour]:
    """Colours by which segments of one class are told apart and still known as of that class.

    Args:
        classes: number of each segment -> its class.
    Returns:
        by number the colour of its class where it is the only one of it, else a shade of that colour.
    """
    counts, seen, colours = Counter(classes.values()), Counter[int](), {}
    for number, index in classes.items():
        colours[number] = class_colour(index, palette)
        if counts[index] > 1:
            colours[number] = shade(colours[number], seen[index])
        seen[index] += 1
    return colours


def shade(colour: Colour, number: int) -> Colour:
    """The shade of a colour with this number; neighbours in number are far apart in lightness."""
    hue, _, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour))
    place = (0.5 + number * GOLDEN) % 1
    turned = hue + 0.16 * ((number * GOLDEN**2) % 1 - 0.5)
    red, green, blue = colorsys.hls_to_rgb(turned % 1, 0.28 + 0.5 * place, max(saturation, 0.55))
    return round(255 * red), round(255 * green), round(255 * blue)


# ---- label maps -----------------------------------------------------------------------------------------------------


def colour_map(labels: np.ndarray, palette: Palette | None = None) -> np.ndarray:
    """`(H, W)` ids -> `(H, W, 3)` uint8 colours."""
    ids, inverse = np.unique(labels, return_inverse=True)
    colours = np.array([class_colour(int(index), palette) for index in ids], dtype=np.uint8)
    return colours[inverse.reshape(labels.shape)]


def label_image(labels: np.ndarray, palette: Palette | None = None) -> Image.Image:
    """Label map as a PNG-ready image: pixel value = class id, with the palette where ids fit into a byte."""
    if labels.max(initial=0) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([channel for index in range(256) for channel in class_colour(index, palette)])
    return image


def contours(labels: np.ndarray) -> np.ndarray:
    """`(H, W)` bool: pixels with a neighbour, by a side, of another id."""
    edges = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


# ---- overlays -------------------------------------------------------------------------------------------------------


def overlay(
    image: Image.Image,
    labels: np.ndarray,
    opacity: float = OPACITY,
    palette: Palette | None = None,
    with_contours: bool = True,
) -> Image.Image:
    """RGB image with its label map laid over it; ignored pixels stay as they are.

    Args:
        opacity: of the colours, 0 to 1.
        with_contours: whether regions end in a line of their full colour, also at `opacity` 0.
    """
    drawn = Image.new("RGB", image.size)
    draw_overlay(drawn, image, labels, opacity, palette, with_contours)
    return drawn


def draw_overlay(
    sheet: Image.Image,
    image: Image.Image,
    labels: np.ndarray,
    opacity: float = OPACITY,
    palette: Palette | None = None,
    with_contours: bool = True,
    untinted: int | None = None,
) -> None:
    """Draws the `overlay` of an image into the upper left of `sheet`, a strip at a time: numbers with fractions of a
    whole photo would take a gigabyte.

    Args:
        untinted: a class that is left as it is but for its contours.
    """
    for start in range(0, len(labels), STRIP):
        stop = min(start + STRIP, len(labels))
        above = max(start - 1, 0)  # a row more on each side: contours are where neighbours differ
        ids = labels[start:stop]
        weight = np.full(ids.shape, opacity, dtype=np.float32)
        if untinted is not None:
            weight[ids == untinted] = 0
        if with_contours:
            weight[contours(labels[above : stop + 1])[start - above :][: stop - start]] = 1
        weight[ids == IGNORE_INDEX] = 0
        pixels = np.asarray(image.crop((0, start, image.width, stop)).convert("RGB"))
        colours = colour_map(ids, palette)
        mixed = (pixels * (1 - weight[..., None]) + colours * weight[..., None]).round()
        sheet.paste(Image.fromarray(mixed.astype(np.uint8)), (0, start))


def legend(entries: Sequence[tuple[int, str]], width: int, palette: Palette | None = None) -> Image.Image:
    """Swatches with names, in rows that fit into `width` pixels (and never narrower than one entry)."""
    swatch = max(14, round(width / 80))  # as large beside a large image as beside a small one
    font = ImageFont.load_default(swatch)
    gap, row_height = round(swatch * 0.6), round(swatch * 1.75)
    # The longest decides the width of the whole image.
    entries = [(index, f"{name[:LONGEST_NAME]}{'...' * (len(name) > LONGEST_NAME)}") for index, name in entries]
    sizes = [swatch + gap + int(font.getlength(name)) + 2 * gap for _, name in entries]
    width = max([width, *(size + 2 * gap for size in sizes)])
    places, x, y = [], gap, 0
    for size in sizes:
        if x + size > width and x > gap:
            x, y = gap, y + row_height
        places.append((x, y))
        x += size
    image = Image.new("RGB", (width, y + row_height), "white")
    draw = ImageDraw.Draw(image)
    top = (row_height - swatch) // 2
    for (index, name), (x, y) in zip(entries, places, strict=True):
        box = (x, y + top, x + swatch, y + top + swatch)
        draw.rectangle(box, fill=class_colour(index, palette), outline="black")
        draw.text((x + swatch + gap, y + top + swatch / 2), name, fill="black", font=font, anchor="lm")
    return image


def present_classes(labels: Iterable[np.ndarray] | np.ndarray, id2label: Mapping[int, str]) -> list[tuple[int, str]]:
    """Entries of a legend: ids that occur in one or several label maps, and their names."""
    maps = [labels] if isinstance(labels, np.ndarray) else list(labels)
    present = sorted({int(index) for each in maps for index in np.unique(each)} - {IGNORE_INDEX})
    return [(index, id2label.get(index, str(index))) for index in present]


def below(image: Image.Image, entries: Sequence[tuple[int, str]], palette: Palette | None = None) -> Image.Image:
    """An image with a legend under it."""
    return joined([image, legend(entries, image.width, palette)], down=True)


def joined(images: Sequence[Image.Image], gap: int = 0, down: bool = False) -> Image.Image:
    """Images side by side on white, or one below the other."""
    lengths = [gap + (image.height if down else image.width) for image in images]
    across = max(image.width if down else image.height for image in images)
    along = sum(lengths) - gap
    sheet = Image.new("RGB", (across, along) if down else (along, across), "white")
    for number, image in enumerate(images):
        place = sum(lengths[:number])
        sheet.paste(image, (0, place) if down else (place, 0))
    return sheet


def with_legend(
    image: Image.Image,
    labels: np.ndarray,
    id2label: Mapping[int, str],
    palette: Palette | None = None,
    opacity: float = OPACITY,
    untinted: int | None = None,
) -> Image.Image:
    """Overlay of an image with a legend of the classes in it below.

    Args:
        opacity: of the colours, 0 for contours only.
        untinted: a class that is left as it is but for its contours.
    """
    key = legend(present_classes(labels, id2label), image.width, palette)
    sheet = Image.new("RGB", (max(image.width, key.width), image.height + key.height), "white")
    draw_overlay(sheet, image, labels, opacity, palette, untinted=untinted)
    sheet.paste(key, (0, image.height))
    return sheet
