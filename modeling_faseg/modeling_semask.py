"""SeMask-FPN: the SeMask Swin backbone, a Semantic-FPN decoder, and a decoder without parameters for semantic maps.

Notation: B batch, K classes, H and W of the image, h = ceil(H / 4), w = ceil(W / 4).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto import modeling_auto
from transformers.utils.generic import can_return_tuple

from .backbone_semask import SeMaskSwinBackbone
from .configuration_semask import SeMaskConfig
from .loss_semask import (
    check_label_maps,
    doubled,
    label_maps_of_masks,
    pixel_loss,
    resized,
    sum_semantic_maps,
)
from .pretrained import (
    SEGMENTATION_AUTO_CLASSES,
    SegmentationPreTrainedModel,
    backbone_outputs,
    check_channels,
    check_labels,
)


if TYPE_CHECKING:
    # Never runs. transformers asks again, after a broken download, only for files that the entry file itself names.
    from .checks import require  # noqa: F401
    from .compiled import CompiledForSizes  # noqa: F401
    from .loss_terms import check_targets  # noqa: F401


@dataclass
class SeMaskSemanticSegmenterOutput(SemanticSegmenterOutput):
    """Output of `SeMaskForSemanticSegmentation`: transformers' `SemanticSegmenterOutput`, and the semantic maps.

    Args:
        loss: scalar, `loss_cross_entropy` and the weighted `loss_semantic` (with labels).
        logits: `(B, K, h, w)`.
        auxiliary_logits: `(B, K, h, w)`, the sum of the semantic maps.
        semantic_maps: `(B, K, H/s, W/s)` of every stage, fine to coarse.
        loss_dict: the unweighted terms of the loss (with labels).
    """

    auxiliary_logits: Tensor | None = None
    semantic_maps: tuple[Tensor, ...] | None = None
    loss_dict: dict[str, Tensor] | None = None


class SeMaskConvNorm(nn.Module):
    """Convolution of 3x3, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(maps)).relu()


class SeMaskFPNDecoder(nn.Module):
    """Semantic FPN: each stage's map is brought to stride 4 by convolutions and doublings, and all are summed."""

    def __init__(self, config: SeMaskConfig, channels: list[int]):
        super().__init__()
        width = config.decoder_hidden_size
        self.stages = nn.ModuleList(
            nn.ModuleList(SeMaskConvNorm(width if step else own, width) for step in range(max(stage, 1)))
            for stage, own in enumerate(channels)
        )
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = nn.Conv2d(width, cast(int, config.num_labels), 1)

    def forward(self, feature_maps: tuple[Tensor, ...]) -> Tensor:
        """Maps `(B, C, H/s, W/s)`, fine to coarse -> logits `(B, K, h, w)`."""
        size = feature_maps[0].shape[-2:]
        summed: Tensor | None = None
        for stage, (maps, convolutions) in enumerate(zip(feature_maps, self.stages)):
            for convolution in cast(nn.ModuleList, convolutions):
                maps = convolution(maps)
                maps = doubled(maps) if stage else maps
            summed = maps if summed is None else summed + resized(maps, size)
        return self.classifier(self.dropout(summed))


class SeMaskPreTrainedModel(SegmentationPreTrainedModel):
    """Loading, saving and the reference's initialisation; the backbone has its own."""

    config: SeMaskConfig
    _no_split_modules = ["SeMaskSwinBlock", "SeMaskSemanticLayer"]
    _auto_classes = SEGMENTATION_AUTO_CLASSES

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SeMaskConvNorm):
            init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, SeMaskFPNDecoder):
            init.normal_(module.classifier.weight, std=0.01)
            init.zeros_(cast(Tensor, module.classifier.bias))
        elif not isinstance(module, nn.Conv2d):
            super()._init_weights(module)


class SeMaskForSemanticSegmentation(SeMaskPreTrainedModel):
    """SeMask-FPN for semantic segmentation, with its loss."""

    def __init__(self, config: SeMaskConfig):
        super().__init__(config)
        config.validate()
        backbone_config = cast(Any, config.backbone_config)
        # A saved model's configuration may come from another copy of the code than the model does.
        AutoBackbone.register(type(backbone_config), SeMaskSwinBackbone, exist_ok=True)
        self.backbone = AutoBackbone.from_config(backbone_config)
        self.decoder = SeMaskFPNDecoder(config, list(self.backbone.channels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SeMaskSemanticSegmenterOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)` normalised images of any size.
            labels: `(B, H, W)` classes in 0..K-1, or `config.ignore_value`.
            pixel_mask: accepted because the processor gives it; padding is treated as image (reference).
            output_hidden_states: whether to return the backbone's maps before their norms.
            output_attentions: whether to return its window attention (needs `attn_implementation="eager"`).
            kwargs: `mask_labels` and `class_labels`, as the processor gives them, are taken in place of `labels`: per
                image `(T, H, W)` masks of 0 and 1, and `(T,)` classes. They are no parameters of their own, because
                transformers' Trainer evaluates only batches that have all parameters named labels.
        Raises:
            ValueError: labels of other sizes than the images, or outside the classes.
        """
        mask_labels, class_labels = kwargs.pop("mask_labels", None), kwargs.pop("class_labels", None)
        check_channels(pixel_values, cast(Any, self.config.backbone_config).num_channels)
        check_labels(pixel_values, mask_labels, class_labels)
        if mask_labels is not None and class_labels is not None:
            size = cast(tuple[int, int], tuple(pixel_values.shape[-2:]))
            labels = label_maps_of_masks(
                mask_labels, class_labels, size, self.config.ignore_value, pixel_values.device
            )
        if labels is not None:
            labels = labels.long()
            self._check_labels(pixel_values, labels)
        if output_attentions is not None:
            kwargs["output_attentions"] = output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kwargs |= {"output_hidden_states": output_hidden_states, "return_dict": True}
        outputs = backbone_outputs(self.backbone, pixel_values, **kwargs)
        logits = self.decoder(outputs.feature_maps)
        auxiliary_logits = sum_semantic_maps(outputs.semantic_maps)
        loss, loss_dict = None, None
        if labels is not None:
            ignored, weights = self.config.ignore_value, self.config.class_weights
            loss_dict = {
                "loss_cross_entropy": pixel_loss(logits, labels, ignored, self.config.ohem_min_kept, weights),
                "loss_semantic": pixel_loss(auxiliary_logits, labels, ignored, class_weights=weights),
            }
            loss = loss_dict["loss_cross_entropy"] + self.config.auxiliary_loss_weight * loss_dict["loss_semantic"]
        return SeMaskSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            auxiliary_logits=auxiliary_logits,
            semantic_maps=outputs.semantic_maps,
            loss_dict=loss_dict,
        )

    def _check_labels(self, pixel_values: Tensor, labels: Tensor) -> None:
        expected = (len(pixel_values), *pixel_values.shape[-2:])
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels are of shape {tuple(labels.shape)}, need {expected}: one id per pixel")
        classes, semantic = cast(int, self.config.num_labels), cast(Any, self.config.backbone_config)
        if semantic.num_semantic_classes < classes:
            raise ValueError(
                f"num_semantic_classes={semantic.num_semantic_classes} of backbone_config but {classes} classes: "
                f"the auxiliary loss needs num_semantic_classes={classes}"
            )
        check_label_maps(labels, classes, self.config.ignore_value)


# Saved models carry their code. The image-segmentation pipeline looks models up in transformers' own list, and logs an
# error for those it does not find there.
SeMaskForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["semask"] = "SeMaskForSemanticSegmentation"

__all__ = ["SeMaskForSemanticSegmentation", "SeMaskPreTrainedModel", "SeMaskSemanticSegmenterOutput"]
