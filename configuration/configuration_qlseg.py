"""Every number of QLSeg, typed, with its source.

"Reference" is the released QLSeg training configuration of ViT-B on ADE20K ("Multi-query and multi-level enhanced
network for semantic segmentation", Pattern Recognition 2024). Names are FASeg's where the thing is the same.
"""

import math
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .checks import NO_PREDICTIONS, Checked, require, require_classes, require_counts


@strict
class QLSegConfig(Checked, PreTrainedConfig):
    """Configuration of `QLSegModel` and `QLSegForSemanticSegmentation`.

    Args:
        image_size: Side of the square window that position embeddings are made for, in pixels (reference: the crop).
        window_stride: Step between windows at inference, in pixels (reference: two thirds of the window).
        use_windows: Whether images of other sizes are read through windows at inference (reference). `False` reads
            them whole on their own grid, with resized position embeddings.
        patch_size: Side of a patch of the vision transformer.
        num_channels: Channels of an image.
        hidden_size: Width of the vision transformer and of the multi-level encoder (768 for ViT-B, 1024 for ViT-L).
        num_hidden_layers: Blocks of the vision transformer (12, 24).
        num_attention_heads: Heads of the vision transformer (12, 16).
        mlp_ratio: Feed-forward width of the vision transformer, in widths.
        drop_path_rate: Stochastic depth of the last block's feed-forward; it grows linearly from 0 (reference: 0.1,
            ViT-L 0.3; the attention branch is never dropped).
        out_indices: Blocks, from 0, whose outputs are the levels, shallow to deep (ViT-L: 7, 15, 23).
        encoder_layers: Deformable encoder layers over the levels.
        encoder_attention_heads: Heads of deformable attention.
        encoder_feedforward_dim: Feed-forward width of the deformable encoder.
        hidden_dim: Width of the queries (reference: half of `hidden_size`).
        decoder_attention_heads: Heads of the decoder's attention (12, ViT-L 16).
        decoder_stages: Times that the queries are decoded and predict; each has its own layers.
        decoder_layers: Layers per stage and level.
        fusion_chunks: Groups of classes that query fusion pools. Where the classes make fewer groups, the missing ones
            are zero.
        attention_mask_threshold: Mask probability below which a query may not attend to a position in the next stage.
        dropout: Dropout of the decoder's attention weights, feed-forwards and residual branches.
        ignore_value: Label id that belongs to no class; such pixels count as outside every mask.
        task: The only one.
        no_object_weight: Weight of classes that the image does not show in the classification loss.
        class_weights: Weight of each class in the classification loss, K numbers, for classes that are rare; all 1 if
            left out (reference).
        class_weight: Weight of the classification term.
        mask_weight: Weight of the focal term of the masks.
        dice_weight: Weight of the dice term of the masks.
        use_auxiliary_loss: Whether every stage's prediction is trained.
        output_auxiliary_logits: Whether the predictions of all stages are returned.
        init_std: Standard deviation of the truncated normal that linear layers start from, sampling offsets included.
    """

    model_type = "qlseg"
    # Scores are all that a metric needs, and all that images read through windows have.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *NO_PREDICTIONS,
        "class_queries_logits",
        "masks_queries_logits",
    ]

    image_size: int = 512
    window_stride: int = 341
    use_windows: bool = True
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4
    drop_path_rate: float | int = 0.1
    out_indices: list[int] | tuple[int, ...] = (5, 7, 11)
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_feedforward_dim: int = 1024
    hidden_dim: int = 384
    decoder_attention_heads: int = 12
    decoder_stages: int = 3
    decoder_layers: int = 3
    fusion_chunks: int = 10
    attention_mask_threshold: float | int = 0.4
    dropout: float | int = 0.1
    ignore_value: int = 255
    task: Literal["semantic"] = "semantic"
    no_object_weight: float | int = 0.1
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    class_weight: float | int = 1.0
    mask_weight: float | int = 20.0
    dice_weight: float | int = 1.0
    use_auxiliary_loss: bool = True
    output_auxiliary_logits: bool | None = None
    init_std: float | int = 0.02

    def validate_architecture(self) -> None:
        """Check fields against each other and their ranges.

        Raises:
            ValueError: naming the field, its value and the fix. `@strict` runs this on construction; the model's
                constructor runs it again because assigning a field does not.
        """
        super().validate_architecture()
        require_counts(self, QLSegConfig, but=("ignore_value",))
        for name in ("mlp_ratio", "no_object_weight", "class_weight", "mask_weight", "dice_weight"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "set it to 0 or more")
        require(self, "init_std", 0 < self.init_std < math.inf, "set it above 0")
        for name in ("dropout", "drop_path_rate", "attention_mask_threshold"):
            require(self, name, 0 <= getattr(self, name) < 1, "set it to 0 or more and below 1")
        side = self.image_size // self.patch_size * self.patch_size
        fix = f"set it to {side or self.patch_size}, a multiple of patch_size={self.patch_size}"
        require(self, "image_size", self.image_size % self.patch_size == 0, fix)
        fix = f"set it to at most image_size={self.image_size}, or pixels are left out"
        require(self, "window_stride", self.window_stride <= self.image_size, fix)
        for heads, width in (
            ("num_attention_heads", self.hidden_size),
            ("encoder_attention_heads", self.hidden_size),
            ("decoder_attention_heads", self.hidden_dim),
        ):
            require(self, heads, width % getattr(self, heads) == 0, f"set it to a divisor of the width {width}")
        require(self, "hidden_size", self.hidden_size % 32 == 0, "set it to a multiple of 32 (group norm)")
        indices = list(self.out_indices)
        increasing = bool(indices) and indices == sorted(set(indices))
        known = increasing and indices[0] >= 0 and indices[-1] < self.num_hidden_layers
        fix = f"give increasing numbers of blocks from 0 to {self.num_hidden_layers - 1}"
        require(self, "out_indices", known, fix)
        require_classes(self, self.ignore_value)

    @property
    def num_queries(self) -> int:
        """One query per class."""
        return self.num_labels or 0


QLSegConfig.register_for_auto_class()

__all__ = ["QLSegConfig"]
