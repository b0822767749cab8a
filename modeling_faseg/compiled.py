"""Networks that are compiled for images of few sizes, and computed as they are for all others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.utils import logging


logger = logging.get_logger(__name__)

MOST_SIZES = 8  # torch.compile itself stops at so many versions of one function


class CompiledForSizes:
    """Which calls of a model are compiled: those whose input has one of the first `sizes` shapes.

    Args:
        sizes: most shapes of input, 1 to 8. Each is compiled when it is first seen, which takes up to minutes.
    """

    def __init__(self, sizes: int) -> None:
        self.sizes = sizes
        self.seen: set[Any] = set()

    def takes(
        self, pixel_values: Tensor | None = None, *others: Any, pixel_mask: Tensor | None = None, **options: Any
    ) -> bool:
        """Whether a call with these arguments is compiled; what it is compiled for is noted as seen."""
        as_object = options.pop("return_dict", None)  # a model's own calls ask for it
        asked = [value for value in options.values() if value is not None and value is not False]
        if pixel_values is None or others or asked:
            return False
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return False
        kind = pixel_values.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), pixel_values.requires_grad, precision
        # what torch.compile makes a version of its own for
        inputs = [(each.shape, each.stride(), each.dtype) for each in (pixel_values, pixel_mask) if each is not None]
        key = kind, *inputs, *modes, as_object, *options
        if key not in self.seen and len(self.seen) == self.sizes:
            height, width = pixel_values.shape[-2:]
            logger.warning_once(
                f"images of more than {self.sizes} sizes: those of further ones, such as {height}x{width}, are "
                "computed without. Pad them to fewer sizes: size_divisor=256 of the processor, or --size_divisor 256"
            )
            return False
        self.seen.add(key)
        if kind == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the call before are copied, see `own`
        return True


def with_own_versions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own: torch.compile keeps and counts its versions by code object, and all
    modules of a process share that of their call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace()  # a copy
    return call


def own(outputs: Any) -> Any:
    """A copy of a compiled call's outputs: the next run of a CUDA graph writes over the memory of its own."""
    return tree_map_only(Tensor, Tensor.clone, outputs)
