"""The colours of a dataset's classes, where it brings its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import DatasetArguments
from scripts.data.sources import file_beside
from scripts.drawing.visualization import parse_palette


PALETTE_FILE = "palette.json"
logger = logging.getLogger(__name__)


def palette_file(arguments: DatasetArguments) -> Path | None:
    """`palette.json` beside the file of `--id2label` where that is given, else beside the data; None without one.

    Nor is there one where the Hub does not give it: colours stop no training.
    """
    if arguments.id2label:  # other names than the dataset's may stand for other classes
        file = Path(arguments.id2label).parent / PALETTE_FILE
        return file if file.is_file() else None
    try:
        return file_beside(arguments, PALETTE_FILE)
    except UserError as error:
        logger.warning("no colours of the dataset: %s", error)
        return None


def read_palette(file: Path) -> dict[str, str]:
    """Colour `"#rrggbb"` by class id, as a model's configuration holds it.

    Raises:
        UserError: the file holds something that is no colour.
    """
    with errors_explained(str(file), OSError, ValueError):
        palette = parse_palette(json.loads(file.read_text(encoding="utf-8")))
    return {str(index): "#{:02x}{:02x}{:02x}".format(*colour) for index, colour in sorted(palette.items())}
