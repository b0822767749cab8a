"""The floor: the multiply-adds that FASeg needs, over the rate at which the machine multiplies matrices."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForUniversalSegmentation

from scripts.benchmarking.contestants import Case, network_config, watched_modules
from scripts.benchmarking.measuring import in_child
from scripts.benchmarking.parts import BY_RECIPE, FASEG, FASEG_RESNET50, MASK2FORMER_HERE


CORNERS, POINTS, LEVELS = 4, 4, 3  # of a bilinear sample; per head and level; of the deformable encoder


def needed_multiply_adds(case: Case) -> dict[str, int]:
    """Stage -> multiply-adds of one image-to-label-map run at the case's setting, of FASeg or of a Mask2Former here.

    Products, convolutions and attention are counted by torch on tensors without data; bilinear samples of the
    deformable attention and the sum over queries at full size, which is most of post-processing, by formula.
    Elementwise work, norms and resizing count nothing, so this is a floor.
    """
    contestant = case.contestant if case.contestant in (MASK2FORMER_HERE, FASEG_RESNET50, *BY_RECIPE) else FASEG
    one = _counted_once(dataclasses.replace(case, contestant=contestant, device="cpu", batch=1))
    return {stage: case.batch * count for stage, count in one.items()}


@cache
def _counted_once(case: Case) -> dict[str, int]:
    # In a child: what the model caches by size must not hold tensors without data afterwards.
    return in_child(count_multiply_adds, case)


def count_multiply_adds(case: Case) -> dict[str, int]:
    """What `needed_multiply_adds` returns."""
    config = network_config(case)
    counter = FlopCounterMode(display=False)
    # Fused attention is not counted on every device. Built without data, but on a real device for what is no weight:
    # transformers reads rates of drop path as it builds DINOv3.
    with torch.device("meta"):
        model = AutoModelForUniversalSegmentation.from_config(config, attn_implementation="eager")
    model.eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cpu")
        with counter:
            model(pixel_values=torch.zeros(case.batch, 3, case.height, case.width))
    by_module = {name: sum(operators.values()) // 2 for name, operators in counter.get_flop_counts().items()}
    names = {module: name for name, module in model.named_modules()}
    counts = {}
    for stage, module in watched_modules(model, case).items():
        counts[stage] = next(count for name, count in by_module.items() if name.endswith(f".{names[module]}"))
    counts["heads and the rest"] = by_module["Global"] - sum(counts.values())
    counts["pixel decoder"] += _deformable_samples(case, config)
    counts["post-processing"] = semantic_products(case, config.num_queries)
    return counts


def semantic_products(case: Case, queries: int) -> int:
    """Multiply-adds of the sum over queries of class times mask probability, at full size."""
    return case.batch * queries * case.classes * case.height * case.width


def _deformable_samples(case: Case, config: Any) -> int:
    tokens = sum((case.height // stride) * (case.width // stride) for stride in (8, 16, 32))
    return case.batch * config.encoder_layers * tokens * config.feature_size * LEVELS * POINTS * CORNERS
