"""Which rows of an epoch each process reads, of shards whose rows are counted."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows `start` to `stop` of a shard, without the last."""

    shard: int
    start: int
    stop: int


def own_samples(first: int, last: int, process: int, num_processes: int) -> range:
    """The samples of one process among those numbered `first` to `last`, without the last, over all epochs.

    Processes take turns, so that all have as many to within one, in each batch as in each epoch.
    """
    return range(first + (process - first) % num_processes, last, num_processes)


def pieces_of(
    counts: Sequence[int], order: Sequence[int], process: int, rooms: Sequence[int], ranks: Sequence[int]
) -> list[Piece]:
    """What one process reads in an epoch: whole shards, and parts of those that fit nowhere whole.

    The largest shard that is left goes to the process with the most room; what does not fit there goes on to the next.
    So shards of even sizes stay whole where their number can be divided by that of processes. An empty one is a piece
    of every process: it takes its turn in the order, as it does where nothing is counted.

    Args:
        counts: rows of each shard.
        order: of the epoch's shards, in which the process reads its own; shards of one size are dealt in it, too.
        rooms: rows that each process takes, of `sum(counts)` in all.
        ranks: which process is dealt to first where several have as much room.
    """
    heap = [(-room, rank, each) for each, (room, rank) in enumerate(zip(rooms, ranks, strict=True))]
    heapify(heap)
    own = []
    for place, shard in sorted(enumerate(order), key=lambda place_and_shard: -counts[place_and_shard[1]]):
        start = 0
        if not counts[shard]:
            own.append((place, Piece(shard, 0, 0)))
        while start < counts[shard]:
            room, rank, each = heap[0]
            stop = min(counts[shard], start - room)
            heapreplace(heap, (room + stop - start, rank, each))
            if each == process:
                own.append((place, Piece(shard, start, stop)))
            start = stop
    return [piece for _, piece in sorted(own)]


def own_pieces(
    counts: Sequence[int], order: Sequence[int], seed: int, epoch: int, process: int, num_processes: int
) -> list[Piece]:
    """What one process reads in an epoch whose shards come in `order`; of one process that is all, in this order."""
    total = sum(counts)
    samples = (own_samples(epoch * total, (epoch + 1) * total, each, num_processes) for each in range(num_processes))
    ranks = np.random.default_rng([seed, epoch, 1]).permutation(num_processes).tolist()
    return pieces_of(counts, order, process, [len(own) for own in samples], ranks)
