"""`--class_map FILE.yaml` merges, renames and ignores classes of a dataset; `--mask_values` names values of its maps.

Each line gives a class its old classes, by name or by id as the label maps hold it; `ignore` takes pixels out:

    road: [road, lane marking]    # merged
    vehicle: [car, truck, 17]
    person: pedestrian            # renamed
    ignore: [void, 255]           # belongs to no class

Classes that are not named stay as they are. The new classes keep the order of their first old class. Names are
those of `id2label.json` or of the dataset's `ClassLabel`; ids are those of the stored maps, so with
`--do_reduce_labels` they start at 1. A class may take 255, which otherwise is ignored. Where the dataset has no class
names, every line lists values of the stored maps: `cell: [255]`.

`--mask_values 0=membrane 255=cell` says the same of single values without a file.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from scripts.cli.errors import UserError, errors_explained


IGNORE_KEY = "ignore"
UNKNOWN = -1
VALUES_FLAG = "--mask_values"
HIGHEST_VALUE = 2**16 - 1  # of a label map of 16 bits


@dataclass(frozen=True)
class ClassMap:
    """New class names by id, and a table from stored ids to stored ids.

    Attributes:
        id2label: the new classes, 0..K-1.
        table: `(N,)` int64; `table[old]` is the new stored id (from 1 on if 0 means ignored), `UNKNOWN` where `old`
            belongs to no class. Ids from N on are unknown too.
        source: the flag, and the file that it names, for messages.
    """

    id2label: dict[int, str]
    table: torch.Tensor
    source: str

    def apply(self, label: torch.Tensor, name: str) -> torch.Tensor:
        """`(H, W)` map of new ids, uint8, of a map `(H, W)` of old ones.

        Raises:
            UserError: an id that is no class, in sample `name`.
        """
        known = label.int().clamp(max=len(self.table))  # uint8 cannot be compared with 256
        mapped = torch.nn.functional.pad(self.table, (0, 1), value=UNKNOWN)[known]
        if (unknown := mapped == UNKNOWN).any():
            value = int(label[unknown][0])
            example = f"{value}={IGNORE_KEY}" if self.source == VALUES_FLAG else f"`{IGNORE_KEY}: [{value}]`"
            flag = self.source.split()[0]
            raise UserError(f"label {value} in image {name} is no class: name it in {flag}, {example}?")
        return mapped.to(torch.uint8)


def read_class_map(file: str) -> dict[str, list[Any]]:
    """`{new name: [old name or id, ...]}` of a YAML file.

    Raises:
        UserError: no such file, or not lines of that form.
    """
    with errors_explained(f"--class_map {file}", OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        text = Path(file).read_text(encoding="utf-8")
        content, lines = yaml.safe_load(text), cast(yaml.MappingNode, yaml.compose(text, yaml.SafeLoader))
    if not isinstance(content, dict) or not content:
        raise UserError(f"--class_map {file}: write lines like `road: [road, lane]`")
    keys = [key.value for key, _ in lines.value]  # YAML itself lets the last of two equal keys win
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--class_map {file}: {twice!r} has two lines: write one, with the old classes of both")
    lists = {str(name): value if isinstance(value, list) else [value] for name, value in content.items()}
    for name, olds in lists.items():
        for old in olds:
            if not isinstance(old, (str, int)) or isinstance(old, bool):
                raise UserError(f"--class_map {file}: {name}: {old!r} is neither a name nor an id: quote names")
    return lists


def build_class_map(file: str, names: dict[int, str] | None, ignored: int, do_reduce_labels: bool) -> ClassMap:
    """What `file` makes of the classes `names`.

    Args:
        names: old class names by id 0..K-1, as `id2label.json` gives them; stored ids are one higher if
            `do_reduce_labels`. None where the dataset has none: then all old classes are values of the maps.
        ignored: id of ignored pixels.
    Raises:
        UserError: an unknown class, one named twice, or nothing left.
    """
    first = int(do_reduce_labels)
    stored = {index + first: name for index, name in (names or {}).items()}
    by_name = {name: index for index, name in stored.items()}
    if twice := next((name for index, name in stored.items() if by_name[name] != index), None):
        raise UserError(f"--class_map {file}: two classes are called {twice!r}: give them names of their own")
    if IGNORE_KEY in by_name:
        raise UserError(f"--class_map {file}: a class is called {IGNORE_KEY!r}, which means ignored here: rename it")
    target: dict[int, str] = {}
    for new, olds in read_class_map(file).items():
        for old in olds:
            if isinstance(old, str):
                if names is None:
                    raise UserError(
                        f"--class_map {file}: {new}: the dataset has no class names, so {old!r} is none: give "
                        "--id2label, or list values of the label maps"
                    )
                if old not in by_name:
                    close = difflib.get_close_matches(old, by_name, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(by_name)}"
                    raise UserError(f"--class_map {file}: {new}: no class {old!r}: {hint}")
                old = by_name[old]
            elif not 0 <= old <= HIGHEST_VALUE:
                raise UserError(f"--class_map {file}: {new}: no value {old}: label maps hold 0 to {HIGHEST_VALUE}")
            elif not (old in stored or old == ignored or new == IGNORE_KEY or names is None):
                raise UserError(f"--class_map {file}: {new}: no class {old}: ids go from {first} to {max(stored)}")
            if old in target:
                raise UserError(f"--class_map {file}: {stored.get(old, old)!r} is in {target[old]!r} and in {new!r}")
            target[old] = new
    for old, name in stored.items():
        if old not in target and name in target.values():
            raise UserError(f"--class_map {file}: {name!r} is also an old class: name it in a list, perhaps its own")
    merged = stored | target
    new_names = list(dict.fromkeys(name for _, name in sorted(merged.items()) if name != IGNORE_KEY))
    if not new_names:
        raise UserError(f"--class_map {file}: every class is ignored")
    return class_map_of(merged, new_names, ignored, do_reduce_labels, f"--class_map {file}")


def class_map_of(
    target: dict[int, str], names: list[str], ignored: int, do_reduce_labels: bool, source: str
) -> ClassMap:
    """The map by the new name, or `ignore`, of each stored id; 255 is ignored unless it is named."""
    first = int(do_reduce_labels)
    table = torch.full((max([255, *target]) + 1,), UNKNOWN, dtype=torch.int64)
    for old, name in target.items():
        table[old] = ignored if name == IGNORE_KEY else names.index(name) + first
    if ignored not in target:
        table[ignored] = ignored
    if do_reduce_labels:
        table[0] = 0
    return ClassMap(dict(enumerate(names)), table, source)


def named_twice(names: dict[int, str]) -> str | None:
    """Which ids share a name, in words; None where each has its own."""
    first: dict[str, int] = {}
    for index, name in names.items():
        if first.setdefault(name, index) != index:
            return f"ids {first[name]} and {index} are both called {name!r}: give each class a name of its own"
    return None


def map_of_values(items: list[str], ignored: int) -> ClassMap:
    """What `--mask_values` makes of the values of the maps, classes numbered as they are given.

    Args:
        items: `VALUE=NAME`, or several of them with commas between; NAME `ignore` takes the pixels out.
        ignored: id of ignored pixels; a class may be stored under it.
    Raises:
        UserError: an item of another form, a value out of range or named twice, or nothing but ignored values.
    """
    target: dict[int, str] = {}
    for item in (part.strip() for text in items for part in text.split(",") if part.strip()):
        text, equals, name = (part.strip() for part in item.partition("="))
        if not (equals and name and re.fullmatch(r"\d{1,9}", text, re.ASCII)):
            raise UserError(f"{VALUES_FLAG} {item!r}: write VALUE=NAME, such as 0=background 255=cell")
        if int(text) > HIGHEST_VALUE:
            raise UserError(f"{VALUES_FLAG} {item!r}: label maps hold values from 0 to {HIGHEST_VALUE}")
        if target.setdefault(int(text), name) != name:
            raise UserError(f"{VALUES_FLAG}: {text} is {target[int(text)]!r} and {name!r}: give each value one name")
    names = list(dict.fromkeys(name for name in target.values() if name != IGNORE_KEY))
    if not names:
        raise UserError(f"{VALUES_FLAG} {' '.join(items)}: it names no class: write 0=background 255=cell")
    return class_map_of(target, names, ignored, False, VALUES_FLAG)
