"""Image files that Pillow does not read whole: .npy arrays, TIFFs of many bands, colours of 16 bits."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_png

from image_processing.intensities import lost_by_pillow


MAX_PIXELS = 2**26  # 8192x8192: an image in the making takes up to 25 bytes for each
MAX_BYTES = 8 * MAX_PIXELS  # of a file: as many uncompressed, four channels of 16 bits each
MOST_BANDS = 16  # of an array whose order of axes is to be told
NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
UPRIGHT = (0, 1)  # of the TIFF tag of the orientation
ALPHA = (1, 2)  # of the TIFF tag of extra samples
PLANE = "YX"  # axes of an image, as tifffile names them


def bands_of_file(value: Any) -> tuple[np.ndarray, bool] | None:
    """`(C, H, W)` of an undecoded image that Pillow does not read whole, and whether its last band is transparency.

    Args:
        value: `{"bytes", "path"}` of a file on this machine.
    Returns:
        None for one that Pillow reads whole.
    Raises:
        ValueError: it is too large, or of a form that is not read; with the fix.
    """
    if not isinstance(value, dict):
        return None
    content, path = value.get("bytes"), value.get("path")

    def source() -> Any:
        return io.BytesIO(content) if content is not None else path

    head = content[:32] if content is not None else first_bytes(path)
    if head.startswith(NPY):
        return npy_bands(source()), False
    if (
        head.startswith(PNG) and len(head) > 25 and head[24] == 16 and head[25] != 0
    ):  # in colours, or with transparency
        check_size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
        return png_bands(content if content is not None else Path(str(path)).read_bytes())
    lost: str | None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error says more
            with Image.open(source()) as image:
                check_size(*image.size)
                lost = lost_by_pillow(image)
        if lost and image.format != "TIFF":
            raise ValueError(f"it holds {lost}, of which Pillow keeps 8: save it as TIFF or .npy")
    except UnidentifiedImageError:
        if not head.startswith(TIFFS):
            raise
        lost = "bands that Pillow cannot read"
    return tiff_bands(source(), lost) if lost else None


def first_bytes(path: Any) -> bytes:
    """The first 32 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(32)


def check_size(width: int, height: int) -> None:
    """Raises a `ValueError` for more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than the {MAX_PIXELS} that are read: cut it into tiles")


def check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises a `ValueError` for an array of no numbers, or of more bytes than are read."""
    if dtype.kind not in "iuf":
        raise ValueError(f"its array holds {dtype}: save whole or floating point numbers")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"its array of shape {shape} has more than the {MAX_BYTES} bytes that are read: cut it")


def npy_bands(source: Any) -> np.ndarray:
    """`(C, H, W)` of a .npy file of shape `(H, W)`, `(H, W, C)` or `(C, H, W)`."""
    with open(source, "rb") if not isinstance(source, io.BytesIO) else source as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        check_array(shape, dtype)  # before there is memory for it
        file.seek(0)
        array = np.load(file, allow_pickle=False)
    return bands_first(array)


def bands_first(array: np.ndarray) -> np.ndarray:
    """`(C, H, W)` of an array `(H, W)`, `(H, W, C)` or `(C, H, W)`: bands are the smaller of the two outer axes.

    Raises:
        ValueError: neither or both could be the bands.
    """
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"its array has shape {array.shape}: save (H, W), (H, W, C) or (C, H, W)")
    first, last = array.shape[0], array.shape[2]
    if min(first, last) > MOST_BANDS or first == last:
        raise ValueError(
            f"its array has shape {array.shape}, of which no axis is told as the bands: save (H, W, C) or (C, H, W) "
            f"with at most {MOST_BANDS} bands and more rows and columns than bands"
        )
    if last < first:
        array = array.transpose(2, 0, 1)
    check_size(array.shape[2], array.shape[1])
    return array


def png_bands(content: bytes) -> tuple[np.ndarray, bool]:
    """Bands of a PNG of 16 bits, upright, and whether the last is transparency."""
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    bands = decode_png(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True).numpy()
    return bands, len(bands) in (2, 4)


def tiff_bands(source: Any, holds: str) -> tuple[np.ndarray, bool]:
    """Bands of a TIFF, and whether the last is transparency: samples of its pixels, or one a page.

    Args:
        holds: what Pillow does not read.
    """
    try:
        import tifffile
    except ImportError:
        return geotiff_bands(source, holds), False
    with tifffile.TiffFile(source) as file:
        series = [each for each in file.series if not each.keyframe.is_reduced]
        if len(series) != 1:
            raise ValueError(f"the TIFF holds {len(series)} images of different sizes: save one a file")
        page, axes, shape = series[0].keyframe, series[0].axes, series[0].shape
        if (turned := page.tags.valueof(274, default=1)) not in UPRIGHT:
            raise ValueError(f"the TIFF is to be turned (orientation {turned}): save it upright")
        kept = [axis for axis, count in zip(axes, shape, strict=True) if axis in PLANE or count > 1]
        others = [axis for axis in kept if axis not in PLANE]
        if len(others) > 1 or not set(PLANE) <= set(kept):
            raise ValueError(f"the TIFF has axes {axes} of {shape}: save rows, columns and bands")
        check_array(shape, series[0].dtype)
        sides = dict(zip(axes, shape, strict=True))
        check_size(sides["X"], sides["Y"])
        try:
            array = series[0].asarray()
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error):
                raise
            return geotiff_bands(
                source, f"{holds}, compressed by {getattr(page.compression, 'name', page.compression)}"
            ), False
        array = array.reshape([sides[axis] for axis in kept])
        order = [kept.index(axis) for axis in (*others, *PLANE)]
        bands = array.transpose(order)
        extra = page.extrasamples
        return (bands if others else bands[None]), bool(extra) and extra[-1] in ALPHA and others == ["S"]


def geotiff_bands(source: Any, holds: str) -> np.ndarray:
    """The same of a TIFF, read by rasterio.

    Raises:
        ValueError: it is not installed, nor is what else would read the file.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError(f"the TIFF holds {holds}: pip install tifffile imagecodecs (or rasterio) reads it") from error
    with rasterio.open(source) as file:
        check_size(file.width, file.height)
        check_array((file.count, file.height, file.width), np.dtype(file.dtypes[0]))
        return file.read()
