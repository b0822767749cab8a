"""Random weights and inputs of the recorded SeMask and QLSeg cases, made again from names and seeds alone.

Every float tensor of a state dict comes from NumPy's frozen MT19937 stream, seeded with the CRC-32 of
`"<seed>:<official name>"` and scaled by a rule on its name, so that the models are far from degenerate.
"""

import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def state_dict(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Official names and shapes to float32 weights; class weights of the loss are no weights."""
    return {name: _tensor(name, shape, seed) for name, shape in shapes.items() if not name.endswith("empty_weight")}


def image(shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Normalised images, smooth with some noise."""
    random = np.random.RandomState(seed)
    batch, channels, height, width = shape
    coarse = random.standard_normal((batch, channels, max(height // 16, 2), max(width // 16, 2))).astype(np.float32)
    smooth = F.interpolate(torch.from_numpy(coarse), size=(height, width), mode="bilinear", align_corners=False)
    noise = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    return (smooth * 1.5 + 0.3 * noise).contiguous()


def labels(shape: tuple[int, int, int], num_classes: int, seed: int, ignored: float = 0.1) -> Tensor:
    """Label maps of coarse squares, of which single pixels are 255."""
    random = np.random.RandomState(seed)
    batch, height, width = shape
    coarse = random.randint(0, num_classes, size=(batch, max(height // 12, 2), max(width // 12, 2)))
    maps = F.interpolate(torch.from_numpy(coarse)[:, None].float(), size=(height, width), mode="nearest")[:, 0].long()
    maps[torch.from_numpy(random.rand(batch, height, width) < ignored)] = 255
    return maps


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()) & 0xFFFFFFFF)
    values = _scaled(name, shape, random.standard_normal(size=shape).astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape)


def _scaled(name: str, shape: tuple[int, ...], values: np.ndarray) -> np.ndarray:
    """The rules that the names of SeMask and QLSeg meet."""
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return np.exp(0.3 * values)
    if last == "running_mean":
        return 0.2 * values
    if last == "gamma":
        return 0.6 + 0.1 * values
    if last == "relative_position_bias_table":
        return 0.5 * values
    if last in ("pos_embed", "cls_token", "level_embed"):
        return 0.5 * values
    if "query_" in name or last == "q.weight":
        return values
    if "sampling_offsets" in name:
        return 1.5 * values if last == "bias" else 0.5 * values / np.sqrt(shape[1])
    if last == "weight" and len(shape) == 1:
        return 1.0 + 0.2 * values
    if last.endswith("bias"):
        return 0.1 * values
    gain = 1.0
    if "mlp_cls_q" in name or "mlp_cls_k" in name:
        gain = 0.8 * (2.0 / max(shape[0], 1)) ** 0.25
    if "class_embed" in name:
        gain = 5.0
    if "atm_" in name and ("out_proj" in name or "multihead_attn.proj" in name or "linear2" in name):
        gain = 0.35
    if "multihead_attn.q" in name or "multihead_attn.k" in name:
        gain = 1.3
    return gain * values / np.sqrt(max(int(np.prod(shape[1:])) if len(shape) > 1 else 1, 1))
