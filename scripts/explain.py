"""Shows where the model looks: for each segment the path of its query's focus, layer by layer, on one page.

`python scripts/explain.py street.jpg --model_name_or_path outputs/model --output_dir outputs/explain` writes
`explain.html`, a page in one file, and PNGs beside it. `--compare outputs/other` shows another checkpoint's paths to
the same segments, of a model with plain learned queries for instance.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.cli.parser import check_at_least, check_folder, parse_arguments, project_path, run_command
from scripts.data.images import find_images, output_names, read_image
from scripts.drawing.visualization import model_palette, with_legend
from scripts.explaining.focus import FocusCounts, Look, check_tells_focus, look
from scripts.explaining.focus_page import (
    Explained,
    Model,
    class_names,
    image_section,
    queries_kind,
    write_focus_page,
)
from scripts.explaining.images import path_sheet, windows_image
from scripts.explaining.paths import counterpart, focus_path
from scripts.inference.predictors import label_array
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config, build_model, build_processor


@dataclass
class ExplainArguments(ModelArguments):
    """Show where a model's queries looked in images."""

    images: list[str] = field(default_factory=list, metadata={"help": "Images and folders; the same as IMAGES."})
    output_dir: str = field(default="outputs/explain", metadata={"help": "Where the page and its images go."})
    compare: str | None = field(
        default=None, metadata={"help": "Another checkpoint of the same classes, shown beside the model."}
    )
    max_segments: int = field(default=6, metadata={"help": "Segments shown per image, the largest ones."})
    recipe: str | None = field(default=None, metadata={"help": "YAML file with values of these flags."})


class Explainer:
    """A model that tells its focus, and what is counted of it."""

    def __init__(self, arguments: ModelArguments, device: Any) -> None:
        config = build_config(arguments)
        self.model = build_model(arguments, config, new_classes=False).to(device).eval()
        check_tells_focus(self.model, f"--model_name_or_path {arguments.model_name_or_path}")
        self.processor = build_processor(arguments, config)
        self.device = device
        self.name = Path(project_path(arguments.model_name_or_path or "")).resolve().name
        self.counts = FocusCounts(self.model, self.processor, device)

    def look(self, image: Image.Image) -> Look:
        """The focus in one image, counted."""
        seen = look(self.model, self.processor, image, self.device, every_prediction=True)
        self.counts.count(seen)
        return seen

    def explain(self, image: Image.Image, seen: Look, count: int) -> Explained:
        """The prediction, and the paths of the largest segments."""
        labels = self.processor.post_process_semantic_segmentation(
            seen.outputs, target_sizes=[(image.height, image.width)], input_sizes=[seen.input_size]
        )[0]
        paths = [focus_path(seen, segment, self.model.config) for segment in seen.segments[:count]]
        return Explained(seen, label_array(labels), paths)

    def described(self, names_kind: bool) -> Model:
        """For the page; with the kind of its queries where two models are told apart."""
        config = self.model.config
        title = f"{self.name}, {queries_kind(config)}" if names_kind else self.name
        return Model(title, config, model_palette(config), self.counts.scores())


def write_images(folder: Path, name: str, image: Image.Image, explained: Explained, model: Model) -> None:
    """The prediction, each path and HRCA's windows as PNGs."""
    names = class_names(model.config)
    with_legend(image, explained.labels, names, model.palette).save(folder / f"{name}_prediction.png")
    for number, path in enumerate(explained.paths, 1):
        label = model.name(path.segment.label)
        title = f"{model.title}: where query {path.segment.query} looked, which decides this segment as {label}"
        sheet = path_sheet(image, path, explained.seen, title, model.levels)
        sheet.save(folder / f"{name}_segment{number}_{re.sub(r'[^A-Za-z0-9]+', '-', label)}.png")
    for step in explained.paths[0].steps if explained.paths else ():
        if step.windows:
            drawing = windows_image(image, step, explained.seen, 640)
            drawing.save(folder / f"{name}_windows_layer{step.number}.png")


def check_arguments(arguments: ExplainArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    check_folder("--output_dir", Path(arguments.output_dir))
    check_at_least(arguments, 1, "max_segments")


def explain(arguments: ExplainArguments) -> int:
    """Writes the page; returns 1 if an image named could not be read."""
    check_arguments(arguments)
    images = find_images(arguments.images)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    first, second = Explainer(arguments, device), None
    if arguments.compare:
        second = Explainer(replace(arguments, model_name_or_path=arguments.compare, config_overrides=[]), device)
        if class_names(first.model.config) != class_names(second.model.config):
            raise UserError(f"--compare {arguments.compare} has other classes than the model: give one of the same")
        if first.name == second.name:
            first.name, second.name = str(arguments.model_name_or_path), arguments.compare

    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sections, failed = [], 0
    model = first.described(names_kind=second is not None)
    jobs = list(zip(images, output_names(images), strict=True))
    for path, name in tqdm(jobs, desc="explain", unit="image"):
        try:
            image = read_image(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            tqdm.write(f"{path}: skipped, cannot be read: {error}", file=sys.stderr)
            failed += 1
            continue
        explained = first.explain(image, first.look(image), arguments.max_segments)
        other = None
        if second is not None:
            seen = second.look(image)
            theirs = second.explain(image, seen, arguments.max_segments)
            matches = [counterpart(path.segment, seen.segments) for path in explained.paths]
            paths = [None if match is None else focus_path(seen, match, second.model.config) for match in matches]
            other = theirs, second.described(names_kind=True), paths
        write_images(output_dir, name, image, explained, model)
        sections.append(image_section(path.name, image, explained, model, other))
    if not sections:
        raise UserError("no image could be read")
    models = [each.described(names_kind=second is not None) for each in (first, second) if each is not None]
    write_focus_page(output_dir / "explain.html", models, sections)
    print(f"page in {output_dir / 'explain.html'}")
    return 1 if failed else 0


def main() -> int:
    """Entry point."""
    arguments = parse_arguments(ExplainArguments, images="images and folders of images")
    try:
        return explain(arguments)
    except OSError as error:
        raise UserError(f"--output_dir {arguments.output_dir}: not written: {error}") from error


if __name__ == "__main__":
    run_command(main)
