"""The folder that becomes a repository: weights, code, processors, card, recipe, log, sample images, licences."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageOps
from transformers import PreTrainedConfig

from image_processing.preprocessing import pil_to_array
from scripts.cli.errors import UserError
from scripts.cli.parser import IS_CHECKOUT, PROJECT_ROOT, start_of
from scripts.data.bands import ImageForm, as_image, for_eyes, form_of
from scripts.drawing.visualization import joined, model_palette, with_legend
from scripts.evaluation.results import weights_sha256
from scripts.inference.found_segments import SegmentPredictor
from scripts.inference.predictors import SingleScale
from scripts.inference.segment_maps import segment_map
from scripts.models.families import family_of
from scripts.models.licences import FIELDS
from scripts.models.model_files import CONFIG, KINDS, read_model_file
from scripts.models.tasks import DEFAULT_THRESHOLDS, SEMANTIC, stuff_of, task_of
from scripts.sharing.array_images import MAX_SAMPLE_SIDE, sample_array
from scripts.sharing.card_facts import CardFacts
from scripts.sharing.cards import licence_notice, model_card, without_local_paths
from scripts.sharing.leaks import EARLIER, repository_files, write_scrubbed_recipe
from scripts.storage.atomic import atomic_folder, write_errors_explained


LICENCE_TEXTS = {
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/legalcode",
    "cc-by-nc-sa-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode",
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
}
# What transformers writes into a config.json besides its fields.
OF_TRANSFORMERS = {"_name_or_path", "_commit_hash", "auto_map", "dtype", "torch_dtype", "transformers_version"}
OF_TRANSFORMERS |= {"attn_implementation", "_attn_implementation", "num_labels", "quantization_config"}
OURS = {"palette", *FIELDS}  # fields that the commands add to a model's own


@dataclass
class Export:
    """What goes into a repository.

    Args:
        checkpoint: its folder, or its name on the Hub.
        repo_id: name that the card uses.
        samples: images to show beside what the model makes of them.
        max_shard_size: weights above it are split, such as "5GB".
    """

    checkpoint: str
    model: Any
    processor: Any
    facts: CardFacts
    model_id: str
    repo_id: str
    results: dict[str, Any] | None = None
    samples: Sequence[Path] = field(default_factory=list)
    max_shard_size: str = "5GB"

    @property
    def image_form(self) -> ImageForm:
        """The bands and the depth of the images that the model reads."""
        return form_of(self.model.config, self.processor)


# ---- checks before anything is written ------------------------------------------------------------------------------


def check_code_knows(config_class: type[PreTrainedConfig], name: str) -> None:
    """Refuses a configuration written by newer code: the older code would go with it and pass the field over.

    Raises:
        UserError: names the field.
    """
    stored, _ = PreTrainedConfig.get_config_dict(name)
    if stored.get("model_type") == "mask2former":
        raise UserError(
            f"{name} is a Mask2Former: make it a folder of this project: {start_of('convert_checkpoint')} "
            f"--mask2former {name} --output_dir FOLDER"
        )
    known = config_class().to_dict().keys() | PreTrainedConfig().to_dict().keys() | OF_TRANSFORMERS | OURS
    if unknown := sorted(stored.keys() - known):
        raise UserError(
            f"{name}: config.json has {unknown[0]!r}, which this code does not know: the code is older than the "
            "configuration: update the project, or remove the field if nothing reads it"
        )


def check_measured_on(results: dict[str, Any], checkpoint: str) -> None:
    """Refuses figures of other weights.

    Raises:
        UserError: the results file names the SHA-256 of others.
    """
    measured, own = results.get("weights_sha256"), weights_sha256(checkpoint)
    if measured and own and measured != own:
        raise UserError(
            f"--results were measured on other weights (sha256 {measured[:12]}, not {own[:12]} as in {checkpoint}): "
            f"evaluate this checkpoint: {without_local_paths(results['command'])}"
        )


# ---- parts ----------------------------------------------------------------------------------------------------------


def sample_input(file: Path) -> Image.Image:
    """RGB image of at most `MAX_SAMPLE_SIDE` pixels a side, upright, without metadata (places, dates, cameras).

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(file) as image:
            sample = Image.fromarray(pil_to_array(ImageOps.exif_transpose(image), do_convert_rgb=True))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--sample_images {file}: {error}") from error
    sample.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
    return sample


def write_sample_input(file: Path, target: Path, form: ImageForm) -> Any:
    """Writes a sample image as a reader gets it; returns it as the model reads it, with JPEG's losses."""
    if form.is_plain:
        sample_input(file).save(target, quality=92)
        with Image.open(target) as image:
            return image.convert("RGB")
    array = sample_array(file, form)
    np.save(target, array)
    return as_image(torch.from_numpy(np.ascontiguousarray(form.scaled(array.transpose(2, 0, 1)))))


def write_samples(export: Export, folder: Path) -> list[dict[str, str]]:
    """Writes `samples/<number>_input.jpg` and, beside its prediction, `samples/<number>.jpg` of each sample image; of
    one that is no RGB of 8 bits `samples/<number>_input.npy`."""
    names = {int(index): str(label) for index, label in export.model.config.id2label.items()}
    palette = model_palette(export.model.config)
    model, processor, task = export.model, export.processor, task_of(export.model.config)

    def drawn(sample: Image.Image) -> Image.Image:
        if task == SEMANTIC:
            return with_legend(sample, SingleScale(model, processor, model.device)(sample), names, palette)
        threshold = DEFAULT_THRESHOLDS[task]
        found = SegmentPredictor(model, processor, model.device, threshold, threshold, with_instances=False)(sample)
        return segment_map(found, stuff_of(processor) or (), small_on_top=True).drawn(sample, names, palette)

    written = []
    for number, file in enumerate(export.samples, 1):
        (folder / "samples").mkdir(exist_ok=True)
        ending = "jpg" if export.image_form.is_plain else "npy"
        entry = {"image": f"samples/{number}.jpg", "input": f"samples/{number}_input.{ending}"}
        sample = write_sample_input(file, folder / entry["input"], export.image_form)
        joined([for_eyes(sample), drawn(sample)], gap=8).save(folder / entry["image"], quality=90)
        written.append(entry | {"caption": f"Sample {number} and its segmentation"})
    return written


def licence_text(facts: CardFacts, notice: str) -> str:
    """The repository's LICENSE: of the weights, with the code's named apart.

    Args:
        notice: what the licence of the weights follows from.
    """
    where = facts.license_link or LICENCE_TEXTS.get(facts.license.lower())
    return (
        f"The weights in this repository (*.safetensors, onnx/*.onnx) are licensed under {facts.licence}"
        f"{f': {where}' if where else ''}\n\n{notice}\n\n"
        "The code (*.py) is licensed under Apache-2.0, see LICENSE-CODE.\n"
    )


def fill(export: Export, folder: Path) -> ModelCard:
    """Writes everything into an empty folder."""
    checkpoint = Path(export.checkpoint)
    export.model.save_pretrained(folder, max_shard_size=export.max_shard_size)
    export.processor.save_pretrained(folder)
    recipe = None
    if (checkpoint / "recipe.yaml").is_file():
        recipe = write_scrubbed_recipe(checkpoint / "recipe.yaml", folder / "recipe.yaml")
    if (checkpoint / "train_log.jsonl").is_file():
        shutil.copyfile(checkpoint / "train_log.jsonl", folder / "train_log.jsonl")
    for file in sorted([*checkpoint.glob("*.onnx"), *checkpoint.glob("onnx/*.onnx")]):
        (folder / "onnx").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "onnx" / file.name)
    samples = write_samples(export, folder)
    backbone = getattr(export.model.config, "backbone_config", None)
    files = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    timm = getattr(backbone, "model_type", "") == "timm_backbone" or family_of(export.model.config).needs_timm
    notice = licence_notice(export.facts, recipe, export.model.config)
    card = model_card(
        export.model_id,
        export.repo_id,
        export.model.config,
        export.facts,
        export.results,
        recipe,
        samples,
        files,
        needs_timm=timm,
        processor=export.processor,
    )
    card.save(folder / "README.md")
    (folder / "LICENSE").write_text(licence_text(export.facts, notice), encoding="utf-8")
    (folder / "LICENSE-CODE").write_text(code_licence(), encoding="utf-8")
    return card


def code_licence() -> str:
    """The text of the licence of the project's code."""
    if IS_CHECKOUT:
        return (PROJECT_ROOT / "LICENSE").read_text(encoding="utf-8")
    return distribution("faseg-transformers").read_text("licenses/LICENSE") or ""


# ---- the folder as a whole ------------------------------------------------------------------------------------------


def check_output(folder: Path, checkpoint: str) -> None:
    """Lets an export replace nothing but an earlier export.

    Raises:
        UserError: the folder is the checkpoint, or holds something else.
    """
    if folder.resolve() == Path(checkpoint).resolve():
        raise UserError(f"--output_dir {folder} is the checkpoint itself: name another folder")
    if folder.is_dir() and any(folder.iterdir()):
        repository_files(folder, EARLIER)
        try:
            config = read_model_file(folder / CONFIG, CONFIG, KINDS[CONFIG])
        except UserError:
            config = {}
        if "model_type" not in config or not (folder / "LICENSE-CODE").is_file():
            raise UserError(f"--output_dir {folder} is not empty and no earlier export: name another folder")


def write_repository(export: Export, folder: Path) -> ModelCard:
    """Writes the repository's folder atomically, in place of an earlier export.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors_explained(folder), atomic_folder(folder, manifest=False) as partial:
        return fill(export, partial)
