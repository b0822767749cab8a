"""The models that are compared, all with random weights: FASeg in its variants, and transformers' models.

FASeg and Mask2Former get the same backbone configuration, 100 queries and as many classes; each is run with its own
image processor. "Mask2Former here" is that Mask2Former with its weights, run as a FASeg without DFPQ and HRCA.
SegFormer-B2 and EoMT (ViT-L, its released size) stand beside them for context.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForUniversalSegmentation, EomtConfig, Mask2FormerConfig, SegformerConfig
from transformers.models.eomt import EomtForUniversalSegmentation, EomtImageProcessor
from transformers.models.mask2former import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor
from transformers.models.segformer import SegformerForSemanticSegmentation, SegformerImageProcessor

import modeling_faseg  # noqa: F401 - registers the models
from configuration import FASegConfig
from image_processing import FASegImageProcessor
from modeling_faseg.deformable_attention import set_sampling_form
from scripts.benchmarking.parts import BY_RECIPE, FASEG, FASEG_RESNET50, MASK2FORMER, MASK2FORMER_HERE
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, read_recipe
from scripts.models import mask2former
from scripts.training.arguments import TrainArguments


BACKBONES = {
    "ResNet-50": "faseg-resnet50-ade20k",
    "Swin-T": "faseg-swin-tiny-ade20k",
    "DINOv3 ViT-B": "faseg-dinov3-vit-base-ade20k",
}

# `--quick`: everything runs, nothing takes long, no figure means anything.
TINY_BACKBONES: dict[str, dict[str, Any]] = {
    "ResNet-50": {
        "embedding_size": 8,
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "Swin-T": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 4], "window_size": 4},
    "DINOv3 ViT-B": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
}
TINY_HEAD = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "num_attention_heads": 4,
    "train_num_points": 64,
}


@dataclass(frozen=True)
class Case:
    """One contestant at one setting; sizes in pixels."""

    contestant: str
    backbone: str = "ResNet-50"
    height: int = 512
    width: int = 512
    classes: int = 150
    batch: int = 1
    queries: int = 100
    device: str = "cpu"
    quick: bool = False

    @property
    def is_faseg(self) -> bool:
        """Whether the model is this project's."""
        return self.contestant.split()[0] == FASEG or self.contestant == MASK2FORMER_HERE

    @property
    def is_frozen(self) -> bool:
        """Whether its backbone learns nothing in a training step."""
        return "frozen" in self.contestant.split()

    @property
    def has_own_floor(self) -> bool:
        """Whether it needs other multiply-adds than the part's baseline: it is another network, or partly frozen."""
        return self.is_frozen or self.contestant in BY_RECIPE or self.own_backbone != self.backbone

    @property
    def own_backbone(self) -> str:
        """Its backbone: the part's, unless its name says another."""
        return "ResNet-50" if self.contestant == FASEG_RESNET50 else self.backbone

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and pixel values."""
        words = self.contestant.split()
        return torch.bfloat16 if "bf16" in words else torch.float16 if "fp16" in words else torch.float32


def faseg_config(case: Case) -> Any:
    """Configuration of the released model with the case's classes and queries; a recipe's has its own queries."""
    if recipe := BY_RECIPE.get(case.contestant):
        overrides = read_recipe(recipe, [field.name for field in fields(TrainArguments)])["config_overrides"]
        return FASegConfig(**{**overrides, "num_labels": case.classes})
    config = AutoConfig.from_pretrained(PROJECT_ROOT / "hub_cards" / BACKBONES[case.own_backbone])
    values = {key: value for key, value in config.to_dict().items() if key not in ("id2label", "label2id")}
    values |= {"num_labels": case.classes, "num_queries": case.queries}
    if case.quick:
        values["backbone_config"] = {**values["backbone_config"], **TINY_BACKBONES[case.own_backbone]}
        values |= TINY_HEAD | {"decoder_layers": 5, "high_resolution_reduction": 4}
    return type(config)(**values)


def mask2former_config(case: Case) -> Mask2FormerConfig:
    """Transformers' defaults, but for backbone, classes and queries."""
    values: dict[str, Any] = {"num_labels": case.classes, "num_queries": case.queries}
    if case.quick:
        values |= {"decoder_layers": 4, **TINY_HEAD}
    return Mask2FormerConfig(backbone_config=faseg_config(case).backbone_config, **values)


def network_config(case: Case) -> Any:
    """Configuration of this project's network at the case's setting."""
    if case.contestant == MASK2FORMER_HERE:
        return mask2former.faseg_config(mask2former_config(case), "semantic")
    return faseg_config(case)


def build_model(case: Case) -> nn.Module:
    """The model in evaluation mode on its device.

    Raises:
        UserError: a variant that this machine or this version cannot do; the reason stands in it.
    """
    torch.manual_seed(0)
    if case.contestant == MASK2FORMER_HERE:
        theirs = Mask2FormerForUniversalSegmentation(mask2former_config(case))
        model = AutoModelForUniversalSegmentation.from_config(network_config(case))
        model.load_state_dict(mask2former.renamed(theirs.state_dict()))
    elif case.is_faseg:
        model = AutoModelForUniversalSegmentation.from_config(network_config(case))
    elif case.contestant.startswith(MASK2FORMER):
        model = Mask2FormerForUniversalSegmentation(mask2former_config(case))
    elif case.contestant == "HF SegFormer-B2":
        model = SegformerForSemanticSegmentation(segformer_config(case))
    else:
        values: dict[str, Any] = {"image_size": min(case.height, case.width), "num_labels": case.classes}
        if case.quick:
            values |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
        model = EomtForUniversalSegmentation(EomtConfig(num_queries=case.queries, **values))
    model = model.to(case.device, case.dtype).eval()
    return as_variant(model, case.contestant)


def segformer_config(case: Case) -> SegformerConfig:
    """MiT-B2 with its decoder of 768 channels."""
    values: dict[str, Any] = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}
    if case.quick:
        values = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32}
    values["num_labels"] = case.classes
    return SegformerConfig(**values)


def as_variant(model: Any, contestant: str) -> nn.Module:
    """`model` with the switch of its name thrown."""
    words = contestant.split()
    if "frozen" in words:  # see `Case.is_frozen`
        model.base_model.backbone.requires_grad_(False)
    if "compiled" in words:
        model.compile()
    if "grid" in words:  # deformable attention by grid_sample, where a GPU would take the Triton kernel
        set_sampling_form(model, "grid")
    if "kernels" in words:
        try:
            model.use_kernels = True
        except (ImportError, ValueError, OSError, RuntimeError) as error:
            raise UserError(" ".join(str(error).split())[:120]) from error
    return model


def build_processor(case: Case, shortest_edge: int | None = None) -> Any:
    """The contestant's own processor, set to `shortest_edge`, by default to keep images of the case's size."""
    short, long = sorted((case.height, case.width))
    short = shortest_edge or short
    edges = {"shortest_edge": short, "longest_edge": max(long, 4 * short)}
    if case.is_faseg:
        return FASegImageProcessor(size=edges)
    if case.contestant.startswith(MASK2FORMER):
        return Mask2FormerImageProcessor(size=edges)
    if case.contestant == "HF SegFormer-B2":
        return SegformerImageProcessor(size={"height": case.height, "width": case.width})
    return EomtImageProcessor(size={"shortest_edge": short}, do_split_image=True)


def watched_modules(model: Any, case: Case) -> dict[str, nn.Module]:
    """The parts that are timed on their own; none where that would break a graph or there is no such part."""
    if "compiled" in case.contestant:
        return {}
    if case.is_faseg:
        parts = (model.model.backbone, model.model.pixel_decoder, model.model.transformer_decoder)
    elif case.contestant.startswith(MASK2FORMER):
        level = model.model.pixel_level_module
        parts = (level.encoder, level.decoder, model.model.transformer_module)
    else:
        return {}
    return dict(zip(("backbone", "pixel decoder", "transformer decoder"), parts))
