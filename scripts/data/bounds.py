"""Which files and servers a data set may name: rows and cards are other people's words.

Without this a row of a stranger's parquet file could have any image of this machine drawn, fetch an address that only
this machine can reach, or wait for ever for a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.utils.file_utils import is_local_path

from scripts.cli.errors import UserError


# What may stand before "::" in the name of a file within an archive.
ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "lz4://", "zstd://")


@dataclass(frozen=True)
class Bounds:
    """What a data set may name. By default nothing: its images are in its rows.

    Args:
        folders: where its files lie on this machine; relative paths are seen from the first.
        hub: its address on the Hub, `hf://datasets/owner/name`.
        allow_urls: whether it may name any URL.
        allow_links: whether its files may be links that lead out of its folders.
    """

    folders: tuple[Path, ...] = ()
    hub: str | None = None
    allow_urls: bool = False
    allow_links: bool = False

    def checked_value(self, value: Any, what: str) -> Any:
        """An undecoded image that may be read; `what` names it in errors.

        Raises:
            UserError: it names what lies outside of its data set.
            ValueError: it names a pipe, a device or the like, or nothing.
        """
        if isinstance(value, str):  # a column of plain paths
            value = {"bytes": None, "path": value}
        if value is None or isinstance(value, dict):
            content, path = (value or {}).get("bytes"), (value or {}).get("path")
            if isinstance(content, bytes):
                return value
            if content is not None or not isinstance(path, str):
                raise ValueError("there is none: a row holds its bytes, or the path of a file of the data set")
        else:
            return value  # an array
        name = self.checked_name(path, what)
        if is_local_path(name) and os.path.exists(name) and not Path(name).is_file():
            raise ValueError(f"{name} is no regular file")
        return {"bytes": None, "path": name}

    def checked_name(self, name: str, what: str) -> str:
        """The name of a file or folder, or a pattern of such, absolute if it is on this machine.

        Raises:
            UserError: it lies outside of the data set.
        """
        if is_local_path(name) and os.path.exists(Path(*self.folders[:1], name)):  # such as `a::b.png`
            return self._local(name, what)
        *inside, file = name.split("::")
        if not all(hop.startswith(ARCHIVES) for hop in inside):
            raise UserError(f"{what} names {shown(name)}, which is no file of its data set")
        if is_local_path(file):
            return "::".join([*inside, self._local(file, what)])
        if self.allow_urls or self._on_hub(file):
            return name
        raise UserError(
            f"{what} names {shown(name)}, which is not of its data set and may be any server: "
            "give --allow_urls if you trust the data set"
        )

    def _on_hub(self, url: str) -> bool:
        return self.hub is not None and url.startswith((f"{self.hub}@", f"{self.hub}/")) and ".." not in url.split("/")

    def _local(self, name: str, what: str) -> str:
        # Links are followed, for they come with archives and repositories too.
        place = Path(*self.folders[:1], name)
        place = Path(os.path.abspath(place)) if self.allow_links else place.resolve()
        if not any(place.is_relative_to(folder) for folder in self.folders):
            inside = f" {self.folders[0]}" if self.folders else ""
            raise UserError(
                f"{what} names {shown(name)}, which lies outside of its data set{inside}, links followed: "
                "put the file itself into the data set, or give --allow_links if you made the links"
            )
        return str(place)


NO_FILES = Bounds()


def shown(name: str) -> str:
    """A stranger's name as a line may hold it."""
    return repr(name if len(name) <= 200 else f"{name[:200]}...")


def names_in(value: Any) -> Iterator[str]:
    """All strings in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from names_in(item)


def named_files(card: Any) -> Iterator[str]:
    """Files, patterns and folders that the metadata of a data set's card name."""
    configs = card.get("configs") if isinstance(card, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict):
            files = config.get("data_files")
            for item in files if isinstance(files, list) else [files]:
                yield from names_in(item.get("path") if isinstance(item, dict) else item)
            yield from names_in(config.get("data_dir"))
