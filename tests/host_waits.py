"""Counts on CPU tensors where the host would wait for a GPU, on the routes that a GPU takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from image_processing import host_transfers, model_outputs, post_processing, segments, semantic_labels
from modeling_faseg import (
    deformable_choice,
    loss_faseg,
    loss_semask,
    loss_terms,
    mask_predictions_faseg,
    matcher_faseg,
)


TRANSFER = (post_processing, segments, model_outputs, loss_terms, loss_faseg, loss_semask, matcher_faseg)


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the device: a value read, a size that depends on values, a constant made on
    the host. What `to_host` does is noted as one of `transfers`, the shapes that it brought."""

    NAMES = (
        "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique", "bincount",
        "repeat_interleave", "allclose",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.transfers: list[list[tuple[int, ...]]] = []
        self.transferring = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if boolean_index or any(name.startswith(each) for each in self.NAMES):
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Called for each operation that waits."""
        if not self.transferring:
            self.found.append(name)

    def counted(self, to_host):
        """`to_host` as one transfer."""

        def transfer(*tensors):
            self.transfers.append([tuple(each.shape) for each in tensors])
            self.transferring = True
            try:
                return to_host(*tensors)
            finally:
                self.transferring = False

        return transfer

    def noted(self, method):
        """What copies all values from or to the host, and is no operation that is dispatched."""

        def read(*args, **kwargs):
            self.note(method.__name__)
            return method(*args, **kwargs)

        return read


@contextmanager
def host_waits(*modules: ModuleType) -> Iterator[Waits]:
    """As if tensors of the CPU were on a device that one waits for.

    Args:
        modules: further ones whose `to_host` is counted.
    """
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch:
        for module in (host_transfers, post_processing, segments, semantic_labels, loss_terms, loss_faseg):
            patch.setattr(module, "waits_for", lambda device: True)
        for module in (*TRANSFER, *modules):
            patch.setattr(module, "to_host", waits.counted(module.to_host))
        for module in (deformable_choice, mask_predictions_faseg):
            patch.setattr(module, "gathers", lambda device, needs_gradient: False)
        for name in ("tolist", "numpy", "__array__", "new_tensor"):
            patch.setattr(torch.Tensor, name, waits.noted(getattr(torch.Tensor, name)))
        patch.setattr(torch, "tensor", waits.noted(torch.tensor))
        with waits:
            yield waits
