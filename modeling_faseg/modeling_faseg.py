"""FASeg: Mask2Former with dynamic focus-aware positional queries (DFPQ) and high-resolution cross-attention (HRCA).

Notation: B batch, Q queries, K classes, C channels, H and W of the (padded) image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import FASegAttention
from .backbone_faseg import STRIDES, build_backbone
from .configuration_faseg import FASegConfig
from .deformable_attention import FASegDeformableSelfAttention
from .dfpq_faseg import FASegFocusQueries
from .feature_pyramid_faseg import FASegSimpleFeaturePyramid
from .forms_faseg import image_form
from .loss_faseg import FASegLoss
from .loss_semask import label_maps_of_masks, semantic_map_loss
from .mask_predictions_faseg import MaskProducts
from .pixel_decoder_faseg import FASegConvNorm, FASegPixelDecoder, FASegPixelDecoderLayer
from .position_encoding import FASegConditionalPositionEncoding, FASegLearnedPositionEncoding
from .pretrained import (
    SEGMENTATION_AUTO_CLASSES,
    SegmentationPreTrainedModel,
    backbone_outputs,
    batch_norms,
    check_channels,
    check_image_size,
    check_labels,
    init_as_torch,
    selected_states,
    shared_fields,
)
from .transformer_decoder_faseg import FASegMLP, FASegTransformerDecoder, FASegTransformerDecoderLayer


if TYPE_CHECKING:
    # Never runs. transformers asks again, after a broken download, only for files that the entry file itself names.
    from .backbone_probe import probe  # noqa: F401
    from .backbone_semask import SeMaskSwinBackbone  # noqa: F401
    from .checks import require  # noqa: F401
    from .compiled import CompiledForSizes  # noqa: F401
    from .configuration_semask import SeMaskSwinConfig  # noqa: F401
    from .decisions import Decisions  # noqa: F401
    from .deformable_choice import sampling_form  # noqa: F401
    from .deformable_sampling import sample_maps  # noqa: F401
    from .deformable_triton import sample_by_triton  # noqa: F401
    from .embeddings import all_rows  # noqa: F401
    from .hrca_faseg import FASegWindows  # noqa: F401
    from .loss_terms import check_targets  # noqa: F401
    from .matcher_faseg import FASegHungarianMatcher  # noqa: F401
    from .point_sampling_faseg import sample_points  # noqa: F401


@dataclass
class FASegModelOutput(ModelOutput):
    """Output of `FASegModel`; the fields of transformers' `Mask2FormerModelOutput`, and the focus.

    Args:
        encoder_last_hidden_state: `(B, C5, H/32, W/32)`, the coarsest map of the backbone or its feature pyramid.
        pixel_decoder_last_hidden_state: `(B, M, H/4, W/4)` mask features.
        transformer_decoder_last_hidden_state: `(B, Q, C)` queries after the last layer.
        encoder_hidden_states: the four maps of the backbone or its feature pyramid, fine to coarse
            (`output_hidden_states=True`).
        pixel_decoder_hidden_states: the four decoded maps, coarse to fine (`output_hidden_states=True`).
        transformer_decoder_hidden_states: `(B, Q, C)` per prediction (`output_hidden_states=True`).
        transformer_decoder_intermediate_states: `(B, Q, C)` per prediction after the final norm.
        masks_queries_logits: `(B, Q, H/4, W/4)` per prediction with `output_auxiliary_logits`, else the last alone.
        mask_embeddings: `(B, Q, M)`, whose product with the mask features the masks are, per prediction with
            `output_mask_embeddings`, else the last alone.
        hidden_states: the same as `transformer_decoder_hidden_states`, under the name that Transformers' tools read;
            `output_hidden_states=[0, -1]` keeps those two and has None for the others.
        attentions: `(B, heads, Q, Q)` self-attention weights per layer (`output_attentions=True`, eager attention).
        focus_maps: per layer `(B, Q, H/s, W/s)`, where each query looked (`output_focus=True`).
        positional_queries: per layer `(B, Q, C)`, the positional queries this led to (`output_focus=True`).
        hrca_windows: per layer None or the windows `(B, W)` that HRCA read and their side (`output_focus=True`).
        semantic_maps: `(B, K, H/s, W/s)` per stage, of a backbone that has some (SeMask).
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    masks_queries_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    focus_maps: tuple[Tensor, ...] | None = None
    positional_queries: tuple[Tensor, ...] | None = None
    hrca_windows: tuple | None = None
    mask_embeddings: tuple[Tensor, ...] | None = None
    semantic_maps: tuple[Tensor, ...] | None = None


@dataclass
class FASegForUniversalSegmentationOutput(ModelOutput):
    """Output of `FASegForUniversalSegmentation`; the fields of transformers' Mask2Former, and the focus.

    Args:
        loss: scalar, the weighted sum of `loss_dict` (with labels).
        class_queries_logits: `(B, Q, K + 1)`, the last class being "no object".
        masks_queries_logits: `(B, Q, H/4, W/4)`.
        auxiliary_logits: the earlier predictions, one dictionary of both logits each (`output_auxiliary_logits`).
        loss_dict: the unweighted terms of the loss (with labels).

    The other fields are those of `FASegModelOutput`.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    focus_maps: tuple[Tensor, ...] | None = None
    positional_queries: tuple[Tensor, ...] | None = None
    hrca_windows: tuple | None = None
    loss_dict: dict[str, Tensor] | None = None


class FASegPreTrainedModel(SegmentationPreTrainedModel):
    """Loading, saving and the reference's initialisation."""

    config: FASegConfig
    _no_split_modules = ["FASegPixelDecoderLayer", "FASegTransformerDecoderLayer"]
    _can_record_outputs = {"attentions": OutputRecorder(FASegAttention, index=1, layer_name="self_attn")}

    _auto_classes: ClassVar[tuple[str, ...]] = ("AutoModel",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        gain = self.config.init_xavier_std
        if isinstance(module, (FASegDeformableSelfAttention, FASegLoss, FASegLearnedPositionEncoding)):
            module.reset_parameters()
        elif isinstance(module, FASegTransformerDecoderLayer):
            _init_linears(module, gain)
            for attention in (module.cross_attn, module.self_attn):
                # The reference draws query, key and value as one matrix of three times the rows.
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                    init.xavier_uniform_(projection.weight, gain=gain * 0.5**0.5)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                    _zero_bias(projection)
        elif isinstance(module, FASegPixelDecoderLayer):
            _init_linears(module, gain)
            module.self_attn.reset_parameters()
        elif isinstance(module, FASegPixelDecoder):
            for level in cast(list[FASegConvNorm], module.input_projections):
                init.xavier_uniform_(level.conv.weight, gain=gain)
                _zero_bias(level.conv)
            for conv in (module.lateral_projection.conv, module.output_projection.conv, module.mask_projection):
                init.kaiming_uniform_(conv.weight, a=1)
            _zero_bias(module.mask_projection)
            init.normal_(module.level_embed)
        elif isinstance(module, FASegSimpleFeaturePyramid):
            for each in module.modules():
                if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)):
                    init_as_torch(each)
        elif isinstance(module, FASegTransformerDecoder):
            for conv in cast(list[nn.Conv2d], module.input_projections):
                init.kaiming_uniform_(conv.weight, a=1)
                _zero_bias(conv)
        elif isinstance(module, (FASegFocusQueries, FASegMLP)):
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    init_as_torch(linear)
        elif isinstance(module, FASegConditionalPositionEncoding):
            init_as_torch(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, FASegForUniversalSegmentation):
            init_as_torch(module.class_predictor)
        else:
            super()._init_weights(module)


class FASegModel(FASegPreTrainedModel):
    """Backbone, for plain transformers a feature pyramid, pixel decoder and transformer decoder: images to queries and
    their masks."""

    def __init__(self, config: FASegConfig):
        super().__init__(config)
        config.validate()
        self.backbone = build_backbone(config)
        channels = list(cast(Any, self.backbone).channels)
        self.feature_pyramid: FASegSimpleFeaturePyramid | None = None
        if config.simple_feature_pyramid:
            patch = cast(Any, self.backbone).maps_as_built.strides[-1]
            self.feature_pyramid = FASegSimpleFeaturePyramid(channels[-1], config.feature_size, patch)
            channels = [config.feature_size] * len(STRIDES)
        self.pixel_decoder = FASegPixelDecoder(config, channels)
        self.transformer_decoder = FASegTransformerDecoder(config)
        self.post_init()

    def train(self, mode: bool = True) -> "FASegModel":
        """As torch's, but frozen batch norms of the backbone keep their statistics."""
        super().train(mode)
        if self.config.freeze_backbone_batch_norm:
            for module in batch_norms(self.backbone):
                module.eval()
        return self

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_focus: bool = False,
        output_hidden_states: bool | list[int] | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        output_mask_embeddings: bool = False,
        **kwargs: Any,
    ) -> FASegModelOutput:
        """Arguments are those of `FASegForUniversalSegmentation`, but for labels, and these.

        Args:
            output_attentions: read by `capture_outputs`, which records self-attention weights (eager attention).
            output_mask_embeddings: whether to return the mask embeddings of every layer.
        Raises:
            ValueError: for images whose sides are not multiples of 32.
        """
        check_image_size(pixel_values, pixel_mask, STRIDES[-1])
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)
        self._warn_of_no_attentions(output_attentions)
        valid = None
        if self.config.mask_padding and pixel_mask is not None:
            valid = level_masks(pixel_mask)
        pixel_values = image_form(pixel_values.device)(pixel_values)
        if self.feature_pyramid is not None:
            pixel_values = self.feature_pyramid.images(pixel_values)
        backbone_output = backbone_outputs(self.backbone, pixel_values)
        backbone_maps = list(backbone_output.feature_maps)
        if self.feature_pyramid is not None:
            backbone_maps = self.feature_pyramid(backbone_maps[-1])
        last_map, all_maps = backbone_maps[-1], tuple(backbone_maps) if output_hidden_states else None
        semantic_maps = getattr(backbone_output, "semantic_maps", None)
        del backbone_output  # what nobody asks for is let go as soon as the pixel decoder has read it
        decoded = self.pixel_decoder(backbone_maps, valid)
        queries = self.transformer_decoder(
            decoded.feature_maps,
            decoded.positions,
            decoded.mask_features,
            valid,
            output_auxiliary_logits,
            output_focus,
            output_mask_embeddings,
        )
        focus = queries.focus
        return FASegModelOutput(
            encoder_last_hidden_state=last_map,
            pixel_decoder_last_hidden_state=decoded.mask_features,
            transformer_decoder_last_hidden_state=queries.hidden_states[-1],
            encoder_hidden_states=all_maps,
            pixel_decoder_hidden_states=tuple(decoded.feature_maps) if output_hidden_states else None,
            transformer_decoder_hidden_states=tuple(queries.hidden_states) if output_hidden_states else None,
            transformer_decoder_intermediate_states=tuple(queries.intermediate_states),
            masks_queries_logits=tuple(queries.masks_queries_logits),
            hidden_states=selected_states(queries.hidden_states, output_hidden_states),
            focus_maps=tuple(focus.focus_maps) if focus else None,
            positional_queries=tuple(focus.positional_queries) if focus else None,
            hrca_windows=tuple(focus.hrca_windows) if focus else None,
            mask_embeddings=tuple(queries.mask_embeddings),
            semantic_maps=semantic_maps,
        )


class FASegForUniversalSegmentation(FASegPreTrainedModel):
    """FASeg with its class head and loss, for semantic, instance and panoptic segmentation."""

    _auto_classes = SEGMENTATION_AUTO_CLASSES

    def __init__(self, config: FASegConfig):
        super().__init__(config)
        self.model = FASegModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, cast(int, config.num_labels) + 1)
        self.criterion = FASegLoss(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_focus: bool = False,
        output_hidden_states: bool | list[int] | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FASegForUniversalSegmentationOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)` normalised images; H and W multiples of 32.
            mask_labels: per image `(T, H, W)` masks of 0 and 1; T may be 0.
            class_labels: per image `(T,)` classes in 0..K-1.
            pixel_mask: `(B, H, W)`, 1 on the image and 0 on padding; read with `config.mask_padding` and
                `config.exclude_ignored_pixels`.
            output_focus: whether to return where the queries looked.
            output_hidden_states: whether to return the maps and queries of every stage.
            output_auxiliary_logits: whether to return the predictions of every layer.
            output_attentions: whether to return self-attention weights (needs `attn_implementation="eager"`).
        Raises:
            ValueError: for images whose sides are not multiples of 32, and labels that do not fit them.
        """
        check_channels(pixel_values, getattr(self.model.backbone.config, "num_channels", 3))
        check_labels(pixel_values, mask_labels, class_labels)
        has_labels = mask_labels is not None
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)
        train_auxiliary = has_labels and self.config.use_auxiliary_loss
        if output_attentions is not None:
            kwargs["output_attentions"] = output_attentions
        outputs = self.model(
            pixel_values,
            pixel_mask,
            output_focus,
            output_hidden_states,
            output_auxiliary_logits,
            output_mask_embeddings=train_auxiliary,
            return_dict=True,
            **kwargs,
        )

        states = outputs.transformer_decoder_intermediate_states
        class_logits = [self.class_predictor(states[-1])]
        if output_auxiliary_logits or train_auxiliary:
            class_logits = [*(self.class_predictor(earlier) for earlier in states[:-1]), *class_logits]
        auxiliary_logits = None
        if output_auxiliary_logits:
            auxiliary_logits = [
                {"masks_queries_logits": masks, "class_queries_logits": classes}
                for masks, classes in zip(outputs.masks_queries_logits[:-1], class_logits[:-1])
            ]

        loss, loss_dict = None, None
        if mask_labels is not None and class_labels is not None:
            # Products, not masks: the loss multiplies out what it needs, the masks of a few queries.
            embeddings = outputs.mask_embeddings  # of the final prediction alone without an auxiliary loss
            masks = MaskProducts(_final_first(embeddings), outputs.pixel_decoder_last_hidden_state)
            classes = _final_first(class_logits[-len(embeddings) :])
            loss_dict = self.criterion(masks, classes, mask_labels, class_labels, pixel_mask)
            if outputs.semantic_maps is not None:
                size, ignored = cast(tuple[int, int], tuple(pixel_values.shape[-2:])), self.config.ignore_value
                labels = label_maps_of_masks(mask_labels, class_labels, size, ignored, pixel_values.device)
                weights = self.config.class_weights
                loss_dict["loss_semantic"] = semantic_map_loss(outputs.semantic_maps, labels, ignored, weights)
            loss = self.criterion.weighted_sum(loss_dict)
        shared = shared_fields(outputs, FASegForUniversalSegmentationOutput)
        shared["masks_queries_logits"] = outputs.masks_queries_logits[-1]
        return FASegForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=class_logits[-1],
            auxiliary_logits=auxiliary_logits,
            loss_dict=loss_dict,
            **shared,
        )


def level_masks(pixel_mask: Tensor) -> list[Tensor]:
    """`(B, H, W)` pixel mask to one `(B, 1, H/s, W/s)` bool mask per level, coarse to fine.

    A cell counts as image if its top left pixel does: padding lies right and below, so no image is lost.
    """
    return [pixel_mask[:, None, ::stride, ::stride] > 0 for stride in reversed(STRIDES)]


def _final_first(predictions: Sequence[Tensor]) -> list[Tensor]:
    """The order in which the loss takes predictions."""
    return [predictions[-1], *predictions[:-1]]


def _init_linears(module: nn.Module, gain: float) -> None:
    """Xavier weights for every linear layer inside; biases as torch draws them."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            init_as_torch(linear)
            init.xavier_uniform_(linear.weight, gain=gain)


def _zero_bias(module: nn.Linear | nn.Conv2d) -> None:
    if module.bias is not None:
        init.zeros_(module.bias)


# Saved models carry their code. The image-segmentation pipeline looks models up in transformers' own list, and logs an
# error for those it does not find there.
FASegModel.register_for_auto_class("AutoModel")
FASegForUniversalSegmentation.register_for_auto_class("AutoModelForUniversalSegmentation")
modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES["faseg"] = "FASegForUniversalSegmentation"

__all__ = [
    "FASegForUniversalSegmentation",
    "FASegForUniversalSegmentationOutput",
    "FASegModel",
    "FASegModelOutput",
    "FASegPreTrainedModel",
]
