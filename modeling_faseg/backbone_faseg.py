"""The backbone: any four-scale `AutoBackbone`, brought to the reference's behaviour where transformers differs."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel

from .backbone_probe import ProbeError, one_line, probe
from .backbone_semask import SeMaskSwinBackbone
from .configuration_faseg import FASegConfig
from .pretrained import batch_norms, keep_frozen


STRIDES = (4, 8, 16, 32)
# What timm calls the arguments that free a network from the size it is built for.
FREEING: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
PYRAMIDS = "resnet, swin, convnextv2, dinov3_convnext, pvt_v2 or a timm_backbone"


def build_backbone(config: FASegConfig) -> PreTrainedModel:
    """The backbone of `config.backbone_config` with random weights.

    Its maps have channels first and its `channels` are theirs, whatever the library gives or declares. Parameters that
    no map depends on are frozen, for several processes would wait for their gradients, and named in its
    `unread_parameters`. What it was before that is told by its `maps_as_built`.

    Raises:
        ValueError: unless it returns four maps of strides 4, 8, 16 and 32, naming what it returns and the fix.
    """
    backbone_config, kwargs = cast(PreTrainedConfig, config.backbone_config), config.timm_backbone_kwargs or {}
    kind = backbone_config.model_type
    try:
        backbone = _build(backbone_config, kwargs)
        maps = probe(backbone)
        if maps.strides != STRIDES:
            raise ProbeError(f"gives {len(maps.strides)} feature map(s) of strides {maps.strides}, need {STRIDES}")
    except ProbeError as error:
        name = getattr(backbone_config, "backbone", None)  # timm's name of it
        named = f" ({name}, timm_backbone_kwargs={kwargs})" if name else ""
        fix = _fix(backbone_config, kwargs)
        raise ValueError(f"backbone_config of type {kind!r}{named} {error}: {fix}") from error
    if maps.channels_last:
        backbone.register_forward_hook(_channels_first)
    widths = dict(zip(backbone.out_features, maps.widths))
    backbone.num_features = [widths.get(*stage) for stage in zip(backbone.stage_names, backbone.num_features)]
    backbone.maps_as_built, backbone.unread_parameters = maps, maps.unread
    backbone.frozen_parameters = [*maps.unread]
    if config.freeze_backbone_batch_norm:
        if not batch_norms(backbone):
            raise ValueError(
                f"freeze_backbone_batch_norm=True but the backbone of type {kind!r} has no batch norm: set it to False"
            )
        norms = {id(value) for module in batch_norms(backbone) for value in module.parameters()}
        backbone.frozen_parameters += [name for name, value in backbone.named_parameters() if id(value) in norms]
        for module in batch_norms(backbone):
            if type(module) is nn.BatchNorm2d:
                module.__class__ = FASegFrozenBatchNorm2d
    keep_frozen(backbone)
    return backbone


def _build(backbone_config: PreTrainedConfig, kwargs: dict[str, Any]) -> Any:
    """A backbone as its library builds it, with random weights. Raises a `ProbeError` if that cannot be."""
    kind = backbone_config.model_type
    if kind == "semask_swin":
        # A saved model's configuration may come from another copy of the code than the model does.
        AutoBackbone.register(type(backbone_config), SeMaskSwinBackbone, exist_ok=True)
    if type(backbone_config) not in AutoBackbone._model_mapping:
        raise ProbeError("is no backbone")
    backbone_class: Any = AutoBackbone._model_mapping[type(backbone_config)]
    if not backbone_class._supports_sdpa:
        # The attention asked for is that of the decoder; transformers hands it down and convolutions would refuse it.
        backbone_config._attn_implementation = "eager"
    if isinstance(widths := getattr(backbone_config, "hidden_sizes", None), tuple):
        backbone_config.hidden_sizes = list(widths)  # some backbones add a list to it: to their own default, a tuple
    try:
        backbone: Any = AutoBackbone.from_config(backbone_config, **kwargs)
    except Exception as error:  # of whatever transformers, timm, or a package that is not there, says
        raise ProbeError(f"cannot be built ({one_line(error)})") from error
    backbone.config.return_dict = True  # the model reads its maps by their name
    if not backbone.has_attentions:
        backbone._supports_sdpa = True
    _match_reference_swin(backbone)
    return backbone


def _fix(backbone_config: Any, kwargs: dict[str, Any]) -> str:
    """What makes this backbone work, found by trying; else advice to take another."""
    in_timm = backbone_config.model_type == "timm_backbone"
    ways = [{**kwargs, **freeing} for freeing in FREEING] + [{}] if in_timm else [{}]
    strides: tuple = ()
    for changed in ways:
        every = copy.deepcopy(backbone_config)
        try:
            with torch.device("meta"):
                every.out_indices = [-1]
                names = _build(every, changed).stage_names
                every = copy.deepcopy(backbone_config)
                every.out_indices = [*range(len(names))]
                strides = probe(_build(every, changed)).strides
        except (AttributeError, ProbeError):  # it has no stages, or fails with all of them too
            continue
        last = {stride: index for index, stride in enumerate(strides)}
        if not set(STRIDES) <= set(last):
            continue
        indices = [last[stride] for stride in STRIDES]
        features = [names[index] for index in indices]
        words = [f"timm_backbone_kwargs={changed or None}"] if changed != kwargs else []
        if in_timm and indices != backbone_config.out_indices:
            words.append(f"its out_indices={indices}")
        if not in_timm and features != backbone_config.out_features:
            words.append(f"its out_features={features}")
        return f"set {' and '.join(words)}"
    plain = f"all its layers have stride {strides[0]}, so " if len(set(strides)) == 1 else ""
    return f"{plain}choose a pyramid that reads images of any size, such as {PYRAMIDS}"


def _channels_first(backbone: Any, args: Any, output: Any) -> Any:
    """A hook that turns maps `(B, H, W, C)` into `(B, C, H, W)`."""
    output.feature_maps = tuple(each.permute(0, 3, 1, 2) for each in output.feature_maps)
    return output


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
