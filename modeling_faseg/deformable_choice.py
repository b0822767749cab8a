"""Which form of deformable sampling runs where, and why: the one place that decides.

All forms give the same values and gradients; they differ in time, in memory and in where they run:

    name    what it is                                             runs on
    grid    torch's `grid_sample`, once per level                  every device; compiles and exports
    gather  `embedding_bag` over the four pixels around a point    a CPU
    triton  one kernel for all levels, which keeps no samples      CUDA with Triton (a CPU under Triton's interpreter)

A kernel of the Hub (`model.use_kernels = True`) takes the place of the module that asks here, so it comes before all
of these. Another form is a line in `FORMS`, its places in `sampling_form`, and its function in
`deformable_sampling.py`.
"""

from typing import NamedTuple

import torch
from transformers.utils.import_utils import is_triton_available


class Form(NamedTuple):
    """What is known of a form: whether graphs may be exported with it."""

    exports: bool


class Choice(NamedTuple):
    """A form's name, and in a few words why it was taken."""

    form: str
    reason: str


FORMS = {"grid": Form(exports=True), "gather": Form(exports=False), "triton": Form(exports=False)}
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_form(form: str | None) -> None:
    """
    Raises:
        ValueError: `form` is neither None nor the name of one.
    """
    if form is not None and form not in FORMS:
        raise ValueError(f"form of deformable sampling {form!r}: choose one of {', '.join(FORMS)}, or None")


def sampling_form(
    device: torch.device, dtype: torch.dtype, needs_gradient: bool, num_levels: int, form: str | None = None
) -> Choice:
    """
    Args:
        device, dtype: of the maps.
        needs_gradient: whether a backward pass will follow.
        num_levels: how many maps are sampled.
        form: one that is to be taken whatever the rest says. An exported graph takes it only if it can be exported.
    Raises:
        ValueError: `form` is unknown or cannot run here; says why.
    """
    check_form(form)
    if is_exporting():
        if form is not None and FORMS[form].exports:
            return Choice(form, "it was asked for")
        return Choice("grid", "a graph is exported")
    if form is not None:
        obstacle = _obstacle(form, device, dtype, needs_gradient, num_levels)
        if obstacle is not None:
            raise ValueError(f"deformable sampling by {form!r} cannot run here: {obstacle}")
        return Choice(form, "it was asked for")
    if device.type == "cpu":
        if gathers(device, needs_gradient):
            return Choice("gather", "the fastest on a CPU")
        return Choice("grid", "the compiler cannot look into the backward pass of gathering")
    if device.type != "cuda":
        return Choice("grid", f"the only form on {device.type}")
    obstacle = _obstacle("triton", device, dtype, needs_gradient, num_levels)
    if obstacle is not None:
        return Choice("grid", obstacle)
    return Choice("triton", "it keeps no samples in memory")


def gathers(device: torch.device, needs_gradient: bool) -> bool:
    """Whether reading pixels one by one beats `grid_sample` here, and can be expressed."""
    if device.type != "cpu" or is_exporting():
        return False
    return not (needs_gradient and torch.compiler.is_compiling())  # the compiler cannot look into scipy


def is_exporting() -> bool:
    """Whether a graph is being made that leaves this process."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _obstacle(
    form: str, device: torch.device, dtype: torch.dtype, needs_gradient: bool, num_levels: int
) -> str | None:
    """Why `form` cannot run, or None."""
    if form == "gather" and not gathers(device, needs_gradient):
        return "gathering needs a CPU, and no compiler where gradients are wanted"
    if form != "triton":
        return None
    if dtype not in TRITON_DTYPES:
        return f"the Triton kernel takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return triton_obstacle(device, num_levels)


@torch.compiler.assume_constant_result
def triton_obstacle(device: torch.device, num_levels: int) -> str | None:
    """Why Triton's form cannot sample so many maps on the device, or None; a compiler takes the answer as it is."""
    if not is_triton_available():
        return "Triton is not installed"
    from .deformable_triton import MAX_LEVELS, trial

    if num_levels > MAX_LEVELS:
        return f"the Triton kernel takes up to {MAX_LEVELS} levels, not {num_levels}"
    return trial(device)
