"""Masks of polygons, by pycocotools, and of run-length codes, as COCO's json and YOLO's text files have them.

Polygons are checked before its C code sees them, which trusts their numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from image_processing.segments import BoxedMask
from scripts.cli.errors import UserError
from scripts.data.samples import BadSample


LONGEST_OUTLINES = 2**22  # pixels along all outlines of a segment: memory is taken for each
FARTHEST = 2**20  # pixels, of a corner from the image's
MOST_LETTERS = 6  # of a number of a run-length code: 30 bits, more than an image has pixels
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
        raise UserError('polygons are drawn by pycocotools: pip install "faseg-transformers[coco]"') from error
    return mask


def mask_of(segmentation: Any, size: tuple[int, int], what: str) -> BoxedMask:
    """The mask, true inside, of a `segmentation` as COCO's json has it.

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


def mask_of_polygons(polygons: list[np.ndarray], size: tuple[int, int], what: str) -> BoxedMask:
    """The same of polygons `(N, 2)` in pixels."""
    tools = coco_mask_tools()
    length = 0.0
    for points in polygons:
        if not (np.abs(points) < FARTHEST).all():  # nor is a number that is none
            raise BadSample(f"{what}: a polygon with a corner far from its image")
        length += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if length > LONGEST_OUTLINES:
        raise BadSample(f"{what}: outlines of {length:.0f} pixels: more than {LONGEST_OUTLINES} are not read")
    code = tools.merge(tools.frPyObjects([points.ravel() for points in polygons], *size))
    left, top, width, height = tools.toBbox(code).astype(int).tolist()
    runs = packed_runs(code["counts"].decode())
    assert runs is not None
    # The columns of its box alone: `tools.decode` writes every pixel of the image.
    ends = np.clip(runs.cumsum(), left * size[0], (left + width) * size[0])
    return boxed(painted(np.diff(ends, prepend=left * size[0]), (size[0], width))[top : top + height], size, top, left)


def painted(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(H, W)` uint8 of lengths of runs, 0 and 1 in turn, down the columns."""
    return np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(size[::-1]).T


def boxed(pixels: np.ndarray, size: tuple[int, int], top: int = 0, left: int = 0) -> BoxedMask:
    """The mask of an image of `size` that has these uint8 pixels from a corner on."""
    rows, columns = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    return BoxedMask(size, rows, columns, torch.from_numpy(np.ascontiguousarray(pixels).view(bool)))


def mask_of_code(code: dict[str, Any], size: tuple[int, int], what: str) -> BoxedMask:
    """The same of a run-length code: lengths of runs, outside and inside in turn, down the columns.

    Not by pycocotools, which makes up pixels where the runs are too short for the image.
    """
    counts = code.get("counts")
    if code.get("size") != list(size):
        raise BadSample(f"{what}: a run-length code of size {code.get('size')}, but its image is {list(size)}")
    runs = plain_runs(counts) if isinstance(counts, list) else packed_runs(counts) if isinstance(counts, str) else None
    if runs is None or runs.min(initial=0) < 0 or runs.sum() != size[0] * size[1]:
        raise BadSample(f"{what}: a run-length code whose counts do not add up to its image")
    return boxed(painted(runs, size), size)


def plain_runs(counts: list[Any]) -> np.ndarray | None:
    """int64 lengths of runs, None where they are no whole numbers."""
    try:
        runs = np.asarray(counts)
    except ValueError:
        return None
    return runs.astype(np.int64) if runs.ndim == 1 and runs.dtype.kind in "iu" else None


def packed_runs(counts: str) -> np.ndarray | None:
    """int64 lengths of runs of COCO's compressed code, None where it is none.

    A number is a group of letters of five bits each from the lowest on, the last of which gives the sign; from the
    fourth number on each is the difference to the one before the last.
    """
    letters = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(letters) or letters.min() < 0 or letters.max() >= 64 or letters[-1] & CONTINUED:
        return None
    ends = np.flatnonzero(letters & CONTINUED == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MOST_LETTERS:
        return None
    places = np.arange(len(letters)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((letters & 31) << (5 * places), starts)
    runs -= np.where(letters[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


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
