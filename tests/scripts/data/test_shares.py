"""Shards whose rows are counted: each row is read by one process, and what a resumed run is past is not read again."""

from functools import partial
from itertools import islice

import datasets
import fsspec.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.shares import own_pieces, own_samples
from scripts.data.sources import readable, row_groups
from scripts.data.stored_rows import CountedShards
from scripts.data.streaming import StreamBatches, shuffled_rows, shuffled_share


def rows_per_process(pieces):
    return [sum(piece.stop - piece.start for piece in own) for own in pieces]


def all_pieces(counts, processes, epoch=0):
    order = np.random.default_rng(epoch).permutation(len(counts)).tolist()
    return [own_pieces(counts, order, 0, epoch, process, processes) for process in range(processes)]


@pytest.mark.parametrize("counts", [[5] * 8, [7, 6, 6, 6, 6, 7, 6, 6], [13] * 3 + [12] * 13])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("epoch", [0, 3])
def test_shards_of_one_size_to_within_a_row_stay_whole(counts, processes, epoch):
    pieces = all_pieces(counts, processes, epoch)
    whole = [(piece.shard, piece.start, piece.stop) for own in pieces for piece in own]
    assert sorted(whole) == [(shard, 0, count) for shard, count in enumerate(counts)]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_row_is_of_one_process_whatever_the_sizes(processes):
    random = np.random.default_rng(0)
    for epoch in range(20):
        counts = random.integers(0, 40, int(random.integers(1, 9))).tolist()
        pieces = all_pieces(counts, processes, epoch)
        found = sorted((piece.shard, number) for own in pieces for piece in own for number in range(*piece[1:]))
        assert found == [(shard, number) for shard, count in enumerate(counts) for number in range(count)]
        shares = rows_per_process(pieces)
        assert max(shares) - min(shares) <= 1
        first, last = epoch * sum(counts), (epoch + 1) * sum(counts)
        assert shares == [len(own_samples(first, last, each, processes)) for each in range(processes)]


# ------------------------------------------------------------------------------------------------------------- streams


def write_shards(folder, counts, rows_per_group=4, size=0):
    """Parquet files of numbered rows, of `size` bytes each that do not compress; their names in order."""
    random, files, first = np.random.default_rng(0), [], 0
    features = datasets.Features({"id": datasets.Value("int64"), "bytes": datasets.Value("binary")})
    for number, count in enumerate(counts):
        ids = list(range(first, first + count))
        data = datasets.Dataset.from_dict({"id": ids, "bytes": [random.bytes(size) for _ in ids]}, features)
        files.append(str(folder / f"train-{number:02d}.parquet"))
        data.to_parquet(files[-1], batch_size=rows_per_group)
        first += count
    return files


def opened(files):
    """The stream of some files, and its shards."""
    data = datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
    return data, CountedShards(data, partial(row_groups, files)).listed()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """An empty file takes its turn in the order of the stream, too."""
    return opened(write_shards(tmp_path_factory.mktemp("uneven"), [9, 1, 14, 0, 4, 7, 6]))


@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_one_process_goes_on_in_the_order_of_the_whole_stream(uneven, buffer):
    data, shards = uneven
    straight = list(shuffled_rows(data, 3, 2, buffer))
    for skip in (0, 1, 20, 40, 41):
        assert list(shuffled_share(shards, 3, 2, buffer, skip)) == straight[skip:]


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_processes_see_each_row_once_per_epoch_and_go_on_where_they_stopped(uneven, processes):
    """41 rows in batches of 2 per process, of which some straddle two epochs; 7 processes are more than shards."""
    data, shards = uneven
    steps = 1 + 3 * 41 // (2 * processes)

    def batches(process, count, start=(0, 0)):
        return list(islice(StreamBatches(data, 2, 3, 5, process, processes, start, shards), count))

    parts = [batches(process, steps) for process in range(processes)]
    samples = []
    for step in zip(*parts, strict=True):
        assert [len(batch.rows) for batch in step] == [2] * processes
        assert len({batch.position for batch in step}) == 1
        samples += sorted((row.epoch, row.index, row.row["id"]) for batch in step for row in batch.rows)
    assert [sample[:2] for sample in samples] == [divmod(number, 41) for number in range(len(samples))]
    epochs = [[row for epoch, _, row in samples if epoch == wanted] for wanted in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(41)) and epochs[0] != epochs[1]
    for process, part in enumerate(parts):
        stop = 1 + process % (steps - 1)
        assert batches(process, steps - stop, part[stop - 1].position) == part[stop:]


def test_some_rows_of_a_shard_are_read_by_row_groups(uneven):
    shard = uneven[1][2]
    first = 10  # rows of the shards before
    wanted = np.isin(np.arange(14), [5, 6, 12])
    assert shard.groups == [4, 4, 4, 2]
    assert [row["id"] for row in shard.only(wanted)] == [first + 5, first + 6, first + 12]
    assert [row["id"] for row in shard.only(wanted).skip(1)] == [first + 6, first + 12]
    assert list(shard.only(np.zeros(14, bool))) == []


@pytest.mark.parametrize("counts", [[8, 8], [4, 4]])
def test_a_file_that_has_changed_is_told(tmp_path, counts):
    _, shards = opened(write_shards(tmp_path, [6]))
    write_shards(tmp_path, counts)
    for rows in (shards[0], shards[0].skip(5)):
        with pytest.raises(UserError, match=r"dataset cannot be read: shard 0 has .* and had .*: it has changed"):
            list(readable(rows))


@pytest.mark.parametrize("settings", [{}, {"streaming": False}, {"train_val_split": 0.4}])
def test_shards_of_a_dataset_hold_the_rows_of_its_stream(shapes, tmp_path, settings):
    data = datasets.load_dataset(str(shapes), split="train")
    for number in range(3):
        data.shard(3, number).to_parquet(tmp_path / f"train-{number}.parquet", batch_size=1)
    found = LabelledDataset(DatasetArguments(str(tmp_path), **settings), "train")
    assert [row for shard in found.shards.listed() for row in shard] == list(found.stream)
    straight = list(shuffled_rows(found.stream, 0, 0, 2))
    assert list(shuffled_share(found.shards.listed(), 0, 0, 2, 3)) == straight[3:]


@pytest.mark.parametrize("streaming", [True, False])
def test_files_and_row_groups_without_rows_are_passed_over(shapes, tmp_path, streaming):
    """Arrow writes a row group of no rows for an empty table."""
    files = sorted(shapes.glob("data/train*.parquet"))
    rows = pa.concat_tables(map(pq.read_table, files))[:6]
    for number, parts in enumerate([[rows[:0]], [rows[:2], rows[:0], rows[2:3]], [rows[:0], rows[3:]]]):
        with pq.ParquetWriter(tmp_path / f"train-{number}.parquet", rows.schema) as writer:
            for part in parts:
                writer.write_table(part)
    arguments = DatasetArguments(dataset_name=str(tmp_path), streaming=streaming)
    dataset = LabelledDataset(arguments, "train")
    assert len(list(readable(dataset.stream))) == 6
    if streaming:
        assert [len(list(shard)) for shard in dataset.shards.listed()] == [0, 3, 3]


def test_rows_that_cannot_be_counted_are_read_by_all(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"image": "a", "label": "b"}\n')
    assert LabelledDataset(DatasetArguments(str(tmp_path)), "train").shards is None


@pytest.mark.system
def test_bytes_over_http(tmp_path, monkeypatch, capsys):
    """Each of P processes reads about a P-th of 16 even shards, and after 90 % of an epoch a run reads little more
    than what is left; without the counts, all processes and all runs read everything.

    The row groups are 512 KiB, and `fsspec` reads 64 KiB ahead in place of 5 MiB: real ones are of 10 MiB and more.
    """
    monkeypatch.setattr(fsspec.config, "conf", {"http": {"block_size": 1 << 16}})
    names = [file.rpartition("/")[2] for file in write_shards(tmp_path, [128] * 16, 16, 1 << 15)]
    with HubServer(tmp_path) as server:
        data, shards = opened([f"{server.url}/plain/{name}" for name in names])

        def read(rows):
            server.sent = 0
            count = sum(1 for _ in rows)
            return server.sent, count

        whole, count = read(shuffled_rows(data, 0, 0, 64))
        assert count == 2048 and whole > 2048 << 15
        lines = [f"all rows, as each process and each resumed run without counts: {whole / 2**20:.1f} MiB"]
        for processes in (1, 2, 8):
            found = [read(shuffled_share(shards, 0, 0, 64, 0, each, processes)) for each in range(processes)]
            assert sum(count for _, count in found) == 2048
            most = max(size for size, _ in found)
            assert most < 1.3 / processes * whole
            lines.append(f"{processes} processes: at most {most / whole:.1%} each")
        for processes in (1, 2):
            skip = 9 * 2048 // 10 // processes
            left, count = read(shuffled_share(shards, 0, 0, 64, skip, 0, processes))
            assert count == 2048 // processes - skip and left < 0.25 * whole
            lines.append(f"{processes} processes, resumed after 90 % of the epoch: {left / whole:.1%} each")
        with capsys.disabled():
            print("", *lines, sep="\n")
