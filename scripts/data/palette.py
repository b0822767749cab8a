"""The colours of a dataset's classes, where it brings its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers import PreTrainedConfig

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.sources import file_beside
from scripts.drawing.visualization import parse_palette


PALETTE_FILE = "palette.json"
logger = logging.getLogger(__name__)


def load_palette(arguments: DatasetArguments) -> dict[str, str] | None:
    """Colour `"#rrggbb"` by class id, as a model's configuration holds it; None if the dataset brings none.

    `palette.json` lies beside the file of `--id2label` where that is given, else beside the data. `--class_map` makes
    other classes, which have the project's colours.

    Raises:
        UserError: the file holds something that is no colour.
    """
    file = None if arguments.class_map else palette_file(arguments)
    if file is None:
        return None
    try:
        palette = parse_palette(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error
    return {str(index): "#{:02x}{:02x}{:02x}".format(*colour) for index, colour in sorted(palette.items())}


def take_palette(config: PreTrainedConfig, arguments: DatasetArguments) -> None:
    """Puts the dataset's palette, if it brings one, into a model's configuration."""
    if palette := load_palette(arguments):
        config.palette = palette


def palette_file(arguments: DatasetArguments) -> Path | None:
    """`palette.json` of the dataset, None if there is none or the Hub does not give it: colours stop no training."""
    if arguments.id2label:  # other names than the dataset's may stand for other classes
        file = Path(arguments.id2label).parent / PALETTE_FILE
        return file if file.is_file() else None
    try:
        return file_beside(arguments, PALETTE_FILE)
    except UserError as error:
        logger.warning("no colours of the data set: %s", error)
        return None
