"""Every number of SeMask, typed, with its source.

"Reference" is the released SeMask-FPN training configuration ("SeMask: Semantically Masked Transformers for Semantic
Segmentation", 2021). Importing this file registers the backbone's configuration, so that the configuration of a model
around it can be read wherever this file comes with it.
"""

import copy
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, SwinConfig
from transformers.configuration_utils import PreTrainedConfig

from .checks import NO_PREDICTIONS, Checked, require, require_classes


ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]


@strict
class SeMaskSwinConfig(SwinConfig):
    """Configuration of `SeMaskSwinBackbone`: a Swin Transformer with a semantic layer at the end of each stage.

    The fields of transformers' `SwinConfig` hold, with all four stages as `out_features` by default.

    Args:
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 (reference).
        num_semantic_classes: Channels of the semantic maps. Left out, a model around the backbone sets its own number
            of labels, and a backbone alone takes `num_labels`.
        semantic_window_size: Side of the windows of semantic attention; `window_size` if left out (reference).
        num_semantic_blocks: Semantic attention blocks per stage (reference: one each).
        global_semantic_stages: Stages, counted from 0, whose semantic attention sees the whole map instead of windows.
            Reference: 2 and 3 in the T, S and L models of ADE20K and COCO-Stuff, none in the others. It changes no
            weights, so a checkpoint cannot tell.
        semantic_dropout: Dropout of what semantic attention adds (reference).
    """

    model_type = "semask_swin"

    drop_path_rate: float | int = 0.3
    num_semantic_classes: int | None = None
    semantic_window_size: int | None = None
    num_semantic_blocks: list[int] | tuple[int, ...] = (1, 1, 1, 1)
    global_semantic_stages: list[int] | tuple[int, ...] = ()
    semantic_dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("out_features") is None and kwargs.get("out_indices") is None:
            kwargs["out_features"] = [f"stage{number + 1}" for number in range(len(self.depths))]
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check fields against each other and their ranges.

        Raises:
            ValueError: naming the field, its value and the fix.
        """
        super().validate_architecture()
        stages = len(self.depths)
        require(self, "depths", stages >= 1 and min(self.depths) >= 1, "give at least one block per stage")
        for name in ("num_heads", "num_semantic_blocks"):
            require(self, name, len(getattr(self, name)) == stages, f"give one number for each of {stages} stages")
            require(self, name, min(getattr(self, name)) >= 1, "give numbers of at least 1")
        for stage, heads in enumerate(self.num_heads):
            channels = self.embed_dim * 2**stage
            require(self, "num_heads", channels % heads == 0, f"stage {stage} has {channels} channels: not divisible")
        for name in ("window_size", "semantic_window_size", "num_semantic_classes"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "set it to at least 1")
        known = all(0 <= stage < stages for stage in self.global_semantic_stages)
        require(self, "global_semantic_stages", known, f"name stages from 0 to {stages - 1}")
        for name in ("drop_path_rate", "semantic_dropout"):
            require(self, name, 0 <= getattr(self, name) < 1, "set it to 0 or more and below 1")
        require(self, "patch_size", self.patch_size == 4, "set it to 4: the strides are 4, 8, 16 and 32")
        require(self, "use_absolute_embeddings", not self.use_absolute_embeddings, "set it to False: not offered")


class SemanticClassesFollowLabels:
    """Part of a configuration whose backbone may have semantic maps: maps of as many classes as there are labels keep
    to the number of labels when that changes, as it does in `from_pretrained(folder, num_labels=...)`."""

    def __setattr__(self, name: str, value: Any) -> None:
        backbone: Any = self.__dict__.get("backbone_config")
        before: Any = self.__dict__.get("id2label")
        super().__setattr__(name, value)
        if name != "id2label" or not isinstance(before, dict) or not isinstance(value, dict):
            return  # what is no dictionary is refused
        if getattr(backbone, "num_semantic_classes", None) == len(before) != len(value):
            backbone = copy.deepcopy(backbone)
            backbone.num_semantic_classes = len(value)
            super().__setattr__("backbone_config", backbone)


@strict
class SeMaskConfig(Checked, SemanticClassesFollowLabels, PreTrainedConfig):
    """Configuration of `SeMaskForSemanticSegmentation`: SeMask-FPN.

    Args:
        backbone_config: Configuration of the backbone, SeMask Swin-T if left out; its `num_semantic_classes`, if left
            out, is set to the number of labels.
        decoder_hidden_size: Channels of the Semantic-FPN decoder (reference).
        decoder_dropout: Dropout of whole channels before the classifier (reference).
        auxiliary_loss_weight: Weight of the loss on the summed semantic maps (reference).
        ohem_min_kept: Pixels per image that the loss on the logits keeps, the hardest of the batch; all if left out
            (reference: 100000 in ADE20K-L and in COCO-Stuff models).
        class_weights: Weight of each class in both cross-entropies, K numbers, for classes that are rare; all 1 if
            left out (reference). The means are still over all pixels, as mmsegmentation's are.
        ignore_value: Label id that belongs to no class; such pixels add nothing to the loss but count in its mean
            (reference).
        init_std: Standard deviation for modules without an initialisation of their own.
    """

    model_type = "semask"
    attribute_map = {"hidden_size": "decoder_hidden_size"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = NO_PREDICTIONS
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}
    default_backbone: ClassVar[dict[str, Any]] = {"model_type": "semask_swin"}

    backbone_config: dict | PreTrainedConfig | None = None
    decoder_hidden_size: int = 256
    decoder_dropout: float | int = 0.1
    auxiliary_loss_weight: float | int = 0.4
    ohem_min_kept: int | None = None
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    ignore_value: int = 255
    init_std: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.backbone_config = with_semantic_classes(self.backbone_config, self.num_labels)

    def validate_architecture(self) -> None:
        """Check fields against each other and their ranges.

        Raises:
            ValueError: naming the field, its value and the fix.
        """
        super().validate_architecture()
        kind = getattr(self.backbone_config, "model_type", None)
        if kind != SeMaskSwinConfig.model_type:
            raise ValueError(f"backbone_config is of type {kind!r}: set its model_type to 'semask_swin'")
        stages = getattr(self.backbone_config, "out_features", None)
        if stages != ALL_STAGES:
            raise ValueError(f"backbone_config has out_features={stages}: set them to {ALL_STAGES}")
        require(self, "decoder_hidden_size", self.decoder_hidden_size >= 1, "set it to at least 1")
        require(self, "decoder_dropout", 0 <= self.decoder_dropout < 1, "set it to 0 or more and below 1")
        for name in ("auxiliary_loss_weight", "init_std"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "set it to 0 or more")
        require(self, "ohem_min_kept", self.ohem_min_kept is None or self.ohem_min_kept >= 1, "set it to at least 1")
        require_classes(self, self.ignore_value)


def with_semantic_classes(backbone_config: Any, num_labels: Any) -> Any:
    """The configuration of a model's backbone, with the model's number of labels where it has semantic maps and does
    not say of how many classes; a copy in that case."""
    if getattr(backbone_config, "num_semantic_classes", num_labels) is None:
        backbone_config = copy.deepcopy(backbone_config)
        backbone_config.num_semantic_classes = num_labels
    return backbone_config


AutoConfig.register(SeMaskSwinConfig.model_type, SeMaskSwinConfig, exist_ok=True)
SeMaskConfig.register_for_auto_class()
SeMaskSwinConfig.register_for_auto_class()

__all__ = ["SeMaskConfig", "SeMaskSwinConfig"]
