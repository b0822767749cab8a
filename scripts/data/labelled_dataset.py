"""A dataset of images and label maps, opened once for all that is asked of it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec.core

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.processes import say_once
from scripts.data.arguments import CLASSES, DatasetArguments
from scripts.data.bands import PLAIN
from scripts.data.bounds import Bounds
from scripts.data.class_map import ClassMap, build_class_map, map_of_values
from scripts.data.class_names import (
    PALETTE_FILE,
    classes_file,
    names_of_features,
    palette_file,
    read_class_names,
    read_palette,
    thing_ids_file,
)
from scripts.data.first_look import BACKGROUND, first_look, only_foreground_named
from scripts.data.label_encodings import SegmentClasses, SegmentForm
from scripts.data.mask_colours import (
    MaskColours,
    colour_text,
    colours_of_palette,
    names_with_colours,
    read_mask_colours,
    renumbered,
)
from scripts.data.samples import RowFormat
from scripts.data.sources import IGNORE_INDEX, bounds_of, open_source
from scripts.storage.digests import sha256
from scripts.storage.json_files import read_json
from scripts.storage.retries import with_retries
from scripts.storage.shared_text import without_credentials


# As `LabelledDataset`, `datasets` and layouts of folders say that a split does not exist.
NO_SUCH_SPLIT = re.compile(
    r"Bad split|[Uu]nknown split|the folder holds|no --(train|eval)_images: give both|no split|no such split"
)
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
        held_back: what `--train_val_split` holds back of the training split, if it does.
        do_reduce_labels: whether label 0 means ignored and the classes start at 1; may be set before the first use.
        image_form: the bands and the depth of the images that the model reads; RGB of 8 bits unless it is set.
        task: what the model is for, semantic unless it is set before the first use; of the classes of segments, those
            without instances are left out for `instance`.
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
        self.task = "semantic"
        also = (*also, arguments.segments_column_name) if with_labels else also
        self.stream, self.files, self.held_back = open_source(arguments, split, with_labels, also)

    def other_split(self, split: str) -> LabelledDataset:
        """Another split of the same dataset; the classes are these and are not read again."""
        name = self.arguments.dataset_name or ""
        if name.endswith(".parquet") and self.held_back is None and split != self.split:
            say_once(
                f"warning: --dataset_name {without_credentials(name)} is one file, all of which is trained on and "
                "evaluated on: hold some back by --train_val_split"
            )
        other = LabelledDataset(self.arguments, split)
        other.do_reduce_labels = self.do_reduce_labels
        other.image_form, other.task, other.encoding = self.image_form, self.task, self.encoding
        other.class_names, other.class_map = self.class_names, self.class_map
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

        Where one class is named and the maps hold 0 and 1, what surrounds it is a class too, and is added.

        Raises:
            UserError: a file that is not `{"0": "name", ...}` with ids 0..K-1.
        """
        names = self.names_given
        if self.encoding != CLASSES:
            return names
        if names is None or len(names) != 1 or self.do_reduce_labels or self.arguments.class_map:
            return names
        if not only_foreground_named(first_look(self.stream, self.own_row_format)):
            return names
        both = {0: BACKGROUND, 1: names[0]}
        if names[0] == BACKGROUND:
            raise UserError(f"one class is named, {BACKGROUND!r}, but the label maps hold 1 as well: name that too")
        print(
            f"classes: the label maps hold 0 and 1 but only {names[0]!r} is named: 0 is {both[0]!r}, 1 is {both[1]!r}",
            file=sys.stderr,
        )
        return both

    @cached_property
    def names_given(self) -> dict[int, str] | None:
        """Names by id in `--mask_colors`, the file of class names or the dataset itself, None if there are none."""
        names = None
        if self.classes_file is not None:
            names = read_class_names(self.classes_file)
        elif self.arguments.mask_colors is None:
            return names_of_features(self.stream.features)
        if self.arguments.mask_colors is None:
            return names
        return names_with_colours(names, *self.colours_given)

    @cached_property
    def class_map(self) -> ClassMap | None:
        """What `--class_map` or `--mask_values` makes of the ids in the maps, None without them.

        Raises:
            UserError: a wrong file or value, or both flags.
        """
        arguments = self.arguments
        if values := arguments.mask_values:
            others: dict[str, Any] = {"--class_map": arguments.class_map, "--id2label": arguments.id2label}
            others |= {"--do_reduce_labels": self.do_reduce_labels, "--mask_colors": arguments.mask_colors}
            if both := next((flag for flag, value in others.items() if value), None):
                raise UserError(f"--mask_values and {both} both say what the values of the label maps are: give one")
            if self.classes_file is not None:
                say_once(f"classes are those of --mask_values, in place of those in {self.classes_file}")
            return map_of_values(values, IGNORE_INDEX)
        if arguments.class_map is None:
            return None
        return build_class_map(arguments.class_map, self.class_names, IGNORE_INDEX, self.do_reduce_labels)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names by id of the classes to be learnt: those of the dataset, or what `class_map` makes of them; of an
        instance task those with instances."""
        return self.segment_classes.id2label if self.segment_classes else self._all_classes

    @property
    def _all_classes(self) -> dict[int, str] | None:
        return self.class_map.id2label if self.class_map else self.class_names

    # ---- segments

    @cached_property
    def encoding(self) -> str:
        """What the label maps hold, one of `ENCODINGS`: as `--label_encoding` says, else as the columns tell.

        Raises:
            UserError: the task needs segments, and nothing tells whether the maps hold any.
        """
        given, column = self.arguments.label_encoding, self.arguments.segments_column_name
        if given is not None:
            if given == CLASSES and self.task != "semantic":
                raise UserError(
                    f"--label_encoding {CLASSES}: a class per pixel does not tell instances apart, which an "
                    f"{self.task} model learns: give maps of segments or instances, or train for --task semantic"
                )
            return given
        if column in (self.stream.column_names or []):
            say_once(f"label maps hold segments, whose classes are in column {column!r} (--label_encoding segments)")
            return "segments"
        if self.task == "semantic":
            return CLASSES
        raise UserError(
            f"--task {self.task} needs segments, and nothing tells what the label maps hold: give --label_encoding "
            "instances if each pixel holds the id of an instance, 0 for none"
        )

    @cached_property
    def segment_classes(self) -> SegmentClasses | None:
        """The classes of segments, None where label maps hold class ids or where there are no names.

        Raises:
            UserError: `--thing_classes` or the file beside the data names a class that there is not.
        """
        names = self._all_classes
        if self.encoding == CLASSES or names is None:
            return None
        if self.class_map is None:
            table = {index: index for index in names}
        else:
            table = {old: new for old, new in enumerate(self.class_map.table.tolist()) if new >= 0}
        things = self._things(names)
        if self.task != "instance" or things == frozenset(names):
            return SegmentClasses(names, table, things)
        order = {old: new for new, old in enumerate(sorted(things))}
        table = {category: order.get(index, IGNORE_INDEX) for category, index in table.items()}
        return SegmentClasses({order[index]: names[index] for index in order}, table, frozenset(order.values()))

    def _things(self, names: dict[int, str]) -> frozenset[int]:
        """Which of the classes have instances."""
        by_name = {name: index for index, name in names.items()}
        if given := self.arguments.thing_classes:
            if unknown := [name for name in given if name not in by_name]:
                raise UserError(f"--thing_classes: no class {unknown[0]!r}: the classes are {', '.join(by_name)}")
            return frozenset(by_name[name] for name in given)
        file = thing_ids_file(self.arguments)
        if file is None:
            return frozenset(names)
        stored = read_json(file)
        if not isinstance(stored, list) or not all(type(index) is int for index in stored):
            raise UserError(f"{file}: write a list of ids of classes, [0, 1]")
        own = self.class_names or {}
        if unknown := [index for index in stored if index not in own]:
            raise UserError(f"{file}: there is no class {unknown[0]}: write ids of classes")
        if self.class_map is None:
            return frozenset(stored)
        return frozenset(int(self.class_map.table[index]) for index in stored) - {IGNORE_INDEX}

    # ---- colours

    @cached_property
    def colours_given(self) -> tuple[dict[int, str] | None, MaskColours]:
        """What the file of `--mask_colors` holds; see `read_mask_colours`."""
        return read_mask_colours(str(self.arguments.mask_colors))

    @cached_property
    def mask_colours(self) -> MaskColours | None:
        """What the colours of label maps stand for: as `--mask_colors` says, else as the dataset's own colours do."""
        if self.arguments.mask_colors:
            colours = self.colours_given[1]
            if self.classes_file is not None:  # which may number the names otherwise than the file of colours
                return renumbered(colours, self.colours_given[0], self.names_given or {})
            return colours
        own = self.own_palette
        return None if own is None else colours_of_palette(own, PALETTE_FILE)

    @cached_property
    def own_palette(self) -> dict[str, str] | None:
        """Colour `"#rrggbb"` by id of the dataset's own classes, of the file that lies beside it; None without one.

        Raises:
            UserError: the file holds something that is no colour.
        """
        file = palette_file(self.arguments)
        return None if file is None else read_palette(file)

    @property
    def palette(self) -> dict[str, str] | None:
        """Colour `"#rrggbb"` by class id, as a model's configuration holds it; None if the dataset brings none.

        `--class_map` and `--mask_values` make other classes, which have the project's colours.
        """
        if self.arguments.class_map or self.arguments.mask_values:
            return None
        if self.arguments.mask_colors and self.mask_colours:
            classes = {index: colour_text(code) for code, index in reversed(list(self.mask_colours.ids.items()))}
            return {str(index): colour for index, colour in sorted(classes.items()) if index != IGNORE_INDEX}
        return self.own_palette

    @property
    def row_format(self) -> RowFormat:
        """What samples are decoded by, in whatever process."""
        if self.encoding == CLASSES:
            return replace(self.own_row_format, class_map=self.class_map)
        segments = SegmentForm(
            self.encoding, self.segment_classes or SegmentClasses({}), self.arguments.segments_column_name
        )
        return replace(self.own_row_format, segments=segments)

    @property
    def own_row_format(self) -> RowFormat:
        """What samples are decoded by whose maps hold the dataset's own ids."""
        arguments = self.arguments
        return RowFormat(
            arguments.image_column_name,
            arguments.label_column_name,
            self.do_reduce_labels,
            None,
            self.bounds,
            self.mask_colours,
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
        if self.held_back is not None:
            identity["samples held back"] = self.held_back.digest()
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
