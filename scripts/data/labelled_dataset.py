"""A dataset of images and label maps, opened once for all that is asked of it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec.core

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.processes import say_once
from scripts.data.annotated_folders import Annotations
from scripts.data.arguments import CLASSES, OUTLINES, DatasetArguments
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
from scripts.data.encoding_flags import refuse_flags_of_class_maps, refuse_other_labels
from scripts.data.first_look import BACKGROUND, first_look, only_foreground_named
from scripts.data.ignored import IGNORE_INDEX
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
from scripts.data.sources import bounds_of, open_source
from scripts.models.tasks import INSTANCE, PANOPTIC, SEMANTIC
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
        annotations: what is known of the segments that labels hold, of folders where something is.
        shards: those of the stream, where their rows can be counted without reading them.
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
        self.task = SEMANTIC
        also = (*also, arguments.segments_column_name) if with_labels else also
        source = open_source(arguments, split, with_labels, also)
        self.stream, self.files, self.held_back, self.annotations, self.shards = source

    def other_split(self, split: str) -> LabelledDataset:
        """Another split of the same dataset; the classes are these and are not read again.

        Raises:
            UserError: its labels are of another encoding or name other classes.
        """
        name = self.arguments.dataset_name or ""
        if name.endswith(".parquet") and self.held_back is None and split != self.split:
            say_once(
                f"warning: --dataset_name {without_credentials(name)} is one file, all of which is trained on and "
                "evaluated on: hold some back by --train_val_split"
            )
        other = LabelledDataset(self.arguments, split)
        check_same_annotations(self.annotations, other.annotations)
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
        """`--id2label`, or `id2label.json` beside the data; see `class_names.classes_file`. None where a file beside
        the segments names their classes."""
        return None if self.categories is not None else classes_file(self.arguments)

    @property
    def categories(self) -> dict[int, str] | None:
        """Names by category id, ids in order, where a file beside the segments has them; the n-th is class n."""
        return self.annotations.categories if self.annotations else None

    @property
    def holds_instances_of_one_class(self) -> bool:
        """Whether label maps hold instances, and nothing their classes."""
        return self.encoding == "instances" and self.class_column is None

    @property
    def class_column(self) -> str | None:
        """Column of the class maps beside maps of instances."""
        if self.annotations and self.annotations.encoding == "instances":
            return "class_map"
        return self.arguments.class_column_name

    @property
    def holds_class_maps(self) -> bool:
        """Whether the class of every pixel is told, beside its instance."""
        return self.encoding == "class_and_instance" or (
            self.encoding == "instances" and self.class_column is not None
        )

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
        if self.categories is not None:
            return dict(enumerate(self.categories.values()))
        if self.holds_instances_of_one_class:
            return self.only_name
        if self.classes_file is not None:
            names = read_class_names(self.classes_file)
        elif self.arguments.mask_colors is None:
            return names_of_features(self.stream.features)
        if self.arguments.mask_colors is None:
            return names
        return names_with_colours(names, *self.colours_given)

    @property
    def only_name(self) -> dict[int, str] | None:
        """The name of the one class of maps of instances, in `--thing_classes` or the file of class names; None if
        there is none.

        Raises:
            UserError: there are several.
        """
        given = self.arguments.thing_classes or []
        names = dict(enumerate(given))
        if not given and self.classes_file is not None:
            names = read_class_names(self.classes_file)
        if len(names) > 1:
            raise UserError(
                f"maps of instances without class maps hold one class, but {len(names)} are named, "
                f"{', '.join(list(names.values())[:5])}: name one by --thing_classes, or give class maps by "
                "--class_column_name or --train_class_masks"
            )
        return names or None

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
        if self.categories is not None:
            return build_class_map(arguments.class_map, self.categories, IGNORE_INDEX, False)
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
        """What the labels hold, one of `ENCODINGS`: as `--label_encoding` says, else as files and columns tell.

        Raises:
            UserError: flags contradict each other or the data, or the task needs segments and nothing tells whether
                there are any.
        """
        encoding = self._told_encoding
        if encoding != CLASSES:
            refuse_flags_of_class_maps(self, encoding)
        if self.task == PANOPTIC and encoding in OUTLINES:
            say_once("panoptic segments do not overlap: where outlines do, the smaller one lies on top")
        return encoding

    @property
    def _told_encoding(self) -> str:
        arguments, column = self.arguments, self.arguments.segments_column_name
        given = arguments.label_encoding
        if self.annotations is not None:
            if given not in (None, self.annotations.encoding):
                raise UserError(
                    f"--label_encoding {given}: {self.annotations.source} gives {self.annotations.encoding}: leave "
                    "one of both out"
                )
            return self.annotations.encoding
        if given is not None:
            if given == CLASSES and self.task != SEMANTIC:
                raise UserError(
                    f"--label_encoding {CLASSES}: a class per pixel does not tell instances apart, which an "
                    f"{self.task} model learns: give maps of segments or instances, or train for --task semantic"
                )
            refuse_other_labels(self, given)
            return given
        if arguments.class_column_name:
            say_once(f"label maps hold instances, class maps are in column {arguments.class_column_name!r}")
            return "instances"
        if column in (self.stream.column_names or []):
            say_once(f"label maps hold segments, whose classes are in column {column!r} (--label_encoding segments)")
            return "segments"
        if self.task == SEMANTIC:
            return CLASSES
        raise UserError(
            f"--task {self.task} needs segments, and nothing tells what the label maps hold: give --label_encoding "
            "instances if each pixel holds the id of an instance, 0 for none (--thing_classes names their class; "
            "--train_class_masks or --class_column_name are class maps beside them), or class_and_instance if the "
            "first channel holds the class and the second the instance"
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
        table = self._table(names)
        things = self._things(names, table)
        if self.background_is_added:
            table = {category: old if old == IGNORE_INDEX else old + 1 for category, old in table.items()}
            names = {0: BACKGROUND} | {index + 1: name for index, name in names.items()}
            return SegmentClasses(names, table, frozenset(index + 1 for index in things))
        if self.task != INSTANCE or things == frozenset(names):
            return SegmentClasses(names, table, things)
        order = {old: new for new, old in enumerate(sorted(things))}
        table = {category: order.get(index, IGNORE_INDEX) for category, index in table.items()}
        return SegmentClasses({order[index]: names[index] for index in order}, table, frozenset(order.values()))

    @property
    def category_ids(self) -> list[int] | None:
        """The data's own id of each class, where a file beside the segments has ids that the classes do not keep."""
        if self.categories is None or self.class_map is not None or self.segment_classes is None:
            return None
        own = {index: category for category, index in self.segment_classes.table.items() if index != IGNORE_INDEX}
        ids = [own[index] for index in sorted(self.segment_classes.id2label) if index in own]
        return None if len(ids) < len(self.segment_classes.id2label) or ids == list(range(len(ids))) else ids

    def _table(self, names: dict[int, str]) -> dict[int, int]:
        """The class of each category id, or id of class maps, as the data has them."""
        first = self._first_id
        if self.class_map is not None:
            stored = enumerate(self.class_map.table.tolist())
            table = {old: new if new == IGNORE_INDEX else new - first for old, new in stored if new >= 0}
        elif self.categories is not None:
            table = {category: index for index, category in enumerate(self.categories)}
        else:
            table = {index + first: index for index in names}
        if self.holds_class_maps:
            table.setdefault(IGNORE_INDEX, IGNORE_INDEX)
        return {0: IGNORE_INDEX, **{old: new for old, new in table.items() if old}} if first else table

    @property
    def _first_id(self) -> int:
        """What the data call their first class, where they number classes from 0 or, without what is ignored, 1."""
        return int(self.do_reduce_labels and self.categories is None and not self.holds_instances_of_one_class)

    @property
    def background_class(self) -> int:
        """In painted maps of classes, what pixels without a segment are: a class where outlines or instances lie on a
        background, else ignored, as where each pixel's class is told."""
        if self.task != SEMANTIC or self.encoding in (CLASSES, "segments") or self.holds_class_maps:
            return IGNORE_INDEX
        names = self._all_classes or {}
        return next((index for index, name in names.items() if name.lower() == BACKGROUND), 0)

    @property
    def background_is_added(self) -> bool:
        """Whether that class is none of the data's own; then it is class 0, and theirs follow."""
        names = self._all_classes or {}
        return self.background_class != IGNORE_INDEX and BACKGROUND not in map(str.lower, names.values())

    def _things(self, names: dict[int, str], table: dict[int, int]) -> frozenset[int]:
        """Which of the classes have instances.

        Args:
            table: class of each category id.
        """
        by_name = {name: index for index, name in names.items()}
        if given := self.arguments.thing_classes:
            if unknown := [name for name in given if name not in by_name]:
                raise UserError(f"--thing_classes: no class {unknown[0]!r}: the classes are {', '.join(by_name)}")
            return frozenset(by_name[name] for name in given)
        if self.annotations is not None and self.annotations.categories is not None:
            categories: Iterable[int] = self.annotations.things
        elif file := thing_ids_file(self.arguments):
            stored = read_json(file)
            if not isinstance(stored, list) or not all(type(index) is int for index in stored):
                raise UserError(f"{file}: write a list of ids of classes, [0, 1]")
            own = self.class_names or {}
            if unknown_ids := [index for index in stored if index not in own]:
                raise UserError(f"{file}: there is no class {unknown_ids[0]}: write ids of classes")
            categories = [index + self._first_id for index in stored]
        else:  # what surrounds the things is none
            return frozenset(index for index, name in names.items() if name.lower() != BACKGROUND) or frozenset(names)
        return frozenset(table.get(category, IGNORE_INDEX) for category in categories) - {IGNORE_INDEX}

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
        if self.encoding != CLASSES and self.id2label != self.class_names:  # renumbered
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
        classes = self.segment_classes or SegmentClasses({}, {0: 0} if self.holds_instances_of_one_class else {})
        if self.task == SEMANTIC and self.holds_class_maps:
            classes = replace(classes, things=frozenset())  # whose instances need not be told apart
        names = self.arguments.segments_column_name, self.class_column
        segments = SegmentForm(self.encoding, classes, *names, self.background_class, self.task)
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


def check_same_annotations(one: Annotations | None, other: Annotations | None) -> None:
    """Refuses splits whose labels are of two kinds, or of other classes.

    Raises:
        UserError: names what differs.
    """
    kinds = [found.encoding if found else "label maps" for found in (one, other)]
    sources = " and ".join(found.source for found in (one, other) if found)
    if kinds[0] != kinds[1]:
        raise UserError(f"{sources}: one split has {kinds[0]}, the other {kinds[1]}: give both in one form")
    if one and other and one.categories != other.categories:
        names = [{f"{index} {name}" for index, name in (found.categories or {}).items()} for found in (one, other)]
        first = min(names[0] ^ names[1])
        raise UserError(f"{sources} have other categories, such as {first}: write the same list into both")
    if one and other and one.categories and one.things != other.things:
        first = one.categories[min(one.things ^ other.things)]
        raise UserError(
            f"{sources}: {first!r} is a thing in one, stuff in the other: write the same isthing into both"
        )


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
