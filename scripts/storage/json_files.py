"""JSON files, which may hold anything: read, or refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from scripts.cli.errors import LONGEST_REASON, UserError, causes
from scripts.storage.shared_text import one_line


DEEPEST = 50  # objects and lists in each other; files of this project have five at most


def read_json(
    file: Path,
    name: str | None = None,
    kinds: Mapping[str, Any] | None = None,
    needed: Collection[str] = (),
    of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """What a JSON file holds.

    Args:
        name: what errors call the file, such as a flag and its value; by default its path.
        kinds: field -> its kind, for a file that has to hold an object; see `object_fault`.
        needed: fields that have to be there.
        of_pairs: makes something else than a dictionary of the fields of each object, or raises a `UserError`.
    Raises:
        UserError: it cannot be read, is no JSON in UTF-8, is nested too deeply or holds something else.
    """
    name = name or str(file)
    try:
        found = parse_json(file.read_bytes().decode(), of_pairs)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{name} is not a valid JSON file: {trimmed(error)}") from error
    except UserError as error:
        raise UserError(f"{name}: {trimmed(error)}") from error
    if kinds is not None and (fault := object_fault(found, kinds, needed)):
        raise UserError(f"{name} {fault}")
    return found


def parse_json(text: str, of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a JSON text stands for; see `read_json`.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds half a letter, which no file can be written with.
    """
    try:
        found = json.loads(text, object_pairs_hook=of_pairs)
        if deeper_than(found, DEEPEST):
            raise RecursionError
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds text that is none: {error}") from error
    return found


def deeper_than(value: Any, levels: int) -> bool:
    """Whether objects and lists lie in each other more than so many times."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(deeper_than(item, levels - 1) for item in inside)


def object_fault(found: Any, kinds: Mapping[str, Any], needed: Collection[str] = ()) -> str | None:
    """What keeps `found` from being an object with fields of these kinds, in words that follow a file's name.

    Args:
        kinds: as annotations write them, such as `dict[str, str]`. A field that is lacking or null is passed over
            unless it is needed.
    """
    from huggingface_hub.dataclasses import type_validator

    if not isinstance(found, dict):
        return f"holds {'null' if found is None else type(found).__name__}, not an object"
    if lacking := [field for field in needed if field not in found]:
        return f"has no {lacking[0]!r}"
    for field, kind in kinds.items():
        if found.get(field) is None and field not in needed:
            continue
        try:
            type_validator(field, found[field], kind)
        except TypeError as error:
            return f"has a wrong field: {trimmed(list(causes(error))[-1])}"  # the innermost names the value
    return None


def trimmed(error: BaseException) -> str:
    """What an error says, as part of a line."""
    text = one_line(error)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
