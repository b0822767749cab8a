"""SeMask Swin: a Swin Transformer that ends every stage with semantic attention.

Notation: B batch, H and W of a stage's map, C its channels, K classes, W' windows of L tokens each, N heads.

The module names are those of transformers' Swin, so that ImageNet weights fit, and so is the attention. The rest is
this project's own: the reference drops paths on both branches, never shrinks a window to a small map, and has no norm
after the last stage.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.models.swin.modeling_swin import SwinAttention, SwinPreTrainedModel, SwinRelativePositionBias
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_semask import SeMaskSwinConfig
from .pretrained import fill_unsaved_buffers, init_as_torch


if TYPE_CHECKING:
    # Never runs. transformers asks again, after a broken download, only for files that the entry file itself names.
    from .checks import require  # noqa: F401
    from .compiled import CompiledForSizes  # noqa: F401


BLOCKED = -100.0  # added to the score of a key that the cyclic shift has brought next to a query (reference)


@dataclass
class SeMaskBackboneOutput(BackboneOutput):
    """Output of `SeMaskSwinBackbone`: transformers' `BackboneOutput` and the semantic maps.

    Args:
        feature_maps: `(B, C, H, W)` of each stage in `out_features`, after a norm of its own.
        hidden_states: the patch embedding and every stage's map, before those norms (`output_hidden_states=True`).
        attentions: `(B * W', N, L, L)` window attention of every block (`output_attentions=True`, eager attention).
        semantic_maps: `(B, K, H, W)` of every stage, class scores of a kind: the loss on their sum teaches them.
    """

    semantic_maps: tuple[Tensor, ...] | None = None


class SeMaskWindows:
    """Square windows over a map, `rows` times `columns` of them; zeros at the right and bottom fill the last ones.

    Each size is divided once: torch.export follows that at sizes known only at run time, where it works for hours on
    remainders of what was padded by remainders (guarded by tests/modeling_semask/test_semask_export.py).
    """

    def __init__(self, maps: Tensor, side: int):
        self.batch, self.height, self.width = maps.shape[:3]
        self.side = side
        self.rows, self.columns = (self.height + side - 1) // side, (self.width + side - 1) // side
        self.padded_height, self.padded_width = self.rows * side, self.columns * side

    def pad(self, maps: Tensor) -> Tensor:
        """`(B, H, W, C)` -> `(B, rows * side, columns * side, C)`."""
        return F.pad(maps, (0, 0, 0, self.padded_width - self.width, 0, self.padded_height - self.height))

    def split(self, padded: Tensor) -> Tensor:
        """`(B, rows * side, columns * side, C)` -> `(B * W', side * side, C)`, row by row."""
        batch, channels = padded.shape[0], padded.shape[3]
        grid = padded.view(batch, self.rows, self.side, self.columns, self.side, channels).transpose(2, 3)
        return grid.reshape(batch * self.rows * self.columns, self.side**2, channels)

    def join(self, windows: Tensor) -> Tensor:
        """Undo `split`."""
        channels = windows.shape[2]
        grid = windows.view(self.batch, self.rows, self.columns, self.side, self.side, channels).transpose(2, 3)
        return grid.reshape(self.batch, self.padded_height, self.padded_width, channels)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo `pad`."""
        return padded[:, : self.height, : self.width]


class SeMaskDropPath(nn.Module):
    """Drops a residual branch of some images of the batch, and scales up those of the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand((len(branch), *[1] * (branch.ndim - 1)), device=branch.device) >= self.rate
        return branch * (kept.to(branch.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class SeMaskSwinMLP(nn.Module):
    """The feed-forward branch of a block."""

    def __init__(self, config: SeMaskSwinConfig, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, int(config.mlp_ratio * channels))
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(config.mlp_ratio * channels), channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, maps: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(maps)))))


class SeMaskSwinBlock(GradientCheckpointingLayer):
    """One Swin block: attention in windows, which every other block shifts by half a window, and a feed-forward."""

    def __init__(self, config: SeMaskSwinConfig, channels: int, num_heads: int, shift: int, drop_path: float):
        super().__init__()
        self.side, self.shift = config.window_size, shift
        self.layernorm_before = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = SwinAttention(config, channels, num_heads, config.window_size)
        self.layernorm_after = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = SeMaskSwinMLP(config, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SeMaskDropPath(drop_path)

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, H, W, C)` -> the same."""
        windows = SeMaskWindows(maps, self.side)
        branch = windows.pad(self.layernorm_before(maps))
        blocked = None
        if self.shift:
            branch = branch.roll((-self.shift, -self.shift), dims=(1, 2))
            blocked = self._blocked_by_shift(windows, maps)
        update, _ = self.attention(windows.split(branch), blocked)
        branch = windows.join(self.dropout(update))
        if self.shift:
            branch = branch.roll((self.shift, self.shift), dims=(1, 2))
        maps = maps + self.drop_path(windows.crop(branch))
        return maps + self.drop_path(self.mlp(self.layernorm_after(maps)))

    def _blocked_by_shift(self, windows: SeMaskWindows, maps: Tensor) -> Tensor:
        """`(B * W', L, L)` scores that keep apart tokens which the shift has carried around the border."""
        rows, columns = (self._region(length, maps.device) for length in (windows.padded_height, windows.padded_width))
        tokens = windows.split((3 * rows[:, None] + columns)[None, :, :, None])[:, :, 0]
        blocked = BLOCKED * (tokens[:, None] != tokens[:, :, None]).to(maps.dtype)
        return blocked[None].expand(windows.batch, -1, -1, -1).flatten(0, 1)

    def _region(self, length: int, device: torch.device) -> Tensor:
        """`(length,)` 0, 1 or 2: before the last window, in it, in its part that the shift has carried there."""
        positions = torch.arange(length, device=device)
        return (positions >= length - self.side).long() + (positions >= length - self.shift).long()


class SeMaskSemanticBlock(nn.Module):
    """Attention between tokens that look alike to a classifier, added with a learned weight (SeMask Sec. 3.2).

    One head without scale or position: `softmax(S T^T) V`, where `S` and `T` are class scores of the tokens. `gamma`,
    the paper's lambda, starts at 0; `output` must not start at 0 too, or neither would ever learn.
    """

    def __init__(self, config: SeMaskSwinConfig, channels: int, num_classes: int):
        super().__init__()
        self.query = nn.Linear(channels, num_classes)
        self.key = nn.Linear(channels, num_classes)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(config.semantic_dropout)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`(B * W', L, C)` -> the same, and the class scores `S` `(B * W', L, K)`."""
        semantic = self.query(tokens)
        scores = torch.matmul(semantic, self.key(tokens).transpose(1, 2))
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(tokens.dtype)
        update = self.output(torch.matmul(weights, self.value(tokens)))
        return tokens + self.gamma * self.dropout(update), semantic


class SeMaskSemanticLayer(GradientCheckpointingLayer):
    """Semantic attention over a stage's map, in windows that are never shifted or over the whole map at once.

    What follows sees the norm's output: no skip leads around it, as in the reference.
    """

    def __init__(self, config: SeMaskSwinConfig, channels: int, num_classes: int, num_blocks: int, is_global: bool):
        super().__init__()
        self.side = None if is_global else config.semantic_window_size or config.window_size
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(SeMaskSemanticBlock(config, channels, num_classes) for _ in range(num_blocks))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, H, W, C)` -> the same, and the semantic map `(B, H, W, K)` of the last block.

        Windows are filled up with zeros after the norm; these tokens are attended to like the others (reference).
        """
        maps = self.norm(maps)
        if self.side is None:
            size = (maps.shape[1], maps.shape[2])
            tokens, semantic = self._attended(maps.flatten(1, 2))
            return tokens.unflatten(1, size), semantic.unflatten(1, size)
        windows = SeMaskWindows(maps, self.side)
        tokens, semantic = self._attended(windows.split(windows.pad(maps)))
        return windows.crop(windows.join(tokens)), windows.crop(windows.join(semantic))

    def _attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`(B * W', L, C)` -> the same after all blocks, and the last one's class scores `(B * W', L, K)`."""
        for block in self.blocks:
            tokens, semantic = block(tokens)
        return tokens, semantic


class SeMaskPatchMerging(nn.Module):
    """Four neighbours become one token of twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, H, W, C)` -> `(B, ceil(H / 2), ceil(W / 2), 2 C)`."""
        windows = SeMaskWindows(maps, 2)
        padded = windows.pad(maps)
        corners = padded.view(windows.batch, windows.rows, 2, windows.columns, 2, maps.shape[3])
        corners = corners.permute(0, 1, 3, 4, 2, 5).flatten(3)  # of each four the left ones first
        return self.reduction(self.norm(corners))


class SeMaskSwinStage(nn.Module):
    """Swin blocks, the semantic layer, and patch merging for the next stage."""

    def __init__(self, config: SeMaskSwinConfig, stage: int, num_classes: int):
        super().__init__()
        channels, first = config.embed_dim * 2**stage, sum(config.depths[:stage])
        steps = max(sum(config.depths) - 1, 1)
        self.blocks = nn.ModuleList(
            SeMaskSwinBlock(
                config,
                channels,
                config.num_heads[stage],
                shift=config.window_size // 2 if block % 2 else 0,
                drop_path=config.drop_path_rate * (first + block) / steps,
            )
            for block in range(config.depths[stage])
        )
        self.semantic_layer = SeMaskSemanticLayer(
            config, channels, num_classes, config.num_semantic_blocks[stage], stage in config.global_semantic_stages
        )
        self.downsample = SeMaskPatchMerging(channels) if stage + 1 < len(config.depths) else None

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, H, W, C)` -> the stage's map before patch merging, and its semantic map `(B, H, W, K)`."""
        for block in self.blocks:
            maps = block(maps)
        return self.semantic_layer(maps)


class SeMaskPatchEmbeddings(nn.Module):
    """Images to patches of 4x4 pixels, zeros at the right and bottom filling the last one."""

    def __init__(self, config: SeMaskSwinConfig):
        super().__init__()
        self.side = cast(int, config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, self.side, stride=self.side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> `(B, ceil(H / 4), ceil(W / 4), C)`."""
        bottom, right = ((side + self.side - 1) // self.side * self.side - side for side in pixel_values.shape[2:])
        padded = F.pad(pixel_values, (0, right, 0, bottom))
        return self.projection(padded).permute(0, 2, 3, 1)


class SeMaskSwinEmbeddings(nn.Module):
    """Patches and their norm."""

    def __init__(self, config: SeMaskSwinConfig):
        super().__init__()
        self.patch_embeddings = SeMaskPatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.dropout(self.norm(self.patch_embeddings(pixel_values)))


class SeMaskSwinEncoder(nn.Module):
    """The stages."""

    def __init__(self, config: SeMaskSwinConfig, num_classes: int):
        super().__init__()
        self.layers = nn.ModuleList(SeMaskSwinStage(config, stage, num_classes) for stage in range(len(config.depths)))

    def forward(self, maps: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`(B, H, W, C)` -> every stage's map and semantic map, channels last."""
        stage_maps, semantic_maps = [], []
        for stage in self.layers:
            maps, semantic_map = stage(maps)
            stage_maps.append(maps)
            semantic_maps.append(semantic_map)
            if stage.downsample is not None:
                maps = cast(nn.Module, stage.downsample)(maps)
        return stage_maps, semantic_maps


class SeMaskSwinPreTrainedModel(SwinPreTrainedModel):
    """Loading, saving and the reference's initialisation."""

    config: SeMaskSwinConfig
    _no_split_modules = ["SeMaskSwinBlock", "SeMaskSemanticLayer"]
    _can_record_outputs = {"attentions": OutputRecorder(SwinAttention, index=1)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SwinRelativePositionBias):
            super()._init_weights(module)
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
        elif isinstance(module, SeMaskSemanticBlock):
            init.zeros_(module.gamma)
        elif isinstance(module, nn.Conv2d):
            init_as_torch(module)
        else:
            super()._init_weights(module)


class SeMaskSwinBackbone(BackboneMixin, SeMaskSwinPreTrainedModel):
    """The backbone: images of any size to feature maps of strides 4, 8, 16 and 32, and semantic maps."""

    def __init__(self, config: SeMaskSwinConfig):
        super().__init__(config)
        config.validate()
        stages = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.num_features = [config.embed_dim, *stages]
        self.embeddings = SeMaskSwinEmbeddings(config)
        self.encoder = SeMaskSwinEncoder(config, config.num_semantic_classes or cast(int, config.num_labels))
        self.hidden_states_norms = nn.ModuleDict(
            {stage: nn.LayerNorm(channels) for stage, channels in zip(self.out_features, self.channels)}
        )
        self.register_load_state_dict_post_hook(fill_unsaved_buffers)
        self.post_init()

    def fit_pretrained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Swin weights under this backbone's names, with position tables brought to its window by bicubic resizing."""
        expected = self.state_dict()
        tables = {name for name in weights if name.endswith("relative_position_bias_table") and name in expected}
        return weights | {name: _resized_table(weights[name], len(expected[name])) for name in tables}

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> SeMaskBackboneOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)` normalised images.
            output_hidden_states: whether to return the maps before their norms.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        embedded = self.embeddings(pixel_values)
        stage_maps, semantic_maps = self.encoder(embedded)
        maps = dict(zip(self.stage_names, [embedded, *stage_maps]))
        feature_maps = [_channels_first(self.hidden_states_norms[name](maps[name])) for name in self.out_features]
        return SeMaskBackboneOutput(
            feature_maps=cast(Any, tuple(feature_maps)),
            hidden_states=tuple(map(_channels_first, maps.values())) if output_hidden_states else None,
            semantic_maps=tuple(map(_channels_first, semantic_maps)),
        )


def _resized_table(table: Tensor, rows: int) -> Tensor:
    """A position table `(side * side, N)` with so many rows, of another square."""
    if len(table) == rows:
        return table
    old, new = (round(count**0.5) for count in (len(table), rows))
    square = table.float().T.reshape(1, -1, old, old)
    square = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return square.reshape(-1, rows).T.to(table.dtype).contiguous()


def _channels_first(maps: Tensor) -> Tensor:
    """`(B, H, W, C)` -> `(B, C, H, W)`."""
    return maps.permute(0, 3, 1, 2).contiguous()


AutoBackbone.register(SeMaskSwinConfig, SeMaskSwinBackbone, exist_ok=True)
SeMaskSwinBackbone.register_for_auto_class("AutoBackbone")

__all__ = ["SeMaskBackboneOutput", "SeMaskSwinBackbone"]
