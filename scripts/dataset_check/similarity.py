"""Images that are nearly the same: a perceptual hash that survives re-encoding, resizing and mirroring.

The hash is the signs of the 16x16 lowest frequencies of the image, without the constant ones, against their median.
On CamVid, of 256 bits: the same frame as JPEG of quality 30 to 90, or at 0.25 to 1.5 times its size, differs by up to
10, in smooth drawings by up to 30; consecutive frames of the validation sequence by 22; the nearest frames of its
training and validation splits, one second apart, by 84.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


SIDE, FREQUENCIES = 64, 16
MOST_BITS = 32  # that differ between near-duplicates
MAX_HASHES = 100_000  # kept, of the split that is read first
MAX_THUMBNAILS = 1_000
FLAT = 3.0  # standard deviation, in grey levels, under which an image has nothing to tell it by

_positions = np.arange(SIDE) + 0.5
BASIS = np.cos(np.pi / SIDE * np.arange(1, FREQUENCIES + 1)[:, None] * _positions)


def perceptual_hash(image: Image.Image) -> tuple[np.ndarray, np.ndarray] | None:
    """Hashes `(4,)` uint64 of an image and of its mirror image; None for one without structure."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    if grey.std() < FLAT:
        return None
    frequencies = BASIS @ grey @ BASIS.T
    mirrored = frequencies * np.where(np.arange(FREQUENCIES) % 2, 1, -1)  # odd ones, counted from 1, turn over
    return pack(frequencies), pack(mirrored)


def pack(frequencies: np.ndarray) -> np.ndarray:
    """Which frequencies are above their median, as `(4,)` uint64."""
    return np.packbits(frequencies.ravel() > np.median(frequencies)).view(np.uint64)


class SeenImages:
    """Hashes and small images of one split, in which those of another are looked up. Bounded in number."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.thumbnails: dict[int, Image.Image] = {}
        self._hashes = np.empty((256, 4), dtype=np.uint64)

    def add(self, name: str, hashed: tuple[np.ndarray, np.ndarray], thumbnail: Image.Image) -> None:
        """Remembers an image, unless there are `MAX_HASHES` already."""
        count = len(self.names)
        if count >= MAX_HASHES:
            return
        if count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[count] = hashed[0]
        if count < MAX_THUMBNAILS:
            small = thumbnail.copy()
            small.thumbnail((128, 128))
            self.thumbnails[count] = small
        self.names.append(name)

    def nearest(self, hashed: tuple[np.ndarray, np.ndarray]) -> tuple[int, int, bool] | None:
        """`(place, bits that differ, whether mirrored)` of the nearest image within `MOST_BITS`, else None."""
        if not self.names:
            return None
        hashes = self._hashes[: len(self.names)]
        distances = [np.bitwise_count(hashes ^ own).sum(axis=1) for own in hashed]
        mirrored = bool(distances[1].min() < distances[0].min())
        place = int(distances[mirrored].argmin())
        bits = int(distances[mirrored][place])
        return (place, bits, mirrored) if bits <= MOST_BITS else None
