"""Panoptic quality: cases counted by hand, a plain implementation, a port of panopticapi, and torchmetrics where its
rules are the same."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from random_segments import random_panoptic

from scripts.data.segments import segments_of_ids
from scripts.evaluation.bootstrap import multiplicities
from scripts.evaluation.panoptic_quality import IOU_UNIT, PanopticCounts, image_counts
from scripts.inference.found_segments import PanopticMap


def counts_of(reference, classes, prediction, labels, crowd=(), num_labels=3):
    """IoU, true positives, false positives and false negatives of maps that are written as lines of ids."""
    segments = segments_of_ids(np.array([list(map(int, reference))]), classes, crowd)
    found = [{"id": id_, "label_id": label} for id_, label in labels.items()]
    found_map = PanopticMap(np.array([list(map(int, prediction))], dtype=np.int32), found)
    iou, *others = image_counts(segments, found_map, num_labels)
    return [(iou * IOU_UNIT).round(9).tolist(), *(other.tolist() for other in others)]


def test_a_match_needs_more_than_half():
    assert counts_of("111111", {1: 0}, "111000", {1: 0}) == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert counts_of("111111", {1: 0}, "111100", {1: 0}) == [[round(4 / 6, 9), 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_another_class_is_no_match():
    assert counts_of("1111", {1: 0}, "1111", {1: 2}) == [[0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_void_is_taken_out_of_the_prediction():
    """10 predicted pixels, 6 of them void: the union is the 4 of the reference."""
    assert counts_of("1111000000", {1: 0}, "1111111111", {1: 0}) == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_where_nothing_is_predicted_the_reference_counts():
    assert counts_of("1111111111", {1: 0}, "1111110000", {1: 0})[0] == [0.6, 0, 0]


def test_what_lies_on_void_is_no_false_positive():
    """6 of 10 pixels on void are more than half, 5 are not."""
    assert counts_of("0000001111", {1: 1}, "2222222222", {2: 0})[2] == [0, 0, 0]
    assert counts_of("0000011111", {1: 1}, "2222222222", {2: 0})[2] == [1, 0, 0]


def test_a_crowd_is_neither_found_nor_missed():
    assert counts_of("1111", {1: 0}, "1111", {1: 0}, crowd={1}) == [[0, 0, 0]] * 4
    assert counts_of("1111", {1: 0}, "0000", {}, crowd={1}) == [[0, 0, 0]] * 4


def test_a_crowd_excuses_predictions_of_its_class_alone():
    reference = ("1111112222", {1: 0, 2: 1})
    assert counts_of(*reference, "3333333333", {3: 0}, crowd={1})[2:] == [[0, 0, 0], [0, 1, 0]]
    assert counts_of(*reference, "3333333333", {3: 2}, crowd={1})[2:] == [[0, 0, 1], [0, 1, 0]]


def test_void_and_crowd_add_up():
    """3 pixels of void and 3 of the crowd are more than half of 10, either alone is not."""
    assert counts_of("0001112222", {1: 0, 2: 1}, "3333333333", {3: 0}, crowd={1})[2] == [0, 0, 0]
    assert counts_of("0001112222", {1: 2, 2: 1}, "3333333333", {3: 0}, crowd={1})[2] == [1, 0, 0]


def test_several_crowds_of_a_class_add_up():
    assert counts_of("1114442222", {1: 0, 2: 1, 4: 0}, "3333333333", {3: 0}, crowd={1, 4})[2] == [0, 0, 0]


def test_an_image_of_nothing():
    assert counts_of("0000", {}, "0000", {}) == [[0, 0, 0]] * 4
    assert counts_of("0000", {}, "5555", {5: 0}) == [[0, 0, 0]] * 4
    assert counts_of("1111", {1: 1}, "0000", {})[3] == [0, 1, 0]


def test_means_leave_out_classes_without_anything():
    """Class 0: IoU 0.6 and a miss, so SQ 0.6, RQ 1 / 1.5; class 1 a false positive alone, so 0; class 2 nowhere."""
    counts = PanopticCounts(4)
    reference = segments_of_ids(np.array([[1] * 10 + [2] * 4 + [3] * 4]), {1: 0, 2: 0, 3: 3})
    prediction = np.array([[1] * 6 + [0] * 4 + [2] * 4 + [3] * 4], dtype=np.int32)
    found = [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}, {"id": 3, "label_id": 3}]
    counts.add(0, reference, PanopticMap(prediction, found))
    scores = counts.scores(things=[0, 1])
    assert scores["per_category_panoptic_quality"] == pytest.approx([0.4, 0, math.nan, 1], nan_ok=True, abs=1e-10)
    assert scores["panoptic_quality"] == pytest.approx((0.4 + 0 + 1) / 3)
    assert scores["segmentation_quality"] == pytest.approx((0.6 + 0 + 1) / 3)
    assert scores["recognition_quality"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert scores["panoptic_quality_things"] == pytest.approx(0.2)
    assert scores["panoptic_quality_stuff"] == pytest.approx(1)
    assert math.isnan(counts.scores(things=[0, 1, 3])["panoptic_quality_stuff"])
    assert counts.segments().tolist() == [2, 0, 0, 1]


def plain_counts(segments, prediction, num_labels):
    """The paper's section 4 and panopticapi's void and crowd, segment by segment."""
    counts = np.zeros((4, num_labels))
    references = list(zip(segments.masks().numpy(), segments.classes.tolist(), segments.crowd.tolist()))
    predictions = [(prediction.ids == each["id"], each["label_id"]) for each in prediction.segments]
    void = segments.layers[0].numpy() == 0
    missed, false = set(range(len(references))), set(range(len(predictions)))
    for i, (mask, label, crowd) in enumerate(references):
        for j, (found, found_label) in enumerate(predictions):
            iou = (mask & found).sum() / (mask | (found & ~void)).sum()
            if label == found_label and not crowd and iou > 0.5:
                counts[0, label] += iou
                counts[1, label] += 1
                missed.remove(i)
                false.remove(j)
    for i in missed:
        counts[3, references[i][1]] += not references[i][2]
    for j in false:
        found, found_label = predictions[j]
        excused = void | np.any([mask for mask, label, crowd in references if crowd and label == found_label], axis=0)
        counts[2, found_label] += (found & excused).sum() <= 0.5 * found.sum()
    return counts


def test_counts_are_those_of_a_plain_implementation():
    rng = np.random.default_rng(0)
    total = np.zeros((4, 3))
    for _ in range(60):
        reference, prediction = random_panoptic(rng, 3)
        expected, found = plain_counts(reference, prediction, 3), image_counts(reference, prediction, 3).astype(float)
        found[0] *= IOU_UNIT
        assert np.allclose(found, expected, rtol=0, atol=1e-9)
        total += expected
    assert total.min() > 10  # each rule was met often


def coloured(ids):
    """A map of ids as COCO's PNGs have it."""
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


def test_figures_are_those_of_a_port_of_panopticapi(tmp_path):
    """hotcoco's `pq_compute`, which reads COCO's files."""
    panoptic = pytest.importorskip("hotcoco.panoptic")
    rng, counts, sets = np.random.default_rng(3), PanopticCounts(6), {"reference": [], "found": []}
    for name in sets:
        (tmp_path / name).mkdir()
    for index in range(60):
        reference, prediction = random_panoptic(rng, 6)
        counts.add(index, reference, prediction)
        listed = [
            {"id": number, "category_id": label, "iscrowd": int(crowd), "area": area, "bbox": [0, 0, 1, 1]}
            for number, (label, crowd, area) in enumerate(
                zip(reference.classes.tolist(), reference.crowd.tolist(), reference.areas().tolist()), 1
            )
        ]
        found = [{"id": each["id"], "category_id": each["label_id"]} for each in prediction.segments]
        for name, ids, infos in (
            ("reference", reference.layers[0].numpy(), listed),
            ("found", prediction.ids, found),
        ):
            coloured(ids).save(tmp_path / name / f"{index}.png")
            sets[name].append({"image_id": index, "file_name": f"{index}.png", "segments_info": infos})
    images = [{"id": index, "height": 48, "width": 48, "file_name": f"{index}.jpg"} for index in range(60)]
    categories = [{"id": label, "name": str(label), "isthing": int(label < 4)} for label in range(6)]
    for name, annotations in sets.items():
        content = {"images": images, "categories": categories, "annotations": annotations}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    places = [tmp_path / "reference.json", tmp_path / "found.json", tmp_path / "reference", tmp_path / "found"]
    expected, scores = panoptic.pq_compute(*map(str, places)), counts.scores(things=range(4))
    for group, ending in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key, name in (("pq", "panoptic"), ("sq", "segmentation"), ("rq", "recognition")):
            assert scores[f"{name}_quality{ending}"] == pytest.approx(expected[group][key], rel=0, abs=1e-9)
            assert scores[f"{name}_quality{ending}"] > 0.1


@pytest.mark.system  # its import takes seconds
def test_torchmetrics_agrees_where_all_pixels_are_predicted_and_no_crowd_is():
    detection = pytest.importorskip("torchmetrics.detection")
    settings = {"things": set(range(4)), "stuffs": set(), "allow_unknown_preds_category": True}
    theirs = detection.PanopticQuality(**settings, return_sq_and_rq=True, return_per_class=True)
    rng, counts = np.random.default_rng(1), PanopticCounts(4)
    for index in range(30):
        reference, prediction = random_panoptic(rng, 4, void=False, crowds=False)
        blank = rng.random(prediction.ids.shape) < 0.02  # void of the reference
        blanked = segments_of_ids(
            np.where(blank, 0, reference.layers[0].numpy()), dict(enumerate(reference.classes.tolist(), 1))
        )
        counts.add(index, blanked, prediction)
        table = np.zeros(10, dtype=np.int64)
        for each in prediction.segments:
            table[each["id"]] = each["label_id"]
        classes, ids = np.append(99, blanked.classes), blanked.layers[0].numpy()  # 99 is void
        pairs = np.stack([table[prediction.ids], prediction.ids], -1), np.stack([classes[ids], ids], -1)
        pairs = [torch.from_numpy(pair.astype(np.int64))[None] for pair in pairs]
        theirs.update(*pairs)
    states = theirs.iou_sum, theirs.true_positives, theirs.false_positives, theirs.false_negatives
    found = counts.totals[0] * np.array([IOU_UNIT, 1, 1, 1])[:, None]
    assert np.array_equal(found[1:], [state.numpy() for state in states[1:]]) and found.min() > 5
    assert np.allclose(found[0], states[0].numpy(), rtol=1e-7, atol=0)  # theirs measures IoU in float32
    found = [counts.scores([])[f"per_category_{name}_quality"] for name in ("panoptic", "segmentation", "recognition")]
    assert np.allclose(np.array(found).T, theirs.compute().numpy(), rtol=1e-7, atol=0)


def test_the_interval_is_that_of_resampled_images():
    rng = np.random.default_rng(2)
    counts, pairs = PanopticCounts(3, resamples=8, seed=5), [random_panoptic(rng, 3) for _ in range(6)]
    for index, pair in reversed(list(enumerate(pairs))):  # in whatever order
        counts.add(index, *pair)
    times = np.array([multiplicities(5, index, 8) for index in range(6)])
    values = []
    for resample in range(8):
        again = PanopticCounts(3)
        for index, pair in enumerate(pairs):
            for _ in range(times[index, resample]):
                again.add(index, *pair)
        values.append(again.scores([])["panoptic_quality"])
    interval = counts.interval()
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
    assert interval["low"] < counts.scores([])["panoptic_quality"] < interval["high"]
    assert (interval["resamples"], interval["seed"]) == (8, 5)
