"""A dataset of images and label maps, opened once for all that is asked of it."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec.core

from scripts.cli.errors import UserError, errors_explained
from scripts.data.arguments import DatasetArguments
from scripts.data.bands import PLAIN
from scripts.data.bounds import Bounds
from scripts.data.class_map import ClassMap, build_class_map
from scripts.data.class_names import classes_file, names_of_features, palette_file, read_class_names, read_palette
from scripts.data.samples import RowFormat
from scripts.data.sources import IGNORE_INDEX, bounds_of, open_source
from scripts.storage.digests import sha256
from scripts.storage.retries import with_retries


HUB_COMMIT = re.compile(r"^hf://datasets/[^@]+@([0-9a-f]{40})/")


class LabelledDataset:
    """One open split: its rows, classes, colours, number of examples and identity.

    The source is opened when this is made; what lies beside it is read when it is first asked for, and once.

    Args:
        arguments: the flags that name the dataset.
        with_labels: whether the column of label maps is needed and read.
        also: columns that are read as well where there are such.
    Attributes:
        stream: the rows, images and maps undecoded.
        files: paths or URLs of the files that hold them; empty where `datasets` does not tell.
        do_reduce_labels: whether label 0 means ignored and the classes start at 1; may be set before the first use.
        image_form: the bands and the depth of the images that the model reads; RGB of 8 bits unless it is set.
    Raises:
        UserError: the dataset, split or a column does not exist.
    """

    def __init__(
        self, arguments: DatasetArguments, split: str, with_labels: bool = True, also: tuple[str, ...] = ()
    ) -> None:
        self.arguments = arguments
        self.split = split
        self.do_reduce_labels = arguments.do_reduce_labels
        self.image_form = PLAIN
        self.stream, self.files = open_source(arguments, split, with_labels, also)

    def other_split(self, split: str) -> LabelledDataset:
        """Another split of the same dataset; the classes are these and are not read again."""
        other = LabelledDataset(self.arguments, split)
        other.do_reduce_labels = self.do_reduce_labels
        other.image_form = self.image_form
        other.class_map = self.class_map
        return other

    @property
    def num_examples(self) -> int | None:
        """Rows of the split as its card tells, None where it does not."""
        info = (self.stream.info.splits or {}).get(self.split)
        return info.num_examples if info is not None and info.num_examples else None

    @property
    def bounds(self) -> Bounds:
        """The files that the rows may name."""
        return bounds_of(self.arguments, self.split)

    # ---- classes

    @cached_property
    def classes_file(self) -> Path | None:
        """`--id2label`, or `id2label.json` beside the data; see `class_names.classes_file`."""
        return classes_file(self.arguments)

    @cached_property
    def class_names(self) -> dict[int, str] | None:
        """Names by id of the classes as the dataset has them, None if it does not tell.

        Raises:
            UserError: a file that is not `{"0": "name", ...}` with ids 0..K-1.
        """
        if self.classes_file is not None:
            return read_class_names(self.classes_file)
        return names_of_features(self.stream.features)

    @cached_property
    def class_map(self) -> ClassMap | None:
        """What `--class_map` makes of the classes, None without one.

        Raises:
            UserError: a wrong file, or a dataset without class names.
        """
        file = self.arguments.class_map
        if file is None:
            return None
        if self.class_names is None:
            raise UserError(f"--class_map {file} needs the dataset's class names: give --id2label")
        return build_class_map(file, self.class_names, IGNORE_INDEX, self.do_reduce_labels)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names by id of the classes to be learnt: those of the dataset, or what `--class_map` makes of them."""
        return self.class_map.id2label if self.class_map else self.class_names

    @cached_property
    def palette(self) -> dict[str, str] | None:
        """Colour `"#rrggbb"` by class id, as a model's configuration holds it; None if the dataset brings none.

        `--class_map` makes other classes, which have the project's colours.

        Raises:
            UserError: the file holds something that is no colour.
        """
        file = None if self.arguments.class_map else palette_file(self.arguments)
        return None if file is None else read_palette(file)

    @property
    def row_format(self) -> RowFormat:
        """What samples are decoded by, in whatever process."""
        arguments = self.arguments
        return RowFormat(
            arguments.image_column_name,
            arguments.label_column_name,
            self.do_reduce_labels,
            self.class_map,
            self.bounds,
            self.image_form,
        )

    # ---- identity

    @property
    def hub_commit(self) -> str | None:
        """The commit of the Hub that all files are of, None if they are not."""
        commits = {match[1] for file in self.files if (match := HUB_COMMIT.match(file))}
        return commits.pop() if len(commits) == 1 else None

    @property
    def local_files(self) -> list[Path]:
        """Those of the files that are on this machine."""
        return [Path(file) for file in self.files if Path(file).is_file()]

    def revision(self) -> dict[str, Any]:
        """What pins the data down, read in full.

        Returns:
            `{"hub_commit": ...}` of a Hub dataset, `{"sha256": ..., "files": n}` over the files by name, or `{}` where
            neither can be had.
        """
        if self.hub_commit:
            return {"hub_commit": self.hub_commit}
        local = self.local_files
        if not local or len(local) < len(self.files):
            return {}
        return {"sha256": sha256(*local), "files": len(local)}

    def identity(self) -> dict[str, Any]:
        """What tells one dataset from another without reading it: the Hub's commit, or sizes and ETags of files.

        Raises:
            UserError: a server no longer has a file, or goes on failing.
        """
        identity: dict[str, Any] = {"number of samples": self.num_examples, "number of shards": self.stream.num_shards}
        if self.hub_commit:
            identity["commit"] = self.hub_commit
        elif local := self.local_files:
            names_and_sizes = json.dumps([[file.name, file.stat().st_size] for file in local])
            identity["names and sizes of files"] = hashlib.sha256(names_and_sizes.encode()).hexdigest()
        elif self.files:
            versions = json.dumps([version_on_server(file) for file in self.files])
            identity["sizes and ETags of files"] = hashlib.sha256(versions.encode()).hexdigest()
        return identity


def version_on_server(url: str) -> list[Any]:
    """Size of a file, and what its server gives a new value when the file changes; None for what it does not tell.

    Raises:
        UserError: the file is not there, or the server goes on failing.
    """
    with errors_explained(url.partition("?")[0], OSError, ValueError):
        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        info = with_retries(lambda: files.info(path), url.partition("?")[0])
    return [info.get("size"), info.get("ETag") or info.get("blob_id") or info.get("Last-Modified")]
