"""Rows of tables that are read as a whole, such as learned queries."""

import torch
from torch import Tensor, nn


def all_rows(embedding: nn.Embedding, like: Tensor) -> Tensor:
    """Its weights `(N, C)`, read by a call of the module on the device of `like`.

    What brings weights to where they are used (Accelerate's `device_map`, FSDP) does so around calls.
    """
    return embedding(torch.arange(embedding.num_embeddings, device=like.device))
