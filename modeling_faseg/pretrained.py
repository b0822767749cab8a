"""What the models share: saving with their code, checks of their inputs, and torch's own initialisation."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .compiled import MOST_SIZES, CompiledForSizes, own, with_own_versions


logger = logging.get_logger(__name__)

# What loads a segmentation model from its folder; the first is the one that this project's commands use.
SEGMENTATION_AUTO_CLASSES = (
    "AutoModelForUniversalSegmentation",
    "AutoModelForSemanticSegmentation",
    "AutoModelForImageSegmentation",
)


class SegmentationPreTrainedModel(PreTrainedModel):
    """A model of images that is saved with its code."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # Losses are means over what a batch shows. Without this line transformers' Trainer takes `**kwargs` of a forward
    # for a loss divided by `num_items_in_batch`, and multiplies it by micro steps and processes.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True

    _auto_classes: ClassVar[tuple[str, ...]]  # those that load the class
    _compiled_for: CompiledForSizes | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(fill_unsaved_buffers)
        self.register_load_state_dict_post_hook(keep_class_weights)

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> Any:
        """As transformers', but classes weigh what the configuration says, not what they did in the checkpoint, and
        what the constructor froze is frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        keep_class_weights(model)
        keep_frozen(model)
        return loaded

    def train(self, mode: bool = True) -> Self:
        """As torch's, but a backbone of which nothing learns stays in evaluation mode, without dropout and drop path,
        and a batch norm whose weight is frozen is a constant.

        What trains a part of a model, such as an adapter of peft, saves that part alone: statistics that moved outside
        of it would be lost.
        """
        super().train(mode)
        backbone = getattr(self, "backbone", None)
        if backbone is not None and is_frozen(backbone):
            backbone.eval()
        for norm in batch_norms(self):
            if norm.weight is not None and not norm.weight.requires_grad:
                norm.eval()
        return self

    def compile_for_inference(self, mode: str | None = None, sizes: int = MOST_SIZES, **options: Any) -> Self:
        """Compile the network, one whole graph for each size of images; calls of the model stay as they are.

        Worth it for many images of few sizes, on a GPU above all, where launching the network's operations one by one
        takes longer than they do. Outputs differ from those without by float noise. Calls with anything but
        `pixel_values` and `pixel_mask`, such as labels, are computed without, and so is what calls `model.forward`,
        as peft's wrappers do.

        Args:
            mode: of `torch.compile`; by default `"reduce-overhead"`, CUDA graphs, where the model is on a GPU and no
                `backend` or `options` are given. Outputs are copies, which the next call leaves as they are.
            sizes: most shapes `(B, C, H, W)` of `pixel_values` that are compiled, 1 to 8; images of further shapes are
                computed without, and the first one is named in a warning.
            options: further ones of `torch.compile`, such as `backend`; not `fullgraph` and `dynamic`.
        Returns:
            the model itself, in evaluation mode.
        Raises:
            ValueError: `sizes` is out of range, or an option that is fixed here is given.
        """
        for name in sorted(options.keys() & {"dynamic", "fullgraph"}):
            raise ValueError(
                f"{name}={options[name]}: each size of images is compiled as one whole graph, fullgraph=True and "
                f"dynamic=False: leave {name} out, or use model.compile()"
            )
        if not 1 <= sizes <= MOST_SIZES:
            raise ValueError(f"sizes={sizes}: give 1 to {MOST_SIZES}")
        if mode is None and self.device.type == "cuda" and not options.keys() & {"backend", "options"}:
            mode = "reduce-overhead"
        self._compiled_for = CompiledForSizes(sizes)
        # as `self.compile` does, which would share its versions with every other module of the process
        call = with_own_versions(self._call_impl)
        self._compiled_call_impl = torch.compile(call, fullgraph=True, dynamic=False, mode=mode, **options)
        return self.eval()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled_for is None:
            return super().__call__(*args, **kwargs)
        whole = not self.training and not self._has_windows(*args, **kwargs)
        if whole and self._compiled_for.takes(*args, **kwargs):
            return own(super().__call__(*args, **kwargs))
        return self._call_impl(*args, **kwargs)

    def _has_windows(self, pixel_values: Tensor | None = None, *args: Any, **kwargs: Any) -> bool:
        """Whether the call reads images through windows: how many depends on the mask's values, so that it is no
        graph, but its calls of the model for the windows are."""
        return False

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As transformers', but the saved configuration names every auto class that can load the code with it."""
        if self._auto_class is not None:
            file = type(self).__module__.rpartition(".")[2]
            names = dict.fromkeys(self._auto_classes, f"{file}.{type(self).__name__}")
            if self.base_model is not self:
                names["AutoModel"] = f"{file}.{type(self.base_model).__name__}"
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **names}
        super().save_pretrained(save_directory, *args, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside of transformers it skips every module that holds no parameter itself, in case an
        # initialisation overwrites loaded weights. Ours goes through transformers.initialization, which does not.
        super()._initialize_weights(module, is_custom_code=False)

    def _warn_of_no_attentions(self, output_attentions: bool | None) -> None:
        if output_attentions and self.config._attn_implementation != "eager":
            logger.warning_once(
                f"no attentions are returned with attn_implementation={self.config._attn_implementation!r}: "
                'use model.set_attn_implementation("eager")'
            )


@torch.no_grad()
def fill_unsaved_buffers(model: Any, incompatible_keys: Any) -> None:
    """Compute the buffers again that no state dict holds, such as position indices: a model that came from the meta
    device by `to_empty` has garbage there. A hook after `load_state_dict`."""
    unsaved = [module for module in model.modules() if module._non_persistent_buffers_set]
    if not unsaved:
        return
    saved = [tensor for module in unsaved for tensor in module.state_dict(keep_vars=True).values()]
    for each in (*model.modules(), *saved):  # initialisation passes over what has this mark
        each._is_hf_initialized = True
    for module in unsaved:
        module._is_hf_initialized = False
    model.initialize_weights()
    for tensor in saved:
        tensor._is_hf_initialized = False


@torch.no_grad()
def keep_class_weights(model: Any, incompatible_keys: Any = None) -> None:
    """Weight classes as the configuration says, whatever a checkpoint was trained with: its weights are in its files
    too. A hook after `load_state_dict`."""
    criterion = getattr(model, "criterion", None)
    if criterion is not None:
        criterion.empty_weight.copy_(criterion.weights_of_classes())


def keep_frozen(model: nn.Module) -> None:
    """Freeze what modules name in their `frozen_parameters`: `from_pretrained` makes every parameter a new one."""
    for module in model.modules():
        for name in getattr(module, "frozen_parameters", ()):
            module.get_parameter(name).requires_grad_(False)


def is_frozen(module: nn.Module) -> bool:
    """Whether none of the module's parameters learns; `module.requires_grad_(False)` makes it so."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def backbone_outputs(backbone: nn.Module, pixel_values: Tensor, **kwargs: Any) -> Any:
    """What a backbone gives for images, without a history if nothing of it learns.

    No activation of a frozen backbone is then kept for the backward pass. Images that require a gradient (saliency
    maps) get it all the same.
    """
    # an exported graph would hold the switch as a part of its own
    keeps_history = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    if keeps_history and is_frozen(backbone) and not pixel_values.requires_grad:
        with torch.no_grad():
            return backbone(pixel_values, **kwargs)
    return backbone(pixel_values, **kwargs)


def check_channels(pixel_values: Tensor, channels: int) -> None:
    """Check that images have so many channels, naming both numbers if not."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"pixel_values are of shape {tuple(pixel_values.shape)}, need (B, {channels}, H, W): the model's "
            f"num_channels is {channels}"
        )


def batch_norms(module: nn.Module) -> list[Any]:
    """The batch norms inside, of torch or timm."""
    return [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


def init_as_torch(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """torch's default initialisation of a linear layer or convolution, transposed or not."""
    init.kaiming_uniform_(module.weight, a=5**0.5)
    if module.bias is not None:
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)


def check_labels(pixel_values: Tensor, mask_labels: list[Tensor] | None, class_labels: list[Tensor] | None) -> None:
    """Check that both labels or neither are given, with masks `(T, H, W)` for each image `(3, H, W)` of the batch.

    Raises:
        ValueError: naming what does not fit, and the fix.
    """
    if (mask_labels is None) != (class_labels is None):
        given, lacking = ("mask", "class") if class_labels is None else ("class", "mask")
        raise ValueError(f"{given}_labels without {lacking}_labels: give both, or neither for no loss")
    if mask_labels is None:
        return
    if len(mask_labels) != len(pixel_values):
        raise ValueError(f"{len(pixel_values)} images but mask_labels of {len(mask_labels)}: give one per image")
    size = tuple(pixel_values.shape[-2:])
    for image, masks in enumerate(mask_labels):
        if tuple(masks.shape[-2:]) != size:
            raise ValueError(
                f"mask_labels of image {image} of the batch are {tuple(masks.shape[-2:])}, pixel_values {size}: "
                "resize and pad both alike, as FASegImageProcessor does with segmentation_maps"
            )


def check_image_size(pixel_values: Tensor, pixel_mask: Tensor | None, divisor: int) -> None:
    """Check that `(B, 3, H, W)` images have sides of multiples of `divisor`, and a mask `(B, H, W)` if any."""
    check_pixel_mask(pixel_values, pixel_mask)
    height, width = pixel_values.shape[-2:]
    if height % divisor or width % divisor:
        raise ValueError(
            f"pixel_values are {height}x{width}, need multiples of {divisor}: pad them as FASegImageProcessor does"
        )


def check_pixel_mask(pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
    """Check that a mask, if any, is `(B, H, W)`. Raises a `ValueError` that names both shapes."""
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is not None and pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"pixel_mask is of shape {tuple(pixel_mask.shape)}, need {(batch_size, height, width)}: "
            "one value per pixel"
        )


def shared_fields(outputs: ModelOutput, output_class: Any) -> dict[str, Any]:
    """The fields of a model's outputs that those of its class with a head have too."""
    return {name: value for name, value in outputs.items() if name in output_class.__dataclass_fields__}


def selected_states(
    hidden_states: Sequence[Tensor], wanted: bool | list[int] | None
) -> tuple[Tensor | None, ...] | None:
    """All hidden states, or None in place of those that a list of indices does not name."""
    if not wanted:
        return None
    if wanted is True:
        return tuple(hidden_states)
    kept = {index % len(hidden_states) for index in wanted}
    return tuple(state if index in kept else None for index, state in enumerate(hidden_states))
