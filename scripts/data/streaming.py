"""Labelled images as a stream: splitting over processes, augmenting, collating.

Rows are read, undecoded, in each process; DataLoader workers decode and augment. Order and randomness come from
(seed, epoch, index of the sample in the epoch) alone, so they depend neither on the number of workers nor of shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from queue import Full, Queue
from threading import Event
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from scripts.cli.errors import UserError
from scripts.cli.threads import StoppableThread
from scripts.data.collator import SegmentationCollator, SegmentsCollator
from scripts.data.first_look import classes_in
from scripts.data.loading import StreamRow
from scripts.data.samples import BadSample, RowFormat, decode_sample, decode_segments
from scripts.data.segments import Segments
from scripts.data.sources import readable
from scripts.models.tasks import SEMANTIC


Item = TypeVar("Item")

OPEN_SHARDS = 4  # read in turn, so that few large shards mix too
READ_AHEAD = 64  # rows


@dataclass(frozen=True)
class RowBatch:
    """Rows of one process's batch, a row to stand in for a bad one, and the (epoch, index) after the global batch."""

    rows: list[StreamRow]
    spare: StreamRow
    position: tuple[int, int]


def interleaved_rows(data: datasets.IterableDataset, order: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(shard:row, row)` of all shards in `order`, `OPEN_SHARDS` of them read in turn."""

    def shard_rows(shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(readable(data.shard(data.num_shards, shard))):
            yield f"{shard}:{number}", row

    waiting = iter(order)
    opened = deque(shard_rows(shard) for shard in islice(waiting, OPEN_SHARDS))
    while opened:
        rows = opened.popleft()
        row = next(rows, None)
        if row is not None:
            yield row
            opened.append(rows)
        else:
            opened.extend(shard_rows(shard) for shard in islice(waiting, 1))


def shuffled_rows(
    data: datasets.IterableDataset, seed: int, epoch: int, buffer_size: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(shard:row, row)` of one epoch: shards in a new order, rows drawn at random from a buffer that they pass.

    Not `IterableDataset.shuffle`: a fault of the network would make it read the whole epoch again to come back to
    where it was, and the order would be that of the library's version.
    """
    random = np.random.default_rng([seed, epoch])
    buffer: list[tuple[str, dict[str, Any]]] = []
    for row in interleaved_rows(data, random.permutation(data.num_shards).tolist()):
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        at = int(random.integers(buffer_size))
        yield buffer[at]
        buffer[at] = row
    for at in random.permutation(len(buffer)).tolist():
        yield buffer[at]


def read_ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """`items`, up to `count` of them read ahead by a thread, so that the training step does not wait for reading."""
    ready: Queue[tuple[Item | None, Exception | None]] = Queue(count)

    def put(stopped: Event, item: Item | None, error: Exception | None = None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except Full:
                continue

    def read(stopped: Event) -> None:
        try:
            for item in items:
                put(stopped, item)
                if stopped.is_set():
                    return
            put(stopped, None)
        except Exception as error:
            put(stopped, None, error)

    thread = StoppableThread(read, "read_ahead")
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        thread.stop()


@dataclass
class StreamBatches(Sampler[RowBatch]):
    """Endless batches of one process: global batch after global batch, of each of which it takes its own part.

    Every sample comes once per epoch over all processes; a batch may straddle two epochs. Used as `batch_sampler`, so
    that reading stays in the process and workers get rows to decode.

    Args:
        data: undecoded stream.
        batch_size: per process.
        shuffle_buffer_size: rows kept in memory, undecoded, to draw from.
        start: (epoch, index) of the first sample, to go on where a run stopped: the epoch is read again up to there,
            without decoding.
    """

    data: datasets.IterableDataset
    batch_size: int
    seed: int
    shuffle_buffer_size: int
    process_index: int = 0
    num_processes: int = 1
    start: tuple[int, int] = (0, 0)

    def rows(self) -> Iterator[StreamRow]:
        """All rows of all epochs from `start` on, in the order that every process agrees on."""
        epoch, skip = self.start
        while True:
            index = -1
            for index, (place, row) in enumerate(shuffled_rows(self.data, self.seed, epoch, self.shuffle_buffer_size)):
                if index >= skip:
                    yield StreamRow(epoch, index, row, place)
            if index < 0:
                raise UserError("the training split is empty")
            epoch, skip = epoch + 1, 0

    def __iter__(self) -> Iterator[RowBatch]:
        rows = read_ahead(self.rows(), READ_AHEAD)
        first = self.process_index * self.batch_size
        global_batch = list(islice(rows, self.batch_size * self.num_processes))
        while True:
            own, last = global_batch[first : first + self.batch_size], global_batch[-1]
            global_batch = list(islice(rows, self.batch_size * self.num_processes))
            yield RowBatch(own, global_batch[first], (last.epoch, last.index + 1))


@dataclass
class TrainingSamples(Dataset):
    """Decodes, checks and augments the batch of rows it is given; random numbers depend on the samples alone.

    A bad sample is replaced by the batch's spare row, and if that is bad or taken by a good sample of the batch, each
    augmented anew.

    Args:
        task: of another than semantic, segments are learnt.
        min_segment_area: pixels that a segment must have left in a crop; smaller ones are left out.
    """

    form: RowFormat
    num_labels: int
    augmentation: Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]
    seed: int
    task: str = SEMANTIC
    min_segment_area: int = 1

    def __getitems__(self, batch: RowBatch) -> dict[str, Any] | UserError:
        """`examples` of `image`, `label` (or `segments`), `name` and `classes` (those in the whole map, before
        augmentation), `bad` messages and `position`; an error stops the run."""
        bad: list[str] = []
        try:
            examples = [self.example(row, bad) for row in batch.rows]
            good = [row for row, example in zip(batch.rows, examples, strict=True) if example]
            stand_ins = self.stand_ins(batch.spare, good, bad)
            examples = [example or next(stand_ins, None) for example in examples]
            if None in examples:
                more = f"; and {len(bad) - 1} samples more" if len(bad) > 1 else ""
                raise UserError(f"no sample of a batch can be used: {bad[0]}{more}")
        except UserError as error:
            return error
        return {"examples": examples, "bad": bad, "position": batch.position}

    def stand_ins(self, spare: StreamRow, good: list[StreamRow], bad: list[str]) -> Iterator[dict[str, Any]]:
        """What takes the places of bad samples: the spare row, unless it is bad too, then the good ones in turn."""
        for turn, row in enumerate(chain([spare], cycle(good)), 1):
            if example := self.example(row, bad, turn):
                yield example

    def example(self, row: StreamRow, bad: list[str], *extra_seed: int) -> dict[str, Any] | None:
        """One augmented sample; None, and a message more in `bad`, if it is bad."""
        place, segments = row.place or row.index, None
        try:
            if self.task == SEMANTIC:
                image, label, name = decode_sample(row.row, self.form, self.num_labels, place)
                classes = classes_in(label.numpy(), self.form.do_reduce_labels)
            else:
                image, segments, name = decode_segments(row.row, self.form, place)
                segments = segments.chosen(~segments.crowd)
                label, classes = segments.layers, sorted(set(segments.classes.tolist()))
        except BadSample as error:
            bad.append(str(error))
            return None
        seeds = np.random.SeedSequence([self.seed, row.epoch, row.index, *extra_seed])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPU, too, whose numbers are the model's where workers are none.
            torch.default_generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
            image, label = self.augmentation(tv_tensors.Image(image), tv_tensors.Mask(label))
        image, label = image.as_subclass(torch.Tensor), label.as_subclass(torch.Tensor)
        example = {"image": image, "name": name, "classes": classes}
        if segments is None:
            return {**example, "label": label}
        cut = Segments(label, segments.classes, segments.crowd)
        return {**example, "segments": cut.chosen(cut.areas() >= self.min_segment_area)}


@dataclass
class TrainingCollator:
    """`SegmentationCollator` for `TrainingSamples`: adds `names`, `classes` that occur in the maps, `bad` messages and
    `position`; passes errors up."""

    processor: Any

    def __call__(self, batch: dict[str, Any] | UserError) -> dict[str, Any] | UserError:
        if isinstance(batch, UserError):
            return batch
        examples = batch["examples"]
        has_segments = "segments" in examples[0]
        collator = SegmentsCollator if has_segments else partial(SegmentationCollator, with_labels=False)
        return {
            **collator(self.processor)(examples),
            "names": [example["name"] for example in examples],
            "classes": sorted({index for example in examples for index in example["classes"]}),
            "position": batch["position"],
            "bad": batch["bad"],
        }
