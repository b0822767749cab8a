"""What the counters and the page need of one sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass
class SegmentFacts:
    """What is known of the segments of a sample.

    Args:
        classes: class -> its segments, without crowd regions; `crowds` class -> its crowd regions.
        sizes: `small`, `medium` and `large` -> segments, by COCO's limits, without crowd regions.
        ids: what the map holds, where it is one of ids of instances.
        numbers: `(h, w)` as small as `SampleFacts.labels`; another number on each segment, 0 where there is none.
    """

    classes: Counter[int] = field(default_factory=Counter)
    crowds: Counter[int] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    ids: list[int] = field(default_factory=list)
    numbers: np.ndarray | None = None


@dataclass
class SampleFacts:
    """What the counters and the page need of one sample.

    Args:
        faults: name of the finding -> what this sample shows of it.
        times: name of the finding -> how often this sample shows it, where that is more than once.
        image_size: (width, height) in pixels.
        ids: stored id -> pixels; where maps hold segments, their classes. Empty if the map holds no ids.
        class_pixels: the same by class, `IGNORED` and `OUTSIDE` among them.
        small_ids: id -> (pixels, sum of their heights, pixels away from any edge) in the small map; a height is 0 at
            the top of the image and 1 at the bottom.
        id_pieces: ids above 0, without 255, and how many of them lie in one connected piece, of the small map.
        in_a_row: whether these ids are 1, 2, ... without a gap.
        regions: connected areas of one class, specks left out; or segments.
        segments: of maps that hold segments.
        image: at most `SMALL` pixels wide and high, RGB.
        labels: the map at the same size, classes as `LabelRule.classes` gives them.
        colour_map: the same of a map in colours.
    """

    name: str
    faults: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    image_mode: str | None = None
    map_mode: str | None = None
    ids: dict[int, int] = field(default_factory=dict)
    class_pixels: dict[int, int] = field(default_factory=dict)
    small_ids: dict[int, tuple[int, float, int]] = field(default_factory=dict)
    id_pieces: tuple[int, int] = (0, 0)
    in_a_row: bool = False
    regions: int = 0
    segments: SegmentFacts | None = None
    hashed: tuple[np.ndarray, np.ndarray] | None = None
    image: Image.Image | None = None
    labels: np.ndarray | None = None
    colour_map: Image.Image | None = None

    def note(self, finding: str, evidence: str, times: int = 1) -> None:
        """Notes a fault; of several of one kind the first tells what this sample shows."""
        if times:
            self.faults.setdefault(finding, evidence)
            self.times[finding] = self.times.get(finding, 0) + times
