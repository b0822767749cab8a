"""Mask and class logits to the class scores of every pixel, a few rows at a time.

Notation: Q queries, K classes, (h, w) size of the logits, canvas = the padded network input, input size = the image's
part of it.

Scores of all classes exist for one block of rows, classes last: what fits into a cache. `ScoreRows` says how blocks
are used, `ImageScores` what is computed; everything below it says how.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .host_transfers import waits_for


LOGITS_STRIDE = 4
BLOCK_BYTES = {"cpu": 3 * 2**20}  # rows of the result x width x classes; elsewhere large enough to fill the device
DEVICE_BLOCK_BYTES = 256 * 2**20
# Of rows that are asked for by number, and that share rows of a source with their neighbours.
STRIP_BYTES = {"cpu": 24 * 2**20}
LEAST_STRIP_ROWS = 8

Size = tuple[int, int]  # height and width
Rows = Callable[[int, int], Tensor]  # rows [start, stop) of an image as (stop - start, width, channels)


class ScoreRows:
    """Class scores of every pixel of one image: iterating makes them in blocks of rows `(n, width, K)`, float32, from
    top to bottom. `labels` and `stacked` reduce the blocks.

    Attributes:
        size: height and width of the image; device: that of the blocks.
        num_classes: K.
    """

    size: Size
    num_classes: int
    device: torch.device

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), `(stop - start, width, K)`; each call starts no higher up than the one before."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Tensor]:
        least = STRIP_BYTES.get(self.device.type, DEVICE_BLOCK_BYTES) // (4 * self.size[1] * self.num_classes)
        step = max(LEAST_STRIP_ROWS, least)
        for start in range(0, self.size[0], step):
            yield self.rows(start, min(start + step, self.size[0]))

    def labels(self) -> Tensor:
        """The best class of every pixel, an int64 map of the target size."""
        return best_classes(self, self.size, self.device)

    def stacked(self) -> Tensor:
        """All scores at once, `(K, *size)` float32."""
        scores = torch.empty(self.num_classes, *self.size, device=self.device)
        start = 0
        with torch.autocast(self.device.type, enabled=False):
            for block in self:
                scores[:, start : start + len(block)] = block.permute(2, 0, 1)
                start += len(block)
        return scores


class ImageScores(ScoreRows):
    """Class scores of one image by a model's outputs.

    Args:
        maps: mask logits `(Q, h, w)`; without `class_logits` the scores or logits of the classes, `(K, h, w)`.
        canvas: size of the padded network input, to which the maps are resized.
        input_size: the image's part of the canvas, all of it if left out.
        target_size: size of the result, the input size if left out.
        class_logits: `(Q, K+1)`, the last class is "no object". Scores are then the sums over queries of class
            probability times mask probability, in `[0, Q]`.
        resize_masks_first: resize mask logits, not class scores, from the input size to the target.
    """

    def __init__(
        self,
        maps: Tensor,
        canvas: Size,
        input_size: Size | None = None,
        target_size: Size | None = None,
        class_logits: Tensor | None = None,
        resize_masks_first: bool = False,
    ):
        self.device, self.canvas = maps.device, canvas
        self.input_size = canvas if input_size is None else input_size
        self.size = self.input_size if target_size is None else target_size
        self.maps = maps.float().permute(1, 2, 0).contiguous()
        self.class_probs = None
        if class_logits is not None:
            self.class_probs = class_logits.float().softmax(dim=-1)[:, :-1].contiguous()
        self.num_classes = len(maps) if self.class_probs is None else self.class_probs.shape[1]
        self.resize_masks_first = resize_masks_first
        self.first = 0  # the row of the maps that is the first of those kept

    def __iter__(self) -> Iterator[Tensor]:
        channels = max(self.maps.shape[2], self.num_classes)
        if self.size == self.input_size:
            return all_rows(self._score_rows, self.size, channels, self.device)
        if self.resize_masks_first:
            return map(self._scores, resized_rows(self._map_rows, self.input_size, self.size, channels, self.device))
        return resized_rows(self._score_rows, self.input_size, self.size, channels, self.device)

    def rows(self, start: int, stop: int) -> Tensor:
        """Any rows of the result, in any order."""
        if self.size == self.input_size:
            return self._score_rows(start, stop)
        first, last = self._to_size.first_rows[start], self._to_size.last_rows[stop - 1]
        source = self._map_rows if self.resize_masks_first else self._score_rows
        resized = self._to_size(source(first, last + 1), first, start, stop)
        return self._scores(resized) if self.resize_masks_first else resized

    def forget(self, above: int) -> None:
        """Frees what rows above this one alone follow from; they cannot be asked for any more."""
        if self.size == self.input_size and 0 < above < self.size[0]:
            first = self._upsample.first_rows[above]
            self.maps, self.first = self.maps[first - self.first :].clone(), first

    @cached_property
    def _upsample(self) -> "RowResize":
        source_size = (self.maps.shape[0], self.maps.shape[1])
        return RowResize(source_size, self.canvas, self.device, kept=self.input_size)

    @cached_property
    def _to_size(self) -> "RowResize":
        return RowResize(self.input_size, self.size, self.device)

    def _map_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the maps at the input size."""
        return self._upsample(self.maps, self.first, start, stop)

    def _score_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the scores at the input size."""
        return self._scores(self._map_rows(start, stop))

    def _scores(self, rows: Tensor) -> Tensor:
        """Rows of the maps, which are used up, to rows of class scores."""
        return rows if self.class_probs is None else torch.matmul(rows.sigmoid_(), self.class_probs)


@torch.no_grad()
def best_classes(blocks: Iterable[Tensor], size: Size, device: torch.device) -> Tensor:
    """Argmax over the last dimension of an image's blocks of rows, int64; they are not kept."""
    # One result made at the start: small ones between the blocks would keep the allocator from using memory again.
    labels = torch.empty(size, dtype=torch.int64, device=device)
    start = 0
    with torch.autocast(device.type, enabled=False):  # scores are float32 whatever the model runs in
        for block in blocks:
            part = labels[start : start + len(block)]
            if waits_for(device):
                torch.argmax(block, dim=-1, out=part)
            else:  # NumPy's is four times as fast
                block.numpy().argmax(-1, out=part.numpy())
            start += len(block)
    return labels


def all_rows(rows: Rows, size: Size, channels: int, device: torch.device) -> Iterator[Tensor]:
    """Blocks `(n, width, channels)` of an image that is made a few rows at a time."""
    step = _rows_per_block(size[1], channels, device)
    for start in range(0, size[0], step):
        yield rows(start, min(start + step, size[0]))


def resized_rows(rows: Rows, source_size: Size, size: Size, channels: int, device: torch.device) -> Iterator[Tensor]:
    """Blocks `(n, width, channels)` of an image resized to `size`, as `torch.nn.functional.interpolate` does.

    The source is asked for a few rows at a time, from top to bottom, each row once or twice.
    """
    resize = RowResize(source_size, size, device)
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


class RowResize:
    """Bilinear resize (`align_corners=False`) of maps with channels last, any rows of the result at a time.

    `kept` is the upper left part of the result that is wanted, all of it if left out.
    """

    def __init__(
        self,
        source_size: Size,
        size: Size,
        device: torch.device,
        kept: Size | None = None,
    ):
        height, width = size if kept is None else kept
        rows, row_shares = _taps(source_size[0], size[0], height)
        taps = (rows, row_shares, *_taps(source_size[1], size[1], width))
        on_device = [torch.from_numpy(each).to(device, non_blocking=True) for each in taps]
        self.rows, self.row_shares, self.columns, self.column_shares = on_device
        self.source_width = source_size[1]
        self.first_rows, self.last_rows = rows.T.tolist()
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


def _taps(source: int, target: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the first `kept` of `target` places the two of `source` it lies between (int32), and their shares
    (float32), both `(kept, 2)`."""
    places = np.arange(kept, dtype=np.float32) + np.float32(0.5)
    places = np.maximum(places * np.float32(source / target) - np.float32(0.5), 0)
    before = np.minimum(places.astype(np.int32), source - 1)
    after = np.minimum(before + 1, source - 1)
    share = (places - before).astype(np.float32)
    return np.stack((before, after), axis=1), np.stack((1 - share, share), axis=1)


def _rows_per_block(width: int, channels: int, device: torch.device) -> int:
    return max(1, BLOCK_BYTES.get(device.type, DEVICE_BLOCK_BYTES) // (4 * width * channels))
