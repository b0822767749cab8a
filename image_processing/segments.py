"""Class and mask logits of one image -> its instances or panoptic segments, one mask at a time.

Notation: Q queries, K classes, (h, w) logits at 1/4, canvas = 4 * (h, w) the padded network input, input size = the
image's part of it, (H, W) size of the result: the target size, or the input size where none is given.

Masks of that size are what costs: a photo's are 48 MB each in float32. So a large mask is made a few columns at a
time, and of instances only the columns that can hold a pixel of it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .semantic_labels import BLOCK_BYTES, DEVICE_BLOCK_BYTES, LOGITS_STRIDE, Size


QUERY_CHUNK = 25

Blocks = Iterator[tuple[slice, Tensor]]  # columns of a mask, and the logits of these columns (H, n)


class BoxedMask(NamedTuple):
    """A binary mask as its bounding box and the pixels inside of it; `size` is that of the image."""

    size: Size
    rows: slice
    columns: slice
    pixels: Tensor

    def whole(self) -> Tensor:
        """The mask as `(H, W)` bool."""
        mask = self.pixels.new_zeros(self.size)
        mask[self.rows, self.columns] = self.pixels
        return mask


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear `(N, h, w)` -> `(N, *size)`."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def upsampled_masks(
    mask_logits: Tensor, input_size: Size, target_size: Size | None = None, level: float = -math.inf
) -> Iterator[Blocks]:
    """For each query the logits of its mask in blocks of columns, at the input size, or at `target_size` if given.

    Columns without a logit above `level` may be left out.
    """
    canvas = (mask_logits.shape[-2] * LOGITS_STRIDE, mask_logits.shape[-1] * LOGITS_STRIDE)
    size = input_size if target_size is None else target_size
    block_bytes = BLOCK_BYTES.get(mask_logits.device.type, DEVICE_BLOCK_BYTES)
    in_blocks = size != input_size and 4 * size[0] * size[1] > block_bytes
    for start in range(0, mask_logits.shape[0], QUERY_CHUNK):
        masks = resize(mask_logits[start : start + QUERY_CHUNK].float(), canvas)[:, : input_size[0], : input_size[1]]
        if in_blocks:
            yield from (resized_columns(mask, size, level, block_bytes) for mask in masks)
        else:
            yield from (iter([(slice(0, size[1]), mask)]) for mask in resize(masks, size))


def resized_columns(mask: Tensor, size: Size, level: float, block_bytes: int) -> Blocks:
    """Blocks of columns of one mask resized to `size`, equal to `resize` of all of it at once.

    Width first, then height, is what bilinear interpolation does for each pixel.
    """
    wide = resize(mask[None], (mask.shape[0], size[1]))[0]
    # Rounding may lift a logit between two others by less than this.
    margin = 1e-5 * abs(level) if math.isfinite(level) else 0.0
    hits = (wide.amax(dim=0) > level - margin).nonzero()
    if len(hits) == 0:
        return
    first, last = int(hits[0]), int(hits[-1]) + 1
    # Blocks of nearly one width: for very small ones PyTorch takes other code, which rounds in another way.
    count = math.ceil(4 * size[0] * (last - first) / block_bytes)
    bounds = [first + (last - first) * index // count for index in range(count + 1)]
    for left, right in zip(bounds, bounds[1:]):
        yield slice(left, right), resize(wide[None, :, left:right], (size[0], right - left))[0]


@torch.no_grad()
def instance_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: Size,
    target_size: Size | None,
    threshold: float,
    mask_threshold: float,
    max_detections: int,
    excluded_labels: set[int],
) -> tuple[list[BoxedMask], Tensor, Tensor]:
    """The best (query, class) pairs of one image, best first.

    A pair's score is its class probability times the mean mask probability inside its mask. One query may stand for
    several classes.

    Returns:
        N masks, scores `(N,)` in `[threshold, 1]`, labels `(N,)` int64. Empty masks are left out.
    """
    class_probs = class_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = class_probs.shape[1]
    scores, pairs = class_probs.flatten().topk(min(max_detections, class_probs.numel()))
    queries, labels = pairs // num_classes, pairs % num_classes
    if excluded_labels:
        allowed = ~torch.isin(labels, torch.tensor(sorted(excluded_labels), device=labels.device))
        scores, queries, labels = scores[allowed], queries[allowed], labels[allowed]
    if len(labels) == 0:
        return [], scores, labels

    used, position = queries.unique(return_inverse=True)
    masks, quality = boxed_masks(mask_logits[used], input_size, target_size, logit(mask_threshold))
    scores = scores * quality[position]
    order = scores.argsort(descending=True, stable=True)
    has_pixels = torch.tensor([mask.pixels.numel() > 0 for mask in masks], device=labels.device)
    order = order[(scores[order] >= threshold) & has_pixels[position[order]]]
    return [masks[index] for index in position[order].tolist()], scores[order], labels[order]


def boxed_masks(
    mask_logits: Tensor, input_size: Size, target_size: Size | None, level: float
) -> tuple[list[BoxedMask], Tensor]:
    """The pixels above `level` of each query, and the mean probability of these pixels `(Q,)`, 0 if there are none."""
    size = input_size if target_size is None else target_size
    inside = torch.zeros(size, dtype=torch.bool, device=mask_logits.device)
    probs = torch.zeros(size, device=mask_logits.device)
    masks, quality = [], []
    for blocks in upsampled_masks(mask_logits, input_size, target_size, level):
        left, right = size[1], 0
        for columns, logits in blocks:
            mask = logits > level
            inside[:, columns] = mask
            torch.mul(logits.sigmoid_(), mask.float(), out=probs[:, columns])
            left, right = min(left, columns.start), columns.stop
        quality.append(total(probs) / (inside.count_nonzero() + 1e-6))
        hits = inside[:, left:right].view(torch.uint8)
        rows = hits.amax(dim=1).nonzero() if left < right else hits.new_zeros(0)
        box = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
        masks.append(BoxedMask(size, box, slice(left, right), inside[box, left:right].clone()))
        inside[:, left:right] = False
        probs[:, left:right] = 0
    return masks, torch.stack(quality)


def total(values: Tensor) -> Tensor:
    """The sum of all values, the same for any number of threads: these share the rows of a sum, but not one row."""
    return values.flatten().expand(2, -1).sum(dim=1)[0]


@torch.no_grad()
def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: Size,
    target_size: Size | None,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: set[int],
) -> tuple[Tensor, list[dict]]:
    """The segments of one image, ids from 1 in the order of the queries.

    A query is kept if its best class is an object with a probability above `threshold`. Pixels go to the query with
    the highest class times mask probability. A segment is dropped if less than `overlap_mask_area_threshold` of its
    mask won its pixels.

    Returns:
        map `(*size)` int32 with 0 where there is no segment, and one dict per segment: `id`, `label_id`,
        `was_fused`, `score`.
    """
    scores, labels = class_logits.float().softmax(dim=-1).max(dim=-1)
    kept = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, labels = scores[kept], labels[kept]
    size = input_size if target_size is None else target_size
    segments: list[dict] = []
    if len(labels) == 0:
        return torch.zeros(size, dtype=torch.int32, device=mask_logits.device), segments

    winner, mask_areas = winning_queries(scores, mask_logits[kept], input_size, target_size, mask_threshold)
    outside, areas = winner.flatten().bincount(minlength=2 * len(labels)).view(-1, 2).T.tolist()
    segment_of = torch.zeros(2 * len(labels), dtype=torch.int32)
    fused: dict[int, int] = {}
    for query, label in enumerate(labels.tolist()):
        won_area = outside[query] + areas[query]
        if areas[query] == 0 or won_area / mask_areas[query] < overlap_mask_area_threshold:
            continue  # a segment without pixels comes first: its mask may be empty too
        if label in fused:
            segment_of[2 * query + 1] = fused[label]
            continue
        segment_info = {"id": len(segments) + 1, "label_id": label, "was_fused": label in label_ids_to_fuse}
        segments.append(segment_info | {"score": round(scores[query].item(), 6)})
        segment_of[2 * query + 1] = len(segments)
        if label in label_ids_to_fuse:
            fused[label] = len(segments)
    return segment_of.to(winner.device)[winner], segments


def winning_queries(
    scores: Tensor, mask_logits: Tensor, input_size: Size, target_size: Size | None, mask_threshold: float
) -> tuple[Tensor, list[int]]:
    """The query with the highest score times mask probability at each pixel, the first of equal ones.

    Returns:
        map `(*size)` int32 of twice the winner, plus 1 where its mask probability is at least `mask_threshold`; the
        areas of all queries' masks.
    """
    size = input_size if target_size is None else target_size
    best = torch.full(size, -1.0, device=scores.device)
    winner = torch.zeros(size, dtype=torch.int32, device=scores.device)
    mask_areas = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    for query, blocks in enumerate(upsampled_masks(mask_logits, input_size, target_size)):
        for columns, logits in blocks:
            probs = logits.sigmoid_()
            mask = probs >= mask_threshold
            mask_areas[query] += mask.count_nonzero()
            better = probs.mul_(scores[query]) > best[:, columns]
            torch.maximum(best[:, columns], probs, out=best[:, columns])
            # Later queries have the larger numbers: the maximum overwrites where the query is better.
            number = mask.int().add_(2 * query).mul_(better.int())
            torch.maximum(winner[:, columns], number, out=winner[:, columns])
    return winner, mask_areas.tolist()


def logit(probability: float) -> float:
    """Inverse sigmoid; 0 for 0.5, so that the default threshold is the reference's `logits > 0`."""
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability))


def run_lengths(mask: Tensor) -> list[int]:
    """Run-length encoding of one binary mask: start (counted from 1, row by row) and length of each run."""
    pixels = F.pad(mask.flatten().to(torch.int8), (1, 1))
    edges = torch.where(pixels[1:] != pixels[:-1])[0] + 1
    edges[1::2] -= edges[::2]
    return edges.tolist()
