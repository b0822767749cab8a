"""Mean IoU by detectron2's rule, on cases worked by hand."""

import math

import numpy as np
import pytest

from scripts.benchmarking.workloads import evaluate_counts
from scripts.evaluation.mean_iou import (
    class_counts,
    confusion_matrix,
    scores_from_confusion,
    scores_from_counts,
    valid_part,
)


def scores(prediction, reference, num_labels, **kwargs):
    counts = confusion_matrix(np.array(prediction), np.array(reference), 256)
    return scores_from_confusion(valid_part(counts, num_labels, **kwargs))


def test_by_hand():
    # class 0: 2 right, 3 in the reference, 2 predicted; class 1: 1 right, 1 and 2
    found = scores([[0, 0], [1, 1]], [[0, 0], [0, 1]], 2)
    assert found["per_category_iou"] == pytest.approx([2 / 3, 1 / 2])
    assert found["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["per_category_accuracy"] == pytest.approx([2 / 3, 1])
    assert found["overall_accuracy"] == pytest.approx(3 / 4)


def test_a_class_absent_from_the_reference_is_in_no_mean_even_if_predicted():
    # One pixel of class 2 is predicted, none is there: detectron2 gives 0.75, a macro Jaccard 0.5.
    found = scores([0, 0, 1, 2], [0, 0, 1, 1], 3)
    assert found["per_category_iou"][:2] == pytest.approx([1, 0.5])
    assert math.isnan(found["per_category_iou"][2])
    assert found["mean_iou"] == pytest.approx(0.75)


def test_ignored_pixels_count_nowhere():
    with_ignored = scores([0, 1, 1, 0], [0, 1, 255, 255], 2)
    assert with_ignored == scores([0, 1], [0, 1], 2)
    assert with_ignored["mean_iou"] == 1


def test_predictions_outside_the_classes_are_misses():
    found = scores([0, 7], [0, 0], 2)
    assert found["per_category_iou"][0] == pytest.approx(0.5)
    assert found["overall_accuracy"] == pytest.approx(0.5)


def test_reduced_labels():
    # 0 is ignored, 1 is class 0, 2 is class 1.
    assert scores([0, 1, 0], [1, 2, 0], 2, reduce_labels=True)["mean_iou"] == 1
    with pytest.raises(ValueError, match="reference id 3 but 2 classes"):
        scores([0], [3], 2, reduce_labels=True)


def test_reference_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match="reference id 2 but 2 classes"):
        scores([0], [2], 2)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(np.zeros((2, 2)), np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match=r"need 0\.\.3"):
        confusion_matrix(np.array([4]), np.array([0]), 4)


def test_nothing_but_ignored():
    assert math.isnan(scores([0], [255], 2)["mean_iou"])


def test_against_a_plain_count():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 6, (40, 50)), rng.integers(0, 5, (40, 50))
    reference[rng.random(reference.shape) < 0.1] = 255
    expected = []
    for label in range(6):
        true, found = reference == label, (prediction == label) & (reference != 255)
        expected.append((true & found).sum() / (true | found).sum())
    assert scores(prediction, reference, 6)["per_category_iou"] == pytest.approx(expected)


# (reference, prediction, K, detectron2, mmseg, mean accuracy, pixel accuracy, frequency weighted), worked by hand.
IGNORED = 255
GOLDEN = {
    "all right": ([0, 1, 2], [0, 1, 2], 3, 1, 1, 1, 1, 1),
    # 0: 3 of 4, nothing else predicted so; 1: 1 of 2; 2 and 3 are predicted once each and never there
    "predictions of absent classes": (
        [0, 0, 0, 0, 1, 1], [0, 0, 0, 3, 1, 2], 4,
        (3 / 4 + 1 / 2) / 2, (3 / 4 + 1 / 2 + 0 + 0) / 4, (3 / 4 + 1 / 2) / 2, 4 / 6, (4 * 3 / 4 + 2 * 1 / 2) / 6,
    ),
    # class 1 is neither there nor predicted: in no mean
    "absent from both": ([0, 2], [0, 2], 3, 1, 1, 1, 1, 1),
    # the same with ignored pixels, whatever is predicted there
    "ignored pixels": ([0, 2, IGNORED, IGNORED], [0, 2, 1, 0], 3, 1, 1, 1, 1, 1),
    # 0: 1 of 1, one false; 1: 1 of 2
    "confused": ([0, 1, 1], [0, 0, 1], 2, 1 / 2, 1 / 2, (1 + 1 / 2) / 2, 2 / 3, (1 / 2 + 2 * 1 / 2) / 3),
    "all wrong": ([0, 0], [1, 1], 2, 0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_cases(name):
    reference, prediction, num_labels, *expected = GOLDEN[name]
    found = scores(prediction, reference, num_labels)
    names = ("mean_iou", "mmseg_mean_iou", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou")
    assert [found[key] for key in names] == pytest.approx(expected, abs=1e-12)


def patches(rng, num_labels, height, width):
    ids = rng.choice([*range(num_labels), IGNORED], (height // 16, width // 16)).astype(np.uint8)
    return np.kron(ids, np.ones((16, 16), dtype=np.uint8))


@pytest.mark.parametrize("num_labels", [11, 150])
@pytest.mark.parametrize("size", [1, 16])
def test_counts_equal_those_of_evaluate(num_labels, size):
    """Runs of pixels and single pixels: 1 is noise, 16 are patches."""
    rng = np.random.default_rng(num_labels)
    total, counts = 0, np.zeros((256, 256), dtype=np.int64)
    for _ in range(4):
        reference = patches(rng, num_labels, 128, 96)
        prediction = np.where(reference == IGNORED, 0, patches(rng, num_labels, 128, 96) % num_labels)
        if size == 1:
            prediction, reference = (rng.permuted(ids.ravel()).reshape(ids.shape) for ids in (prediction, reference))
        total = total + evaluate_counts(prediction, reference, num_labels)
        counts += confusion_matrix(prediction, reference, 256)
    found = class_counts(valid_part(counts, num_labels))
    assert np.array_equal(found, total)
    right, wanted, predicted = total.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.nanmean(right / (wanted + predicted - right))
    assert scores_from_counts(found)["mmseg_mean_iou"] == pytest.approx(expected, abs=1e-12)
