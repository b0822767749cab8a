"""Mean IoU by detectron2's rule, from a confusion matrix; no maps are kept.

The mean is over the classes present in the references, each of true positives / (pixels of the reference + pixels of
the prediction - true positives). Ignored pixels count nowhere.
"""

from typing import Any

import numpy as np


# Runs of at least so many equal pixels on average are counted run by run.
MIN_RUN = 4


def confusion_matrix(prediction: Any, reference: Any, size: int) -> np.ndarray:
    """`(size, size)` int64 counts of pixels by (reference id, predicted id); ids are below `size`.

    Raises:
        ValueError: shapes differ, or an id is not in 0..size-1.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction of shape {prediction.shape} but reference of shape {reference.shape}")
    for name, ids in (("prediction", prediction), ("reference", reference)):
        cannot_differ = ids.dtype == np.uint8 and size >= 256
        if ids.size and not cannot_differ and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ValueError(f"{name} holds ids {ids.min()}..{ids.max()}, need 0..{size - 1}")
    narrow = np.uint16 if size <= 256 else np.uint32
    pairs = reference.astype(narrow).ravel() * narrow(size) + prediction.astype(narrow, copy=False).ravel()
    # Neighbours mostly hold the same pair: count runs, not pixels.
    last = np.flatnonzero(pairs[1:] != pairs[:-1])
    if (len(last) + 1) * MIN_RUN > len(pairs):
        return np.bincount(pairs, minlength=size * size).reshape(size, size)
    last = np.append(last, len(pairs) - 1)
    # Weights are summed in float64, exact below 2**53 pixels.
    counts = np.bincount(pairs[last], weights=np.diff(last, prepend=-1), minlength=size * size)
    return counts.astype(np.int64).reshape(size, size)


def valid_part(
    counts: np.ndarray, num_labels: int, ignore_index: int = 255, reduce_labels: bool = False
) -> np.ndarray:
    """`(num_labels, num_labels + 1)` matrix of valid pixels; the last column holds predictions outside the classes.

    Args:
        counts: square matrix of (reference id, predicted id) counts.
    Raises:
        ValueError: a reference id is neither a class nor ignored.
    """
    first = 1 if reduce_labels else 0
    present = np.flatnonzero(counts.sum(axis=1))
    outside = [i for i in present if i != ignore_index and not first <= i < first + num_labels and not i < first]
    if outside:
        raise ValueError(f"reference id {outside[0]} but {num_labels} classes ({first}..{first + num_labels - 1})")
    size = max(counts.shape[0], num_labels + 2)
    grown = np.zeros((size, size), dtype=np.int64)
    grown[: counts.shape[0], : counts.shape[1]] = counts
    if ignore_index >= 0 and ignore_index < size:
        grown[ignore_index] = 0
    rows = grown[first : first + num_labels]
    return np.concatenate([rows[:, :num_labels], rows[:, num_labels:].sum(axis=1, keepdims=True)], axis=1)


def class_counts(valid: np.ndarray) -> np.ndarray:
    """`(3, num_labels)` pixels per class of a `valid_part`: true positives, of the reference, predicted."""
    num_labels = valid.shape[0]
    square = valid[:, :num_labels]
    return np.stack([np.diag(square), valid.sum(axis=1), square.sum(axis=0)])


def scores_from_counts(counts: np.ndarray) -> dict[str, Any]:
    """Scores of `class_counts`, summed over any number of maps.

    Returns:
        Classes without reference pixels are nan and in no mean (detectron2's rule), but for `mmseg_mean_iou`, the mean
        over all classes in references or predictions (mmsegmentation's `intersect_and_union` with `nan_to_num` unset;
        also `evaluate`'s mean_iou and the macro Jaccard index of torchmetrics).
    """
    true_positives, reference, predicted = counts.astype(np.float64)
    union = reference + predicted - true_positives
    present = reference > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(present, true_positives / union, np.nan)
        accuracy = np.where(present, true_positives / reference, np.nan)
    anything = bool(present.any())
    return {
        "mean_iou": float(iou[present].mean()) if anything else float("nan"),
        "mean_accuracy": float(accuracy[present].mean()) if anything else float("nan"),
        "overall_accuracy": float(true_positives.sum() / reference.sum()) if anything else float("nan"),
        "frequency_weighted_iou": (
            float((iou * reference)[present].sum() / reference.sum()) if anything else float("nan")
        ),
        "mmseg_mean_iou": float((true_positives / union.clip(1))[union > 0].mean()) if anything else float("nan"),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


def scores_from_confusion(valid: np.ndarray) -> dict[str, Any]:
    """`scores_from_counts` of a `valid_part`, or of a square matrix whose predictions are all classes."""
    return scores_from_counts(class_counts(valid))
