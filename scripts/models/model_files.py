"""The JSON files of a model's folder, looked at before transformers takes them for what they should be."""

from __future__ import annotations

import contextlib
import difflib
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from scripts.cli.errors import UserError
from scripts.storage.json_files import read_json


CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
# Of what kind is what transformers itself reads, file by file; null stands for the default.
KINDS: dict[str, dict[str, Any]] = {
    CONFIG: {
        "architectures": list[str],
        "auto_map": dict[str, Any],
        "id2label": dict[str, str],
        "label2id": dict[str, int],
        "model_type": str,
        "num_labels": int,
        "quantization_config": dict[str, Any],
        "transformers_version": str,
    },
    PROCESSOR: {
        "auto_map": dict[str, Any],
        "image_mean": list[float | int] | float | int,
        "image_processor_type": str,
        "image_std": list[float | int] | float | int,
        "processor_class": str,
        "resample": int,
    },
    INDEX: {"metadata": dict[str, Any], "weight_map": dict[str, str]},
    PICKLED_INDEX: {"metadata": dict[str, Any], "weight_map": dict[str, str]},
}


def check_model_files(flag: str, name: str) -> None:
    """Refuses a folder, or a model on the Hub, whose JSON files hold something else than they should.

    Args:
        name: a folder, its `config.json` alone, or a name on the Hub.
    Raises:
        UserError: names the flag, the file and the field.
    """
    path = Path(name)
    if not path.exists() and path.parent.is_dir() and path.parent != Path():
        names = [file.parent.name for file in path.parent.glob(f"*/{CONFIG}")]
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f": did you mean {path.parent / near[0]}?" if near else ""
        print(f"{flag} {name}: there is no such folder, so the Hub is asked for it{hint}", file=sys.stderr)
    for file_name, kinds in KINDS.items():
        file: str | Path | None = path / file_name
        if path.is_file():
            file = path if file_name == CONFIG else None
        elif not path.is_dir():
            file = None
            with contextlib.suppress(OSError, ValueError):  # whoever loads the model says why it cannot be had
                file = cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
        if file is not None and Path(file).is_file():
            read_model_file(Path(file), f"{flag} {name}: {file_name}", kinds)


def read_model_file(file: Path, name: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """What one of these files holds.

    Args:
        name: what errors call it.
        kinds: field -> its kind.
    Raises:
        UserError: it cannot be read, or holds something else than it should.
    """
    found = read_json(file, name, kinds)
    for field in ("dtype", "torch_dtype"):
        given = found.get(field)
        if isinstance(given, str) and not isinstance(getattr(torch, given, None), torch.dtype):
            raise UserError(f"{name} has {field}={given!r}, which torch does not know")
    weight_map = (found.get("weight_map") or {}) if "weight_map" in kinds else {}
    if strange := next((part for part in weight_map.values() if Path(part).name != part), None):
        raise UserError(f"{name} names {strange!r}, which is no file beside it")
    return found
