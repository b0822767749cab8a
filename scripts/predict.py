"""Segments images, or a whole streamed dataset.

`python scripts/predict.py street.jpg photos/ --model_name_or_path outputs/model --output_dir outputs/predictions`
writes `street_labels.png` (pixel value = class id) and `street_overlay.png`, or what `--outputs` names; folders below
photos/ become folders below the output folder. An instance model writes COCO results, a panoptic one COCO's panoptic
PNGs and list, both with overlays. `--tile 512` reads large images in tiles, at their own size. With `--dataset_name
DATA` in place of images the maps go into parquet shards that `datasets.load_dataset(output_dir)` reads; the same
command goes on where it was stopped. Runs alike as `python -m scripts.predict` and under `accelerate
launch`, where processes share the work.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
import re
from dataclasses import dataclass, fields
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import (
    ReadPath,
    check_at_least,
    check_at_most,
    check_folder,
    check_recipe_read,
    flag,
    parse_arguments,
    run_command,
)
from scripts.data.arguments import DatasetArguments, check_dataset_flags, parse_range
from scripts.inference.output_kinds import (
    DEFAULT_KINDS,
    ENDINGS,
    KINDS,
    NEED_RASTERIO,
    WHY_NOT,
    WORDS,
)
from scripts.inference.sliding_window import Tiles
from scripts.models.arguments import ModelArguments
from scripts.models.compiling import CompileArguments, compile_network
from scripts.models.tasks import (
    SEMANTIC,
    check_task,
    check_threshold,
    stuff_of,
    task_of,
    threshold_flag,
    threshold_of,
)
from scripts.storage.outputs import check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials


DEFAULT_OVERLAP = 0.25  # of a tile's side
LEAST_TILE = 32  # pixels; one token of the coarsest level
LARGEST_EDGE = 2**14  # pixels; of a square that is what the processors refuse to exceed
# Flags of one form alone, and what does the like in the other.
OF_IMAGES = {"outputs": "see --score_maps and --overlays"}
OF_A_DATASET = {
    "dataset_config_name": "", "dataset_revision": "", "image_column_name": "", "streaming": "", "allow_urls": "",
    "allow_links": "", "mask_suffix": "", "train_val_split": "", "train_split_name": "", "max_bad_samples": "",
    "split_name": "", "rows_per_shard": "", "dataloader_num_workers": "",
    "score_maps": "--outputs confidence writes such maps of images", "overlays": "--outputs overlay draws all images",
}  # fmt: skip
# How label maps are read, which are not read here; they may stay, so that all commands take the same flags of data.
OF_LABELS = (
    "label_column_name", "class_column_name", "segments_column_name", "label_encoding", "thing_classes",
    "do_reduce_labels", "mask_values", "mask_colors", "allow_absent_classes",
)  # fmt: skip
# Of neither: the classes and the network are the checkpoint's.
UNUSED = (
    "train_images", "train_masks", "train_annotations", "train_class_masks", "eval_images", "eval_masks",
    "eval_annotations", "eval_class_masks", "id2label", "class_map", "config_name", "model_type",
)  # fmt: skip


@dataclass
class PredictArguments(ModelArguments, DatasetArguments, CompileArguments):
    """Segment images, the images in folders, or a dataset, whose labels are not read."""

    images: list[str] = flag(
        [],
        "Images to segment, and folders of images with all folders below them; the same as IMAGES.",
        action=ReadPath,
    )
    output_dir: str | None = flag(
        None, "Folder that gets the outputs; those of images in folders below the one that is named, in such folders."
    )
    outputs: list[str] | None = flag(
        None,
        f"What is written of each image. Of a semantic model some of {', '.join(KINDS['semantic'])}; probabilities: "
        "an array of rows x columns x classes, float16, for NumPy; confidence: a PNG of 255 times the best class's "
        "probability; polygons: connected regions as GeoJSON in pixels and, of images that lie on a map, in degrees; "
        "coco: the same in one coco.json; geotiff: a label map that lies where its image does; the last three need "
        f"rasterio. Of an instance model some of {', '.join(KINDS['instance'])}; instances: COCO results in one "
        "instances.json; ids: a PNG of 16 bits, pixel value = id of the instance, geotiff the same where its image "
        f"lies. Of a panoptic model some of {', '.join(KINDS['panoptic'])}; segments: COCO's panoptic PNGs and one "
        "panoptic.json. By default the first two of each.",
    )
    threshold: float | None = threshold_flag()
    tile: list[int] | None = flag(
        None,
        "Height and width, or both in one number, of overlapping tiles in which images are read at their own size, "
        "or at that of --shortest_edge: for images that are much larger than those the model was trained on. Memory "
        "does not grow with their height. The size of the training crops is a good one.",
    )
    overlap: float | None = flag(
        None,
        "What neighbouring tiles share: a share of the tile's side below 1, or pixels; by default "
        f"{DEFAULT_OVERLAP}. Scores are blended there.",
    )
    shortest_edge: int | None = flag(
        None, "Pixels of an image's shorter side in the model's input, in place of the size stored with the model."
    )
    longest_edge: int | None = flag(
        None, "Most pixels of the longer side in the model's input; by default 4 times --shortest_edge."
    )
    overwrite: bool = overwrite_flag()
    split_name: str = flag("test", "Split of --dataset_name that is segmented.")
    rows_per_shard: int = flag(
        256, "Label maps in one parquet file; a stopped run repeats at most so many when it goes on."
    )
    score_maps: bool = flag(
        False, "Also write a column of PNGs that show the winning class's share of the scores per pixel."
    )
    overlays: int = flag(0, "How many images of the dataset are also drawn with their labels and a legend.")
    contours_only: bool = flag(False, "Draw classes in overlays by their contours alone, without a tint.")
    untinted_class: str | None = flag(
        None, "Name of a class, such as background, whose pixels keep their own colours in overlays."
    )
    dataloader_num_workers: int = flag(1, "Processes that decode a dataset's images.")
    mixed_precision: str | None = flag(
        None, "Precision of the computation: no, bf16 or fp16; by default what accelerate is set to."
    )
    recipe: str | None = flag(None, "YAML file with values of these flags.")


def predict_dataset(
    arguments: PredictArguments, output_dir: Path, segment: Any, accelerator: Any, style: dict[str, Any]
) -> None:
    """Writes the maps of a split as parquet shards; goes on where an earlier run was stopped."""
    from scripts.data.bands import form_of
    from scripts.data.folders import counted
    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.inference.shards import ShardFolder
    from scripts.inference.stream import Prediction, model_sha256

    data = LabelledDataset(arguments, arguments.split_name, with_labels=False)
    data.image_form = form_of(segment.model.config, segment.processor)
    named = re.match(r"\w+", arguments.split_name)  # without a slice, which names of files cannot hold
    made_by = {
        "model": published_name(arguments.model_name_or_path),
        "model_sha256": model_sha256(segment.model, segment.processor),
        "mixed_precision": accelerator.mixed_precision,
        "dataset": published_name(arguments.dataset_name),
        "dataset_config_name": arguments.dataset_config_name,
        "dataset_revision": arguments.dataset_revision,
        "split_name": arguments.split_name,
        "image_column_name": arguments.image_column_name,
        "rows_per_shard": arguments.rows_per_shard,
        "score_maps": arguments.score_maps,
        "tiles": repr(tiles) if (tiles := tiles_of(arguments)) else None,
    }
    task = task_of(segment.model.config)
    if task != SEMANTIC:
        made_by |= {"task": task, "threshold": threshold_of(arguments.threshold, task)}
    if_given = {name: getattr(arguments, name) for name in ("mask_suffix", "train_val_split", "size_divisor")}
    made_by |= {name: value for name, value in if_given.items() if value is not None}
    split = named[0] if named else "test"
    shards = ShardFolder(
        output_dir, split, arguments.rows_per_shard, made_by, arguments.score_maps, arguments.overwrite, task
    )
    prediction = Prediction(accelerator, segment, shards, data, arguments.overlays, stuff_of(segment.processor), style)
    failed = prediction.run(arguments.max_bad_samples, arguments.dataloader_num_workers)
    if failed and accelerator.is_main_process:
        print(f"{counted(failed, 'image')} could not be read: see the column 'error'", file=sys.stderr)


def published_name(name: str | None) -> str:
    """A Hub id as it is, a folder or file without the place where this machine keeps it, a URL without a password."""
    path = Path(name or "")
    return path.resolve().name if path.exists() else without_credentials(str(name))


def check_arguments(arguments: PredictArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    check_recipe_read(arguments)
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    if arguments.dataset_name and arguments.images:
        raise UserError(f"{arguments.images[0]} and --dataset_name {arguments.dataset_name}: give one of the two")
    check_dataset_flags(arguments)
    refuse_unused(arguments)
    check_folder("--output_dir", Path(arguments.output_dir))
    check_at_least(arguments, 1, "rows_per_shard", "shortest_edge", "longest_edge")
    check_at_least(arguments, LEAST_TILE, "tile")
    check_at_least(arguments, 0, "overlays", "max_bad_samples", "dataloader_num_workers", "overlap")
    check_at_most(arguments, LARGEST_EDGE, "shortest_edge", "longest_edge")
    if arguments.longest_edge and not arguments.shortest_edge:
        raise UserError("--longest_edge belongs to --shortest_edge: add it, or leave it out")
    if arguments.longest_edge and arguments.longest_edge < (arguments.shortest_edge or 0):
        raise UserError(
            f"--longest_edge {arguments.longest_edge}: give at least the --shortest_edge, {arguments.shortest_edge}"
        )
    if arguments.overlap is not None and not arguments.tile:
        raise UserError("--overlap belongs to --tile: add it, or leave it out")
    for kind in arguments.outputs or []:
        if kind not in ENDINGS:
            raise UserError(f"--outputs {kind}: choose among {', '.join(ENDINGS)}")
    draws = arguments.overlays if arguments.dataset_name else "overlay" in (arguments.outputs or ["overlay"])
    for name in ("contours_only", "untinted_class"):
        if getattr(arguments, name) and not draws:
            wanted = "--overlays 10" if arguments.dataset_name else "overlay to --outputs"
            raise UserError(f"--{name} is for overlays, and none is drawn: add {wanted}, or leave it out")
    tiles_of(arguments)
    parse_range(arguments.intensity_range)


def refuse_unused(arguments: PredictArguments) -> None:
    """Raises `UserError` at a flag that would do nothing: one of the other form, or of neither."""
    defaults = {each.name: getattr(PredictArguments(), each.name) for each in fields(PredictArguments)}
    given = [name for name, default in defaults.items() if getattr(arguments, name) != default]
    form, other, reasons = "images", "--dataset_name", OF_A_DATASET
    if arguments.dataset_name:
        form, other, reasons = other, form, OF_IMAGES
    for name in given:
        spelt = f"--no_{name}" if defaults[name] is True else f"--{name}"
        if name in UNUSED:
            raise UserError(
                f"{spelt} changes nothing here, where no label map is read and the model is that of "
                "--model_name_or_path: leave it out"
            )
        if name in reasons:
            hint = f" ({reasons[name]})" if reasons[name] else ""
            raise UserError(f"{spelt} is for {other}, not for {form}: leave it out{hint}")


def check_for_task(arguments: PredictArguments, task: str) -> None:
    """Raises `UserError` at a flag that means nothing for a model of this task."""
    for kind in arguments.outputs or []:
        if kind not in KINDS[task]:
            raise UserError(
                f"--outputs {kind} of this {task} model: {WHY_NOT[kind]}: choose among {', '.join(KINDS[task])}"
            )
    check_threshold(arguments.threshold, task)
    if task != SEMANTIC and arguments.tile:
        raise UserError(
            f"--tile is for semantic models, this is of task {task}: tiles would cut objects in pieces: give "
            "--shortest_edge to read images larger"
        )
    for name in ("contours_only", "untinted_class"):
        if task != SEMANTIC and getattr(arguments, name):
            raise UserError(
                f"--{name} is for semantic models, this is of task {task}, whose objects are drawn apart by their "
                "shades: leave it out"
            )
    if task != SEMANTIC and arguments.score_maps:
        raise UserError(
            f"--score_maps is for semantic models, this is of task {task}: the score of each segment is in the column "
            "segments_info: leave it out"
        )


def tiles_of(arguments: PredictArguments) -> Tiles | None:
    """The tiles that the flags ask for.

    Raises:
        UserError: wrong sizes.
    """
    if not arguments.tile:
        return None
    if len(arguments.tile) > 2:
        raise UserError(f"--tile {' '.join(map(str, arguments.tile))}: give one number, or a height and a width")
    height, width = arguments.tile[0], arguments.tile[-1]
    overlap = DEFAULT_OVERLAP if arguments.overlap is None else arguments.overlap
    if overlap >= min(height, width) or (overlap >= 1 and overlap != int(overlap)):
        raise UserError(
            f"--overlap {overlap:g}: give a share below 1 of the tile's side, or whole pixels fewer than its "
            f"{min(height, width)}"
        )
    rows, columns = (int(overlap) if overlap >= 1 else int(overlap * side) for side in (height, width))
    return Tiles(height, width, (rows, columns))


def overlay_style(arguments: PredictArguments, names: dict[int, str]) -> dict[str, Any]:
    """What the flags change in `with_legend`, for a model of these classes.

    Raises:
        UserError: `--untinted_class` is none of them.
    """
    style: dict[str, Any] = {"opacity": 0.0} if arguments.contours_only else {}
    if (name := arguments.untinted_class) is not None:
        if name not in names.values():
            close = difflib.get_close_matches(name, names.values(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(names.values())}"
            raise UserError(f"--untinted_class {name}: the model has no such class: {hint}")
        style["untinted"] = next(index for index, each in names.items() if each == name)
    return style


def processor_settings(arguments: PredictArguments) -> dict[str, Any]:
    """What the flags change in the image processor."""
    if arguments.shortest_edge:
        longest = arguments.longest_edge or 4 * arguments.shortest_edge
        return {"size": {"shortest_edge": arguments.shortest_edge, "longest_edge": longest}}
    return {"do_resize": False} if arguments.tile else {}


def check_outputs(kinds: list[str], images: list[Any]) -> None:
    """Raises `UserError` where files of these kinds cannot be written of all images."""
    from scripts.inference import regions
    from scripts.inference.image_outputs import no_place

    for kind in kinds:
        if kind in NEED_RASTERIO:
            regions.require_rasterio(f"--outputs {kind}")
    if "geotiff" in kinds:
        for path, _ in images:
            if regions.georeference(path) is None:
                raise UserError(no_place(path))


def predict(arguments: PredictArguments) -> int:
    """Segments what the arguments name; returns 1 if an image named could not be read."""
    check_arguments(arguments)
    from scripts.cli.processes import build_accelerator
    from scripts.data.bands import use_range
    from scripts.data.folders import counted
    from scripts.data.images import find_images, what_was_found
    from scripts.drawing.visualization import model_palette
    from scripts.inference.found_segments import SegmentPredictor
    from scripts.inference.image_outputs import ImageOutputs, OutputFiles
    from scripts.inference.predictors import SingleScale
    from scripts.inference.segment_outputs import SegmentOutputs
    from scripts.inference.stream import output_files, predict_images
    from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite

    images = [] if arguments.dataset_name else find_images(arguments.images)
    config = build_config(arguments)
    task = task_of(config)
    check_for_task(arguments, task)
    output_dir, kinds = Path(arguments.output_dir or ""), arguments.outputs or DEFAULT_KINDS[task]
    if images:
        check_outputs(kinds, images)
    for file in output_files(images, output_dir, kinds, task) if images else ():
        check_output_file("--output_dir:", file, arguments.overwrite)
    accelerator = build_accelerator(arguments.mixed_precision)
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    style = overlay_style(arguments, names)
    model = build_model(arguments, config, new_classes=False).to(accelerator.device).eval()
    refuse_non_finite(model, f"--model_name_or_path {arguments.model_name_or_path}")
    processor = build_processor(arguments, config, **processor_settings(arguments))
    processor = use_range(processor, arguments.intensity_range)
    check_task(processor, config, f"--model_name_or_path {arguments.model_name_or_path}")
    compile_network(arguments, model, processor)
    segment: SingleScale | SegmentPredictor
    if task == SEMANTIC:
        segment = SingleScale(model, processor, accelerator.device, tiles_of(arguments))
    else:
        threshold = threshold_of(arguments.threshold, task)
        segment = SegmentPredictor(model, processor, accelerator.device, threshold, threshold, with_instances=False)
    failed = 0
    if images:
        if any(Path(name).is_dir() for name in arguments.images):
            accelerator.print(what_was_found(images))
        settings = kinds, output_dir, names, model_palette(config), arguments.overwrite
        outputs: OutputFiles
        if task == SEMANTIC:
            outputs = ImageOutputs(*settings, overlay_style=style)
        else:
            category_ids = getattr(config, "category_ids", None)  # of a COCO json that it was trained on
            outputs = SegmentOutputs(*settings, stuff=stuff_of(processor), category_ids=category_ids)
        failed = predict_images(images, segment, outputs, accelerator)
        words = [WORDS[kind] for kind in dict.fromkeys(kinds)]
        if failed < len(images):
            accelerator.print(f"{' and '.join(filter(None, [', '.join(words[:-1]), words[-1]]))} in {output_dir}")
        if isinstance(outputs, SegmentOutputs) and outputs.empty:
            threshold = threshold_of(arguments.threshold, task)
            print(f"nothing found in {counted(outputs.empty, 'image')} at --threshold {threshold:g}", file=sys.stderr)
    else:
        predict_dataset(arguments, output_dir, segment, accelerator, style)
        what = "label maps" if task == SEMANTIC else "maps of segments"
        accelerator.print(f'{what} in {output_dir}: datasets.load_dataset("{output_dir}") reads them')
    accelerator.end_training()
    return 1 if failed else 0


def main() -> int:
    return predict(parse_arguments(PredictArguments, images="Images and folders of images."))


if __name__ == "__main__":
    run_command(main)
