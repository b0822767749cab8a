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

from dataclasses import asdict, dataclass

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import (
    ReadPath,
    check_at_least,
    check_folder,
    check_recipe_read,
    flag,
    parse_arguments,
    path_flag,
    run_command,
)
from scripts.data.arguments import intensity_range_flag, parse_range
from scripts.models.arguments import ModelArguments
from scripts.models.tasks import task_of, threshold_flag
from scripts.storage.outputs import check_output_file, overwrite_flag


PAGE = "explain.html"


@dataclass
class ExplainArguments(ModelArguments):
    """Show where a model's queries looked in images."""

    images: list[str] = flag([], "Images to explain, and folders of images; the same as IMAGES.", action=ReadPath)
    output_dir: str = flag("outputs/explain", "Folder that gets the page and its images.")
    overwrite: bool = overwrite_flag()
    compare: str | None = path_flag(
        "Folder or name on the Hub of another checkpoint of the same classes, to be shown beside the model."
    )
    max_segments: int = flag(6, "How many segments of each image are shown, the largest ones.")
    threshold: float | None = threshold_flag()
    intensity_range: list[str] | None = intensity_range_flag()
    recipe: str | None = flag(None, "YAML file with values of these flags.")


class ComparedArguments(ExplainArguments):
    """The second checkpoint."""

    checkpoint_flag = "--compare"


def check_arguments(arguments: ExplainArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    check_recipe_read(arguments)
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    check_folder("--output_dir", Path(arguments.output_dir))
    check_output_file("--output_dir:", Path(arguments.output_dir) / PAGE, arguments.overwrite)
    check_at_least(arguments, 1, "max_segments")
    parse_range(arguments.intensity_range)


def explain(arguments: ExplainArguments) -> int:
    """Writes the page; returns 1 if an image named could not be read."""
    check_arguments(arguments)
    import torch
    from tqdm import tqdm

    from scripts.data.bands import for_eyes
    from scripts.data.images import find_images, output_names, read_image
    from scripts.explaining.explainer import Explainer, write_images
    from scripts.explaining.focus_page import class_names, image_section, write_focus_page
    from scripts.explaining.paths import counterpart, focus_path

    output_dir = Path(arguments.output_dir)
    images = [image.path for image in find_images(arguments.images)]
    for name in output_names(images):
        check_output_file("--output_dir:", output_dir / f"{name}_prediction.png", arguments.overwrite)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    first, second = Explainer(arguments, device), None
    if arguments.compare:
        compared = ComparedArguments(
            **{**asdict(arguments), "model_name_or_path": arguments.compare, "config_overrides": []}
        )
        second = Explainer(compared, device)
        if class_names(first.model.config) != class_names(second.model.config):
            raise UserError(f"--compare {arguments.compare} has other classes than the model: give one of the same")
        if task_of(first.model.config) != task_of(second.model.config):
            raise UserError(f"--compare {arguments.compare} is of another task than the model: give one of the same")
        if first.form != second.form:
            raise UserError(
                f"--compare {arguments.compare} reads other bands or numbers than the model: give one alike"
            )
        if first.name == second.name:
            first.name, second.name = str(arguments.model_name_or_path), arguments.compare

    output_dir.mkdir(parents=True, exist_ok=True)
    sections, failed = [], 0
    model = first.described(names_kind=second is not None)
    jobs = list(zip(images, output_names(images), strict=True))
    for path, name in tqdm(jobs, desc="explain", unit="image"):
        image = read_image(path, first.form)
        if image is None:
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
        image = for_eyes(image)
        write_images(output_dir, name, image, explained, model, arguments.overwrite)
        sections.append(image_section(path.name, image, explained, model, other))
    if not sections:
        raise UserError("no image could be read")
    models = [each.described(names_kind=second is not None) for each in (first, second) if each is not None]
    write_focus_page(output_dir / PAGE, models, sections)
    print(f"page in {output_dir / PAGE}")
    return 1 if failed else 0


def main() -> int:
    arguments = parse_arguments(ExplainArguments, images="Images and folders of images.")
    with errors_explained(f"--output_dir {arguments.output_dir}: not written", OSError):
        return explain(arguments)


if __name__ == "__main__":
    run_command(main)
