"""Mean IoU by detectron2's rule, on cases worked by hand."""

import math

import evaluate
import numpy as np
import pytest

from scripts.evaluation.mean_iou import MeanIoU, confusion_matrix, scores_from_confusion, valid_part


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


def test_metric_loads_by_path_and_keeps_no_maps(pytestconfig):
    metric = evaluate.load(str(pytestconfig.rootpath / "scripts" / "evaluation" / "mean_iou.py"))
    maps = [(np.array([[0, 0], [1, 1]]), np.array([[0, 0], [0, 1]])), (np.array([[1, 300]]), np.array([[1, 255]]))]
    for prediction, reference in maps:
        metric.add(prediction=prediction, reference=reference)
    added = metric.compute(num_labels=2)
    at_once = metric.compute(predictions=[p for p, _ in maps], references=[r for _, r in maps], num_labels=2)
    assert added == at_once
    assert added["per_category_iou"] == pytest.approx([2 / 3, 2 / 3])
    metric.add_batch(predictions=[maps[0][0]], references=[maps[0][1]])
    assert metric.compute(num_labels=2)["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_metric_counts_add_up():
    metric = MeanIoU()
    assert metric.counts.sum() == 0
    metric.add(prediction=np.zeros((3, 3), dtype=int), reference=np.zeros((3, 3), dtype=int))
    assert metric.counts[0, 0] == 9
