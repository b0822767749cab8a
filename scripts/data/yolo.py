"""What the classes of YOLO's text files are called, by the YAML file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scripts.cli.errors import UserError, errors_explained
from scripts.data.class_map import HIGHEST_VALUE, named_twice


def names_file(folder: Path) -> Path | None:
    """The YAML file of a folder that names classes, `data.yaml` if there are several; None without one."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda file: (file.stem != "data", file.name))
    return next((file for file in files if file.is_file() and b"names" in file.read_bytes()), None)


def read_names(file: Path) -> dict[int, str]:
    """Names by id of a YAML file with `names: [person, car]` or `names: {0: person, 1: car}`.

    Raises:
        UserError: it has none of that form.
    """
    with errors_explained(str(file), OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    right = isinstance(names, dict) and all(type(index) is int and 0 <= index <= HIGHEST_VALUE for index in names)
    if not right or not names:
        raise UserError(f"{file}: write names: [person, car], or names: {{0: person, 1: car}}")
    found = {index: str(name) for index, name in sorted(names.items())}
    if twice := named_twice(found):
        raise UserError(f"{file}: {twice}")
    return found
