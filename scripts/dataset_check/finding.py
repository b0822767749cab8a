"""A finding, the names that there are, and what findings are drawn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.dataset_check.counts import SplitCounts, merged
from scripts.dataset_check.label_rule import LabelRule
from scripts.dataset_check.sample_facts import SampleFacts


if TYPE_CHECKING:
    from scripts.dataset_check.segment_rule import SegmentRule


LEVELS = ("error", "warning", "note")
# All names that there are, and what they mean: never renamed, for scripts look for them.
NAMES = {
    "background-added": "one class is named, and what surrounds it is taken for another",
    "255-as-class": "pixels of a class are stored as 255, which is ignored",
    "classes-as-instances": "maps of class ids are read as maps of instances",
    "class-names": "the file of class names is not numbered 0, 1, 2, ...",
    "class-not-in-train": "a class of the validation split is never trained",
    "class-not-in-validation": "a class is trained but never evaluated",
    "crowd-as-thing": "one thing in very many pieces: a crowd that is not marked",
    "crowd-only": "a class of things of which there are crowd regions only",
    "crowd-stuff": "a crowd region of stuff",
    "does-not-fit": "the recipe needs more memory than this machine has",
    "duplicate-segment": "two segments on the same pixels",
    "empty-class": "a named class does not occur",
    "empty-segment": "a listed segment has no pixel in the map",
    "empty-split": "a split without a sample",
    "ids-out-of-range": "maps hold ids that belong to no class",
    "instance-of-several-classes": "the id of an instance lies on several classes of the class map",
    "instances-as-classes": "maps of instances are read as class ids",
    "labels-not-reduced": "0 means unlabelled and classes start at 1: --do_reduce_labels is missing",
    "labels-reduced-twice": "classes start at 0 already: --do_reduce_labels is wrong",
    "lossy-maps": "maps are stored as JPEG, which changes ids",
    "map-without-class": "maps with nothing but ignored pixels",
    "maps-not-ids": "maps hold fractions or negative numbers",
    "more-classes-than-queries": "an image has more classes than the model has queries",
    "more-segments-than-queries": "an image has more segments than the model has queries",
    "mostly-ignored": "most pixels of a split are ignored",
    "near-duplicate": "an image is in both splits",
    "no-class-names": "no class names",
    "no-segment": "images without any segment",
    "overlapping-segments": "outlines that overlap, of which panoptic segments are made",
    "panoptic-maps": "labels hold segments, as of COCO panoptic",
    "image-modes": "images that are not RGB",
    "rare-class": "a class in fewer than five images",
    "rgb-maps": "maps in colours instead of ids",
    "scattered-instance": "an instance in pieces far apart: an id used twice",
    "segment-listed-twice": "an id is twice in the list of segments",
    "segments-mismatch": "a segment of the map is not in segments_info, or that is no list of segments",
    "too-few-classes": "fewer than two classes occur, so that no score can fail",
    "shifted-by-one": "ids are one too high or too low for the class names",
    "size-mismatch": "a map has another size than its image",
    "split-not-read": "a split that is not there or cannot be opened",
    "split-crowd": "many crowd regions of one class in an image",
    "stuff-in-segments": "a class of stuff with several segments in an image",
    "swapped-size": "a map has its image's width as height: one of them is turned",
    "thing-ids": "thing_ids.json does not name classes of the data, or nothing does",
    "tiny-segment": "segments of fewer than four pixels",
    "unknown-category": "a segment's category is no class",
    "unreadable-map": "maps that cannot be read",
    "unreadable-image": "images that cannot be read",
    "void-segment": "a segment is listed with id 0, which stands for none",
    "wrong-area-or-box": "area or box of a listed segment are not those of its pixels",
    "wrong-encoding": "labels that are not of the encoding they are read in",
}


@dataclass(frozen=True)
class Finding:
    """One verdict.

    Args:
        splits: where it was seen; empty for what concerns the whole dataset.
        fix: what to do.
        details: numbers behind it, as JSON holds them.
        examples: samples that show it.
    """

    level: str
    name: str
    splits: tuple[str, ...]
    message: str
    fix: str
    details: dict[str, Any] = field(default_factory=dict)
    examples: list[SampleFacts] = field(default_factory=list)

    def line(self) -> str:
        """The finding in one line."""
        where = f" [{', '.join(self.splits)}]" if self.splits else ""
        return f"{self.level} {self.name}{where}: {sentence(self.message)} Fix: {self.fix}"


def sentence(text: str) -> str:
    """`text` with a full stop, unless it ends in a mark."""
    return text if text.endswith(("?", ".", "!")) else f"{text}."


@dataclass
class Evidence:
    """What `diagnose` draws on.

    Args:
        names: class names by id; None if there are none.
        rule: what ids stand for.
        train, validation: names of the two splits; `splits` has those that were read.
        name_of_255: what the class names call id 255, None if they end before.
        segments: what segments are held against; None where maps hold class ids.
    """

    splits: dict[str, SplitCounts]
    names: dict[int, str] | None
    rule: LabelRule
    train: str
    validation: str
    name_of_255: str | None = None
    segments: SegmentRule | None = None
    ids: Counter[int] = field(init=False)
    maps_with: Counter[int] = field(init=False)
    class_pixels: Counter[int] = field(init=False)
    class_maps: Counter[int] = field(init=False)
    heights: dict[int, np.ndarray] = field(init=False)
    pieces: np.ndarray = field(init=False)
    class_segments: Counter[int] = field(init=False)
    class_crowds: Counter[int] = field(init=False)
    maps: int = field(init=False)

    def __post_init__(self) -> None:
        read = list(self.splits.values())
        self.ids = merged([counts.ids for counts in read])
        self.maps_with = merged([counts.maps_with for counts in read])
        self.class_pixels = merged([counts.class_pixels for counts in read])
        self.class_maps = merged([counts.class_maps for counts in read])
        self.pieces = np.sum([counts.pieces for counts in read], axis=0)
        self.class_segments = merged([counts.class_segments for counts in read])
        self.class_crowds = merged([counts.class_crowds for counts in read])
        self.maps = sum(counts.maps for counts in read)
        self.heights = {}
        for counts in read:
            for index, numbers in counts.heights.items():
                self.heights[index] = self.heights.get(index, np.zeros(3)) + numbers

    @property
    def complete(self) -> bool:
        """Whether all samples of the splits were read."""
        return all(counts.complete for counts in self.splits.values())

    def where(self, ids: set[int]) -> tuple[str, ...]:
        """Splits whose maps hold one of `ids`."""
        return tuple(split for split, counts in self.splits.items() if ids & set(counts.ids))

    def absent(self) -> list[int]:
        """Classes that do not occur."""
        return [index for index in self.names or () if not self.class_pixels[index]]

    def enough(self) -> bool:
        """Whether so many classes were seen, in all maps together, that each could have come."""
        seen = sum(maps for index, maps in self.class_maps.items() if index >= 0)
        return bool(self.names) and seen >= len(self.names or ())

    def share(self, index: int) -> float:
        """Percentage of all pixels that have id `index`."""
        return 100 * self.ids[index] / max(1, sum(self.ids.values()))

    def examples(self) -> list[SampleFacts]:
        """Two samples to look at."""
        return [sample for counts in self.splits.values() for sample in counts.overlays][:2]

    def called(self, classes: list[int]) -> str:
        """Names of classes, the first few."""
        shown = ", ".join(repr((self.names or {})[index]) for index in classes[:6])
        return shown + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")
