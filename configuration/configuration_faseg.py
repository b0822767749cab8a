"""Every number of FASeg, typed, with its source.

"Reference" is the released FASeg training configuration; "Mask2Former" is transformers' `Mask2FormerConfig`, whose
names and defaults are kept.
"""

import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .checks import NO_PREDICTIONS, Checked, require, require_classes, require_counts
from .configuration_semask import SemanticClassesFollowLabels, with_semantic_classes


@strict
class FASegConfig(Checked, SemanticClassesFollowLabels, PreTrainedConfig):
    """Configuration of `FASegModel` and `FASegForUniversalSegmentation` ("Dynamic Focus-aware Positional Queries for
    Semantic Segmentation", CVPR 2023).

    Args:
        backbone_config: Backbone with four feature maps of strides 4, 8, 16 and 32; Swin-S if left out. With
            `simple_feature_pyramid` one whose last map has stride 16 or 14.
        feature_size: Channels of the pixel decoder's maps and positional encodings; equal to `hidden_dim`
            (Mask2Former).
        mask_feature_size: Channels of the stride-4 map that mask embeddings are multiplied with (Mask2Former).
        hidden_dim: Width of the transformer decoder (Mask2Former).
        encoder_layers: Deformable encoder layers of the pixel decoder (Mask2Former).
        encoder_feedforward_dim: Feed-forward width of the deformable encoder (Mask2Former).
        decoder_layers: Layers of the transformer decoder, their true number (reference: DEC_LAYERS = 14 counts
            predictions).
        dim_feedforward: Feed-forward width of the transformer decoder (Mask2Former).
        num_attention_heads: Heads of every attention (Mask2Former).
        num_queries: Queries, that is the largest number of segments in an image (Mask2Former).
        dropout: Dropout of attention weights, residual branches and feed-forwards (reference: 0).
        enforce_input_projection: Whether each decoder level gets a 1x1 convolution (Mask2Former).
        positional_encoding_type: The paper's K_p: `"conditional"` (depthwise 3x3 convolution of the features),
            `"sine"` or `"learned"`.
        use_dynamic_positional_queries: DFPQ (paper Sec. 3.2); `False` keeps Mask2Former's learned positional queries.
        use_high_resolution_cross_attention: HRCA (paper Sec. 3.3); `False` attends to the three coarse levels only.
        high_resolution_reduction: Omega; HRCA keeps one window in so many (reference: a constructor default).
        high_resolution_min_windows: Windows that HRCA keeps at least; the reference keeps none on images of fewer than
            `high_resolution_reduction` coarse tokens.
        high_resolution_sharing: Whose weights HRCA's decoder layers run: `"none"`: each its own (paper); `"shared"`:
            all those of the first HRCA layer; `"reused"`: each those of the layer before it, so that HRCA adds no
            weights of a layer. The latter two are lighter forms of this project's own.
        attention_mask_threshold: Mask probability below which a query may not attend to a position (reference;
            Mask2Former has 0.5).
        mask_padding: Whether `pixel_mask` keeps padding out of attention, DFPQ and HRCA; the reference treats padding
            as image.
        ignore_value: Label id that belongs to no class (Mask2Former).
        exclude_ignored_pixels: Whether the loss draws no points on unlabelled and padded pixels; the reference teaches
            them as outside every mask. For `task="instance"`, where uncovered means background, only padding is left
            out.
        task: What the checkpoint was trained for: `"semantic"`, `"instance"` or `"panoptic"`.
        no_object_weight: Weight of the no-object class in the classification loss (Mask2Former).
        class_weights: Weight of each class in the classification loss and in that on a backbone's semantic maps, K
            numbers, for classes that are rare; all 1 if left out (reference). Matching, masks and the no-object class
            do not change.
        class_weight: Weight of the classification term in loss and matching (Mask2Former).
        mask_weight: Weight of the binary cross-entropy of masks in loss and matching (Mask2Former).
        dice_weight: Weight of the dice term in loss and matching (Mask2Former).
        train_num_points: Points per mask that loss and matching look at (Mask2Former: 112 x 112).
        oversample_ratio: Candidates drawn per kept point when uncertain points are sought (Mask2Former).
        importance_sample_ratio: Share of the points taken where the prediction is least certain (Mask2Former).
        use_auxiliary_loss: Whether every decoder layer's prediction is trained (Mask2Former).
        output_auxiliary_logits: Whether the predictions of all decoder layers are returned (Mask2Former).
        auxiliary_semantic_weight: Weight of the loss on a backbone's own semantic maps, if it returns some (SeMask).
        freeze_backbone_batch_norm: Whether the backbone's batch norms are constants (reference: ADE20K ResNets;
            Cityscapes trains them).
        timm_backbone_kwargs: What a timm backbone's constructor needs beyond its own configuration, for instance
            `{"pad_type": "same"}`.
        simple_feature_pyramid: Whether a pyramid of `feature_size` channels (ViTDet, arXiv 2203.16527: 256) makes the
            four maps of the backbone's last one, for plain vision transformers. One of patch 14 sees images at 14/16
            of their size.
        init_std: Standard deviation for modules without an initialisation of their own (Mask2Former).
        init_xavier_std: Gain of the Xavier initialisation (Mask2Former).
    """

    model_type = "faseg"
    attribute_map = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = NO_PREDICTIONS
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}
    default_backbone: ClassVar[dict[str, Any]] = {
        "model_type": "swin",
        "depths": [2, 2, 18, 2],
        "drop_path_rate": 0.3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }

    backbone_config: dict | PreTrainedConfig | None = None
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 13
    dim_feedforward: int = 2048
    num_attention_heads: int = 8
    num_queries: int = 100
    dropout: float | int = 0.0
    enforce_input_projection: bool = False
    positional_encoding_type: Literal["conditional", "sine", "learned"] = "conditional"
    use_dynamic_positional_queries: bool = True
    use_high_resolution_cross_attention: bool = True
    high_resolution_reduction: int = 32
    high_resolution_min_windows: int = 0
    high_resolution_sharing: Literal["none", "shared", "reused"] = "none"
    attention_mask_threshold: float | int = 0.15
    mask_padding: bool = False
    ignore_value: int = 255
    exclude_ignored_pixels: bool = False
    task: Literal["semantic", "instance", "panoptic"] = "semantic"
    no_object_weight: float | int = 0.1
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75
    use_auxiliary_loss: bool = True
    output_auxiliary_logits: bool | None = None
    auxiliary_semantic_weight: float | int = 0.4
    freeze_backbone_batch_norm: bool = False
    timm_backbone_kwargs: dict[str, Any] | None = None
    simple_feature_pyramid: bool = False
    init_std: float | int = 0.02
    init_xavier_std: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.backbone_config = with_semantic_classes(self.backbone_config, self.num_labels)

    def validate_architecture(self) -> None:
        """Check fields against each other and their ranges.

        Raises:
            ValueError: naming the field, its value and the fix. `@strict` runs this on construction; the model's
                constructor runs it again because assigning a field does not.
        """
        super().validate_architecture()
        require_counts(self, FASegConfig, but=("high_resolution_min_windows", "ignore_value"))
        for name in (
            "no_object_weight",
            "class_weight",
            "mask_weight",
            "dice_weight",
            "auxiliary_semantic_weight",
            "init_std",
            "init_xavier_std",
        ):
            require(self, name, 0 <= getattr(self, name) < math.inf, "set it to 0 or more")
        for name in ("dropout", "attention_mask_threshold", "importance_sample_ratio"):
            require(self, name, 0 <= getattr(self, name) <= 1, "set it between 0 and 1")
        require(self, "high_resolution_min_windows", self.high_resolution_min_windows >= 0, "set it to 0 or more")
        require(self, "oversample_ratio", 1 <= self.oversample_ratio < math.inf, "set it to 1 or more")
        fix = f"set it to hidden_dim={self.hidden_dim}: the pixel decoder's positional encodings enter the "
        fix += "transformer decoder as they are"
        require(self, "feature_size", self.feature_size == self.hidden_dim, fix)
        require(self, "feature_size", self.feature_size % 32 == 0, "set it to a multiple of 32 (group norm)")
        divides = self.hidden_dim % self.num_attention_heads == 0
        require(self, "num_attention_heads", divides, f"set it to a divisor of hidden_dim={self.hidden_dim}")
        windows_are_read = self.use_high_resolution_cross_attention or self.high_resolution_min_windows == 0
        fix = "set it to 0: use_high_resolution_cross_attention=False keeps no windows"
        require(self, "high_resolution_min_windows", windows_are_read, fix)
        shares = self.reads_high_resolution_level or self.high_resolution_sharing == "none"
        without = "use_high_resolution_cross_attention=False"
        if self.use_high_resolution_cross_attention:
            without = f"decoder_layers={self.decoder_layers}, fewer than 4,"
        fix = f'set it to "none": {without} leaves no layer that could share'
        require(self, "high_resolution_sharing", shares, fix)
        kind = getattr(self.backbone_config, "model_type", None)
        fix = f"set it to None: backbone_config is of type {kind!r}, not 'timm_backbone'"
        require(self, "timm_backbone_kwargs", not self.timm_backbone_kwargs or kind == "timm_backbone", fix)
        maps, classes = getattr(self.backbone_config, "num_semantic_classes", None), len(self.id2label or {})
        fix = f"set its num_semantic_classes={maps} to {classes}, the number of labels"
        require(self, "backbone_config", maps is None or maps >= classes, fix)
        require_classes(self, self.ignore_value)

    @property
    def reads_high_resolution_level(self) -> bool:
        """Whether any decoder layer attends to the stride-4 level: layer i reads level i mod 4."""
        return self.use_high_resolution_cross_attention and self.decoder_layers >= 4

    @property
    def decoder_layer_weights(self) -> list[int]:
        """For each decoder layer the number of the layer whose weights it runs: its own but for what
        `high_resolution_sharing` says of HRCA's, which are layers 3, 7, 11, ..."""
        numbers = list(range(self.decoder_layers))
        if self.reads_high_resolution_level and self.high_resolution_sharing != "none":
            for index in numbers[3::4]:
                numbers[index] = 3 if self.high_resolution_sharing == "shared" else index - 1
        return numbers


FASegConfig.register_for_auto_class()

__all__ = ["FASegConfig"]
