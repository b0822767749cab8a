"""Rows of a dataset before they are read: how many there are, what they are called, and some without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from scripts.storage.retries import with_retries


FILES_AT_ONCE = 16  # whose ends are read
NAME_COLUMNS = ("image_id", "file_name", "filename", "id")


def name_column(columns: list[str]) -> str | None:
    """The first of the columns that names of samples are kept in, None without one."""
    return next((column for column in NAME_COLUMNS if column in columns), None)


def without_gaps(names: list[Any]) -> list[Any] | None:
    """`names` where every row has one, else None."""
    return names if names and None not in names else None


def parquet_rows(files: list[str], with_names: bool = True) -> tuple[list[list[int]], list[Any] | None]:
    """Rows of each row group of each parquet file, here or on a server, and the names of all where they have a column
    of names.

    Only the ends of files and that column are read.
    """

    def look_into(file: str) -> tuple[list[int], list[Any]]:
        with xopen(file, "rb", download_config=datasets.DownloadConfig()) as stream:
            parquet = pq.ParquetFile(stream)
            column = name_column(parquet.schema_arrow.names) if with_names else None
            names = parquet.read(columns=[column]).column(0).to_pylist() if column else []
            groups = [parquet.metadata.row_group(at).num_rows for at in range(parquet.metadata.num_row_groups)]
            return groups, names

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        looks = [partial(with_retries, partial(look_into, file), file.partition("?")[0]) for file in files]
        found = list(pool.map(lambda look: look(), looks))
    groups, names = [of_file for of_file, _ in found], [name for _, of_file in found for name in of_file]
    return groups, without_gaps(names) if len(names) == sum(map(sum, groups)) else None


@dataclass(frozen=True)
class ShardRows:
    """Some rows of one shard of a stream, in order; only the row groups that hold some are read.

    Args:
        data: with images that are not decoded.
        number: of the shard in `data`.
        groups: rows of each of its row groups; one number where it has none.
        chosen: `(rows,)` bool, whether each row of the shard is one of these.
    Raises:
        ValueError: while it is read, if the shard has more rows or fewer.
    """

    data: datasets.IterableDataset
    number: int
    groups: list[int]
    chosen: np.ndarray

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def only(self, wanted: np.ndarray) -> ShardRows:
        """Those of these rows of which `wanted`, `(len(self),)` bool, is true."""
        chosen = self.chosen.copy()
        chosen[self.chosen] = wanted
        return replace(self, chosen=chosen)

    def skip(self, count: int) -> ShardRows:
        """These rows without the first `count`."""
        return self.only(np.arange(len(self)) >= count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        of_groups = np.split(self.chosen, np.cumsum(self.groups)[:-1])
        needed = [at for at, of_group in enumerate(of_groups) if of_group.any()]
        shard = self.data.shard(self.data.num_shards, self.number)
        if len(needed) == len(self.groups):  # opened once
            yield from self._those(shard, self.chosen)
        elif needed:  # even the first rows of an open file would make Arrow read far ahead
            by_group = shard.reshard()
            if by_group.num_shards != len(self.groups):
                raise self._changed(f"{by_group.num_shards} row groups", len(self.groups))
            for at in needed:
                yield from self._those(by_group.shard(len(self.groups), at), of_groups[at])

    def _those(self, rows: Iterable[dict[str, Any]], chosen: np.ndarray) -> Iterator[dict[str, Any]]:
        count = 0
        for row in rows:
            if count < len(chosen) and chosen[count]:
                yield row
            count += 1
        if count != len(chosen):
            raise self._changed(f"{count} rows", len(chosen))

    def _changed(self, found: str, before: int) -> ValueError:
        return ValueError(f"shard {self.number} has {found} and had {before}: it has changed")


@dataclass(frozen=True)
class CountedShards:
    """The shards of a stream whose rows can be counted without reading them.

    Args:
        data: with images that are not decoded.
        count: rows of each row group of each shard; for parquet files it reads their ends.
        chosen: `(N,)` bool, which of all rows the dataset is made of; None for all.
    """

    data: datasets.IterableDataset
    count: Callable[[], list[list[int]]]
    chosen: np.ndarray | None = None

    def listed(self, call: Callable[[Callable[[], Any]], Any] = lambda count: count()) -> list[ShardRows]:
        """The shards in order; of chosen rows, those that hold some.

        Args:
            call: calls `count`; several processes need not all do so.
        """
        groups = call(self.count)
        sizes = [sum(of_shard) for of_shard in groups]
        chosen = np.ones(sum(sizes), bool) if self.chosen is None else self.chosen
        of_shards = np.split(chosen, np.cumsum(sizes)[:-1])
        parts = enumerate(zip(groups, of_shards, strict=True))
        shards = [ShardRows(self.data, number, *of_shard) for number, of_shard in parts]
        return [shard for shard in shards if self.chosen is None or len(shard)]


def rows_of(shards: list[ShardRows]) -> Iterator[dict[str, Any]]:
    """The rows of some shards, in order."""
    for shard in shards:
        yield from shard


def stream_of_rows(shards: list[ShardRows], features: datasets.Features | None) -> datasets.IterableDataset:
    """A stream of the rows of some shards; without decoded images, for they would be encoded anew."""
    return datasets.IterableDataset.from_generator(rows_of, features=features, gen_kwargs={"shards": shards})
