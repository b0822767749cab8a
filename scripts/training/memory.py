"""How much memory a training run takes, estimated before its first step."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call


def state_bytes(model: nn.Module, num_processes: int, averaged: bool) -> dict[str, int]:
    """Bytes that stay for the whole run: exact for weights, gradients and the two moments of AdamW.

    Args:
        num_processes: with more than one, the buckets that gradients are exchanged in are as large as the gradients.
        averaged: whether there is a second set of weights.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if tensor.requires_grad)
    sizes = {"weights": weights, "gradients": trained, "AdamW": 2 * trained}
    if num_processes > 1:
        sizes["exchange"] = trained
    if averaged:
        sizes["average"] = weights
    return sizes


def activation_bytes(model: Any, batch_size: int, height: int, width: int, accelerator: Accelerator) -> int | None:
    """Bytes that one forward pass keeps for its backward pass, in the precision of the run and without the loss.

    Counted without computing: the model, in its modes, runs on torch's fake tensors, which have shapes and no data.

    Returns:
        None for a model that cannot run on them.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that the number stays its own
        return tensor

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), accelerator.autocast():
            state = {
                name: torch.empty_like(tensor, device=accelerator.device, requires_grad=tensor.requires_grad)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            }
            own = {tensor.untyped_storage()._cdata for tensor in state.values()}
            pictures = torch.empty(batch_size, 3, height, width, device=accelerator.device)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = functional_call(model, state, kwargs={"pixel_values": pictures})
            total = sum(storage.nbytes() for number, storage in kept.items() if number not in own)
            del outputs
    except Exception:  # of whatever a backbone does that needs data: an estimate is not worth a run
        return None
    return total


def memory_estimate(
    model: Any, batch_size: int, height: int, width: int, averaged: bool, accelerator: Accelerator
) -> str:
    """What one process needs, as one line. The loss and the workspace of kernels come on top."""
    sizes: dict[str, int | None] = {
        **state_bytes(model, accelerator.num_processes, averaged),
        "activations": activation_bytes(model, batch_size, height, width, accelerator),
    }
    parts = [f"{name} {'unknown' if size is None else f'{size / 2**30:.2f}'}" for name, size in sizes.items()]
    total = sum(size or 0 for size in sizes.values())
    return f"{total / 2**30:.2f} GiB per process, loss and workspace on top: {', '.join(parts)}"
