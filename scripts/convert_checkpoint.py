"""Turns an official FASeg, SeMask-FPN or QLSeg checkpoint, or a Mask2Former of transformers, into a folder that
`from_pretrained` loads.

python scripts/convert_checkpoint.py --checkpoint ade_faseg_r50.pth --model_id faseg-resnet50-ade20k --output_dir DIR
python scripts/convert_checkpoint.py --model_id faseg-resnet50-ade20k --output_dir DIR      (fetches the released file)
python scripts/convert_checkpoint.py --checkpoint mine.safetensors --config config.json --output_dir DIR
python scripts/convert_checkpoint.py --mask2former facebook/mask2former-swin-tiny-ade-semantic --output_dir DIR
                                                       (with --warm_start: a FASeg that starts from its weights)
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import PROJECT_ROOT, check_folder, flag, parse_arguments, path_flag, run_command
from scripts.models.arguments import Mask2FormerArguments
from scripts.models.families import FAMILIES, family_of
from scripts.models.tasks import TASKS, task_of
from scripts.storage.atomic import atomic_folder
from scripts.storage.digests import sha256


RELEASED_FILES = {name: url for family in FAMILIES.values() for name, url in family.released_files.items()}
# Files that have to be fetched by hand, and where.
RELEASED_PAGES = {name: page for family in FAMILIES.values() for name, page in family.released_pages.items()}
HUB_CARDS = PROJECT_ROOT / "hub_cards"


@dataclass
class ConvertArguments:
    """Convert an official FASeg, SeMask-FPN or QLSeg checkpoint, or a Mask2Former of transformers, to a folder that
    from_pretrained loads."""

    output_dir: str = flag("", "Folder to write; it must be new or empty, or see --overwrite.")
    checkpoint: str | None = path_flag(
        "Official checkpoint: a .pth, .pkl or .safetensors file. Without it the released file of --model_id is "
        "fetched."
    )
    model_id: str | None = flag(None, f"Released model: one of {', '.join([*RELEASED_FILES, *RELEASED_PAGES])}.")
    config: str | None = path_flag("config.json of the checkpoint's architecture, in place of --model_id.")
    mask2former: str | None = path_flag(
        "Mask2Former checkpoint of transformers, a folder or a name on the Hub, in place of the flags above."
    )
    task: str | None = flag(
        None, "What the Mask2Former was trained for (semantic, instance or panoptic), where its name does not say it."
    )
    warm_start: bool = flag(
        False,
        "Write a FASeg with DFPQ and HRCA that starts from the weights of --mask2former, which has neither, and is to "
        "be trained on (train.py --warm_start does both).",
    )
    url: str | None = flag(
        None,
        "URL to fetch the checkpoint from in place of the release's; one that ends with / is a folder that holds "
        "the release's files.",
    )
    download_dir: str | None = flag(
        None, "Folder that keeps fetched files; by default torch.hub's folder of checkpoints."
    )
    overwrite: bool = flag(False, "Replace what --output_dir holds.")


def convert(arguments: ConvertArguments) -> None:
    """Converts, and writes the folder."""
    output_dir = _checked_output(arguments)
    check_sources(arguments)
    from safetensors import SafetensorError

    from scripts.models import loading

    model, processor = mask2former_model(arguments) if arguments.mask2former else official_model(arguments)
    explained = errors_explained(f"cannot write {output_dir}", OSError, SafetensorError)
    with explained, atomic_folder(output_dir, manifest=False) as partial:
        loading.save_model_folder(model, processor, partial)
        if output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite:
            raise FileExistsError(f"{output_dir} is not empty")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tensors, classes = len(model.state_dict()), model.config.num_labels
    print(f"{tensors} tensors ({parameters:,} parameters, {classes} classes) written to {output_dir}")


def official_model(arguments: ConvertArguments) -> tuple[Any, Any]:
    """The model of an official checkpoint, and its processor.

    Raises:
        UserError: the checkpoint is out of reach, damaged, or not of the configuration.
    """
    from transformers import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

    from scripts.models.checkpoint_files import read_checkpoint
    from scripts.models.loading import listed

    config, processor = config_and_processor(checked_config_file(arguments))
    try:
        checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else _fetch(arguments)
        if checkpoint.is_file():
            print(f"sha256 {sha256(checkpoint)}  {checkpoint}")
        names = import_module(family_of(config).names)
        state_dict = names.convert_state_dict(read_checkpoint(checkpoint), config)
        model_class: Any = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
        model = model_class(config)
    except ValueError as error:  # a ConversionError, or a config that its own checks let pass and the model does not
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.strerror or error}: {error.filename or arguments.checkpoint}") from error
    constants = {name: value for name, value in model.state_dict().items() if name not in state_dict}
    if constants:  # all others were asked for above
        print(f"not in the checkpoint, computed from the config: {listed(constants)}")
    model.load_state_dict(state_dict | constants, strict=True)
    return model, processor


def mask2former_model(arguments: ConvertArguments) -> tuple[Any, Any]:
    """The model of a Mask2Former of transformers, and its processor.

    Raises:
        UserError: it is out of reach or damaged, or is none.
    """
    from scripts.models import loading, mask2former
    from scripts.models.warm_start import WarmStart

    name = str(arguments.mask2former)
    mask2former.check_is_mask2former("--mask2former", name)
    if arguments.warm_start:
        start = WarmStart(name, [], arguments.task, source=Mask2FormerArguments)
        config = start.config()
        model, table = start.model(config)
        print(table)
        return model, loading.build_processor(start.source, config)
    overrides = [f"task={arguments.task}"] if arguments.task else []
    named = Mask2FormerArguments(model_name_or_path=name, config_overrides=overrides)
    config = loading.build_config(named)
    return loading.build_model(named, config, new_classes=False), loading.build_processor(named, config)


def check_sources(arguments: ConvertArguments) -> None:
    """Raises `UserError` unless one checkpoint is named."""
    if not arguments.mask2former:
        checked_config_file(arguments)
        if arguments.task:
            raise UserError("--task is for --mask2former: an official checkpoint's configuration names its task")
        if arguments.warm_start:
            raise UserError("--warm_start is for --mask2former: an official checkpoint is no Mask2Former")
        return
    for name in ("checkpoint", "model_id", "config", "url"):
        if getattr(arguments, name):
            raise UserError(f"--{name} and --mask2former name two checkpoints: give one")
    if arguments.task not in (None, *TASKS):
        raise UserError(f"--task {arguments.task}: give one of {', '.join(TASKS)}")


def _checked_output(arguments: ConvertArguments) -> Path:
    if not arguments.output_dir:
        raise UserError("--output_dir is missing: name the folder to write")
    output_dir = Path(os.path.abspath(arguments.output_dir))
    check_folder("--output_dir", output_dir)
    if output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite:
        raise UserError(f"--output_dir {arguments.output_dir} is not empty: name another, or add --overwrite")
    return output_dir


def checked_config_file(arguments: ConvertArguments) -> Path:
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
    return config_file


def config_and_processor(config_file: Path) -> tuple[Any, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import modeling_faseg  # noqa: F401 - registers the configurations and models
    from image_processing import FASegImageProcessor
    from scripts.models.model_files import KINDS, PROCESSOR, check_model_files, read_model_file

    check_model_files("--config", str(config_file))
    with errors_explained(str(config_file), ValueError, OSError, KeyError, TypeError, StrictDataclassError):
        config = AutoConfig.from_pretrained(config_file)
    if config.model_type not in FAMILIES:
        raise UserError(f"{config_file}: model_type is {config.model_type!r}, not one of {', '.join(FAMILIES)}")
    beside = config_file.with_name(PROCESSOR)
    if beside.is_file():
        read_model_file(beside, f"--config {config_file}: {PROCESSOR} beside it", KINDS[PROCESSOR])
        with errors_explained(str(beside), ValueError, OSError, TypeError):
            processor = FASegImageProcessor.from_pretrained(beside.parent)
    else:
        processor = FASegImageProcessor(
            task=task_of(config), num_labels=config.num_labels, ignore_index=config.ignore_value
        )
    return config, processor


def _fetch(arguments: ConvertArguments) -> Path:
    released = RELEASED_FILES.get(arguments.model_id or "", "")
    url = arguments.url or released
    if url.endswith("/"):
        url += released.rsplit("/", 1)[-1]
    from torch.hub import get_dir

    from scripts.models.checkpoint_files import download

    folder = Path(arguments.download_dir) if arguments.download_dir else Path(get_dir()) / "checkpoints"
    return download(url, folder)


def main() -> None:
    convert(parse_arguments(ConvertArguments))


if __name__ == "__main__":
    run_command(main)
