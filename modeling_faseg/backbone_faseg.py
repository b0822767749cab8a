"""The backbone: any four-scale `AutoBackbone`, brought to the reference's behaviour where transformers differs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel

from .backbone_semask import SeMaskSwinBackbone
from .configuration_faseg import FASegConfig
from .pretrained import batch_norms


STRIDES = (4, 8, 16, 32)
PROBE_SIZE = 64
ALL_STAGES = "['stage1', 'stage2', 'stage3', 'stage4']"


def build_backbone(config: FASegConfig) -> PreTrainedModel:
    """The backbone of `config.backbone_config` with random weights.

    Raises:
        ValueError: unless it returns four maps of strides 4, 8, 16 and 32, naming what it returns and the fix.
    """
    backbone_config = cast(PreTrainedConfig, config.backbone_config)
    kind = backbone_config.model_type
    if kind == "semask_swin":
        # A saved model's configuration may come from another copy of the code than the model does.
        AutoBackbone.register(type(backbone_config), SeMaskSwinBackbone, exist_ok=True)
    if type(backbone_config) not in AutoBackbone._model_mapping:
        raise ValueError(
            f"backbone_config of type {kind!r} is no backbone: choose resnet, swin, convnextv2, timm_backbone, ..."
        )
    backbone_class: Any = AutoBackbone._model_mapping[type(backbone_config)]
    if not backbone_class._supports_sdpa:
        # The attention asked for is that of the decoder; transformers hands it down and convolutions would refuse it.
        backbone_config._attn_implementation = "eager"
    try:
        backbone = AutoBackbone.from_config(backbone_config, **(config.timm_backbone_kwargs or {}))
    except (IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"backbone_config of type {kind!r} with timm_backbone_kwargs={config.timm_backbone_kwargs} cannot be "
            f"built: {error}"
        ) from error
    backbone.config.return_dict = True  # the model reads its maps by their name
    if not backbone.has_attentions:
        backbone._supports_sdpa = True
    _match_reference_swin(backbone)
    check_strides(backbone)
    if config.freeze_backbone_batch_norm:
        if not batch_norms(backbone):
            raise ValueError(
                f"freeze_backbone_batch_norm=True but the backbone of type {kind!r} has no batch norm: set it to False"
            )
        for module in batch_norms(backbone):
            module.requires_grad_(False)
            if type(module) is nn.BatchNorm2d:
                module.__class__ = FASegFrozenBatchNorm2d
    return backbone


class FASegFrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that is a constant. Training keeps no copy of its input, which torch's would need for gradients
    that nobody asks for: about half of a ResNet's memory."""

    def forward(self, features: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(features)
        scale = self.weight * torch.rsqrt(cast(Tensor, self.running_var) + self.eps)
        shift = self.bias - cast(Tensor, self.running_mean) * scale
        scale, shift = (each.to(features.dtype)[:, None, None] for each in (scale, shift))
        return torch.addcmul(shift, features, scale)


def check_strides(backbone: PreTrainedModel) -> None:
    """Raise a `ValueError` unless a forward of a small image gives four maps of strides 4, 8, 16 and 32.

    The forward is one of shapes alone, on the meta device, wherever the weights are or are not.
    """
    kind = backbone.config.model_type
    channels = getattr(backbone.config, "num_channels", 3)  # of the images that it takes
    weights = {name: value.to("meta") for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    image = torch.zeros(1, channels, PROBE_SIZE, PROBE_SIZE, device="meta", dtype=next(backbone.parameters()).dtype)
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            maps = functional_call(backbone, weights, image).feature_maps
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"backbone_config of type {kind!r} does not read images of {PROBE_SIZE}x{PROBE_SIZE} ({error}): choose a "
            "backbone that reads images of any size"
        ) from error
    finally:
        backbone.train(was_training)
    if len(maps) != len(STRIDES):
        raise ValueError(
            f"backbone_config of type {kind!r} returns {len(maps)} feature map(s), need 4 (strides 4, 8, 16, 32): "
            f"set its out_features={ALL_STAGES} (for timm_backbone: out_indices of the four scales)"
        )
    found, expected = [feature_map.shape[1] for feature_map in maps], list(cast(Any, backbone).channels)
    if found != expected:
        raise ValueError(
            f"backbone_config of type {kind!r} has maps whose second axis is {found}, need its channels {expected}: "
            "choose a backbone that gives maps with channels first"
        )
    strides = tuple(PROBE_SIZE // feature_map.shape[-1] for feature_map in maps)
    if strides != STRIDES:
        raise ValueError(
            f"backbone_config of type {kind!r} has strides {strides}, need {STRIDES}: choose a pyramid backbone "
            "(resnet, swin, convnextv2, dinov3_convnext, a timm features_only network) or other out_features"
        )


def _match_reference_swin(backbone: Any) -> None:
    """Drop path on both branches of a Swin block, and no final norm, which transformers builds but no map reads.

    Deviation: transformers drops the attention branch only, and the unused norm would make distributed training
    wait for a gradient (guarded by tests/modeling_faseg/test_backbone.py).
    """
    swin = getattr(backbone, "swin", backbone)
    if backbone.config.model_type != "swin":
        return
    if hasattr(swin, "layernorm"):
        swin.layernorm = nn.Identity()
    for stage in swin.encoder.layers:
        for block in stage.blocks:
            feed_forward = block.mlp if hasattr(block, "mlp") else block.output
            feed_forward.drop_path = block.drop_path
            feed_forward.register_forward_hook(_drop_path)


def _drop_path(module: Any, args: tuple, output: Tensor) -> Tensor:
    return module.drop_path(output)
