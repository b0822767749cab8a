"""Masks of polygons and run-length codes, as COCO's json and YOLO's text files have them, by pycocotools.

What comes from files is checked before its C code sees it, which trusts its numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.samples import BadSample


MOST_CORNERS_APART = 2**22  # pixels along all outlines of a segment: memory is taken for each
FARTHEST = 2**20  # pixels, of a corner from the image's
LONGEST_CODE = 2**24  # letters of a run-length code
CONTINUED = 32  # bit of a letter of a run-length code that another follows
TOLERANCE = 0.01  # of a side, that YOLO's corners may lie outside of the image


def coco_mask_tools() -> Any:
    """`pycocotools.mask`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            'polygons and run-length codes are read by pycocotools: pip install "faseg-transformers[coco]"'
        ) from error
    return mask


def mask_of(segmentation: Any, size: tuple[int, int], what: str) -> np.ndarray:
    """`(H, W)` uint8, 1 inside, of a `segmentation` as COCO's json has it.

    Args:
        segmentation: list of polygons `[x1, y1, x2, y2, ...]` in pixels, which together are the segment; or a
            run-length code `{"size": [H, W], "counts": ...}`, a list or compressed.
        size: `(H, W)` of the image.
        what: names it in errors.
    Raises:
        BadSample: it is none of these, or of another size.
    """
    if isinstance(segmentation, list) and segmentation:
        return mask_of_polygons([corners(polygon, what) for polygon in segmentation], size, what)
    if isinstance(segmentation, dict):
        return mask_of_code(segmentation, size, what)
    raise BadSample(f"{what} has no segmentation, perhaps a box alone: need polygons or a run-length code")


def corners(polygon: Any, what: str) -> np.ndarray:
    """`(N, 2)` float64 of a list `[x1, y1, x2, y2, ...]`, N at least 3."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadSample(f"{what}: a polygon that is no list of numbers") from error
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
        raise BadSample(f"{what}: a polygon of {numbers.size} numbers: need x and y of three corners or more")
    return numbers.reshape(-1, 2)


def mask_of_polygons(polygons: list[np.ndarray], size: tuple[int, int], what: str) -> np.ndarray:
    """The same of polygons `(N, 2)` in pixels."""
    tools = coco_mask_tools()
    length = 0.0
    for points in polygons:
        if not (np.abs(points) < FARTHEST).all():  # nor is a number that is none
            raise BadSample(f"{what}: a polygon with a corner far from its image")
        length += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if length > MOST_CORNERS_APART:
        raise BadSample(f"{what}: outlines of {length:.0f} pixels: more than {MOST_CORNERS_APART} are not read")
    codes = tools.frPyObjects([points.ravel() for points in polygons], *size)
    return tools.decode(tools.merge(codes))


def mask_of_code(code: dict[str, Any], size: tuple[int, int], what: str) -> np.ndarray:
    """The same of a run-length code."""
    counts = code.get("counts")
    if code.get("size") != list(size):
        raise BadSample(f"{what}: a run-length code of size {code.get('size')}, but its image is {list(size)}")
    if isinstance(counts, list):
        runs = plain_runs(counts)
        if runs is None or runs.sum() != size[0] * size[1]:
            raise BadSample(f"{what}: a run-length code whose counts do not add up to its image")
        inside = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
        return inside.reshape(size[::-1]).T
    if not isinstance(counts, str) or len(counts) > LONGEST_CODE:
        raise BadSample(f"{what}: a run-length code without counts")
    letters = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8)
    if not len(letters) or letters.min() < 48 or letters.max() >= 112 or (letters[-1] - 48) & CONTINUED:
        raise BadSample(f"{what}: a run-length code whose counts are not COCO's")
    try:
        return coco_mask_tools().decode({"size": list(size), "counts": counts.encode()})
    except ValueError as error:
        raise BadSample(f"{what}: a run-length code whose counts do not add up to its image") from error


def plain_runs(counts: list[Any]) -> np.ndarray | None:
    """Lengths of runs, None where they are no whole numbers from 0 on."""
    try:
        runs = np.asarray(counts)
    except ValueError:
        return None
    return runs if runs.ndim == 1 and runs.dtype.kind in "iu" and runs.min(initial=0) >= 0 else None


def yolo_polygons(content: bytes, name: str) -> list[tuple[int, np.ndarray]]:
    """Class and corners `(N, 2)`, x and y on the scale 0..1, of each line of YOLO's text file of a sample.

    Raises:
        BadSample: a line that is none.
        UserError: a box, with which the others will be boxes too.
    """
    found = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        what = f"line {number} of the polygons of sample {name}"
        try:
            numbers = [float(part) for part in line.split()]
        except ValueError as error:
            raise BadSample(f"{what} holds other than numbers: {line[:40]!r}") from error
        if not numbers:
            continue
        if len(numbers) == 5:
            raise UserError(
                f"{what} has four numbers behind its class: a box, which says nothing of a segment's pixels: give "
                "polygons, class x1 y1 x2 y2 x3 y3 ..."
            )
        if len(numbers) < 7 or len(numbers) % 2 == 0 or not numbers[0].is_integer():
            raise BadSample(f"{what} has {len(numbers)} numbers: need a class, and x and y of three corners or more")
        corners = np.array(numbers[1:]).reshape(-1, 2)
        if not ((corners >= -TOLERANCE) & (corners <= 1 + TOLERANCE)).all():
            raise BadSample(f"{what} has corners outside of 0..1: need them relative to width and height")
        found.append((int(numbers[0]), corners))
    return found
