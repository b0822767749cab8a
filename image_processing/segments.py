"""Class and mask logits of one image -> its instances or panoptic segments, one mask at a time.

Notation: Q queries, K classes, (h, w) logits at 1/4, canvas = 4 * (h, w) the padded network input, input size = the
image's part of it, (H, W) size of the result: the target size, or the input size where none is given.

Masks of that size are what costs: a photo's are 48 MB each in float32. So a large mask is made a few columns at a
time, and of instances only the columns that can hold a pixel of it. That reads values of each mask, for which a CPU
need not wait. On other devices the masks of many queries are made together, of all queries, since nobody knows yet
which are wanted, and what decides about them comes to the host by one transfer.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .host_transfers import to_host, waits_for
from .model_outputs import check_ends, logit_ends
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


def at_input_size(mask_logits: Tensor, input_size: Size) -> Tensor:
    """`(N, h, w)` mask logits -> `(N, *input_size)` float32."""
    canvas = (mask_logits.shape[-2] * LOGITS_STRIDE, mask_logits.shape[-1] * LOGITS_STRIDE)
    return resize(mask_logits.float(), canvas)[:, : input_size[0], : input_size[1]]


def upsampled_masks(
    mask_logits: Tensor, input_size: Size, target_size: Size | None = None, level: float = -math.inf
) -> Iterator[Blocks]:
    """For each query the logits of its mask in blocks of columns, at the input size, or at `target_size` if given.

    Columns without a logit above `level` may be left out.
    """
    size = input_size if target_size is None else target_size
    block_bytes = BLOCK_BYTES["cpu"]
    in_blocks = size != input_size and 4 * size[0] * size[1] > block_bytes
    for start in range(0, mask_logits.shape[0], QUERY_CHUNK):
        masks = at_input_size(mask_logits[start : start + QUERY_CHUNK], input_size)
        if in_blocks:
            yield from (resized_columns(mask, size, level, block_bytes) for mask in masks)
        else:
            yield from (iter([(slice(0, size[1]), mask)]) for mask in resize(masks, size))


def upsampled_together(mask_logits: Tensor, input_size: Size, size: Size) -> Iterator[tuple[slice, Tensor]]:
    """Some queries, and the logits of their masks at `size`, `(n, *size)`."""
    count = min(QUERY_CHUNK, max(1, DEVICE_BLOCK_BYTES // (4 * size[0] * size[1])))
    for start in range(0, mask_logits.shape[0], count):
        queries = slice(start, start + count)
        yield queries, resize(at_input_size(mask_logits[queries], input_size), size)


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
) -> tuple[list[BoxedMask], np.ndarray, np.ndarray]:
    """The best (query, class) pairs of one image, best first.

    A pair's score is its class probability times the mean mask probability inside its mask. One query may stand for
    several classes.

    Returns:
        N masks on the device of the logits, and on the host scores `(N,)` in `[threshold, 1]` and labels `(N,)` int64.
        Empty masks are left out.
    """
    size = input_size if target_size is None else target_size
    level = logit(mask_threshold)
    class_probs = class_logits.float().softmax(dim=-1)[:, :-1]
    best = class_probs.flatten().topk(min(max_detections, class_probs.numel()))
    of_pairs = partial(allowed_pairs, num_classes=class_probs.shape[1], excluded_labels=excluded_labels)
    if waits_for(mask_logits.device):
        inside, *measured = masks_together(mask_logits, input_size, size, level)
        *pairs, quality, boxes, ends = to_host(*best, *measured, logit_ends(class_logits, mask_logits))
        check_ends(("class_queries_logits", "masks_queries_logits"), ends)
        scores, queries, labels = of_pairs(*pairs)
        solid = np.flatnonzero(boxes[:, 0] < boxes[:, 1])
        mask_of: Callable[[int], BoxedMask] = partial(cut_out, inside, boxes)
    else:
        scores, queries, labels = of_pairs(*to_host(*best))
        masks, quality = boxed_masks(mask_logits, np.unique(queries).tolist(), input_size, target_size, level)
        solid, mask_of = np.array([*masks], dtype=np.int64), masks.__getitem__

    scores = scores * quality[queries]
    order = np.argsort(-scores, kind="stable")
    order = order[(scores[order] >= threshold) & np.isin(queries[order], solid)]
    found = queries[order].tolist()
    chosen = {query: mask_of(query) for query in set(found)}
    return [chosen[query] for query in found], scores[order], labels[order]


def allowed_pairs(
    scores: np.ndarray, pairs: np.ndarray, num_classes: int, excluded_labels: set[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, queries and labels of pairs that are numbered query by query, but for those of excluded labels."""
    queries, labels = np.divmod(pairs, num_classes)
    allowed = ~np.isin(labels, sorted(excluded_labels))
    return scores[allowed], queries[allowed], labels[allowed]


def boxed_masks(
    mask_logits: Tensor, queries: list[int], input_size: Size, target_size: Size | None, level: float
) -> tuple[dict[int, BoxedMask], np.ndarray]:
    """The pixels above `level` of some queries, where there are any, and the mean probability of these pixels `(Q,)`,
    0 where there are none; one query after another, on the CPU."""
    size = input_size if target_size is None else target_size
    inside = torch.zeros(size, dtype=torch.bool)
    probs = torch.zeros(size)
    masks, quality = {}, np.zeros(len(mask_logits), dtype=np.float32)
    for query, blocks in zip(queries, upsampled_masks(mask_logits[queries], input_size, target_size, level)):
        left, right = size[1], 0
        for columns, logits in blocks:
            mask = logits > level
            inside[:, columns] = mask
            torch.mul(logits.sigmoid_(), mask.float(), out=probs[:, columns])
            left, right = min(left, columns.start), columns.stop
        quality[query] = total(probs) / (inside.count_nonzero() + 1e-6)
        hits = inside[:, left:right].view(torch.uint8)
        rows = hits.amax(dim=1).nonzero() if left < right else hits.new_zeros(0)
        if len(rows):
            box = slice(int(rows[0]), int(rows[-1]) + 1)
            masks[query] = BoxedMask(size, box, slice(left, right), inside[box, left:right].clone())
        inside[:, left:right] = False
        probs[:, left:right] = 0
    return masks, quality


def masks_together(mask_logits: Tensor, input_size: Size, size: Size, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels above `level` of all queries, `(Q, *size)` bool, their mean probabilities `(Q,)` as of
    `boxed_masks`, and their bounding boxes `(Q, 4)`: first row, last row + 1, first column, last column + 1. Nothing
    is waited for."""
    masks = torch.empty((len(mask_logits), *size), dtype=torch.bool, device=mask_logits.device)
    parts = []
    for queries, logits in upsampled_together(mask_logits, input_size, size):
        inside = masks[queries] = logits > level
        sums = (logits.sigmoid() * inside).flatten(1).sum(1)
        quality = sums / (inside.flatten(1).sum(1) + 1e-6)
        boxes = torch.stack([end for axis in (2, 1) for end in first_and_last(inside.any(axis))], dim=1)
        parts.append((quality, boxes))
    quality, boxes = (torch.cat(part) for part in zip(*parts))
    return masks, quality, boxes


def cut_out(masks: Tensor, boxes: np.ndarray, query: int) -> BoxedMask:
    """The mask of one query, copied out of those of all as `masks_together` returns them."""
    top, bottom, left, right = boxes[query].tolist()
    rows, columns = slice(top, bottom), slice(left, right)
    return BoxedMask((masks.shape[1], masks.shape[2]), rows, columns, masks[query, rows, columns].clone())


def first_and_last(hits: Tensor) -> tuple[Tensor, Tensor]:
    """`(N, n)` bool -> the first hit and the one after the last, `(N,)`; n and 0 without any."""
    places = torch.arange(hits.shape[1], device=hits.device)
    first = torch.where(hits, places, hits.shape[1]).amin(1)
    return first, torch.where(hits, places + 1, 0).amax(1)


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
    size = input_size if target_size is None else target_size
    if waits_for(mask_logits.device):
        winner, masks = winning_queries_together(scores, kept, mask_logits, input_size, size, mask_threshold)
        won = torch.zeros(2 * len(scores), dtype=torch.int64, device=winner.device)
        won.scatter_add_(0, winner.flatten().long(), torch.ones_like(won[:1]).expand(winner.numel()))
        ends_there = logit_ends(class_logits, mask_logits)
        *read, ends = to_host(scores, labels, kept, masks, won, ends_there)
        check_ends(("class_queries_logits", "masks_queries_logits"), ends)
    else:
        winner, masks = winning_queries(scores[kept], mask_logits[kept], input_size, target_size, mask_threshold)
        won = winner.flatten().bincount(minlength=2 * len(masks))
        read = to_host(scores[kept], labels[kept], kept[kept], masks, won)
    score_of, label_of, is_kept, mask_areas, won_areas = (each.tolist() for each in read)
    segments: list[dict] = []
    segment_of = np.zeros(2 * len(label_of), dtype=np.int32)
    fused: dict[int, int] = {}
    for query, label in enumerate(label_of):
        outside, area = won_areas[2 * query : 2 * query + 2]
        if not is_kept[query] or area == 0 or (outside + area) / mask_areas[query] < overlap_mask_area_threshold:
            continue  # a segment without pixels comes first: its mask may be empty too
        if label in fused:
            segment_of[2 * query + 1] = fused[label]
            continue
        segment_info = {"id": len(segments) + 1, "label_id": label, "was_fused": label in label_ids_to_fuse}
        segments.append(segment_info | {"score": round(score_of[query], 6)})
        segment_of[2 * query + 1] = len(segments)
        if label in label_ids_to_fuse:
            fused[label] = len(segments)
    if not segments:
        return torch.zeros_like(winner), segments
    return torch.from_numpy(segment_of).to(winner.device, non_blocking=True)[winner], segments


def winning_queries(
    scores: Tensor, mask_logits: Tensor, input_size: Size, target_size: Size | None, mask_threshold: float
) -> tuple[Tensor, Tensor]:
    """The query with the highest score times mask probability at each pixel, the first of equal ones; one query after
    another, on the CPU.

    Returns:
        map `(*size)` int32 of twice the winner, plus 1 where its mask probability is at least `mask_threshold`; the
        areas of all queries' masks `(Q,)`.
    """
    size = input_size if target_size is None else target_size
    best = torch.full(size, -1.0)
    winner = torch.zeros(size, dtype=torch.int32)
    mask_areas = torch.zeros(len(scores), dtype=torch.int64)
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
    return winner, mask_areas


def winning_queries_together(
    scores: Tensor, kept: Tensor, mask_logits: Tensor, input_size: Size, size: Size, mask_threshold: float
) -> tuple[Tensor, Tensor]:
    """As `winning_queries`, of the `kept` queries `(Q,)` among all; where none is kept, the winner is 0. Nothing is
    waited for."""
    best = torch.full(size, -1.0, device=scores.device)
    winner = torch.zeros(size, dtype=torch.int32, device=scores.device)
    mask_areas = []
    for queries, logits in upsampled_together(mask_logits, input_size, size):
        probs = logits.sigmoid()
        masks = probs >= mask_threshold
        mask_areas.append(masks.flatten(1).sum(1))
        probs = (probs * scores[queries, None, None]).masked_fill(~kept[queries, None, None], -1.0)
        highest, number = probs.max(dim=0)
        marked = 2 * (number + queries.start) + masks.gather(0, number[None])[0]
        winner = torch.where(highest > best, marked.int(), winner)
        best = torch.maximum(best, highest)
    return winner, torch.cat(mask_areas)


def logit(probability: float) -> float:
    """Inverse sigmoid; 0 for 0.5, so that the default threshold is the reference's `logits > 0`."""
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability))
