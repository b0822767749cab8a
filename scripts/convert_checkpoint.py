"""Official FASeg, SeMask-FPN or QLSeg checkpoint -> a folder that `from_pretrained` loads.

python scripts/convert_checkpoint.py --checkpoint ade_faseg_r50.pth --model_id faseg-resnet50-ade20k --output_dir DIR
python scripts/convert_checkpoint.py --model_id faseg-resnet50-ade20k --output_dir DIR      (fetches the released file)
python scripts/convert_checkpoint.py --checkpoint mine.safetensors --config config.json --output_dir DIR
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


if __package__ in (None, ""):  # Run as `python scripts/convert_checkpoint.py`, perhaps not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation, QLSegForSemanticSegmentation, SeMaskForSemanticSegmentation
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, parse_arguments, run_command
from scripts.models import qlseg_names, semask_names
from scripts.models.checkpoint_files import download, read_checkpoint
from scripts.models.loading import save_model_folder
from scripts.models.parameter_names import ConversionError, convert_state_dict, official_parameter_names
from scripts.storage.atomic import atomic_folder
from scripts.storage.digests import sha256


_RELEASE = "https://github.com/ziplab/FASeg/releases/download/V1/"
RELEASED_FILES = {
    "faseg-resnet50-ade20k": _RELEASE + "ade_faseg_r50.pth",
    "faseg-swin-tiny-ade20k": _RELEASE + "ade_faseg_swin_ti.pth",
    "faseg-swin-base-ade20k-640": _RELEASE + "ade_faseg_swin_b.pth",
    "faseg-swin-large-ade20k-640": _RELEASE + "ade_faseg_swin_l.pth",
    "faseg-resnet50-cityscapes": _RELEASE + "cityscapes_faseg_r50.pth",
}
# Files that have to be fetched by hand, and where.
RELEASED_PAGES = {**semask_names.RELEASED_PAGES, **qlseg_names.RELEASED_PAGES}
# Model class and converter of each kind of configuration.
FAMILIES: dict[str, tuple[Any, Any]] = {
    "faseg": (FASegForUniversalSegmentation, convert_state_dict),
    "qlseg": (QLSegForSemanticSegmentation, qlseg_names.convert_state_dict),
    "semask": (SeMaskForSemanticSegmentation, semask_names.convert_state_dict),
}
HUB_CARDS = PROJECT_ROOT / "hub_cards"


@dataclass
class ConvertArguments:
    """Convert an official FASeg or SeMask-FPN checkpoint to a from_pretrained folder."""

    output_dir: str = field(default="", metadata={"help": "Folder to write; must not hold anything yet."})
    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Official file: .pth, .pkl or .safetensors. Without it the release is fetched."},
    )
    model_id: str | None = field(
        default=None, metadata={"help": f"One of {', '.join([*RELEASED_FILES, *RELEASED_PAGES])}."}
    )
    config: str | None = field(default=None, metadata={"help": "config.json of another architecture."})
    url: str | None = field(
        default=None,
        metadata={"help": "Fetch this URL instead of the release; with a / at its end, a mirror's folder."},
    )
    download_dir: str | None = field(
        default=None, metadata={"help": "Where fetched files are kept; torch.hub's folder of checkpoints by default."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what --output_dir holds."})


def main() -> None:
    # --- arguments ---------------------------------------------------------------------------------------------------
    arguments = parse_arguments(ConvertArguments)
    output_dir = _checked_output(arguments)
    config, processor = _config_and_processor(arguments)

    # --- weights -----------------------------------------------------------------------------------------------------
    try:
        checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else _fetch(arguments)
        if checkpoint.is_file():
            print(f"sha256 {sha256(checkpoint)}  {checkpoint}")
        model_class, convert = FAMILIES[config.model_type]
        state_dict = convert(read_checkpoint(checkpoint), config)
        model = model_class(config)
    except ValueError as error:  # a ConversionError, or a config that its own checks let pass and the model does not
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.strerror or error}: {error.filename or arguments.checkpoint}") from error
    model.load_state_dict(state_dict, strict=True)

    # --- folder ------------------------------------------------------------------------------------------------------
    try:
        write_folder(model, processor, output_dir, overwrite=arguments.overwrite)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {output_dir}: {error}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{len(state_dict)} tensors ({parameters:,} parameters, {config.num_labels} classes) written to {output_dir}"
    )


def write_folder(model: Any, processor: Any, output_dir: Path, overwrite: bool = False) -> None:
    """Write model, processor and code to `output_dir` atomically."""
    with atomic_folder(output_dir, manifest=False) as partial:
        save_model_folder(model, processor, partial)
        if output_dir.exists() and any(output_dir.iterdir()) and not overwrite:
            raise FileExistsError(f"{output_dir} is not empty")


def _checked_output(arguments: ConvertArguments) -> Path:
    if not arguments.output_dir:
        raise UserError("--output_dir is missing: name the folder to write")
    output_dir = Path(os.path.abspath(arguments.output_dir))
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {arguments.output_dir} is a file: name a folder")
    if output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite:
        raise UserError(f"--output_dir {arguments.output_dir} is not empty: name another, or add --overwrite")
    return output_dir


def _config_and_processor(arguments: ConvertArguments) -> tuple[Any, Any]:
    if (arguments.model_id is None) == (arguments.config is None):
        raise UserError("give either --model_id or --config")
    if arguments.model_id is not None:
        known = [*RELEASED_FILES, *RELEASED_PAGES]
        if arguments.model_id not in known:
            raise UserError(f"--model_id {arguments.model_id!r} is unknown: one of {', '.join(known)}")
        if arguments.model_id in RELEASED_PAGES and not (arguments.checkpoint or arguments.url):
            page = RELEASED_PAGES[arguments.model_id]
            raise UserError(f"--model_id {arguments.model_id}: fetch the file from {page} and give it as --checkpoint")
        config_file = HUB_CARDS / arguments.model_id / "config.json"
        if not config_file.is_file():
            raise UserError(f"{config_file} is missing: run from a checkout of the project, or give --config")
    else:
        if arguments.checkpoint is None and arguments.url is None:
            raise UserError("--config needs a --checkpoint to convert")
        config_file = Path(arguments.config or "")
        if not config_file.is_file():
            raise UserError(f"--config {config_file}: no such file")
    try:
        config = AutoConfig.from_pretrained(config_file)
    except (ValueError, OSError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{config_file}: {error}") from error
    if config.model_type not in FAMILIES:
        raise UserError(f"{config_file}: model_type is {config.model_type!r}, not one of {', '.join(FAMILIES)}")
    beside = config_file.with_name("preprocessor_config.json")
    if beside.is_file():
        processor = FASegImageProcessor.from_pretrained(beside.parent)
    else:
        processor = FASegImageProcessor(
            task=getattr(config, "task", "semantic"), num_labels=config.num_labels, ignore_index=config.ignore_value
        )
    return config, processor


def _fetch(arguments: ConvertArguments) -> Path:
    released = RELEASED_FILES.get(arguments.model_id or "", "")
    url = arguments.url or released
    if url.endswith("/"):
        url += released.rsplit("/", 1)[-1]
    folder = Path(arguments.download_dir) if arguments.download_dir else Path(torch.hub.get_dir()) / "checkpoints"
    return download(url, folder)


__all__ = ["ConversionError", "convert_state_dict", "official_parameter_names", "write_folder"]


if __name__ == "__main__":
    run_command(main)
