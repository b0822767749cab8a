"""What is run and timed: image to label map, post-processing alone, a training step, and parts against plain code.

Every run draws fresh random inputs from its seed, the same for every contestant, before the clock starts.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from scripts.benchmarking.contestants import Case, build_model, build_processor, watched_modules
from scripts.benchmarking.measuring import Clock, Stages
from scripts.training.optimization import build_parameter_groups


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
