"""Intensities of any range -> the scale 0..255 of 8 bits, and what Pillow would lose of a file without a word."""

import math
from numbers import Real
from typing import Any

import numpy as np
import PIL.Image
import torch


# Modes that Pillow's conversion to RGB would clip to 8 bits or refuse.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
TIFF_SUBFILE_TYPE, TIFF_SAMPLES, TIFF_SAMPLE_FORMAT = 254, 277, 339
UNSIGNED = 1  # of the TIFF tag of sample formats


def scaled_intensities(image: Any, low: float, high: float) -> Any:
    """`low..high` mapped linearly to 0..255, what lies beyond clipped.

    Args:
        image: NumPy array or torch tensor of numbers.
    Returns:
        uint8 where every value comes out whole, as 8 bits in files of 16 do, else float32; nothing is rounded.
    Raises:
        ValueError: numbers that are not finite, or an image of 8 bits, which cannot hold this range.
    """
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(scaled_intensities(image.detach().cpu().numpy(), low, high)).to(image.device)
    if image.dtype.kind not in "iuf":
        raise ValueError(f"an image has dtype {image.dtype}: pass numbers")
    if image.dtype == np.uint8 and (low, high) == (0, 255):
        return image
    if image.dtype == np.uint8 and high > 255:
        raise ValueError(
            f"an image of 8 bits, but intensity_range is {low:g}..{high:g}: pass the image with all its bits"
            " (Pillow's convert and transformers' pipeline make 8 bits of 16)"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError(f"an image holds {image[~np.isfinite(image)][0]}: pass finite numbers")
    scaled = ((image.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255)
    whole = scaled.astype(np.uint8)
    return whole if np.array_equal(whole, scaled) else scaled.astype(np.float32)


def is_range(value: Any) -> bool:
    """Whether `value` is two finite numbers, the smaller one first."""
    numbers = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(each, Real) for each in value)
    return numbers and -math.inf < float(value[0]) < float(value[1]) < math.inf


def lost_by_pillow(image: PIL.Image.Image) -> str | None:
    """What Pillow drops of an image file that is opened and not yet read; None if nothing.

    It reads colours of 16 bits as 8, up to four bands, and the first page only.
    """
    for _, _, _, arguments in getattr(image, "tile", ()):
        raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else None
        depth = 16 if isinstance(raw, str) and ";16" in raw else 8
        if image.format == "PPM" and isinstance(arguments, tuple) and len(arguments) > 1 and arguments[1] > 255:
            depth = 16
        if depth > 8 and image.mode not in DEEP_MODES:
            return f"{len(image.getbands())} bands of 16 bits"
    if image.format == "JPEG2000" and image.mode not in DEEP_MODES:
        depth = jpeg2000_bits(image)
        return f"{len(image.getbands())} bands of {depth} bits" if depth > 8 else None
    return lost_of_tiff(image) if image.format == "TIFF" else None


def lost_of_tiff(image: Any) -> str | None:
    """The same of a TIFF; smaller copies of the image (overviews) are no pages of their own."""
    samples, bits = image.tag_v2.get(TIFF_SAMPLES, 1), max(image.tag_v2.get(258, (8,)))
    kind = max(image.tag_v2.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,)))
    if samples > len(image.getbands()) or (image.mode == "RGBX" and samples > 3):
        return f"{samples} bands of {bits} bits"
    if (kind == UNSIGNED and bits == 32) or (kind != UNSIGNED and bits == 8):
        return f"{'unsigned' if kind == UNSIGNED else 'signed'} numbers of {bits} bits"
    page = 1
    try:
        while True:
            image.seek(page)
            if not image.tag_v2.get(TIFF_SUBFILE_TYPE, 0) & 1:
                return "several pages"
            page += 1
    except EOFError:
        return None
    finally:
        image.seek(0)


def jpeg2000_bits(image: Any) -> int:
    """Bits of a sample, from the codestream's SIZ marker; 8 where it is not found."""
    file = image.fp
    place = file.tell()
    file.seek(0)
    head = file.read(4096)
    file.seek(place)
    start = head.find(b"\xff\x4f\xff\x51")
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 8
