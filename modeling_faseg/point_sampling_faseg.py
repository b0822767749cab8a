"""Points at which masks are compared, instead of every pixel (Kirillov et al., "PointRend", CVPR 2020).

Notation: N masks, P points. Points are x and y in [0, 1], shares of the image's width and height.
"""

import torch
from torch import Tensor, nn


def sample_points(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `masks` `(N, H, W)` at `points` `(N, P, 2)` as `(N, P)`; zero outside of the map."""
    grid = 2.0 * points[:, :, None] - 1.0
    samples = nn.functional.grid_sample(masks[:, None], grid, mode="bilinear", align_corners=False)
    return samples[:, 0, :, 0]


def sample_shared_points(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `masks` `(B, N, H, W)` at the points `(B, P, 2)` that the masks of an image share, as
    `(B, N, P)`; zero outside of the map."""
    grid = 2.0 * points[:, None] - 1.0
    return nn.functional.grid_sample(masks, grid, mode="bilinear", align_corners=False)[:, :, 0]


def move_to_valid_pixels(points: Tensor, valid: Tensor) -> Tensor:
    """Uniform points of the image to uniform centres of its valid pixels.

    Args:
        points: `(N, P, 2)`, uniform in [0, 1); the first coordinate picks the pixel.
        valid: `(H, W)` bool. Without any valid pixel the points come back unchanged.
    Returns:
        `(N, P, 2)`. Centres, so that bilinear samples of a full-size map take in no neighbour.
    """
    height, width = valid.shape
    counts = valid.flatten().cumsum(0)
    total = counts[-1]
    rank = (points[..., 0].float() * total).floor().long() + 1
    pixel = torch.searchsorted(counts, rank.clamp(max=total)).clamp(max=height * width - 1)
    centres = torch.stack(((pixel % width + 0.5) / width, (pixel // width + 0.5) / height), dim=-1)
    return torch.where(total > 0, centres.to(points.dtype), points)


@torch.no_grad()
def sample_uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    place: "PointPlacement | None" = None,
) -> Tensor:
    """`(N, P, 2)` points, most of them where the mask `logits` `(N, H, W)` are closest to zero.

    Draws `torch.rand(N, oversample_ratio * P, 2)` candidates of which the most uncertain share stays, then
    `torch.rand` for the rest; `place` moves drawn points before they are looked at.
    """
    num_masks = logits.shape[0]
    candidates = torch.rand(num_masks, int(num_points * oversample_ratio), 2, device=logits.device)
    if place is not None:
        candidates = place(candidates)
    num_uncertain = int(importance_sample_ratio * num_points)
    uncertainty = -sample_points(logits, candidates).abs()
    index = uncertainty.topk(num_uncertain, dim=1, sorted=False).indices
    uncertain = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    if num_uncertain == num_points:
        return uncertain
    rest = torch.rand(num_masks, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat((uncertain, place(rest) if place is not None else rest), dim=1)


class PointPlacement:
    """Moves the points of each mask to valid pixels of the image that the mask belongs to.

    Args:
        valid: per image `(H, W)` bool.
        counts: how many masks each image has, in the order of the masks.
    """

    def __init__(self, valid: list[Tensor], counts: list[int]):
        self.valid = valid
        self.counts = counts

    def __call__(self, points: Tensor) -> Tensor:
        per_image = points.split(self.counts)
        return torch.cat([move_to_valid_pixels(part, valid) for part, valid in zip(per_image, self.valid)])
