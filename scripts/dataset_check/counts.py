"""What is known of a split after its samples went by: counters, and the few samples that the page shows.

Memory does not grow with the split: distinct keys, examples and images are bounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from scripts.dataset_check.sample_facts import SampleFacts, SegmentFacts
from scripts.dataset_check.similarity import SeenImages


MAX_KEYS = 2000  # distinct sizes, ids
EXAMPLES = 3  # samples shown per finding
NAMES = 5  # samples named per finding
OVERLAYS = 4
SIZE_FAULTS = {"swapped-size", "size-mismatch"}  # their maps cannot lie over their images


@dataclass
class FaultCount:
    """How many samples show a fault, how often all of them together, and which first."""

    count: int = 0
    times: int = 0
    evidence: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    examples: list[SampleFacts] = field(default_factory=list)

    def add(self, facts: SampleFacts, evidence: str, times: int = 1) -> None:
        """Counts one more."""
        self.count += 1
        self.times += times
        if len(self.names) < NAMES:
            self.names.append(facts.name)
            self.evidence.append(evidence)
        if len(self.examples) < EXAMPLES:
            self.examples.append(facts)


@dataclass(frozen=True)
class NearDuplicate:
    """An image and one of the other split that is nearly the same; `bits` of 256 differ."""

    name: str
    other: str
    bits: int
    mirrored: bool
    image: Image.Image
    other_image: Image.Image | None


class SplitCounts:
    """Counters over the samples of one split.

    Attributes:
        ids: stored id -> pixels; `maps_with` id -> maps. Ids past `MAX_KEYS` distinct ones are not counted.
        class_pixels: class -> pixels, `IGNORED` and `OUTSIDE` among them; `class_maps` class -> maps.
        heights: id -> (pixels, sum of heights, pixels away from edges) over the small maps.
        classes_per_map, regions_per_map: number -> maps.
        pieces: `(3,)` ids of all maps, those of them that lie in one piece, and maps whose ids are 1, 2, ...; see
            `SampleFacts`. `ids_per_map` number -> maps.
        segmented: maps that hold segments, of which the counters below are.
        class_segments, class_crowds: class -> segments that are learnt, crowd regions.
        segments_per_map: number that are learnt -> maps; `segment_sizes` size -> number.
        instance_ids: id of an instance -> maps.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.samples = 0
        self.maps = 0
        self.segmented = 0
        self.complete = True
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.image_modes: Counter[str] = Counter()
        self.map_modes: Counter[str] = Counter()
        self.ids: Counter[int] = Counter()
        self.maps_with: Counter[int] = Counter()
        self.class_pixels: Counter[int] = Counter()
        self.class_maps: Counter[int] = Counter()
        self.heights: dict[int, np.ndarray] = {}
        self.classes_per_map: Counter[int] = Counter()
        self.regions_per_map: Counter[int] = Counter()
        self.pieces = np.zeros(3, dtype=np.int64)
        self.ids_per_map: Counter[int] = Counter()
        self.class_segments: Counter[int] = Counter()
        self.class_crowds: Counter[int] = Counter()
        self.segments_per_map: Counter[int] = Counter()
        self.segment_sizes: Counter[str] = Counter()
        self.instance_ids: Counter[int] = Counter()
        self.faults: dict[str, FaultCount] = {}
        self.overlays: list[SampleFacts] = []
        self.duplicates: list[NearDuplicate] = []
        self.number_of_duplicates = 0
        self._random = np.random.default_rng(0)

    def add(self, facts: SampleFacts) -> None:
        """Counts one sample."""
        self.samples += 1
        if facts.image_size is not None:
            self._count(self.sizes, facts.image_size)
        if facts.image_mode is not None:
            self.image_modes[facts.image_mode] += 1
        if facts.map_mode is not None:
            self.map_modes[facts.map_mode] += 1
        for name, evidence in facts.faults.items():
            self.faults.setdefault(name, FaultCount()).add(facts, evidence, facts.times.get(name, 1))
        if facts.ids:
            self._count_ids(facts)
        if facts.image is not None and facts.labels is not None and not facts.faults.keys() & SIZE_FAULTS:
            self._keep_overlay(facts)

    def compare(self, facts: SampleFacts, others: SeenImages) -> None:
        """Notes if the sample's image is nearly one of the `others`, those of another split."""
        found = others.nearest(facts.hashed) if facts.hashed is not None else None
        if found is None or facts.image is None:
            return
        place, bits, mirrored = found
        self.number_of_duplicates += 1
        if len(self.duplicates) < NAMES:
            other = others.names[place], bits, mirrored, facts.image, others.thumbnails.get(place)
            self.duplicates.append(NearDuplicate(facts.name, *other))

    def _count_ids(self, facts: SampleFacts) -> None:
        self.maps += 1
        self.pieces += (*facts.id_pieces, facts.in_a_row)
        self.ids_per_map[min(facts.id_pieces[0], MAX_KEYS)] += 1
        for index, pixels in facts.ids.items():
            if self._count(self.ids, index, pixels):
                self.maps_with[index] += 1
        for index, pixels in facts.class_pixels.items():
            self.class_pixels[index] += pixels
            self.class_maps[index] += 1
        for index, numbers in facts.small_ids.items():
            if index in self.ids:
                self.heights[index] = self.heights.get(index, np.zeros(3)) + numbers
        self.classes_per_map[sum(index >= 0 for index in facts.class_pixels)] += 1
        self.regions_per_map[min(facts.regions, MAX_KEYS)] += 1
        if facts.segments is not None:
            self._count_segments(facts.segments)

    def _count_segments(self, segments: SegmentFacts) -> None:
        self.segmented += 1
        self.segments_per_map[min(segments.classes.total(), MAX_KEYS)] += 1
        self.segment_sizes += segments.sizes
        for index, number in segments.classes.items():
            self._count(self.class_segments, index, number)
        for index, number in segments.crowds.items():
            self._count(self.class_crowds, index, number)
        for id_ in segments.ids:
            self._count(self.instance_ids, id_)

    def _count(self, counter: Counter, key: object, number: int = 1) -> bool:
        """Adds to `counter` unless that would be a key too many; returns whether it did."""
        if key not in counter and len(counter) >= MAX_KEYS:
            return False
        counter[key] += number
        return True

    def _keep_overlay(self, facts: SampleFacts) -> None:
        """Keeps `OVERLAYS` of all samples, each as likely."""
        if len(self.overlays) < OVERLAYS:
            self.overlays.append(facts)
        elif (place := int(self._random.integers(self.samples))) < OVERLAYS:
            self.overlays[place] = facts

    @property
    def labelled(self) -> int:
        """Pixels of a class."""
        return sum(pixels for index, pixels in self.class_pixels.items() if index >= 0)


def quantiles(counter: Counter[int]) -> tuple[int, int, int]:
    """Least, median and greatest key of a counter; zeros if it is empty."""
    if not counter:
        return 0, 0, 0
    keys = sorted(counter)
    half, passed = sum(counter.values()) / 2, 0
    for key in keys:
        passed += counter[key]
        if passed >= half:
            return keys[0], key, keys[-1]
    raise AssertionError("unreachable")


def merged(counters: list[Counter[int]]) -> Counter[int]:
    """One counter of several."""
    return sum(counters, Counter())
