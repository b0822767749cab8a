"""Rows of a dataset before they are read: how many there are, what they are called, and a stream of some of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from scripts.storage.retries import with_retries


NAME_COLUMNS = ("image_id", "file_name", "filename", "id")


def name_column(columns: list[str]) -> str | None:
    """The first of the columns that names of samples are kept in, None without one."""
    return next((column for column in NAME_COLUMNS if column in columns), None)


def without_gaps(names: list[Any]) -> list[Any] | None:
    """`names` where every row has one, else None."""
    return names if names and None not in names else None


def parquet_rows(files: list[str]) -> tuple[list[int], list[Any] | None]:
    """Rows of each parquet file, here or on a server, and the names of all where they have a column of names.

    Only the ends of files and that column are read.
    """

    def look_into(file: str) -> tuple[int, list[Any]]:
        with xopen(file, "rb", download_config=datasets.DownloadConfig()) as stream:
            parquet = pq.ParquetFile(stream)
            column = name_column(parquet.schema_arrow.names)
            names = parquet.read(columns=[column]).column(0).to_pylist() if column else []
            return parquet.metadata.num_rows, names

    found = [with_retries(partial(look_into, file), file.partition("?")[0]) for file in files]
    names = [name for _, of_file in found for name in of_file]
    counts = [count for count, _ in found]
    return counts, without_gaps(names) if len(names) == sum(counts) else None


def chosen_rows(data: datasets.IterableDataset, shards: list[tuple[int, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """The chosen rows of some shards of `data`, in order.

    Args:
        shards: number of a shard, and `(rows,)` bool whether each of its rows is chosen.
    Raises:
        ValueError: a shard has more rows or fewer.
    """
    for number, chosen in shards:
        count = 0
        for row in data.shard(data.num_shards, number):
            if count < len(chosen) and chosen[count]:
                yield row
            count += 1
        if count != len(chosen):
            raise ValueError(f"shard {number} has {count} rows and had {len(chosen)}: it has changed")


def stream_of_rows(data: datasets.IterableDataset, counts: list[int], chosen: np.ndarray) -> datasets.IterableDataset:
    """A stream of the chosen rows, in as many shards as hold some.

    Args:
        data: with images that are not decoded, for they would be encoded anew.
        counts: rows of each shard of `data`.
        chosen: `(N,)` bool, whether each row is chosen.
    """
    of_shards = enumerate(np.split(chosen, np.cumsum(counts)[:-1]))
    shards = [(number, of_shard) for number, of_shard in of_shards if of_shard.any()]
    return datasets.IterableDataset.from_generator(
        chosen_rows, features=data.features, gen_kwargs={"data": data, "shards": shards}
    )
