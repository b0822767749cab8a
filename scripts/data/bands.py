"""Images of any number of bands and any depth, brought to what a model reads: bands on the scale 0..255."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from image_processing.intensities import DEEP_MODES, scaled_intensities
from image_processing.preprocessing import pil_to_array
from scripts.cli.errors import UserError
from scripts.data.arguments import parse_range
from scripts.data.image_files import check_array
from scripts.models.input_channels import num_channels


COLOURS_OF_ALPHA = {"RGBA": 3, "LA": 1, "La": 1, "RGBa": 3, "PA": 3}  # bands without the transparency


@dataclass(frozen=True)
class ImageForm:
    """What a model reads.

    Args:
        num_bands: bands of an image; 3 are RGB, to which grey and transparency are converted.
        intensity_range: the numbers that become 0 and 255; None: images have 8 bits.
    """

    num_bands: int = 3
    intensity_range: tuple[float, float] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether images are RGB of 8 bits."""
        return self.num_bands == 3 and self.intensity_range is None

    def pixels(self, image: Any, has_alpha: bool = False) -> np.ndarray:
        """`(C, H, W)` uint8 or float32 on the scale 0..255 of a Pillow image or an array `(C, H, W)`.

        Raises:
            ValueError: it has other bands, or other numbers, than the model reads; with the flag that helps.
        """
        return self.scaled(self.bands(image, has_alpha))

    def bands(self, image: Any, has_alpha: bool = False) -> np.ndarray:
        """`(C, H, W)` as stored, but for grey and transparency.

        Raises:
            ValueError: it has other bands than the model reads.
        """
        if isinstance(image, Image.Image):
            if self.num_bands == 3 and image.mode not in DEEP_MODES:
                return pil_to_array(image, do_convert_rgb=True).transpose(2, 0, 1)
            image, has_alpha = bands_of(image, self.num_bands)
        elif not isinstance(image, np.ndarray):
            raise ValueError(f"it is no image but {type(image).__name__}")
        return self.fitting(image, has_alpha)

    def fitting(self, bands: np.ndarray, has_alpha: bool = False) -> np.ndarray:
        """The bands that the model reads: all, those without transparency, or the only one as RGB.

        Raises:
            ValueError: there are more or fewer.
        """
        if has_alpha and len(bands) - 1 in (self.num_bands, 1) and len(bands) != self.num_bands:
            bands = bands[:-1]
        if len(bands) == 1 and self.num_bands == 3:
            bands = bands[[0, 0, 0]]
        if len(bands) != self.num_bands:
            raise ValueError(
                f"the image has {len(bands)} bands, the model reads {self.num_bands}: train one by "
                f"--num_channels {len(bands)}, or save images of {self.num_bands}"
            )
        return bands

    def scaled(self, bands: np.ndarray) -> np.ndarray:
        """The bands on the scale 0..255.

        Raises:
            ValueError: they have more than 8 bits and there is no range; names the image's own.
        """
        check_array(bands.shape, bands.dtype)
        if self.intensity_range is not None:
            return scaled_intensities(bands, *self.intensity_range)
        if bands.dtype != np.uint8:
            low, high = bands.min(), bands.max()
            raise ValueError(
                f"the image holds {bands.dtype.name} from {low:g} to {high:g}, more than 8 bits: say what becomes 0 "
                f"and 255 by --intensity_range {low:g} {high:g}, or --intensity_range auto in training"
            )
        return bands


PLAIN = ImageForm()


def form_of(config: Any, processor: Any) -> ImageForm:
    """What a model and its processor read.

    Raises:
        UserError: they do not read the same number of bands.
    """
    bands, limits, mean = num_channels(config), getattr(processor, "intensity_range", None), processor.image_mean
    if isinstance(mean, (list, tuple)) and len(mean) != bands:
        raise UserError(
            f"the model reads {bands} bands, but its image processor has an image_mean of {len(mean)} numbers: give "
            "preprocessor_config.json as many numbers as image_mean and image_std"
        )
    return ImageForm(bands, None if limits is None else (limits[0], limits[1]))


def use_range(processor: Any, given: Sequence[Any] | None) -> Any:
    """`processor` with the `--intensity_range` of a command that does not train, in place of its own.

    Raises:
        UserError: `auto`, which only training measures.
    """
    limits = parse_range(given)
    if limits == "auto":
        raise UserError(
            "--intensity_range auto: it is measured when a model is trained, and kept with it: leave it out, or give "
            "two numbers"
        )
    if limits is not None:
        processor.intensity_range = list(limits)
    return processor


def bands_of(image: Image.Image, wanted: int) -> tuple[np.ndarray, bool]:
    """`(C, H, W)` of a Pillow image as it is stored, and whether its last band is transparency."""
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"the image has mode {image.mode} (colours), the model reads {wanted} bands: save its bands")
    array = pil_to_array(image, do_convert_rgb=False, of_any_depth=True)
    bands = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return bands, image.mode in COLOURS_OF_ALPHA


@dataclass(frozen=True)
class BandImage:
    """An image of any bands `(C, H, W)`, uint8 or float32 in 0..255, with what prediction asks of a Pillow image."""

    pixels: torch.Tensor

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    def crop(self, box: tuple[int, int, int, int]) -> BandImage:
        """The part (left, top, right, bottom)."""
        left, top, right, bottom = box
        return BandImage(self.pixels[:, top:bottom, left:right])

    def resize(self, size: tuple[int, int], resample: Any = Image.Resampling.BICUBIC) -> BandImage:
        """Each band as Pillow resizes it to (width, height); floats are not rounded."""
        bands = [Image.fromarray(band).resize(size, resample) for band in self.pixels.numpy()]
        return BandImage(torch.from_numpy(np.stack([np.asarray(band) for band in bands])))

    def transpose(self, method: Image.Transpose) -> BandImage:
        """Mirrored or turned as Pillow does it."""
        bands = [Image.fromarray(band).transpose(method) for band in self.pixels.numpy()]
        return BandImage(torch.from_numpy(np.stack([np.asarray(band) for band in bands])))

    def convert(self, mode: str) -> Image.Image:
        """To be looked at: the first three bands, or the first alone, each from its least to its greatest number."""
        count = 3 if len(self.pixels) >= 3 else 1
        bands = self.pixels[:count].float().numpy()
        low = bands.min(axis=(1, 2), keepdims=True)
        spread = (bands.max(axis=(1, 2), keepdims=True) - low).clip(min=1e-6)
        shown = ((bands - low) * 255 / spread).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(shown[0] if count == 1 else shown.transpose(1, 2, 0)).convert(mode)


def as_image(pixels: torch.Tensor) -> Any:
    """A Pillow image of RGB of 8 bits, a `BandImage` of others; `(C, H, W)` on the scale 0..255."""
    if pixels.dtype == torch.uint8 and len(pixels) == 3:
        return F.to_pil_image(pixels)
    return BandImage(pixels)


def for_eyes(image: Any) -> Image.Image:
    """An image as it is drawn: RGB."""
    return image.convert("RGB") if isinstance(image, BandImage) else image
