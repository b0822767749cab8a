"""The work around the model: an image's file to network input, and label maps to the counts behind mIoU."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image

from scripts.benchmarking.contestants import Case, build_processor
from scripts.benchmarking.measuring import Clock, Stages
from scripts.benchmarking.names import EVALUATE
from scripts.benchmarking.workloads import random_batch
from scripts.data.sources import IGNORE_INDEX
from scripts.evaluation.mean_iou import confusion_matrix


SHORTEST_EDGE = 512  # of the network input, so that the processor has to resize


class DataPath:
    """A JPEG file in memory to `pixel_values`: decoded by Pillow, resized and normalised by the contestant."""

    def __init__(self, case: Case):
        self.case = case
        self.processor = build_processor(case, shortest_edge=SHORTEST_EDGE)
        self.clock = Clock(torch.device("cpu"))

    def run(self, seed: int) -> Stages:
        """Seconds per stage."""
        file = random_jpeg(self.case, seed)
        with self.clock.stage("decode"):
            image = Image.open(file).convert("RGB")
        with self.clock.stage("resize and normalise"):
            inputs = self.processor(images=[image], return_tensors="pt")
        if min(inputs["pixel_values"].shape[-2:]) != SHORTEST_EDGE:
            raise RuntimeError(f"{self.case.contestant} made {tuple(inputs['pixel_values'].shape)}")
        return self.clock.take()


class Counting:
    """A prediction and a reference to what mIoU needs, by the project's confusion matrix or by `evaluate`'s counts."""

    def __init__(self, case: Case):
        self.case = case
        self.clock = Clock(torch.device("cpu"))

    def run(self, seed: int) -> Stages:
        """Seconds of the one stage."""
        prediction, reference = random_label_maps(self.case, seed)
        with self.clock.stage("counting"):
            if self.case.contestant == EVALUATE:
                evaluate_counts(prediction, reference, self.case.classes)
            else:
                confusion_matrix(prediction, reference, IGNORE_INDEX + 1)
        return self.clock.take()


def evaluate_counts(prediction: np.ndarray, reference: np.ndarray, num_labels: int) -> np.ndarray:
    """What `evaluate` 0.4.6's mean_iou counts per image, `(3, K)`: pixels right, wanted and predicted."""
    valid = reference != IGNORE_INDEX
    prediction, reference = prediction[valid], reference[valid]
    parts = (prediction[prediction == reference], reference, prediction)
    return np.stack([np.histogram(part, bins=num_labels, range=(0, num_labels - 1))[0] for part in parts])


def random_jpeg(case: Case, seed: int) -> BytesIO:
    """Smooth colours of the case's size with some noise, as detailed as a photograph."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (case.height // 16, case.width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((case.width, case.height), Image.Resampling.BICUBIC))
    noisy = smooth + generator.normal(0, 8, smooth.shape)
    file = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    file.seek(0)
    return file


def random_label_maps(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference `(H, W)` uint8: smooth regions, moved by four pixels, with a void border below."""
    batch = random_batch(case, seed)
    regions = batch["class_labels"][0][batch["mask_labels"][0].argmax(0)].to("cpu", torch.uint8).numpy()
    reference = regions.copy()
    reference[-(case.height // 16) :] = IGNORE_INDEX
    return np.roll(regions, 4, axis=1), reference
