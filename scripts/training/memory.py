"""How much memory a training run takes, estimated before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef

from modeling_faseg.backbone_probe import uncached
from scripts.models.input_channels import num_channels


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
    try:
        with uncached(), FakeTensorMode(allow_non_fake_inputs=True), accelerator.autocast():
            state = {
                name: torch.empty_like(tensor, device=accelerator.device, requires_grad=tensor.requires_grad)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            }
            images = torch.empty(batch_size, num_channels(model.config), height, width, device=accelerator.device)
            with saved_storages(state.values()) as counted:
                functional_call(model, state, kwargs={"pixel_values": images})
    except Exception:  # of whatever a backbone does that needs data: an estimate is not worth a run
        return None
    return counted()


@contextmanager
def saved_storages(known: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Counts the bytes that autograd saves inside the block, without those of `known`.

    Nothing is really kept: each storage is counted once, when autograd wants it, and then let go. There is no
    backward afterwards.
    """
    left_out = {tensor.untyped_storage()._cdata for tensor in known}
    # A weak reference keeps the storage's address from being used again, but not its memory.
    counted: dict[int, tuple[StorageWeakRef, int]] = {}

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in left_out:
            counted.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))

    def refuse(_: None) -> Tensor:
        raise RuntimeError("saved tensors were only counted: there is no backward")

    with saved_tensors_hooks(count, refuse):
        yield lambda: sum(size for _, size in counted.values())


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
