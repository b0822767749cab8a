"""The backbone: any `AutoBackbone` of four scales, or of one that a feature pyramid makes four of, brought to the
reference's behaviour where transformers differs."""

import copy
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel

from .backbone_probe import PROBE_SIZES, BackboneMaps, ProbeError, one_line, probe
from .backbone_semask import SeMaskSwinBackbone
from .configuration_faseg import FASegConfig
from .feature_pyramid_faseg import PATCH, PATCHES
from .pretrained import batch_norms, keep_frozen


STRIDES = (4, 8, 16, 32)
# What timm calls the arguments that free a network from the size it is built for.
FREEING: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
PYRAMIDS = "resnet, swin, convnextv2, dinov3_convnext, pvt_v2 or a timm_backbone"
PLAIN = "dinov3_vit, dinov2, beit, vitdet or a timm_backbone"
_FOUND: dict[tuple[Any, ...], BackboneMaps] = {}  # of backbones of this process


def build_backbone(config: FASegConfig) -> PreTrainedModel:
    """The backbone of `config.backbone_config` with random weights.

    Its maps have channels first, and its `channels` are theirs, whatever the library gives or declares, which its
    `maps_as_built` tell, strides among it. Parameters that no map depends on are frozen, for several processes would
    wait for their gradients, and named in its `unread_parameters`. With `simple_feature_pyramid` all this is about the
    last map.

    Raises:
        ValueError: unless it returns four maps of strides 4, 8, 16 and 32, or with `simple_feature_pyramid` a last one
            of stride 16 or 14, naming what it returns and the fix.
    """
    backbone_config, kwargs = cast(PreTrainedConfig, config.backbone_config), config.timm_backbone_kwargs or {}
    kind, has_pyramid = backbone_config.model_type, config.simple_feature_pyramid
    try:
        backbone = _build(backbone_config, kwargs)
        maps = _maps(backbone, kwargs, has_pyramid)
    except ProbeError as error:
        name = getattr(backbone_config, "backbone", None)  # timm's name of it
        named = f" ({name}, timm_backbone_kwargs={kwargs})" if name else ""
        fix = _fix(backbone_config, kwargs, has_pyramid)
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


def _maps(backbone: Any, kwargs: dict[str, Any], has_pyramid: bool) -> BackboneMaps:
    """What it gives, found once in a process for equal backbones, as running its shapes takes longer than building it.

    Raises:
        ProbeError: it does not give what is needed.
    """
    config, dtype = backbone.config, next(backbone.parameters()).dtype
    settings = (config.to_json_string(use_diff=False), config._attn_implementation, repr(sorted(kwargs.items())))
    key = (type(backbone), *settings, dtype, has_pyramid)
    if key not in _FOUND:
        _FOUND[key] = _last_map(backbone) if has_pyramid else _four_maps(backbone)
    return copy.deepcopy(_FOUND[key])


def _four_maps(backbone: Any) -> BackboneMaps:
    """What it gives. Raises a `ProbeError` unless these are four maps of strides 4, 8, 16 and 32."""
    maps = probe(backbone)
    if maps.strides != STRIDES:
        raise ProbeError(f"gives {len(maps.strides)} feature map(s) of strides {maps.strides}, need {STRIDES}")
    return maps


def _last_map(backbone: Any) -> BackboneMaps:
    """What it gives, read through a feature pyramid: one of patch 14 takes images of 14/16 of their size.

    Raises:
        ProbeError: its last map has neither stride.
    """
    problem = None
    for patch in PATCHES:
        sizes = [(height // PATCH * patch, width // PATCH * patch) for height, width in PROBE_SIZES]
        try:
            maps = probe(backbone, sizes, last_alone=True)
            if maps.strides[-1] == patch:
                return maps
            if patch == PATCH and maps.strides[-1] in PATCHES:
                continue  # as images of its own size will show
            raise ProbeError(
                f"gives a last feature map of stride {maps.strides[-1]}, simple_feature_pyramid=True needs 16 or 14"
            )
        except ProbeError as error:
            problem = problem or error
    raise cast(ProbeError, problem)


def _fix(backbone_config: Any, kwargs: dict[str, Any], has_pyramid: bool) -> str:
    """What makes this backbone work, found by trying; else advice to take another."""
    if getattr(backbone_config, "reshape_hidden_states", True) is False:
        return "set its reshape_hidden_states=True, for maps (B, C, H, W)"
    in_timm = backbone_config.model_type == "timm_backbone"
    ways = [{**kwargs, **freeing} for freeing in FREEING if in_timm] + [{}]
    ways = [way for index, way in enumerate(ways) if way not in ways[:index]]
    for with_pyramid in (has_pyramid, not has_pyramid):
        for changed in ways:
            try:
                layers = _working_layers(backbone_config, changed, with_pyramid, has_pyramid)
            except (AttributeError, ProbeError):  # it has no stages, or fails with all of them too
                continue
            words = [f"timm_backbone_kwargs={changed or None}"] if changed != kwargs else []
            if with_pyramid != has_pyramid:
                words.append(f"simple_feature_pyramid={with_pyramid}")
            field = "out_indices" if in_timm else "out_features"
            if layers and hasattr(type(backbone_config)(), field):  # else its library chooses by itself
                words.append(f"its out_indices={[*layers]}" if in_timm else f"its out_features={[*layers.values()]}")
            return f"set {' and '.join(words)}"
    if has_pyramid:
        return f"choose a plain vision transformer of patch 16 or 14 that reads images of any size, such as {PLAIN}"
    strides: set[Any] = set()
    for changed in ways:
        with suppress(AttributeError, ProbeError):
            strides = set(_every_layer(backbone_config, changed)[1])
    plain = f"all its layers have stride {strides.pop()}, so " if len(strides) == 1 else ""
    return f"{plain}choose a pyramid that reads images of any size, such as {PYRAMIDS}"


def _working_layers(
    backbone_config: Any, kwargs: dict[str, Any], with_pyramid: bool, has_pyramid: bool
) -> dict[int, str]:
    """Index and name of each layer that has to be chosen; none where those of the configuration work.

    Raises:
        AttributeError, ProbeError: no choice works.
    """
    with torch.device("meta"):
        # Whoever is told of the pyramid may have chosen layers as of four scales: then it is the last of all.
        if not (told := with_pyramid and not has_pyramid):
            with suppress(ProbeError):
                backbone = _build(copy.deepcopy(backbone_config), kwargs)
                _last_map(backbone) if with_pyramid else _four_maps(backbone)
                return {}
        if not with_pyramid:
            names, strides = _every_layer(backbone_config, kwargs)
            last = {stride: index for index, stride in enumerate(strides)}
            if not set(STRIDES) <= set(last):
                raise ProbeError("has no layers of four strides")
            return {last[stride]: names[last[stride]] for stride in STRIDES}
        backbone = _with_layers(backbone_config, kwargs, [-1])
        _last_map(backbone)
        names = backbone.stage_names
        chosen = getattr(backbone_config, "out_indices", None) or ()
        return {} if told and [*chosen][-1:] in ([-1], [len(names) - 1]) else {len(names) - 1: names[-1]}


def _every_layer(backbone_config: Any, kwargs: dict[str, Any]) -> tuple[list[str], tuple]:
    """Names and strides of all layers."""
    with torch.device("meta"):
        names = _with_layers(backbone_config, kwargs, [-1]).stage_names
        return names, probe(_with_layers(backbone_config, kwargs, [*range(len(names))])).strides


def _with_layers(backbone_config: Any, kwargs: dict[str, Any], indices: list[int]) -> Any:
    """The backbone with other layers than its configuration chooses."""
    changed = copy.deepcopy(backbone_config)
    changed.out_indices = indices
    return _build(changed, kwargs)


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
