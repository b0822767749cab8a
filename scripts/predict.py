"""Segments pictures: a label PNG and a colour overlay with a legend for each.

`python scripts/predict.py street.jpg photos/ --model_name_or_path outputs/model --output_dir outputs/predictions`
writes `street_labels.png` (pixel value = class id) and `street_overlay.png`. Runs alike as `python -m scripts.predict`
and under `accelerate launch`, where processes share the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass, field

from PIL import Image, ImageOps
from tqdm import tqdm

from image_processing.preprocessing_faseg import pil_to_array
from scripts.evaluation.inference import SingleScale
from scripts.training.command_line import UserError, build_accelerator, check_folder, parse_arguments, run_command
from scripts.training.model_folder import ModelArguments, build_config, build_model, build_processor
from scripts.visualization import label_image, with_legend


@dataclass
class PredictArguments(ModelArguments):
    """Segment pictures, or the pictures of folders."""

    images: list[str] = field(default_factory=list, metadata={"help": "Pictures and folders; the same as IMAGES."})
    output_dir: str | None = field(default=None, metadata={"help": "Where label maps and overlays go."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, bf16 or fp16; else accelerate's setting."}
    )
    recipe: str | None = field(default=None, metadata={"help": "YAML file with values of these flags."})


def find_pictures(names: list[str]) -> list[Path]:
    """The pictures named, and those in the folders named, by name.

    Raises:
        UserError: a name that does not exist, or no picture at all.
    """
    endings = Image.registered_extensions()
    pictures: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            pictures += sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
        elif path.is_file():
            pictures.append(path)
        else:
            raise UserError(f"{name}: no such file or folder")
    if not pictures:
        raise UserError("no picture: name pictures or a folder of them")
    return pictures


def output_names(pictures: list[Path]) -> list[str]:
    """A distinct name per picture: its stem, with its ending or a number where stems collide."""
    names: list[str] = []
    for picture in pictures:
        candidates = [picture.stem, picture.name.replace(".", "_")]
        name = next((candidate for candidate in candidates if candidate not in names), None)
        names.append(name or f"{picture.stem}_{len(names)}")
    return names


def read_picture(path: Path) -> Image.Image:
    """RGB picture, upright by its EXIF orientation."""
    with Image.open(path) as image:
        return Image.fromarray(pil_to_array(ImageOps.exif_transpose(image), do_convert_rgb=True))


def predict(arguments: PredictArguments) -> int:
    """Writes both files per picture; returns 1 if a picture could not be read."""
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    check_folder("--output_dir", Path(arguments.output_dir))
    pictures = find_pictures(arguments.images)
    accelerator = build_accelerator(arguments.mixed_precision)
    config = build_config(arguments)
    model = build_model(arguments, config, new_classes=False).to(accelerator.device).eval()
    segment = SingleScale(model, build_processor(arguments, config), accelerator.device)
    names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    jobs = list(zip(pictures, output_names(pictures), strict=True))
    own = jobs[accelerator.process_index :: accelerator.num_processes]
    failed = 0
    with (
        accelerator.autocast(),
        tqdm(own, desc="predict", unit="image", disable=not accelerator.is_main_process) as bar,
    ):
        for path, name in bar:
            try:
                image = read_picture(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                tqdm.write(f"{path}: skipped, cannot be read: {error}", file=sys.stderr)
                failed += 1
                continue
            labels = segment(image)
            label_image(labels).save(output_dir / f"{name}_labels.png")
            with_legend(image, labels, names).save(output_dir / f"{name}_overlay.png")
    accelerator.wait_for_everyone()
    if failed:
        print(f"{failed} of {len(own)} pictures could not be read", file=sys.stderr)
    accelerator.print(f"label maps and overlays in {output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


def main() -> int:
    """Entry point."""
    return predict(parse_arguments(PredictArguments, images="pictures and folders of pictures"))


if __name__ == "__main__":
    run_command(main)
