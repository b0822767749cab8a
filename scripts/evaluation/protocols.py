"""What a published mean IoU was measured with, per dataset: sizes, labels, windows.

Sources: FASeg's and Mask2Former's detectron2 configurations (ADE20K, Cityscapes), mmsegmentation's dataset
configurations (COCO-Stuff 10k, PASCAL-Context) and their label conversion scripts. Pictures are resized with Pillow's
bilinear filter, as detectron2 does; mmsegmentation uses OpenCV's, which does not smooth where it shrinks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from scripts.evaluation.sliding_window import Windows
from scripts.training.command_line import UserError
from scripts.training.dataset import IGNORE_INDEX, DatasetArguments, load_split, readable
from scripts.training.samples import BadSample, decode_label, sample_name


RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PEEKED_ROWS = 8

# Stored id (labelIds) -> class (trainId); all others are ignored.
CITYSCAPES_IDS = dict(zip([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], range(19), strict=True))
# COCO's ids without a class; the 171 others keep their order, 0 is unlabelled.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_STUFF_IDS = {0: 0} | {raw: new for new, raw in enumerate((i for i in range(1, 183) if i not in COCO_GAPS), 1)}


@dataclass(frozen=True)
class Protocol:
    """The rules of one benchmark.

    Args:
        num_labels: numbers of classes it is run with.
        reduced: those of them whose maps hold classes from 1 on and 0 for unlabelled.
        shortest_edges: allowed sizes; a checkpoint's own if it is among them, else the first.
        longest_ratio: bound of the longer side in shorter sides.
        tta_longest_ratio: one bound for all views of `--tta`, in shorter sides; None: the ratio bounds each view.
        windows: crop and stride of `--sliding_window`, by size.
        raw_ids: stored id -> id in the maps that the benchmark is run with, where the dataset comes with others.
    """

    source: str
    num_labels: tuple[int, ...]
    reduced: tuple[int, ...]
    shortest_edges: tuple[int, ...]
    longest_ratio: float
    tta_longest_ratio: float | None
    windows: dict[int, Windows]
    raw_ids: dict[int, int] | None = None


PROTOCOLS = {
    "ade20k": Protocol(
        source="FASeg and Mask2Former, detectron2",
        num_labels=(150,),
        reduced=(150,),
        shortest_edges=(512, 640),
        longest_ratio=4,
        tta_longest_ratio=7,
        windows={512: Windows(512, 341), 640: Windows(640, 608)},
    ),
    "cityscapes": Protocol(
        source="FASeg and Mask2Former, detectron2; windows: mmsegmentation's SegFormer",
        num_labels=(19,),
        reduced=(),
        shortest_edges=(1024,),
        longest_ratio=2,
        tta_longest_ratio=4,
        windows={1024: Windows(1024, 768)},
        raw_ids=CITYSCAPES_IDS,
    ),
    "coco-stuff10k": Protocol(
        source="mmsegmentation, coco-stuff10k; 640: SeMask-L's size, windows by two thirds",
        num_labels=(171,),
        reduced=(171,),
        shortest_edges=(512, 640),
        longest_ratio=4,
        tta_longest_ratio=None,
        windows={512: Windows(512, 341), 640: Windows(640, 426)},
        raw_ids=COCO_STUFF_IDS,
    ),
    "pascal-context": Protocol(
        source="mmsegmentation, pascal_context (60) and pascal_context_59",
        num_labels=(59, 60),
        reduced=(59,),
        shortest_edges=(520,),
        longest_ratio=1,
        tta_longest_ratio=None,
        windows={520: Windows(480, 320)},
    ),
}
NATIVE = "native"


@dataclass(frozen=True)
class EvaluationSizes:
    """Sizes in pixels that pictures are resized to, and windows if they are used.

    Args:
        base: (shortest, longest) edge; longest None: no bound.
        views: the same of each view of multi-scale evaluation.
    """

    base: tuple[int, int | None]
    views: tuple[tuple[int, int | None], ...]
    windows: Windows | None = None

    @property
    def processor_size(self) -> dict[str, int]:
        """`size` of the image processor."""
        shortest, longest = self.base
        return {"shortest_edge": shortest} | ({} if longest is None else {"longest_edge": longest})


def check_classes(name: str, num_labels: int) -> None:
    """Refuses a model of other classes than the benchmark's.

    Raises:
        UserError: names both numbers.
    """
    allowed = PROTOCOLS[name].num_labels
    if num_labels not in allowed:
        numbers = " or ".join(map(str, allowed))
        raise UserError(f"--protocol {name} has {numbers} classes, the model {num_labels}: choose --protocol native")


def protocol_sizes(name: str, own: tuple[int, int], sliding: bool) -> EvaluationSizes:
    """Sizes of benchmark `name` for a checkpoint whose processor has the (shortest, longest) edges `own`."""
    if name == NATIVE:
        shortest, longest, tta_longest = own[0], own[1], 7 * own[0]
        windows, ratio = Windows(own[0], own[0] * 2 // 3), own[1] / own[0]
    else:
        protocol = PROTOCOLS[name]
        shortest = own[0] if own[0] in protocol.shortest_edges else protocol.shortest_edges[0]
        ratio = protocol.longest_ratio
        longest, windows = int(shortest * ratio), protocol.windows[shortest]
        tta_longest = 0 if protocol.tta_longest_ratio is None else int(shortest * protocol.tta_longest_ratio)
    views = tuple((int(shortest * r), tta_longest or int(shortest * r * ratio)) for r in RATIOS)
    if not sliding:
        return EvaluationSizes((shortest, longest), views)
    # mmsegmentation's `min_size`: no side is smaller than the crop, and the longer side has no bound.
    unbounded = tuple((max(view, windows.crop), None) for view, _ in views)
    return EvaluationSizes((max(shortest, windows.crop), None), unbounded, windows)


def raw_id_table(name: str) -> np.ndarray | None:
    """`(256,)` uint8: stored id -> id that the benchmark is run with; ids that stand for nothing become 255."""
    raw_ids = PROTOCOLS[name].raw_ids if name in PROTOCOLS else None
    if raw_ids is None:
        return None
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for raw, new in raw_ids.items():
        table[raw] = new
    return table


def maps_hold_raw_ids(name: str, rows: Iterable[dict[str, Any]], arguments: DatasetArguments) -> bool:
    """Whether one of the first maps holds an id that only the dataset's own numbering has.

    Nearly every Cityscapes map does (vegetation is 21, sky 23, car 26). Where it goes wrong the first such id later
    stops the run, for it is outside the classes.
    """
    protocol = PROTOCOLS[name]
    last = max((protocol.raw_ids or {}).values(), default=IGNORE_INDEX)
    for index, row in enumerate(islice(rows, PEEKED_ROWS)):
        try:
            label = decode_label(
                row[arguments.label_column_name], sample_name(row, arguments.image_column_name, index)
            )
        except BadSample:
            continue  # the run will name it
        if bool(((label > last) & (label != IGNORE_INDEX)).any()):
            return True
    return False


def label_id_table(name: str, label_ids: str, arguments: DatasetArguments, split: str) -> np.ndarray | None:
    """`raw_id_table` if the maps of `split` hold the dataset's own ids, else None.

    Args:
        label_ids: "raw", "train", or "auto" to look at the first maps.
    Raises:
        UserError: "raw" for a benchmark that has no other ids.
    """
    table = raw_id_table(name)
    if table is None:
        if label_ids == "raw":
            raise UserError(f"--label_ids raw: --protocol {name} knows no other ids: leave it out, or see --class_map")
        return None
    if label_ids == "auto":
        label_ids = "raw" if maps_hold_raw_ids(name, readable(load_split(arguments, split)), arguments) else "train"
    return table if label_ids == "raw" else None
