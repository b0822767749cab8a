"""What a published mean IoU was measured with, per dataset: sizes, labels, windows.

Sources: FASeg's and Mask2Former's detectron2 configurations (ADE20K, Cityscapes), mmsegmentation's dataset
configurations (COCO-Stuff 10k, PASCAL-Context) and their label conversion scripts. Images are resized bilinearly and
smoothed where they shrink, as by detectron2's Pillow (a single scale by torchvision, off by a grey level in about one
value of a thousand); mmsegmentation uses OpenCV's, which does not smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.cli.errors import UserError
from scripts.inference.sliding_window import Windows


RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

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
        views_of_image: whether the views of `--tta` are made of the image itself (mmsegmentation), not of it as
            resized for a single scale (detectron2).
        raw_ids: stored id -> id in the maps that the benchmark is run with, where the dataset comes with others.
    """

    source: str
    num_labels: tuple[int, ...]
    reduced: tuple[int, ...]
    shortest_edges: tuple[int, ...]
    longest_ratio: float
    tta_longest_ratio: float | None
    windows: dict[int, Windows]
    views_of_image: bool = False
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
        views_of_image=True,
        raw_ids=COCO_STUFF_IDS,
    ),
    "pascal-context": Protocol(
        source="mmsegmentation, pascal_context (60) and pascal_context_59, sizes and windows alike",
        num_labels=(59, 60),
        reduced=(59,),
        shortest_edges=(520,),
        longest_ratio=1,
        tta_longest_ratio=None,
        windows={520: Windows(480, 320)},
        views_of_image=True,
    ),
}
NATIVE = "native"
LABEL_IDS = ("auto", "train", "raw", "reduced")


@dataclass(frozen=True)
class EvaluationSizes:
    """Sizes in pixels that images are resized to, and windows if they are used.

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


def check_label_ids(name: str, label_ids: str) -> None:
    """Refuses a numbering that the maps of benchmark `name` cannot have.

    Raises:
        UserError: says what to do instead.
    """
    protocol = PROTOCOLS.get(name)
    if label_ids == "raw" and not (protocol and protocol.raw_ids):
        raise UserError(f"--label_ids raw: --protocol {name} knows no other ids: leave it out, or see --class_map")
    if label_ids == "train" and protocol is None:
        raise UserError("--label_ids train belongs to a --protocol: name one, or leave it out")
    if label_ids == "reduced" and protocol and not protocol.reduced:
        raise UserError(f"--label_ids reduced: the classes of --protocol {name} start at 0 anyway: leave it out")


def protocol_sizes(
    name: str,
    own: tuple[int, int],
    sliding: bool,
    *,
    shortest: int | None = None,
    longest: int | None = None,
    crop: int | None = None,
    stride: int | None = None,
    tta_edges: Sequence[int] | None = None,
    tta_longest: int | None = None,
) -> EvaluationSizes:
    """Sizes of benchmark `name` for a checkpoint whose processor has the (shortest, longest) edges `own`.

    Args:
        shortest, longest, crop, stride, tta_edges, tta_longest: in place of the benchmark's; what is left out follows
            from the others by its ratios.
    Raises:
        UserError: windows that leave pixels out.
    """
    ratio: float
    tta_ratio: float | None
    if name == NATIVE:
        ratio, tta_ratio, known_windows = (4 if shortest else own[1] / own[0]), 7, {}
        longest = longest or (None if shortest else own[1])
        shortest = shortest or own[0]
    else:
        protocol = PROTOCOLS[name]
        ratio, tta_ratio, known_windows = protocol.longest_ratio, protocol.tta_longest_ratio, protocol.windows
        shortest = shortest or (own[0] if own[0] in protocol.shortest_edges else protocol.shortest_edges[0])
    longest = longest or int(shortest * ratio)
    edges = tta_edges or [int(shortest * r) for r in RATIOS]
    if not sliding:
        bounds = [
            tta_longest or int((edge if tta_ratio is None else shortest) * (tta_ratio or ratio)) for edge in edges
        ]
        return EvaluationSizes((shortest, longest), tuple(zip(edges, bounds, strict=True)))
    windows = known_windows.get(shortest, Windows(shortest, shortest * 2 // 3))
    if crop:
        windows = Windows(crop, crop * 2 // 3)
    if stride:
        windows = Windows(windows.crop, stride)
    if windows.stride > windows.crop:
        raise UserError(f"--stride {stride} is more than the window of {windows.crop}: pixels would be left out")
    # mmsegmentation's `min_size`: no side is smaller than the crop, and the longer side has no bound.
    views = tuple((max(edge, windows.crop), tta_longest) for edge in edges)
    return EvaluationSizes((max(shortest, windows.crop), None), views, windows)
