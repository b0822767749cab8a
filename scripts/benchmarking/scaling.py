"""Cost and memory against width, queries, classes and batch; what training needs, and what fits into which GPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForUniversalSegmentation

from scripts.benchmarking.comparing import provenance, weigh
from scripts.benchmarking.contestants import Case
from scripts.benchmarking.measuring import Run, in_child, interleave, matmul_rate, quartiles
from scripts.benchmarking.parts import FASEG, MASK2FORMER, Effort
from scripts.benchmarking.workloads import Inference, random_batch
from scripts.cli.parser import PROJECT_ROOT, RECIPES
from scripts.training.memory import saved_storages


AXES: dict[str, tuple[int, ...]] = {
    "width": (512, 1024, 2048, 4096),
    "queries": (50, 100, 200, 400),
    "classes": (19, 150, 847),
    "batch": (1, 2, 4, 8),
}
QUICK_AXES: dict[str, tuple[int, ...]] = {"width": (64, 128), "classes": (3, 5)}
GIGABYTES = (8, 16, 24, 80)
BYTES_OF_WEIGHTS, BYTES_OF_LEARNING = 4, 12  # per parameter: float32; its gradient and AdamW's two moments
RESERVE = 0.15  # of the device, for its context, workspaces and the allocator's gaps


def measure_scaling(effort: Effort) -> dict[str, Any]:
    """One row per axis, value and contestant: quartiles of seconds, peak bytes. The rest is 512x512/150, batch 1."""
    rows = []
    for axis, values in (QUICK_AXES if effort.quick else AXES).items():
        for value in values:
            rows += _point(axis, value, effort)
    return {
        "kind": "scaling",
        "title": "image to label map, ResNet-50, around 512x512, 150 classes",
        "rows": rows,
    } | (provenance(effort))


def _point(axis: str, value: int, effort: Effort) -> list[dict[str, Any]]:
    setting: dict[str, Any] = {"device": effort.device, "quick": effort.quick}
    setting |= {"height": 64, "width": 64, "classes": 5, "queries": 10} if effort.quick else {}
    cases = {name: Case(name, **{**setting, axis: value}) for name in (FASEG, MASK2FORMER)}
    runs: dict[str, Run] = {name: Inference(case).run for name, case in cases.items()}
    device = torch.device(effort.device)
    measured, _ = interleave(runs, min(effort.repetitions, 5), effort.seconds / 4, lambda: matmul_rate(device))
    return [
        {
            "axis": axis,
            "value": value,
            "contestant": name,
            "seconds": quartiles([sum(stages.values()) for stages in rounds]),
            "peak_memory": in_child(weigh, "inference", cases[name]) if effort.memory else None,
        }
        for name, rounds in measured.items()
    ]


# --------------------------------------------------------------------------------------------------- training memory


def measure_training_memory(effort: Effort) -> dict[str, Any]:
    """Per FASeg recipe and precision what training needs, and the largest batch per device that fits into `GIGABYTES`.

    An estimate, the same on every device: 16 bytes per parameter, 4 per frozen one, plus what autograd saves for the
    backward of one forward and loss at batch 1 and 2, extended linearly, with 15 % of the device kept free. Mixed
    precision is measured under bfloat16 autocast; float16 takes as much.
    """
    rows = []
    for recipe in sorted(RECIPES.glob("*.yaml")):
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        if not recipe.stem.startswith("faseg") or "config_name" not in content:
            continue
        size = (64, 64) if effort.quick else (content["crop_height"], content["crop_width"])
        for mixed in (False, True):
            setting = (content["config_name"], content.get("freeze_backbone", False), *size)
            one, two = (in_child(saved_bytes, *setting, batch, mixed, effort.device) for batch in (1, 2))
            rows.append({"recipe": recipe.stem, "height": size[0], "width": size[1], "mixed": mixed} | needs(one, two))
        if effort.quick:
            break
    return {"kind": "training memory", "title": "training memory of the recipes", "rows": rows} | provenance(effort)


def needs(one: dict[str, int] | None, two: dict[str, int] | None) -> dict[str, Any]:
    """State, bytes per image, fixed bytes, and the largest batch per size of device, from batch 1 and 2."""
    if one is None or two is None:
        return {"state": None, "per_image": None, "fixed": None, "largest_batch": {}}
    per_image = two["saved"] - one["saved"]
    fixed = one["state"] + max(0, one["saved"] - per_image)
    largest = {str(size): max(0, int((size * 2**30 * (1 - RESERVE) - fixed) // per_image)) for size in GIGABYTES}
    return {"state": one["state"], "per_image": per_image, "fixed": fixed, "largest_batch": largest}


def saved_bytes(
    config_name: str, freeze_backbone: bool, height: int, width: int, batch: int, mixed: bool, device: str
) -> dict[str, int]:
    """Bytes of `state`, which is weights, and gradients and moments of what learns, and of `saved`, what autograd
    keeps from forward and loss."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(PROJECT_ROOT / config_name)
    model: Any = AutoModelForUniversalSegmentation.from_config(config).to(device)
    if freeze_backbone:
        model.base_model.backbone.requires_grad_(False)
    model.train()
    case = Case(FASEG, height=height, width=width, batch=batch, device=device, classes=config.num_labels)
    inputs = random_batch(case, 0)
    precision = torch.autocast(torch.device(device).type, torch.bfloat16) if mixed else nullcontext()
    with precision, saved_storages([*model.parameters(), *model.buffers()]) as counted:
        model(**inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"state": BYTES_OF_WEIGHTS * parameters + BYTES_OF_LEARNING * learnt, "saved": counted()}
