"""Error reports of predictions that are told, for the tests of their figures and of their look."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from accelerate import Accelerator
from PIL import Image

from scripts.error_report.report import ErrorReport
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion, valid_part
from scripts.evaluation.results import build_results


NAMES = {0: "road & <kerb>", 1: "car", 2: "sky's", 3: 'a "pole"'}


class Told:
    """Predicts what it was told, pair by pair."""

    def __init__(self, *pairs):
        self.pairs = list(pairs)

    def with_confidence(self, image):
        labels, confidence = self.pairs.pop(0)
        return labels, confidence.astype(np.float32)


def told_image(seed, num_labels=4, shape=(24, 33), cell=5):
    """Label map of patches, some ignored; prediction; confidence: sure where right, as a rule."""
    rng = np.random.default_rng(seed)
    ids = np.array([*range(num_labels), 255], dtype=np.uint8)
    patches = ids[rng.integers(0, len(ids), (-(-shape[0] // cell), -(-shape[1] // cell)))]
    label = np.kron(patches, np.ones((cell, cell), dtype=np.uint8))[: shape[0], : shape[1]]
    wrong = rng.random(shape) < 0.3
    prediction = np.where(wrong | (label == 255), rng.integers(0, num_labels, shape), label).astype(np.uint8)
    return label, prediction, np.clip(0.8 - 0.3 * wrong + 0.15 * rng.standard_normal(shape), 0.25, 1)


def write_page(file, images, names=NAMES, model_type="faseg"):
    """The text of the page of told images, which is written to `file`, and their confusion matrix."""
    counters = {}
    told = Told(*((prediction, confidence) for _, prediction, confidence in images))
    report = ErrorReport(len(names), told, counters)
    counts = np.zeros((256, 256), dtype=np.int64)
    for index, (label, *_) in enumerate(images):
        pixels = np.random.default_rng(index).integers(0, 256, (*label.shape, 3), dtype=np.uint8)
        sample = {"image": Image.fromarray(pixels), "label": label, "name": f"p{index}", "index": index}
        prediction = report.predictor(sample["image"])
        for counter in counters.values():
            counter.add(sample, prediction)
        counts += confusion_matrix(prediction, label, 256)
    report.gather(Accelerator())
    confusion = valid_part(counts, len(names))
    facts = {
        "dataset": "told", "split": "validation", "images": len(images), "skipped": [], "checkpoint": "model",
        "weights_sha256": None, "protocol": {"name": "native"}, "mixed_precision": "no",
    }  # fmt: skip
    results = build_results(scores_from_confusion(confusion), names, **facts) | {"command": "eval.py"}
    report.write(Path(file), results, confusion, SimpleNamespace(id2label=names, model_type=model_type))
    return Path(file).read_text(), confusion


def section(page, anchor):
    """A part of the page."""
    return re.search(f'<section id="{anchor}">(.*?)</section>', page, re.DOTALL)[1]
