"""The parts of the benchmark: what is compared at which setting, and what it must show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.cli.errors import UserError


if TYPE_CHECKING:
    from scripts.benchmarking.contestants import Case


FASEG = "FASeg"
MASK2FORMER = "HF Mask2Former"
MASK2FORMER_HERE = "Mask2Former here"  # the same weights, run by this project
# After "FASeg" any of these words: what is done to the model once it is built.
VARIANT_WORDS = ("bf16", "fp16", "compiled", "kernels", "frozen", "grid")
# FASeg of the released width, and narrow ones by their recipes: each with its own backbone and queries.
FASEG_RESNET50 = "FASeg ResNet-50"
BY_RECIPE = {"FASeg MobileNetV2": "faseg-mobilenetv2-camvid", "FASeg light": "faseg-light-mobilenetv2-camvid"}
CONTEXT = ("HF SegFormer-B2", "HF EoMT-L")
PLAIN = "plain implementation"
EVALUATE = "evaluate's algorithm"
BF16 = "FASeg bf16"
FROZEN = "FASeg frozen"  # its backbone learns nothing
TASKS = {
    "inference": "image to label map",
    "sizes": "image to label map, FASeg of several sizes",
    "post-processing": "post-processing alone",
    "training": "training step",
    "matcher": "matching, all predictions",
    "loss": "matching and loss, forward and backward",
    "decoder": "transformer decoder, forward and backward",
    "data-path": "JPEG to network input",
    "counting": "label maps to the counts behind mIoU",
}
WITH_BACKBONE = ("inference", "training", "decoder")


@dataclass(frozen=True)
class Target:
    """What a contestant must show against the part's baseline."""

    contestant: str
    at_least: float
    at_most_memory: float | None = None


@dataclass(frozen=True)
class Part:
    """One table: a kind of work at one setting."""

    kind: str
    setting: dict[str, Any]
    contestants: tuple[str, ...]
    baseline: str = MASK2FORMER
    targets: tuple[Target, ...] = ()
    weighed: bool = True

    def title(self, case: Case) -> str:
        """What is run, in words."""
        backbone = "" if self.kind not in WITH_BACKBONE else f"{case.backbone}, "
        size = f"{case.height}x{case.width}, {case.classes} classes, batch {case.batch}"
        return f"{TASKS[self.kind]}, {backbone}{'tiny, ' if case.quick else ''}{size}"


SMALL: dict[str, Any] = {"height": 512, "width": 512, "classes": 150}
LARGE: dict[str, Any] = {"height": 1024, "width": 2048, "classes": 19}
SWIN: dict[str, Any] = {"backbone": "Swin-T"}
VIT: dict[str, Any] = {"backbone": "DINOv3 ViT-B"}
EXACT = (FASEG, MASK2FORMER)
SAME_WEIGHTS = (MASK2FORMER_HERE, MASK2FORMER)
PRECISIONS = (FASEG, BF16, MASK2FORMER)
SIZES = (FASEG_RESNET50, *BY_RECIPE)
PLAIN_SETTING = {**SMALL, "batch": 2}

MUST_SHOW = {
    "resnet50-512": Part(
        "inference",
        SMALL,
        PRECISIONS,
        targets=(Target(FASEG, 2.5, 0.35), Target(BF16, 3.0)),
    ),
    "resnet50-1024x2048": Part("inference", LARGE, EXACT, targets=(Target(FASEG, 3.0, 0.5),)),
    "swin-tiny-512": Part("inference", {**SMALL, **SWIN}, PRECISIONS),
    "post-processing": Part(
        "post-processing",
        {"height": 1536, "width": 2048, "classes": 150},
        (FASEG, MASK2FORMER),
        targets=(Target(FASEG, 3.0, 0.1),),
    ),
    "training": Part("training", {**SMALL, "batch": 2}, (FASEG, MASK2FORMER), targets=(Target(FASEG, 1.3, 0.6),)),
    "matcher": Part("matcher", PLAIN_SETTING, (FASEG, PLAIN), PLAIN, (Target(FASEG, 2.5),)),
    "loss": Part("loss", PLAIN_SETTING, (FASEG, PLAIN), PLAIN, (Target(FASEG, 1.8),)),
    "decoder": Part("decoder", PLAIN_SETTING, (FASEG, PLAIN), PLAIN, (Target(FASEG, 5.0),)),
    "data-path": Part("data-path", LARGE, (FASEG, MASK2FORMER), targets=(Target(FASEG, 1.0),), weighed=False),
    "counting": Part("counting", LARGE, (FASEG, EVALUATE), EVALUATE, (Target(FASEG, 10.0),), weighed=False),
}
FURTHER = {
    **{
        f"mask2former-{backbone}-{size}": Part(
            "inference", {**setting, **of_backbone}, SAME_WEIGHTS, targets=(Target(MASK2FORMER_HERE, speed, 0.35),)
        )
        for backbone, of_backbone, speed in (("resnet50", {}, 1.9), ("swin-tiny", SWIN, 1.75))
        for size, setting in (("512", SMALL), ("1024x2048", LARGE))
    },
    "swin-tiny-1024x2048": Part("inference", {**LARGE, **SWIN}, EXACT),
    "swin-tiny-training": Part("training", {**SMALL, **SWIN, "batch": 2}, (FASEG, MASK2FORMER)),
    "dinov3-vit-base-training": Part("training", {**SMALL, **VIT, "batch": 2}, (FROZEN, FASEG), FASEG),
    "resnet50-512-batch8": Part("inference", {**SMALL, "batch": 8}, PRECISIONS),
    "resnet50-512-batch16": Part("inference", {**SMALL, "batch": 16}, PRECISIONS),
    "resnet50-1024x2048-batch8": Part("inference", {**LARGE, "batch": 8}, EXACT),
    "sizes-360x480": Part("sizes", {"height": 360, "width": 480, "classes": 11}, SIZES, FASEG_RESNET50),
    "sizes-512": Part("sizes", SMALL, SIZES, FASEG_RESNET50),
    "compiled-512": Part("inference", SMALL, (FASEG, "FASeg compiled", MASK2FORMER)),
    "context-512": Part("inference", SMALL, (FASEG, MASK2FORMER, *CONTEXT)),
    "context-1024x2048": Part("inference", LARGE, (FASEG, MASK2FORMER, *CONTEXT)),
}
PARTS = {**MUST_SHOW, **FURTHER}
ON_CUDA = (BF16, "FASeg fp16", "FASeg compiled", "FASeg bf16 compiled", "FASeg kernels", "FASeg grid")


def scaling_file(plot: Path) -> Path:
    """Where the plot of the scaling lies beside the other."""
    return plot.with_name(f"{plot.stem}-scaling{plot.suffix}")


def check_contestant(name: str) -> None:
    """Refuses names that are none of the contestants'.

    Raises:
        UserError: names it.
    """
    first, *words = name.split() or [""]
    named = (*SAME_WEIGHTS, *CONTEXT, *SIZES)
    known = name in named or (first == FASEG and all(word in VARIANT_WORDS for word in words))
    if not known:
        raise UserError(
            f"--contestants {name!r}: choose {', '.join(map(repr, named))} or {FASEG!r} followed "
            f"by any of {', '.join(VARIANT_WORDS)}"
        )


@dataclass
class Effort:
    """How much is measured."""

    device: str
    repetitions: int
    seconds: float
    quick: bool
    memory: bool
