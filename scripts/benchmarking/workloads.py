"""What is run and timed: image to label map, post-processing alone, a training step, and the work around the model.

Every run draws fresh random inputs from its seed, the same for every contestant, before the clock starts.
"""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from scripts.benchmarking.contestants import Case, build_model, build_processor, watched_modules
from scripts.benchmarking.measuring import Clock, Stages
from scripts.benchmarking.parts import EVALUATE
from scripts.data.ignored import IGNORE_INDEX
from scripts.evaluation.mean_iou import confusion_matrix
from scripts.training.optimization import build_parameter_groups


SHORTEST_EDGE = 512  # of the network input of `DataPath`, so that the processor has to resize


class Inference:
    """Images to label maps of their size: processor, model, post-processing."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.model, self.processor = build_model(case), build_processor(case)
        self.clock = Clock(self.device)
        for name, module in watched_modules(self.model, case).items():
            self.clock.watch(name, module)

    def run(self, seed: int) -> Stages:
        """Seconds per stage."""
        case, clock = self.case, self.clock
        images = random_images(case, seed)
        with torch.no_grad():
            with clock.stage("processor"):
                inputs = self.processor(images=images, return_tensors="pt")
                pixel_values = inputs["pixel_values"].to(self.device, case.dtype)
                further = {key: inputs[key] for key in ("patch_offsets",) if key in inputs}
            with clock.stage("model"):
                outputs = self.model(pixel_values=pixel_values, **further)
            with clock.stage("post-processing"):
                maps = self.processor.post_process_semantic_segmentation(
                    outputs, target_sizes=[(case.height, case.width)] * case.batch
                )
        if len(maps) != case.batch or tuple(maps[0].shape) != (case.height, case.width):
            raise RuntimeError(f"{case.contestant} returned {len(maps)} maps of {tuple(maps[0].shape)}")
        return Clock.split(clock.take(), "model", "heads and the rest")


class PostProcessing:
    """Random logits at a quarter of the size to the label map."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.processor = build_processor(case)
        self.clock = Clock(self.device)

    def run(self, seed: int) -> Stages:
        """Seconds of the one stage."""
        case = self.case
        generator = torch.Generator().manual_seed(seed)
        masks = torch.randn(case.batch, case.queries, case.height // 4, case.width // 4, generator=generator)
        classes = torch.randn(case.batch, case.queries, case.classes + 1, generator=generator)
        outputs = SimpleNamespace(
            masks_queries_logits=masks.to(self.device), class_queries_logits=classes.to(self.device)
        )
        sizes = [(case.height, case.width)] * case.batch
        with torch.no_grad(), self.clock.stage("post-processing"):
            self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return self.clock.take()


class TrainingStep:
    """Forward, loss, backward, AdamW with clipping; batch norms of the backbone frozen in every contestant."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        model: Any = build_model(case)
        self.model: Any = model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(build_parameter_groups(self.model, 1e-4, 0.05))
        self.clock = Clock(self.device)
        self.clock.watch("loss", self.model.criterion)

    def run(self, seed: int) -> Stages:
        """Seconds per stage."""
        clock = self.clock
        batch = random_batch(self.case, seed)
        with clock.stage("model"):
            loss = self.model(**batch).loss
        with clock.stage("backward"):
            loss.backward()
        with clock.stage("optimiser"):
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, 0.01)
            self.optimizer.step()
            self.optimizer.zero_grad()
        stages = Clock.split(clock.take(), "model", "forward")
        return {name: stages[name] for name in ("forward", "loss", "backward", "optimiser")}


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


def random_images(case: Case, seed: int) -> list[Image.Image]:
    """RGB noise."""
    generator = np.random.default_rng(seed)
    shape = (case.batch, case.height, case.width, 3)
    return [Image.fromarray(image) for image in generator.integers(0, 256, shape, dtype=np.uint8)]


def random_batch(case: Case, seed: int, targets: int = 10) -> dict[str, Any]:
    """Normalised noise with `targets` classes per image, in smooth regions that cover it."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(case.batch, 3, case.height, case.width, generator=generator)
    targets = min(targets, case.classes)
    mask_labels, class_labels = [], []
    for _ in range(case.batch):
        coarse = torch.randn(1, targets, 8, 8, generator=generator)
        regions = nn.functional.interpolate(coarse, size=(case.height, case.width), mode="bicubic").argmax(1)
        masks = regions == torch.arange(targets)[:, None, None]
        mask_labels.append(masks.float().to(case.device))
        class_labels.append(torch.randperm(case.classes, generator=generator)[:targets].to(case.device))
    return {"pixel_values": pixels.to(case.device), "mask_labels": mask_labels, "class_labels": class_labels}


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
