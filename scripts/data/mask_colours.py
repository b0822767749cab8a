"""Label maps in colours: the table that turns each colour into a class id.

`--mask_colors FILE.json` holds the colour, or the colours, of each class, `{"road": "#804080", "car": [0, 0, 142]}`;
`"ignore"` lists colours that belong to no class. The classes are numbered in the order of the file, unless class names
number them. In place of names the file may have ids, `{"0": "#804080"}`, the form of `palette.json`; that file, where
it lies beside the data, is taken for maps in colours without being named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data.class_map import IGNORE_KEY
from scripts.data.ignored import IGNORE_INDEX
from scripts.drawing.visualization import parse_colour
from scripts.storage.json_files import read_json


RGB = np.array([2**16, 2**8, 1])  # weights of red, green and blue in a colour's code
SHOWN = 8  # colours in a message


@dataclass(frozen=True)
class MaskColours:
    """Stored id by colour.

    Args:
        ids: id by the colour's code, `65536 R + 256 G + B`.
        source: the flag or file, for messages.
        always: whether maps of one channel are colours too (grey ones, or those of their palette).
    """

    ids: dict[int, int]
    source: str
    always: bool

    def applies_to(self, image: Image.Image) -> bool:
        """Whether this label map is in colours."""
        return self.always or len(image.getbands()) > 1

    def label_map(self, image: Image.Image, name: str) -> np.ndarray:
        """`(H, W)` uint8 ids of a label map in colours; `name` is the sample's.

        Raises:
            UserError: a colour of no class, pixels that are transparent, or more than 8 bits per channel.
        """
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"label map of sample {name} has mode {image.mode}, which holds no colours: leave {self.source} out"
            )
        if image.has_transparency_data and (alpha := np.asarray(image.convert("RGBA"))[..., 3]).min(initial=255) < 255:
            share = 100 * float((alpha < 255).mean())
            raise UserError(
                f"label map of sample {name} is transparent in {share:.1f} % of its pixels, so their colours are not "
                "certain: save it without transparency"
            )
        codes = np.asarray(image.convert("RGB")).astype(np.int64) @ RGB
        known = np.array(sorted(self.ids))
        places = np.searchsorted(known, codes).clip(max=len(known) - 1)
        if (unknown := known[places] != codes).any():
            raise UserError(self.fault(codes[unknown], codes.size, name))
        return np.array([self.ids[code] for code in known.tolist()], dtype=np.uint8)[places]

    def fault(self, codes: np.ndarray, pixels: int, name: str) -> str:
        """What is said of colours that belong to no class.

        Args:
            codes: those of the pixels that have them.
            pixels: of the whole map.
        """
        values, counts = np.unique(codes, return_counts=True)
        most = np.argsort(-counts)[:SHOWN]
        listed = ", ".join(
            f"{colour_text(values[at])} ({100 * counts[at] / pixels:.2g} % of its pixels)" for at in most
        )
        more = f" and {len(values) - SHOWN} colours more" if len(values) > SHOWN else ""
        example = f'{{"{IGNORE_KEY}": ["{colour_text(values[most[0]])}"]}} if they are no class'
        fix = f"name them in {self.source}, {example}"
        if not self.always:
            fix = f"give --mask_colors with the colours of all classes, and {example}"
        if len(values) > SHOWN:
            fix = "many colours come from JPEG or from resizing with interpolation: take the maps from their source"
        return f"label map of sample {name} holds {listed}{more}, which {self.source} gives to no class: {fix}"


def colour_text(code: Any) -> str:
    """`#rrggbb` of a colour's code."""
    return f"#{int(code):06x}"


def colour_code(value: Any) -> int:
    """Code of `"#rrggbb"` or `[red, green, blue]`. Raises a `ValueError` for anything else."""
    return int(np.array(parse_colour(value)) @ RGB)


def colours_of_palette(palette: Mapping[str, str], source: str) -> MaskColours | None:
    """Colours by id, as `palette.json` beside the data holds them; None where two classes share one."""
    ids = {colour_code(colour): int(index) for index, colour in palette.items()}
    if len(ids) < len(palette):
        return None
    return MaskColours(ids, source, always=False)


def read_mask_colours(file: str) -> tuple[dict[int, str] | None, MaskColours]:
    """Class names by id, None if the file has ids in their place, and the colours of `--mask_colors`.

    Raises:
        UserError: not such a file, no class, or a colour of two classes.
    """
    source = f"--mask_colors {file}"
    content = read_json(Path(file))
    if not isinstance(content, dict) or not any(name != IGNORE_KEY for name in content):
        raise UserError(f'{source}: write the colour of each class, {{"road": "#804080", "car": "#00008e"}}')
    names = [name for name in content if name != IGNORE_KEY]
    by_id = all(name.isascii() and name.isdecimal() for name in names)
    numbers = {name: int(name) if by_id else index for index, name in enumerate(names)}
    if max(numbers.values()) >= IGNORE_INDEX:
        raise UserError(f"{source}: class {max(numbers.values())}: label maps hold classes below {IGNORE_INDEX}")
    ids: dict[int, int] = {}
    for name, value in content.items():
        several = isinstance(value, list) and not all(isinstance(item, int) for item in value)
        for colour in value if several else [value]:
            try:
                code = colour_code(colour)
            except ValueError as error:
                raise UserError(f"{source}: {name}: {error}") from error
            index = numbers.get(name, IGNORE_INDEX)
            if ids.setdefault(code, index) != index:
                raise UserError(f"{source}: {colour_text(code)} is the colour of two classes: give each its own")
    return None if by_id else dict(enumerate(names)), MaskColours(ids, source, always=True)


def names_with_colours(
    names: dict[int, str] | None, named: dict[int, str] | None, colours: MaskColours
) -> dict[int, str] | None:
    """Class names by id where the file of `--mask_colors` is given.

    Args:
        names: of the file of class names, None without one.
        named: names by id in the file of colours, None where it has ids.
    Raises:
        UserError: the two files do not have the same classes, or there are no names at all.
    """
    if names is None and named is None:
        raise UserError(f"{colours.source} has ids, so class names are needed: give --id2label, or names in it")
    if names is None:
        return named
    if named is not None and (odd := sorted(set(named.values()) ^ set(names.values()))):
        raise UserError(
            f"{colours.source} and the class names do not have the same classes: {odd[0]!r} is in one only"
        )
    if named is None and (odd_ids := sorted(set(colours.ids.values()) - {*names, IGNORE_INDEX})):
        raise UserError(f"{colours.source} has a colour for class {odd_ids[0]}, which has no name")
    return names


def renumbered(colours: MaskColours, named: dict[int, str] | None, names: dict[int, str]) -> MaskColours:
    """`colours` with the ids that `names` gives to the names of the file of colours, where it has names."""
    if named is None:
        return colours
    ids = {name: index for index, name in names.items()}
    moved = {index: ids[name] for index, name in named.items()}
    return replace(colours, ids={code: moved.get(index, index) for code, index in colours.ids.items()})
