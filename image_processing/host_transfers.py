"""What the host reads of a device: at once, for whoever reads waits until the device has done all of its work."""

import numpy as np
import torch
from torch import Tensor


def waits_for(device: torch.device) -> bool:
    """Whether reading a tensor means waiting for the work of its device."""
    return device.type != "cpu"


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors of one device as arrays, by one transfer; those of the CPU as they are."""
    if not waits_for(tensors[0].device):
        return [each.detach().numpy() for each in tensors]
    parts = [each.detach().contiguous().flatten().view(torch.uint8) for each in tensors]
    copies = torch.cat(parts).cpu().split([len(part) for part in parts])
    return [part.clone().view(each.dtype).view(each.shape).numpy() for part, each in zip(copies, tensors)]
