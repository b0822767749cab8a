"""The JSON files of a model's folder, looked at before transformers takes them for what they should be."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import type_validator
from transformers.utils import cached_file

from scripts.cli.errors import UserError
from scripts.storage.retries import causes


CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
DEEPEST = 50  # objects and lists in each other; a model's own have five
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
    "preprocessor_config.json": {
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
    for file_name, kinds in KINDS.items():
        file: str | Path | None = path / file_name
        if path.is_file():
            file = path if file_name == CONFIG else None
        elif not path.is_dir():
            file = None
            with contextlib.suppress(OSError, ValueError):  # whoever loads the model says why it cannot be had
                file = cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
        if file is not None and Path(file).is_file() and (fault := json_fault(Path(file), kinds)):
            raise UserError(f"{flag} {name}: {file_name} {fault}")


def json_fault(file: Path, kinds: dict[str, Any]) -> str | None:
    """What is wrong with a JSON file that should hold an object with fields of these kinds; None if nothing is."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        return "is nested too deeply"
    except (OSError, ValueError) as error:
        return f"is not a valid JSON file: {error}"
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except (RecursionError, UnicodeEncodeError) as error:
        return "is nested too deeply" if isinstance(error, RecursionError) else f"holds text that is none: {error}"
    if not isinstance(found, dict):
        return f"holds {'null' if found is None else type(found).__name__}, not an object"
    if deeper_than(found, DEEPEST):
        return "is nested too deeply"
    for field, kind in kinds.items():
        if found.get(field) is not None:
            try:
                type_validator(field, found[field], kind)
            except TypeError as error:
                return f"has a wrong field: {list(causes(error))[-1]}"
    for field in ("dtype", "torch_dtype"):
        given = found.get(field)
        if isinstance(given, str) and not isinstance(getattr(torch, given, None), torch.dtype):
            return f"has {field}={given!r}, which torch does not know"
    if strange := next((part for part in (found.get("weight_map") or {}).values() if Path(part).name != part), None):
        return f"names {strange!r}, which is no file beside it"
    return None


def deeper_than(value: Any, levels: int) -> bool:
    """Whether objects and lists lie in each other more than so many times."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(deeper_than(item, levels - 1) for item in inside)
