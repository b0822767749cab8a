"""The range of the images' numbers, and mean and deviation of their bands, as the trainer would measure them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.cli.errors import UserError
from scripts.data.arguments import parse_range
from scripts.data.bands import ImageForm
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.measuring import IMAGES, as_flag, measured
from scripts.models.input_channels import RGB
from scripts.training.arguments import TrainArguments


def settled(
    arguments: TrainArguments, opened: dict[str, LabelledDataset], bands: int, given: Sequence[Any] | None
) -> tuple[ImageForm, dict[str, str]]:
    """The form in which images are read, and what a recipe would need of it, as flags; nothing for RGB of 8 bits.

    Images that cannot be measured are left to the findings about samples.
    """
    data = opened.get(arguments.train_split_name) or next(iter(opened.values()))
    wants = bands != RGB and arguments.image_mean is None
    facts = {}
    try:
        limits, statistics = measured(data, bands, given, wants)
    except UserError as error:
        limits, statistics = parse_range(given), None
        facts["images not measured"] = str(error)
    if limits == "auto":
        limits = None
    flags = [] if limits is None else [as_flag("intensity_range", limits)]
    for name, numbers in zip(("image_mean", "image_std"), statistics or ()):
        flags.append(as_flag(name, numbers))
    if flags:
        facts["images"] = f"{' '.join(flags)} (from the first {IMAGES} of split {data.split!r})"
    return ImageForm(bands, limits), facts
