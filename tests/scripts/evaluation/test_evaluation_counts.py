"""Boundary IoU, mean IoU by segment size and the interval over images, against plain implementations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_splits import blobs
from scipy import ndimage

from scripts.evaluation.bootstrap import BootstrapCounts
from scripts.evaluation.boundary import BoundaryCounts, boundary_distance, boundary_mask
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion, valid_part
from scripts.evaluation.segment_size import BINS, SegmentSizeCounts, largest_area, segment_areas, size_bin


def sample(label, index=0):
    return {"label": label, "index": index}


# ---- boundary IoU


def test_boundary_distance_is_two_per_cent_of_the_diagonal():
    assert boundary_distance(1024, 2048) == round(0.02 * math.hypot(1024, 2048)) == 46
    assert boundary_distance(3, 4) == 1


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_boundary_is_the_mask_less_its_erosion(distance):
    """The paper's rule: erode each mask `distance` times by 3x3, with nothing outside the image."""
    labels = blobs(0)
    expected = np.zeros(labels.shape, dtype=bool)
    for label in np.unique(labels):
        mask = labels == label
        kept = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
        expected |= mask & ~kept
    found = boundary_mask(labels, distance)
    assert np.array_equal(found, expected)
    assert not found.all() or distance == 5


def test_boundary_iou_of_two_masks_is_the_paper_formula():
    reference, prediction = blobs(1, ignored=False), blobs(2, ignored=False)
    counter = BoundaryCounts(4, dilation_ratio=0.05)
    counter.add(sample(reference), prediction)
    distance = boundary_distance(*reference.shape, 0.05)
    expected = []
    for label in range(4):
        rings = []
        for labels in (reference, prediction):
            mask = labels == label
            rings.append(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0))
        expected.append((rings[0] & rings[1]).sum() / (rings[0] | rings[1]).sum())
    found = counter.scores()
    assert found["per_category_boundary_iou"] == pytest.approx(expected)
    assert found["mean_boundary_iou"] == pytest.approx(np.mean(expected))


def test_boundary_iou_sees_a_shift_that_iou_hardly_sees():
    reference = np.zeros((100, 100), dtype=np.uint8)
    reference[10:90, 10:90] = 1
    shifted = np.roll(reference, 2, axis=1)
    counter = BoundaryCounts(2)
    counter.add(sample(reference), shifted)
    whole = scores_from_confusion(valid_part(confusion_matrix(shifted, reference, 256), 2))
    assert whole["mean_iou"] > 0.9 > 0.7 > counter.scores()["mean_boundary_iou"]


def test_ignored_pixels_are_in_no_boundary():
    reference = blobs(3)
    prediction = np.where(reference == 255, 1, reference).astype(np.uint8)
    counter = BoundaryCounts(4)
    counter.add(sample(reference), prediction)
    assert counter.scores()["mean_boundary_iou"] == 1


def test_false_boundaries_count_with_255_classes():
    """The id that stands for "no boundary" is then 255, which ignored pixels have elsewhere."""
    reference = np.zeros((40, 40), dtype=np.uint8)
    prediction = reference.copy()
    prediction[15:25, 15:25] = 1
    found = []
    for num_labels in (254, 255):
        counter = BoundaryCounts(num_labels)
        counter.add(sample(reference), prediction)
        found.append(counter.totals[:, :2].tolist())
    assert found[0] == found[1] and found[1][2][1] > 0


# ---- mean IoU by segment size


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_segments_are_the_connected_regions(seed, cell):
    labels = blobs(seed, (17, 23), 3, cell)
    segments, areas = segment_areas(labels)
    number = 0
    for label in np.unique(labels):
        expected, count = ndimage.label(labels == label)
        number += count
        for region in range(1, count + 1):
            inside = expected == region
            ids = np.unique(segments[inside])
            assert len(ids) == 1 and areas[ids[0]] == inside.sum() == (segments == ids[0]).sum()
    assert len(areas) == number


def test_bins_hold_the_areas_they_name():
    areas = np.arange(1, 5000)
    bins = size_bin(areas)
    assert (np.diff(bins) >= 0).all() and size_bin(np.array([2**31])) < BINS
    for last in np.unique(bins):
        assert areas[bins <= last].max() == min(largest_area(last), 4999)


def test_sizes_add_up_to_the_whole():
    counter, confusion = SegmentSizeCounts(4), np.zeros((256, 256), dtype=np.int64)
    for seed in range(5):
        reference, prediction = blobs(seed), blobs(seed + 100, cell=3, ignored=False)
        counter.add(sample(reference), prediction)
        confusion += confusion_matrix(prediction, reference, 256)
    valid = valid_part(confusion, 4)
    assert np.array_equal(counter.totals[0].sum(axis=0), np.diag(valid))
    assert np.array_equal(counter.totals[1].sum(axis=0), valid.sum(axis=1))
    assert np.array_equal(counter.totals[2].sum(axis=0), valid[:, :4].sum(axis=0))
    rows = counter.scores()
    assert sum(row["segments"] for row in rows) == counter.totals[3].sum()
    bounds = [row["max_area"] for row in rows]
    assert bounds[-1] is None and bounds[:-1] == sorted(bounds[:-1])


def test_small_segments_missed_lower_only_the_small_group():
    reference = np.zeros((64, 64), dtype=np.uint8)
    reference[28:] = 1
    reference[5, 5] = reference[10, 10] = reference[15, 15] = 1  # three of one pixel
    prediction = np.where(np.arange(64)[:, None] >= 28, 1, 0).repeat(64, axis=1).astype(np.uint8)
    counter = SegmentSizeCounts(2)
    counter.add(sample(reference), prediction)
    rows = counter.scores()
    assert rows[0]["max_area"] == 1 and rows[0]["segments"] == 3 and rows[0]["mean_iou"] == 0
    # The missed pixels are false alarms of the large segment of class 0, 3 of 1792.
    assert [row["mean_iou"] for row in rows[1:]] == pytest.approx([1789 / 1792, 1])


def test_ten_groups_of_as_many_segments():
    counter = SegmentSizeCounts(1)
    counter.totals[3, 8:48, 0] = 3
    assert [row["segments"] for row in counter.scores()] == [12] * 10
    counter.totals[3, 8, 0] = 2000  # one bin with more than nine tenths
    assert [row["segments"] for row in counter.scores()] == [2000, 117]
    counter.totals[2, 100, 0] = 5  # false alarms larger than any segment belong to the last group
    assert len(counter.scores()) == 2
    counter.totals[:] = 0
    assert counter.scores() == []


# ---- interval


def pairs(count, seed=0):
    for index in range(count):
        reference = blobs(seed + index)
        prediction = np.where(np.random.default_rng(index).random(reference.shape) < 0.3, 1, reference)
        yield index, reference, np.where(prediction == 255, 0, prediction).astype(np.uint8)


def test_the_interval_depends_neither_on_order_nor_on_processes():
    whole, parts = BootstrapCounts(4, 50), [BootstrapCounts(4, 50), BootstrapCounts(4, 50)]
    for index, reference, prediction in pairs(8):
        whole.add(sample(reference, index), prediction)
    for index, reference, prediction in reversed(list(pairs(8))):
        parts[index % 2].add(sample(reference, index), prediction)
    parts[0].totals += parts[1].totals
    assert whole.scores() == parts[0].scores()


def test_the_interval_is_that_of_resampling_the_images():
    """Poisson counts stand for drawing with replacement: the plain bootstrap gives the same interval."""
    counter, per_image = BootstrapCounts(4, 2000), []
    for index, reference, prediction in pairs(40):
        counter.add(sample(reference, index), prediction)
        per_image.append(valid_part(confusion_matrix(prediction, reference, 256), 4))
    rng, values = np.random.default_rng(1), []
    for _ in range(2000):
        drawn = np.sum([per_image[i] for i in rng.integers(0, 40, 40)], axis=0)
        values.append(scores_from_confusion(drawn)["mean_iou"])
    low, high = np.percentile(values, [2.5, 97.5])
    found = counter.scores()
    point = scores_from_confusion(np.sum(per_image, axis=0))["mean_iou"]
    assert found["low"] < point < found["high"]
    assert found["low"] == pytest.approx(low, abs=0.15 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.15 * (high - low))


def test_equal_images_have_no_spread():
    counter = BootstrapCounts(4, 30)
    _, reference, prediction = next(pairs(1))
    for index in range(3):
        counter.add(sample(reference, index), prediction)
    found = counter.scores()
    assert found["low"] == pytest.approx(found["high"]) and found["resamples"] == 30
