"""What a bounded first look at the training images tells: the range of their numbers, mean and deviation of each band.

Rows are taken in the order of the stream and pixels on a grid, so that the same data give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from scripts.cli.errors import UserError
from scripts.data.arguments import parse_range, plain_number
from scripts.data.bands import ImageForm, form_of
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, image_content, read_or_bad, sample_name
from scripts.data.sources import readable
from scripts.models.input_channels import RGB, num_channels


IMAGES = 200
PIXELS = 2**14  # of an image, about
PERCENTILES = (0.1, 99.9)
LEAST_DEVIATION = 1 / 255  # of a band that hardly changes: nothing is divided by less than one level of 8 bits


@dataclass
class ImageLook:
    """Numbers of the first training images as they are stored, one array `(C, N)` an image."""

    images: list[np.ndarray]

    def range(self) -> tuple[float, float]:
        """The numbers that become 0 and 255: 0 and 255 of 8 bits, else two percentiles over all bands.

        Raises:
            UserError: all numbers are one.
        """
        if all(image.dtype == np.uint8 for image in self.images):
            return 0, 255
        numbers = np.concatenate([image.ravel().astype(np.float64) for image in self.images])
        numbers = numbers[np.isfinite(numbers)]
        low, high = np.percentile(numbers, PERCENTILES) if len(numbers) else (0.0, 0.0)
        if all(image.dtype.kind in "iu" for image in self.images):
            low, high = math.floor(low), math.ceil(high)
        low, high = (plain_number(float(f"{number:.6g}")) for number in (low, high))
        if low >= high:
            raise UserError(
                f"--intensity_range auto: nearly all pixels of the first {len(self.images)} images hold {low:g}: give "
                "two numbers"
            )
        return low, high

    def statistics(self, form: ImageForm) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band, on the scale 0..1.

        Raises:
            ValueError: an image is not of this form.
        """
        numbers = np.concatenate([form.scaled(image).astype(np.float64) / 255 for image in self.images], axis=1)
        deviations = numbers.std(axis=1).clip(min=LEAST_DEVIATION)
        return [round(float(mean), 4) for mean in numbers.mean(axis=1)], [round(float(each), 4) for each in deviations]


def look_at_images(data: LabelledDataset, num_bands: int) -> ImageLook:
    """Looks at the first images of a split.

    Raises:
        UserError: none of them can be read as one of so many bands; says why of the first.
    """
    form, images, bad = ImageForm(num_bands), [], ""
    column = data.arguments.image_column_name
    for index, row in enumerate(islice(readable(data.stream), IMAGES)):
        what = f"image of sample {sample_name(row, column, index)}"
        try:
            with read_or_bad(what):
                bands = form.bands(*image_content(row[column], what, data.bounds))
        except BadSample as error:
            bad = bad or str(error)
            continue
        step = max(1, math.isqrt(bands.shape[1] * bands.shape[2] // PIXELS))
        images.append(bands[:, step // 2 :: step, step // 2 :: step].reshape(len(bands), -1))
    if not images:
        raise UserError(bad or f"split {data.split!r} is empty")
    return ImageLook(images)


def measured(
    data: LabelledDataset, num_bands: int, given_range: Sequence[Any] | None, wants_statistics: bool
) -> tuple[Any, Any]:
    """`(low, high)` of `--intensity_range`, measured for `auto`; `(means, deviations)`, None unless wanted.

    Raises:
        UserError: the images cannot be read, or have more than 8 bits and there is no range.
    """
    limits = parse_range(given_range)
    if limits != "auto" and not wants_statistics:
        return limits, None
    look = look_at_images(data, num_bands)
    if limits == "auto":
        plain = num_bands == RGB and all(image.dtype == np.uint8 for image in look.images)
        limits = None if plain else look.range()
    if not wants_statistics:
        return limits, None
    try:
        return limits, look.statistics(ImageForm(num_bands, limits))  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"images of split {data.split!r}: {error}") from error


def settle_images(
    arguments: Any, data: LabelledDataset, config: Any, processor: Any, on_main: Any, say: Any
) -> dict[str, Any]:
    """Settles which numbers and bands the model reads: by flags, else as stored with the checkpoint, else measured.

    Args:
        arguments: with `intensity_range`, `image_mean` and `image_std`.
        processor: gets the range, means and deviations.
        on_main: runs a function in one process and gives all of them its result.
        say: prints a line.
    Returns:
        the flags with the numbers that hold; those that were not needed as they were.
    Raises:
        UserError: numbers that do not belong together, or images that cannot be measured.
    """
    bands = num_channels(config)
    for name in ("image_mean", "image_std"):
        numbers = getattr(arguments, name)
        if numbers is not None and len(numbers) != bands:
            raise UserError(f"--{name} has {len(numbers)} numbers but the model reads {bands} bands: give {bands}")
    stored = getattr(processor, "intensity_range", None)
    given = arguments.intensity_range or stored
    known = isinstance(processor.image_mean, (list, tuple)) and len(processor.image_mean) == bands
    wants = arguments.image_mean is None and not known and bands != RGB
    limits, statistics = on_main(lambda: measured(data, bands, given, wants))
    found: dict[str, Any] = {"intensity_range": None if limits is None else list(limits)}
    found |= {"image_mean": arguments.image_mean, "image_std": arguments.image_std}
    if statistics is not None:
        found |= dict(zip(("image_mean", "image_std"), map(list, statistics), strict=True))
    for name, value in found.items():
        if value is not None:
            setattr(processor, name, value)
    if bands != RGB:
        processor.do_convert_rgb = False
    if given and list(given) == ["auto"] and found["intensity_range"] is None:
        say("--intensity_range auto: the images are RGB of 8 bits, which need none")
    elif given and list(given) == ["auto"]:
        say(f"{as_flag('intensity_range', found['intensity_range'])} (measured on the first {IMAGES} training images)")
    if statistics is not None:
        say(
            f"{as_flag('image_mean', found['image_mean'])} {as_flag('image_std', found['image_std'])} "
            f"(measured on the first {IMAGES} training images)"
        )
    data.image_form = form_of(config, processor)
    if arguments.color_jitter and not data.image_form.is_plain:
        say("--color_jitter: hue and saturation are left alone where an image is not RGB of 8 bits")
    return found


def as_flag(name: str, numbers: Sequence[float]) -> str:
    """`--name 1 2`."""
    return f"--{name} {' '.join(f'{number:g}' for number in numbers)}"
