"""Segments images, or a whole streamed dataset.

`python scripts/predict.py street.jpg photos/ --model_name_or_path outputs/model --output_dir outputs/predictions`
writes `street_labels.png` (pixel value = class id) and `street_overlay.png`. With `--dataset_name DATA` in place of
images the label maps go into parquet shards that `datasets.load_dataset(output_dir)` reads; the same command goes on
where it was stopped. Runs alike as `python -m scripts.predict` and under `accelerate launch`, where processes share
the work.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import re
from dataclasses import dataclass
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import ReadPath, check_at_least, check_folder, flag, parse_arguments, run_command
from scripts.data.arguments import DatasetArguments, parse_range
from scripts.models.arguments import ModelArguments
from scripts.storage.outputs import check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials


@dataclass
class PredictArguments(ModelArguments, DatasetArguments):
    """Segment images, the images in folders, or a dataset, whose labels are not read."""

    images: list[str] = flag([], "Images to segment, and folders of images; the same as IMAGES.", action=ReadPath)
    output_dir: str | None = flag(None, "Folder that gets label maps and overlays.")
    overwrite: bool = overwrite_flag()
    split_name: str = flag("test", "Split of --dataset_name that is segmented.")
    rows_per_shard: int = flag(
        256, "Label maps in one parquet file; a stopped run repeats at most so many when it goes on."
    )
    score_maps: bool = flag(
        False, "Also write a column of PNGs that show the winning class's share of the scores per pixel."
    )
    overlays: int = flag(0, "How many images of the dataset are also drawn with their labels and a legend.")
    dataloader_num_workers: int = flag(1, "Processes that decode a dataset's images.")
    mixed_precision: str | None = flag(
        None, "Precision of the computation: no, bf16 or fp16; by default what accelerate is set to."
    )
    recipe: str | None = flag(None, "YAML file with values of these flags.")


def predict_dataset(
    arguments: PredictArguments, output_dir: Path, model: Any, processor: Any, accelerator: Any
) -> None:
    """Writes the label maps of a split as parquet shards; goes on where an earlier run was stopped."""
    from scripts.data.bands import form_of
    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.inference.shards import ShardFolder
    from scripts.inference.stream import Prediction, model_sha256

    data = LabelledDataset(arguments, arguments.split_name, with_labels=False)
    data.image_form = form_of(model.config, processor)
    named = re.match(r"\w+", arguments.split_name)  # without a slice, which names of files cannot hold
    made_by = {
        "model": published_name(arguments.model_name_or_path),
        "model_sha256": model_sha256(model, processor),
        "mixed_precision": accelerator.mixed_precision,
        "dataset": published_name(arguments.dataset_name),
        "dataset_config_name": arguments.dataset_config_name,
        "dataset_revision": arguments.dataset_revision,
        "split_name": arguments.split_name,
        "image_column_name": arguments.image_column_name,
        "rows_per_shard": arguments.rows_per_shard,
        "score_maps": arguments.score_maps,
    }
    split = named[0] if named else "test"
    shards = ShardFolder(
        output_dir, split, arguments.rows_per_shard, made_by, arguments.score_maps, arguments.overwrite
    )
    prediction = Prediction(accelerator, model, processor, shards, data, arguments.overlays)
    failed = prediction.run(arguments.max_bad_samples, arguments.dataloader_num_workers)
    if failed and accelerator.is_main_process:
        print(f"{failed} images could not be read: see the column 'error'", file=sys.stderr)


def published_name(name: str | None) -> str:
    """A Hub id as it is, a folder or file without the place where this machine keeps it, a URL without a password."""
    path = Path(name or "")
    return path.resolve().name if path.exists() else without_credentials(str(name))


def check_arguments(arguments: PredictArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    if arguments.dataset_name and arguments.images:
        raise UserError(f"{arguments.images[0]} and --dataset_name {arguments.dataset_name}: give one of the two")
    check_folder("--output_dir", Path(arguments.output_dir))
    check_at_least(arguments, 1, "rows_per_shard")
    parse_range(arguments.intensity_range)
    check_at_least(arguments, 0, "overlays", "max_bad_samples", "dataloader_num_workers")


def predict(arguments: PredictArguments) -> int:
    """Segments what the arguments name; returns 1 if an image named could not be read."""
    check_arguments(arguments)
    from scripts.cli.processes import build_accelerator
    from scripts.data.bands import use_range
    from scripts.data.images import find_images
    from scripts.inference.stream import output_files, predict_images
    from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite

    output_dir = Path(arguments.output_dir or "")
    images = [] if arguments.dataset_name else find_images(arguments.images)
    for file in output_files(images, output_dir):
        check_output_file("--output_dir:", file, arguments.overwrite)
    accelerator = build_accelerator(arguments.mixed_precision)
    config = build_config(arguments)
    model = build_model(arguments, config, new_classes=False).to(accelerator.device).eval()
    refuse_non_finite(model, f"--model_name_or_path {arguments.model_name_or_path}")
    processor = use_range(build_processor(arguments, config), arguments.intensity_range)
    failed = 0
    if images:
        failed = predict_images(images, output_dir, model, processor, accelerator, arguments.overwrite)
        accelerator.print(f"label maps and overlays in {output_dir}")
    else:
        predict_dataset(arguments, output_dir, model, processor, accelerator)
        accelerator.print(f'label maps in {output_dir}: datasets.load_dataset("{output_dir}") reads them')
    accelerator.end_training()
    return 1 if failed else 0


def main() -> int:
    return predict(parse_arguments(PredictArguments, images="Images and folders of images."))


if __name__ == "__main__":
    run_command(main)
