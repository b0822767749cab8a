"""Mask and class logits to the best class of every pixel, a few rows at a time.

Notation: Q queries, K classes, (h, w) logits at 1/4, canvas = 4 * (h, w), input size = the image's part of it.

The same sums and resizes as for scores of the whole image, in the same order, so that labels are equal but where two
classes tie to float noise. Scores of all classes exist for one block of rows, classes last: what fits into a cache.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


LOGITS_STRIDE = 4
BLOCK_BYTES = {"cpu": 3 * 2**20}  # rows of the result x width x classes; elsewhere large enough to fill the device
DEVICE_BLOCK_BYTES = 256 * 2**20

Rows = Callable[[int, int], Tensor]  # rows [start, stop) of an image as (stop - start, width, channels)


@torch.no_grad()
def semantic_labels(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    target_size: tuple[int, int] | None = None,
    resize_masks_first: bool = False,
) -> Tensor:
    """The class with the largest sum over queries of class probability times mask probability.

    Args:
        class_logits: `(Q, K+1)`, the last class is "no object".
        mask_logits: `(Q, h, w)`.
        target_size: size of the result, the input size if left out.
        resize_masks_first: resize mask logits, not class scores, from the input size to the target.
    Returns:
        int64 map of `target_size`.
    """
    blocks = score_blocks(class_logits, mask_logits, input_size, target_size, resize_masks_first)
    return best_classes(blocks, input_size if target_size is None else target_size, class_logits.device)


def score_blocks(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    target_size: tuple[int, int] | None = None,
    resize_masks_first: bool = False,
) -> Iterable[Tensor]:
    """Blocks of rows `(n, width, K)` of the class scores whose best are `semantic_labels`, from top to bottom."""
    device = class_logits.device
    class_probs = class_logits.float().softmax(dim=-1)[:, :-1].contiguous()
    logits = mask_logits.float().permute(1, 2, 0).contiguous()
    height, width = mask_logits.shape[-2:]
    upsample = _Resize((height, width), (LOGITS_STRIDE * height, LOGITS_STRIDE * width), device, kept=input_size)

    def mask_rows(start: int, stop: int) -> Tensor:
        return upsample(logits, 0, start, stop)

    def score_rows(start: int, stop: int) -> Tensor:
        return torch.matmul(mask_rows(start, stop).sigmoid_(), class_probs)

    size = input_size if target_size is None else target_size
    if size == input_size:
        return all_rows(score_rows, size, max(class_probs.shape), device)
    if resize_masks_first:
        blocks = resized_rows(mask_rows, input_size, size, max(class_probs.shape), device)
        return (torch.matmul(block.sigmoid_(), class_probs) for block in blocks)
    return resized_rows(score_rows, input_size, size, max(class_probs.shape), device)


@torch.no_grad()
def labels_of_logits(
    logits: Tensor, canvas: tuple[int, int], input_size: tuple[int, int], target_size: tuple[int, int] | None = None
) -> Tensor:
    """The class with the largest logit of every pixel, after two resizes: to the canvas, and of the image's part of
    it to the target.

    Args:
        logits: `(K, h, w)`.
        canvas: size of the padded network input.
        target_size: size of the result, the input size if left out.
    Returns:
        int64 map of `target_size`.
    """
    blocks = logit_blocks(logits, canvas, input_size, target_size)
    return best_classes(blocks, input_size if target_size is None else target_size, logits.device)


def logit_blocks(
    logits: Tensor, canvas: tuple[int, int], input_size: tuple[int, int], target_size: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Blocks of rows `(n, width, K)` of the logits whose largest are `labels_of_logits`, from top to bottom."""
    size = input_size if target_size is None else target_size
    last = logits.float().permute(1, 2, 0).contiguous()
    height, width, channels = last.shape
    upsample = _Resize((height, width), canvas, logits.device, kept=input_size)

    def rows(start: int, stop: int) -> Tensor:
        return upsample(last, 0, start, stop)

    if size == input_size:
        return all_rows(rows, size, channels, logits.device)
    return resized_rows(rows, input_size, size, channels, logits.device)


def resized_argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax over classes of `scores` `(K, h, w)` resized to `size`, without holding all classes at that size."""
    channels, height, width = scores.shape
    last = scores.float().permute(1, 2, 0).contiguous()
    blocks = resized_rows(lambda start, stop: last[start:stop], (height, width), size, channels, scores.device)
    return best_classes(blocks, size, scores.device)


def best_classes(blocks: Iterable[Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
    """Argmax over the last dimension of an image's blocks of rows, int64; they are not kept."""
    # One result made at the start: small ones between the blocks would keep the allocator from using memory again.
    labels = torch.empty(size, dtype=torch.int64, device=device)
    start = 0
    with torch.autocast(device.type, enabled=False):  # scores are float32 whatever the model runs in
        for block in blocks:
            part = labels[start : start + len(block)]
            if device.type == "cpu":  # NumPy's is four times as fast
                block.numpy().argmax(-1, out=part.numpy())
            else:
                torch.argmax(block, dim=-1, out=part)
            start += len(block)
    return labels


def all_rows(rows: Rows, size: tuple[int, int], channels: int, device: torch.device) -> Iterator[Tensor]:
    """Blocks `(n, width, channels)` of an image that is made a few rows at a time."""
    step = _rows_per_block(size[1], channels, device)
    for start in range(0, size[0], step):
        yield rows(start, min(start + step, size[0]))


def resized_rows(
    rows: Rows, source_size: tuple[int, int], size: tuple[int, int], channels: int, device: torch.device
) -> Iterator[Tensor]:
    """Blocks `(n, width, channels)` of an image resized to `size`, as `torch.nn.functional.interpolate` does.

    The source is asked for a few rows at a time, from top to bottom, each row once or twice.
    """
    resize = _Resize(source_size, size, device)
    step = _rows_per_block(size[1], channels, device)
    source_step = 4 * _rows_per_block(source_size[1], channels, device)
    start = 0
    while start < size[0]:
        # As many rows of the result as the next rows of the source suffice for, one at least.
        first = resize.first_rows[start]
        stop = max(bisect_left(resize.last_rows, first + source_step), start + 1)
        source = rows(first, resize.last_rows[stop - 1] + 1)
        for block in range(start, stop, step):
            yield resize(source, first, block, min(block + step, stop))
        start = stop


class _Resize:
    """Bilinear resize (`align_corners=False`) of maps with channels last, any rows of the result at a time.

    `kept` is the upper left part of the result that is wanted, all of it if left out.
    """

    def __init__(
        self,
        source_size: tuple[int, int],
        size: tuple[int, int],
        device: torch.device,
        kept: tuple[int, int] | None = None,
    ):
        height, width = size if kept is None else kept
        self.rows, self.row_shares = _taps(source_size[0], size[0], height, device)
        self.columns, self.column_shares = _taps(source_size[1], size[1], width, device)
        self.source_width = source_size[1]
        self.first_rows, self.last_rows = self.rows.T.tolist()
        self.pixels, self.shares = self.columns, self.column_shares

    def __call__(self, source: Tensor, first: int, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the result, `(stop - start, W, C)`, of the source's rows `(n, w, C)` from `first`."""
        above, below = (self.rows[start:stop] - first).unbind(1)
        share = self.row_shares[start:stop, 1, None, None]
        lines = torch.lerp(source.index_select(0, above), source.index_select(0, below), share)
        count = (stop - start) * len(self.columns)
        if count > len(self.pixels):
            self._prepare(stop - start)
        samples = F.embedding_bag(
            self.pixels[:count], lines.flatten(0, 1), mode="sum", per_sample_weights=self.shares[:count]
        )
        return samples.view(stop - start, -1, source.shape[2])

    def _prepare(self, rows: int) -> None:
        """Neighbours of the pixels of so many rows, and their shares, `(rows * W, 2)`: the same wherever they are."""
        starts = torch.arange(rows, dtype=torch.int32, device=self.columns.device) * self.source_width
        self.pixels = (starts[:, None, None] + self.columns).view(-1, 2)
        self.shares = self.column_shares.repeat(rows, 1)


def _taps(source: int, target: int, kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of the first `kept` of `target` places the two of `source` it lies between (int32), and their shares,
    both `(kept, 2)`."""
    places = torch.arange(kept, dtype=torch.float32, device=device) + 0.5
    places = (places * (source / target) - 0.5).clamp(min=0)
    before = places.int().clamp(max=source - 1)
    after = (before + 1).clamp(max=source - 1)
    share = places - before
    return torch.stack((before, after), dim=1), torch.stack((1 - share, share), dim=1)


def _rows_per_block(width: int, channels: int, device: torch.device) -> int:
    return max(1, BLOCK_BYTES.get(device.type, DEVICE_BLOCK_BYTES) // (4 * width * channels))
