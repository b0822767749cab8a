"""QLSeg: a plain vision transformer tapped at several depths, a deformable encoder across the taps, and class queries
whose attention to each level is their mask.

Notation: B batch, K classes (one query each), d width of the backbone, D width of the queries, P patch (16), H and W
of the (padded) image.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .backbone_qlseg import QLSegVisionTransformer
from .configuration_qlseg import QLSegConfig
from .decoder_qlseg import QLSegAttention, QLSegDecoder, QLSegDecoderLayer
from .encoder_qlseg import QLSegEncoder
from .loss_qlseg import QLSegLoss
from .pretrained import (
    SEGMENTATION_AUTO_CLASSES,
    SegmentationPreTrainedModel,
    backbone_outputs,
    check_channels,
    check_image_size,
    check_labels,
    check_pixel_mask,
    init_as_torch,
    selected_states,
    shared_fields,
)
from .windows_qlseg import class_scores, sliding_scores


if TYPE_CHECKING:
    # Never runs. transformers asks again, after a broken download, only for files that the entry file itself names.
    from .attention import FASegAttention  # noqa: F401
    from .checks import require  # noqa: F401
    from .compiled import CompiledForSizes  # noqa: F401
    from .decisions import Decisions  # noqa: F401
    from .deformable_attention import FASegDeformableSelfAttention  # noqa: F401
    from .deformable_choice import sampling_form  # noqa: F401
    from .deformable_sampling import sample_maps  # noqa: F401
    from .deformable_triton import sample_by_triton  # noqa: F401
    from .embeddings import all_rows  # noqa: F401
    from .loss_terms import check_targets  # noqa: F401
    from .position_encoding import FASegSinePositionEncoding  # noqa: F401


@dataclass
class QLSegModelOutput(ModelOutput):
    """Output of `QLSegModel`; the fields of FASeg's.

    Args:
        encoder_last_hidden_state: `(B, d, H/P, W/P)`, the deepest tap of the backbone.
        pixel_decoder_last_hidden_state: `(B, d, H/P, W/P)`, the same level after the deformable encoder.
        transformer_decoder_last_hidden_state: `(B, K, D)` fused queries of the last stage.
        encoder_hidden_states: the taps, shallow to deep (`output_hidden_states=True`).
        pixel_decoder_hidden_states: the levels after the encoder, deep to shallow (`output_hidden_states=True`).
        transformer_decoder_hidden_states: fused queries per stage (`output_hidden_states=True`).
        transformer_decoder_intermediate_states: fused queries per stage.
        masks_queries_logits: `(B, K, H/P, W/P)` per stage.
        hidden_states: the same as `transformer_decoder_hidden_states`, under the name that Transformers' tools read.
        attentions: `(B, heads, K, K)` self-attention weights per layer (`output_attentions=True`, eager attention).
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


@dataclass
class QLSegForSemanticSegmentationOutput(ModelOutput):
    """Output of `QLSegForSemanticSegmentation`; the fields of FASeg's, and class scores.

    Args:
        loss: scalar, the weighted sum of `loss_dict` (with labels).
        semantic_scores: `(B, K, H, W)` sum over queries of class probability times mask probability, of windows their
            mean (not in training mode). Post-processing reads these.
        class_queries_logits: `(B, K, K + 1)`, the last class being "not in the image". None where images were read
            through windows, each of which has its own.
        masks_queries_logits: `(B, K, H/P, W/P)`; None like `class_queries_logits`.
        auxiliary_logits: the earlier predictions, one dictionary of both logits each (`output_auxiliary_logits`).
        loss_dict: the unweighted terms of the loss (with labels).

    The other fields are those of `QLSegModelOutput`.
    """

    loss: Tensor | None = None
    semantic_scores: Tensor | None = None
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
    loss_dict: dict[str, Tensor] | None = None


class QLSegPreTrainedModel(SegmentationPreTrainedModel):
    """Loading, saving and the reference's initialisation."""

    config: QLSegConfig
    _no_split_modules = ["QLSegBlock", "QLSegEncoderLayer", "QLSegDecoderLayer"]
    _can_record_outputs = {"attentions": OutputRecorder(QLSegAttention, index=1, layer_name="self_attn")}

    _auto_classes: ClassVar[tuple[str, ...]] = ("AutoModel",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # sampling offsets included, whose usual pattern the reference overwrites
            init.trunc_normal_(module.weight, std=self.config.init_std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, QLSegDecoderLayer):
            attention = module.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                # The reference draws query, key and value as one matrix of three times the rows.
                init.xavier_uniform_(projection.weight, gain=0.5**0.5)
        elif isinstance(module, nn.Conv2d):
            init_as_torch(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, QLSegEncoder):
            init.normal_(module.level_embed)
        elif isinstance(module, QLSegVisionTransformer):
            init.trunc_normal_(module.cls_token, std=self.config.init_std)
            init.trunc_normal_(module.pos_embed, std=self.config.init_std)
        elif isinstance(module, QLSegLoss):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class QLSegModel(QLSegPreTrainedModel):
    """Backbone, multi-level encoder and multi-query decoder: images to class queries and their masks.

    Any height and width in multiples of the patch will do; position embeddings are resized to the grid.
    """

    def __init__(self, config: QLSegConfig):
        super().__init__(config)
        config.validate()
        self.backbone = QLSegVisionTransformer(config)
        self.encoder = QLSegEncoder(config)
        self.decoder = QLSegDecoder(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> QLSegModelOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)` normalised images; H and W multiples of the patch.
            output_hidden_states: whether to return the maps and queries of every stage.
            output_attentions: read by `capture_outputs`, which records self-attention weights (eager attention).
        Raises:
            ValueError: for images whose sides are not multiples of the patch.
        """
        check_image_size(pixel_values, None, self.config.patch_size)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        self._warn_of_no_attentions(output_attentions)
        taps = backbone_outputs(self.backbone, pixel_values)
        levels = self.encoder(taps)
        decoded = self.decoder(levels)
        queries = decoded.fused_queries
        return QLSegModelOutput(
            encoder_last_hidden_state=taps[-1],
            pixel_decoder_last_hidden_state=levels[0],
            transformer_decoder_last_hidden_state=queries[-1],
            encoder_hidden_states=tuple(taps) if output_hidden_states else None,
            pixel_decoder_hidden_states=tuple(levels) if output_hidden_states else None,
            transformer_decoder_hidden_states=tuple(queries) if output_hidden_states else None,
            transformer_decoder_intermediate_states=tuple(queries),
            masks_queries_logits=tuple(decoded.masks_queries_logits),
            hidden_states=selected_states(queries, output_hidden_states),
        )


class QLSegForSemanticSegmentation(QLSegPreTrainedModel):
    """QLSeg with its class head and loss."""

    _auto_classes = SEGMENTATION_AUTO_CLASSES

    def __init__(self, config: QLSegConfig):
        super().__init__(config)
        self.model = QLSegModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_queries + 1)
        self.criterion = QLSegLoss(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> QLSegForSemanticSegmentationOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)` normalised images. Of any size at inference with `config.use_windows`,
                which reads what is not of the window's size through windows; else H and W multiples of the patch.
            mask_labels: per image `(T, H, W)` masks of 0 and 1, one per class that is there; T may be 0.
            class_labels: per image `(T,)` classes in 0..K-1.
            pixel_mask: `(B, H, W)`, 1 on the image and 0 on padding at the right and bottom. Windows leave padding
                out, so that an image's scores do not depend on the batch; an image that is read whole keeps it.
            output_hidden_states: whether to return the maps and queries of every stage (not with windows).
            output_auxiliary_logits: whether to return the predictions of all stages (not with windows).
            output_attentions: whether to return self-attention weights (needs `attn_implementation="eager"`).
        Raises:
            ValueError: for images whose sides do not fit, and labels that do not fit them.
        """
        check_channels(pixel_values, self.config.num_channels)
        check_labels(pixel_values, mask_labels, class_labels)
        check_pixel_mask(pixel_values, pixel_mask)
        has_labels = mask_labels is not None
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        if not (has_labels or self.training) and self._has_windows(pixel_values):
            return QLSegForSemanticSegmentationOutput(semantic_scores=self._sliding_scores(pixel_values, pixel_mask))

        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)
        train_auxiliary = has_labels and self.config.use_auxiliary_loss
        if output_attentions is not None:
            kwargs["output_attentions"] = output_attentions
        outputs = self.model(pixel_values, output_hidden_states, return_dict=True, **kwargs)
        masks = outputs.masks_queries_logits
        states = outputs.transformer_decoder_intermediate_states
        class_logits = self.class_predictor(states[-1])
        earlier: list[dict[str, Tensor]] | None = None
        if output_auxiliary_logits or train_auxiliary:
            earlier = [
                {"masks_queries_logits": mask, "class_queries_logits": self.class_predictor(state)}
                for mask, state in zip(masks[:-1], states[:-1])
            ]
        loss, loss_dict = None, None
        if has_labels:
            auxiliary = earlier if train_auxiliary else None
            loss_dict = self.criterion(masks[-1], class_logits, mask_labels, class_labels, auxiliary)
            loss = self.criterion.weighted_sum(loss_dict)
        shared = shared_fields(outputs, QLSegForSemanticSegmentationOutput)
        shared["masks_queries_logits"] = masks[-1]
        return QLSegForSemanticSegmentationOutput(
            loss=loss,
            semantic_scores=None if self.training else class_scores(class_logits, masks[-1], size),
            class_queries_logits=class_logits,
            auxiliary_logits=earlier if output_auxiliary_logits else None,
            loss_dict=loss_dict,
            **shared,
        )

    def _has_windows(self, pixel_values: Tensor | None = None, *args: Any, **kwargs: Any) -> bool:
        side = self.config.image_size
        return self.config.use_windows and pixel_values is not None and tuple(pixel_values.shape[-2:]) != (side, side)

    def _sliding_scores(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """`(B, K, H, W)` mean class scores over windows of each image."""
        side, stride = self.config.image_size, self.config.window_stride
        of_windows: Any = self.forward if self._compiled_for is None else self  # its own call, which is compiled

        def scores_of(windows: Tensor) -> Tensor:
            return of_windows(pixel_values=windows, return_dict=True).semantic_scores

        return sliding_scores(pixel_values, _image_sizes(pixel_values, pixel_mask), side, stride, scores_of)


def _image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each image without its padding; the one wait for the device of a forward with windows."""
    if pixel_mask is None:
        return [(pixel_values.shape[-2], pixel_values.shape[-1])] * len(pixel_values)
    inside = pixel_mask > 0
    heights, widths = inside.any(2).sum(1).clamp(min=1), inside.any(1).sum(1).clamp(min=1)
    return [(height, width) for height, width in torch.stack((heights, widths), dim=1).tolist()]


# Saved models carry their code. The image-segmentation pipeline looks models up in transformers' own list, and logs an
# error for those it does not find there.
QLSegModel.register_for_auto_class("AutoModel")
QLSegForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["qlseg"] = "QLSegForSemanticSegmentation"

__all__ = [
    "QLSegForSemanticSegmentation",
    "QLSegForSemanticSegmentationOutput",
    "QLSegModel",
    "QLSegModelOutput",
    "QLSegPreTrainedModel",
]
