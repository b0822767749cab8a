"""The mask predictions that matching and loss look at: at a few points, or those of a few queries.

Notation: B batch, Q queries, M channels of the mask features, P points, N masks. A mask is the product of a query's
embedding with the mask features, and sampling is linear: sampling the features and multiplying equals sampling masks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .deformable_choice import gathers
from .deformable_sampling import Corners, bordered_table
from .point_sampling_faseg import sample_shared_points


class MaskProducts:
    """The masks of several predictions for the same images, not multiplied out.

    Args:
        embeddings: `(B, Q, M)` of each prediction.
        features: `(B, M, h, w)` that all predictions share.
    """

    def __init__(self, embeddings: Sequence[Tensor], features: Tensor):
        self.embeddings = [each.to(features.dtype) for each in embeddings]
        self.features = features
        self.device = features.device
        self.sampler = _FeatureSampler(features.detach())

    def at_points(self, prediction: int, points: Tensor) -> Tensor:
        """`(B, Q, P)` float32 logits at the points `(B, P, 2)` of each image; without gradient."""
        embeddings = self.embeddings[prediction].detach().float()
        pixels = self.features.shape[-2:]
        if points.shape[1] > pixels.numel():  # fewer products if whole masks are sampled
            masks = torch.matmul(embeddings, self.features.detach().float().flatten(2))
            return sample_shared_points(masks.unflatten(2, pixels), points)
        return torch.matmul(embeddings, self.sampler(points).transpose(1, 2))

    def of_queries(self, predictions: Sequence[int], queries: list[list[Tensor]]) -> list[Tensor]:
        """`(N, h, w)` float32 logits of some queries of each of `predictions`, given per prediction and image."""
        embeddings = [self.embeddings[prediction] for prediction in predictions]
        per_image = []
        for image, features in enumerate(self.features.unbind(0)):
            chosen = [each[image][index[image]] for each, index in zip(embeddings, queries)]
            masks = torch.matmul(torch.cat(chosen), features.flatten(1)).float()
            per_image.append(masks.unflatten(1, features.shape[-2:]).split([len(each) for each in chosen]))
        return [torch.cat(masks) if len(masks) > 1 else masks[0] for masks in zip(*per_image)]


class _FeatureSampler:
    """Bilinear samples of the maps `(B, M, h, w)` at `(B, P, 2)` points as `(B, P, M)` float32, time and again."""

    def __init__(self, features: Tensor):
        self.features = features
        self.table: Tensor | None = None

    def __call__(self, points: Tensor) -> Tensor:
        if not gathers(self.features.device, needs_gradient=False):
            return sample_shared_points(self.features.float(), points).transpose(1, 2)
        shapes = [(self.features.shape[-2], self.features.shape[-1])]
        if self.table is None:
            tokens = self.features.float().flatten(2).transpose(1, 2)
            self.table = bordered_table(tokens[:, :, None], shapes)
        corners = Corners(len(points), shapes, points[:, :, None, None, None])
        weights = corners.row_weights(torch.ones_like(points[..., 0]))
        samples = nn.functional.embedding_bag(corners.rows(), self.table, mode="sum", per_sample_weights=weights)
        return samples.view(*points.shape[:2], -1)
