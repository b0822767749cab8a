"""The colours of a dataset's classes, where it brings its own."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from transformers import PreTrainedConfig

from scripts.training.command_line import UserError, project_path
from scripts.training.dataset import DatasetArguments
from scripts.training.network import with_retries
from scripts.visualization import parse_palette


PALETTE_FILE = "palette.json"


def load_palette(arguments: DatasetArguments) -> dict[str, str] | None:
    """Colour `"#rrggbb"` by class id, as a model's configuration holds it; None if the dataset brings none.

    `palette.json` lies beside the file of `--id2label`, or beside the data. `--class_map` makes other classes, which
    have the project's colours.

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
    """`palette.json` of the dataset, None if there is none."""
    places = [Path(project_path(arguments.id2label)).parent] if arguments.id2label else []
    for folder in filter(None, (arguments.train_images, arguments.eval_images)):
        places += [Path(project_path(folder)), Path(folder).absolute().parent]
    if arguments.dataset_name:
        place = Path(project_path(arguments.dataset_name))
        if place.exists():
            places.append(place if place.is_dir() else place.parent)
        else:
            download = partial(
                hf_hub_download,
                arguments.dataset_name,
                PALETTE_FILE,
                repo_type="dataset",
                revision=arguments.dataset_revision,
            )
            try:
                return Path(with_retries(download, PALETTE_FILE, if_answered=True))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                pass
    return next((place / PALETTE_FILE for place in places if (place / PALETTE_FILE).is_file()), None)
