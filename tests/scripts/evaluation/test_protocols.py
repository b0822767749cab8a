"""Benchmark protocols: sizes, label rules, windows, against the published tables."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import SizeDict

from image_processing.preprocessing import network_size
from modeling_faseg.windows_qlseg import window_starts
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import RowFormat
from scripts.evaluation.label_ids import label_rule, peeked_ids, raw_id_table, recognised_ids
from scripts.evaluation.protocols import PROTOCOLS, check_classes, check_label_ids, protocol_sizes
from scripts.inference.sliding_window import Windows


# Sizes and bounds of multi-scale evaluation, from the released configurations.
FASEG_SIZES = [
    ("ade20k", (512, 2048), (512, 2048), [256, 384, 512, 640, 768, 896], 3584),
    ("ade20k", (640, 2560), (640, 2560), [320, 480, 640, 800, 960, 1120], 4480),
    ("cityscapes", (1024, 2048), (1024, 2048), [512, 768, 1024, 1280, 1536, 1792], 4096),
]


@pytest.mark.parametrize(("name", "own", "base", "edges", "longest"), FASEG_SIZES)
def test_sizes_of_the_reference(name, own, base, edges, longest):
    sizes = protocol_sizes(name, own, sliding=False)
    assert sizes.base == base and sizes.windows is None
    assert list(sizes.views) == [(edge, longest) for edge in edges]


def test_a_checkpoint_with_another_size_gets_the_protocols_first():
    assert protocol_sizes("ade20k", (360, 1440), sliding=False).base == (512, 2048)
    assert protocol_sizes("native", (360, 1440), sliding=False).base == (360, 1440)
    assert protocol_sizes("native", (360, 1440), sliding=False).views[-1] == (630, 2520)


@pytest.mark.parametrize(
    ("name", "image", "resized"),
    [
        ("ade20k", (683, 512), (683, 512)),
        ("ade20k", (300, 2000), (307, 2048)),  # the longer side is bounded
        ("cityscapes", (1024, 2048), (1024, 2048)),
        ("coco-stuff10k", (480, 640), (512, 683)),
        ("pascal-context", (375, 500), (390, 520)),  # both sides fit into 520
        ("pascal-context", (500, 375), (520, 390)),
    ],
)
def test_resized_images(name, image, resized):
    size = protocol_sizes(name, (512, 2048), sliding=False).processor_size
    assert network_size(*image, SizeDict(**size)) == resized


@pytest.mark.parametrize(
    ("name", "own", "crop", "stride", "shortest"),
    [
        ("ade20k", (512, 2048), 512, 341, 512),
        ("ade20k", (640, 2560), 640, 608, 640),
        ("coco-stuff10k", (512, 2048), 512, 341, 512),
        ("pascal-context", (480, 1920), 480, 320, 520),
    ],
)
def test_windows(name, own, crop, stride, shortest):
    """QLSeg's windows; no side may be smaller than one, so the longer side has no bound."""
    sizes = protocol_sizes(name, own, sliding=True)
    assert (sizes.windows.crop, sizes.windows.stride) == (crop, stride)
    assert sizes.base == (shortest, None) and min(view for view, _ in sizes.views) == crop


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),  # the last is shifted back to the border
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (400, 512, 341, [0]),
        (2048, 1024, 768, [0, 768, 1024]),
    ],
)
def test_window_starts(length, crop, stride, starts):
    assert window_starts(length, crop, stride) == starts
    covered = np.zeros(length, dtype=bool)
    for start in starts:
        covered[start : start + crop] = True
    assert covered.all()


def test_classes_must_be_the_benchmarks():
    check_classes("pascal-context", 59)
    check_classes("pascal-context", 60)
    with pytest.raises(UserError, match="--protocol ade20k has 150 classes, the model 11"):
        check_classes("ade20k", 11)
    assert PROTOCOLS["pascal-context"].reduced == (59,)
    assert {name for name, p in PROTOCOLS.items() if p.num_labels[0] in p.reduced} == {
        "ade20k",
        "coco-stuff10k",
        "pascal-context",
    }


def test_raw_cityscapes_ids():
    """cityscapesScripts' table: road is 7, sky 23, bicycle 33; ego vehicle, caravan and trailer are ignored."""
    table = raw_id_table("cityscapes")
    assert [table[i] for i in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)] == list(range(11))
    assert [table[i] for i in (24, 25, 26, 27, 28, 31, 32, 33)] == list(range(11, 19))
    assert {int(table[i]) for i in (0, 1, 6, 9, 14, 18, 29, 30, 34, 255)} == {255}


def test_raw_coco_stuff_ids():
    """182 ids of which 11 stand for nothing; 0 stays unlabelled."""
    table = raw_id_table("coco-stuff10k")
    assert [table[i] for i in (0, 1, 11, 13, 25, 27, 182)] == [0, 1, 11, 12, 24, 25, 171]
    assert len(set(table.tolist()) - {255}) == 172


def rows(*maps):
    for ids in maps:
        file = io.BytesIO()
        Image.fromarray(np.array(ids, dtype=np.uint8)).save(file, "PNG")
        yield {"image": None, "label": {"bytes": file.getvalue(), "path": None}}


def test_raw_ids_are_recognised():
    train, raw = [[0, 18], [255, 3]], [[7, 11], [1, 23]]

    def recognised(rows):
        return recognised_ids("cityscapes", 19, peeked_ids(rows, RowFormat()))

    assert recognised(rows(train, train)) == "train"
    assert recognised(rows(train, raw)) == "raw"
    broken = [{"image": None, "label": {"bytes": b"no image", "path": None}}]
    assert recognised([*broken, *rows(raw)]) == "raw"


@pytest.mark.parametrize(("name", "num_labels"), [("ade20k", 150), ("coco-stuff10k", 171), ("pascal-context", 59)])
def test_maps_that_may_be_reduced_already_are_asked_about(name, num_labels):
    with pytest.raises(UserError, match="Give --label_ids reduced"):
        recognised_ids(name, num_labels, {0, 3, 255})
    assert recognised_ids(name, num_labels, {0, 3, num_labels}) == "train"


def test_classes_from_zero_may_be_ignored_with_255():
    assert recognised_ids("pascal-context", 60, {0, 3, 255}) == "train"


def test_label_ids_can_be_said(shapes):
    data = LabelledDataset(DatasetArguments(str(shapes)), "validation")

    def rule(name, num_labels, label_ids):
        found, table, reduced = label_rule(name, num_labels, label_ids, data)
        assert found == label_ids
        return None if table is None else table[7], reduced

    assert rule("cityscapes", 19, "train") == (None, False)
    assert rule("cityscapes", 19, "raw") == (0, False)
    assert rule("coco-stuff10k", 171, "raw") == (7, True)
    assert rule("ade20k", 150, "train") == (None, True)
    assert rule("ade20k", 150, "reduced") == (None, False)
    with pytest.raises(UserError, match="--label_ids raw"):
        check_label_ids("ade20k", "raw")


@pytest.mark.parametrize(
    ("name", "given", "base", "views"),
    [
        ("cityscapes", {"shortest": 512}, (512, 1024), {(256, 2048), (896, 2048)}),
        ("cityscapes", {"tta_edges": [512, 2048]}, (1024, 2048), {(512, 4096), (2048, 4096)}),
        ("pascal-context", {"tta_edges": [260, 780]}, (520, 520), {(260, 260), (780, 780)}),
        ("coco-stuff10k", {"tta_edges": [256]}, (512, 2048), {(256, 1024)}),
        ("native", {"shortest": 100}, (100, 400), {(50, 700), (175, 700)}),
        ("native", {"tta_edges": [300], "tta_longest": 999}, (360, 1440), {(300, 999)}),
    ],
)
def test_sizes_given_keep_the_benchmarks_ratios(name, given, base, views):
    sizes = protocol_sizes(name, (360, 1440), False, **given)
    assert sizes.base == base and views <= set(sizes.views)


def test_windows_given_bound_the_views_below():
    sizes = protocol_sizes("ade20k", (512, 2048), True, crop=1024, tta_edges=[256, 2000])
    assert sizes.windows == Windows(1024, 682) and sizes.base == (1024, None)
    assert sizes.views == ((1024, None), (2000, None))
    assert protocol_sizes("ade20k", (512, 2048), True, shortest=640).windows == Windows(640, 608)
    assert protocol_sizes("ade20k", (512, 2048), True, shortest=300).windows == Windows(300, 200)
