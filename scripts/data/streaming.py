"""Labelled images as a stream: splitting over processes, augmenting, collating.

Rows are read, undecoded, in each process; DataLoader workers decode and augment. Random numbers come from (seed,
epoch, index of the sample in the epoch) and the order from seed, epoch, shards and the number of processes that share
them, so that neither depends on the number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from scripts.data.shares import Piece, own_pieces, own_samples
from scripts.data.sources import readable
from scripts.data.stored_rows import ShardRows
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


def interleaved(shards: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """All items of `shards`, `OPEN_SHARDS` of them read in turn."""
    waiting = iter(shards)
    opened = deque(islice(waiting, OPEN_SHARDS))
    while opened:
        items = opened.popleft()
        item = next(items, None)
        if item is not None:
            yield item
            opened.append(items)
        else:
            opened.extend(islice(waiting, 1))


def interleaved_rows(data: datasets.IterableDataset, order: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(shard:row, row)` of all shards in `order`, interleaved."""

    def shard_rows(shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(readable(data.shard(data.num_shards, shard))):
            yield f"{shard}:{number}", row

    return interleaved(map(shard_rows, order))


def drawn(items: Iterator[Item], random: np.random.Generator, buffer_size: int) -> Iterator[Item]:
    """All items, drawn at random from a buffer that they pass.

    Not `IterableDataset.shuffle`: a fault of the network would make it read the whole epoch again to come back to
    where it was, and the order would be that of the library's version.
    """
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        at = int(random.integers(buffer_size))
        yield buffer[at]
        buffer[at] = item
    for at in random.permutation(len(buffer)).tolist():
        yield buffer[at]


def shuffled_rows(
    data: datasets.IterableDataset, seed: int, epoch: int, buffer_size: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(shard:row, row)` of one epoch: shards in a new order, rows drawn at random from a buffer that they pass."""
    random = np.random.default_rng([seed, epoch])
    return drawn(interleaved_rows(data, random.permutation(data.num_shards).tolist()), random, buffer_size)


def shuffled_share(
    shards: Sequence[ShardRows],
    seed: int,
    epoch: int,
    buffer_size: int,
    skip: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One process's part of an epoch, without its first `skip` rows: what `shuffled_rows` gives one process alone.

    The order follows from the counts of rows, so it is gone through once in numbers: what has been drawn by then need
    not be read.
    """
    counts = [len(shard) for shard in shards]
    order = np.random.default_rng([seed, epoch]).permutation(len(shards)).tolist()
    pieces = own_pieces(counts, order, seed, epoch, process_index, num_processes)
    left = {piece.shard: np.arange(counts[piece.shard]) < piece.stop for piece in pieces}
    for piece in pieces:
        left[piece.shard][: piece.start] = False

    def passed(of_pieces: Iterator[Iterator[Item]]) -> Iterator[Item]:
        random = np.random.default_rng([seed, epoch])
        random.permutation(len(shards))
        return drawn(interleaved(of_pieces), random, buffer_size)

    def numbers(piece: Piece) -> Iterator[tuple[int, int]]:
        return ((piece.shard, number) for number in range(piece.start, piece.stop))

    def rows(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
        wanted = left[piece.shard]
        read = readable(shards[piece.shard].only(wanted))
        for shard, number in numbers(piece):
            yield f"{shard}:{number}", next(read) if wanted[number] else {}
        next(read, None)  # compares the number of rows

    for shard, number in islice(passed(map(numbers, pieces)), skip):
        left[shard][number] = False
    return islice(passed(map(rows, pieces)), skip, None)


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
        start: (epoch, index) of the first sample, to go on where a run stopped.
        shards: those of `data`, counted; then a process reads its own part of them alone, and of that what comes
            after `start`. Without, every process reads all rows, and the epoch again up to `start`.
    """

    data: datasets.IterableDataset
    batch_size: int
    seed: int
    shuffle_buffer_size: int
    process_index: int = 0
    num_processes: int = 1
    start: tuple[int, int] = (0, 0)
    shards: Sequence[ShardRows] | None = None

    def rows(self) -> Iterator[StreamRow]:
        """All samples of all epochs from `start` on, in the order that every process agrees on; those that other
        processes read are without a row."""
        epoch, skip = self.start
        while True:
            sample = None
            for sample in self.epoch_rows(epoch, skip):
                if sample.index >= skip:
                    yield sample
            if sample is None and not skip:
                raise UserError("the training split is empty")
            epoch, skip = epoch + 1, 0

    def epoch_rows(self, epoch: int, skip: int) -> Iterator[StreamRow]:
        """The samples of one epoch, of counted shards from the index `skip` on."""
        if self.shards is None:
            rows = shuffled_rows(self.data, self.seed, epoch, self.shuffle_buffer_size)
            yield from (StreamRow(epoch, index, row, place) for index, (place, row) in enumerate(rows))
            return
        total, process = sum(map(len, self.shards)), (self.process_index, self.num_processes)
        first = epoch * total
        skipped = len(own_samples(first, first + skip, *process))
        rows = shuffled_share(self.shards, self.seed, epoch, self.shuffle_buffer_size, skipped, *process)
        own = own_samples(first, first + total, *process)
        for index in range(skip, total):
            place, row = next(rows) if first + index in own else ("", {})
            yield StreamRow(epoch, index, row, place)

    def own(self, global_batch: list[StreamRow]) -> list[StreamRow]:
        """This process's part of a global batch."""
        if self.shards is not None:
            return [sample for sample in global_batch if sample.row]
        first = self.process_index * self.batch_size
        return global_batch[first : first + self.batch_size]

    def __iter__(self) -> Iterator[RowBatch]:
        others = 1 if self.shards is None else self.num_processes  # whose samples are no rows here
        rows = read_ahead(self.rows(), READ_AHEAD * others)
        global_batch = list(islice(rows, self.batch_size * self.num_processes))
        while True:
            own, last = self.own(global_batch), global_batch[-1]
            global_batch = list(islice(rows, self.batch_size * self.num_processes))
            yield RowBatch(own, self.own(global_batch)[0], (last.epoch, last.index + 1))


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
