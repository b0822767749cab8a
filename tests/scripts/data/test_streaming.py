"""The stream: each sample once per epoch, whatever reads it; exact restarts; bad samples are replaced."""

import json
import threading
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from stream_batches import batches, same
from training_processes import run_script_twice

from image_processing import FASegImageProcessor
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.collator import SegmentationCollator
from scripts.data.streaming import read_ahead, shuffled_rows
from scripts.data.synthetic_scenes import encoded, write_dataset


ROOT = Path(__file__).parents[3]


@pytest.fixture
def arguments(shapes):
    return DatasetArguments(dataset_name=str(shapes))


def test_every_sample_once_per_epoch(arguments):
    names = [name for batch in batches(arguments) for name in batch["names"]]
    assert len(set(names[:7])) == 7
    assert sorted(names[:7]) == sorted(names[7:])
    assert names[:7] != names[7:]


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_augmentation_do_not_depend_on_workers(arguments, workers):
    for one, other in zip(batches(arguments), batches(arguments, workers=workers), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_global_batches(arguments, processes):
    whole = [batch["names"] for batch in batches(arguments, batch_size=2 * processes, count=3)]
    parts = [batches(arguments, count=3, process_index=rank, num_processes=processes) for rank in range(processes)]
    for step, names in enumerate(whole):
        assert [name for part in parts for name in part[step]["names"]] == names
        assert len({part[step]["position"] for part in parts}) == 1


def test_stream_goes_on_where_it_stopped(arguments):
    straight = batches(arguments, count=7)
    for stop in (1, 3, 5):
        position = straight[stop - 1]["position"]
        resumed = batches(arguments, count=7 - stop, start=position)
        for one, other in zip(straight[stop:], resumed, strict=True):
            assert same(one, other)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]) / "tests" / "scripts" / "data")]
torch.set_num_threads(1)
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.streaming import read_ahead, shuffled_rows
from stream_batches import batches, same

accelerator = Accelerator()
parts = {"index": accelerator.process_index, "count": accelerator.num_processes}
seen = {}
for shards in (4, 3, 1):
    arguments = DatasetArguments(dataset_name=f"{sys.argv[1]}/{shards}")
    for workers in (0, 2):
        found = batches(arguments, 3, workers, 7, process_index=parts["index"], num_processes=parts["count"])
        sums = [float(batch["pixel_values"].double().sum()) for batch in found]
        seen[f"{shards} shards, {workers} workers"] = [[batch["names"] for batch in found], sums]
Path(sys.argv[2], f"{parts['index']}.json").write_text(json.dumps(seen))
accelerator.end_training()
"""


@pytest.mark.system
def test_each_sample_once_per_epoch_over_two_real_processes(tmp_path):
    """14 samples in batches of 2 x 3, of which some straddle two epochs; 4, 3 and 1 shards, 0 and 2 workers."""
    for shards in (4, 3, 1):
        write_dataset(tmp_path / str(shards), {"train": 14}, shards)
    program = tmp_path / "program.py"
    program.write_text(TWO_PROCESSES)
    done = run_script_twice(program, tmp_path, tmp_path, ROOT, folder=tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    everything = sorted(f"train_{index:05d}" for index in range(14))
    for case in ranks[0]:
        steps = zip(ranks[0][case][0], ranks[1][case][0], strict=True)
        names = [name for one, other in steps for name in one + other]
        epochs = [names[start : start + 14] for start in range(0, 42, 14)]
        assert [sorted(epoch) for epoch in epochs] == [everything] * 3, case
        assert epochs[0] != epochs[1] != epochs[2], case
    for rank in ranks:
        for shards in (4, 3, 1):
            assert rank[f"{shards} shards, 0 workers"] == rank[f"{shards} shards, 2 workers"]


@pytest.mark.parametrize(("shards", "buffer"), [(1, 512), (4, 512), (40, 512), (40, 1)])
def test_the_order_is_new_in_every_epoch_and_mixes_a_sorted_dataset(shards, buffer):
    """2000 rows in order: neighbours of the stream come from all over, shards and rows change places."""
    data = datasets.Dataset.from_dict({"id": list(range(2000))}).to_iterable_dataset(num_shards=shards)
    epochs = [[row["id"] for _, row in shuffled_rows(data, 0, epoch, buffer)] for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(2000))
        steps = np.abs(np.diff(order))
        # A random order has a mean step of 667, the stored order 1, one shard through 512 rows about 300.
        assert steps.mean() > (250 if shards == 1 else 400 if buffer > 1 else 150)
    for one, other in ((0, 1), (1, 2)):
        moved = np.abs(np.argsort(epochs[one]) - np.argsort(epochs[other]))
        assert moved.mean() > (300 if shards > 1 else 200)
    assert [row["id"] for _, row in shuffled_rows(data, 0, 1, buffer)] == epochs[1]
    assert [row["id"] for _, row in shuffled_rows(data, 1, 1, buffer)] != epochs[1]


def test_places_name_a_row_in_every_epoch():
    data = datasets.Dataset.from_dict({"id": list(range(20))}).to_iterable_dataset(num_shards=3)
    one, other = ({place: row["id"] for place, row in shuffled_rows(data, 0, epoch, 8)} for epoch in range(2))
    assert one == other and len(one) == 20


def test_reading_ahead_keeps_order_errors_and_stops():
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            if number == 50:
                raise UserError("fifty")
            yield number

    rows = read_ahead(numbers(), 5)
    assert list(islice(rows, 10)) == list(range(10))
    rows.close()
    assert len(taken) < 20
    assert not [thread for thread in threading.enumerate() if thread.name == "read_ahead"]
    with pytest.raises(UserError, match="fifty"):
        list(read_ahead(numbers(), 5))
    assert list(read_ahead(iter(range(3)), 5)) == [0, 1, 2]


def test_an_empty_split_is_an_error(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
    empty.to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="empty"):
        batches(DatasetArguments(dataset_name=str(tmp_path / "empty.parquet")), count=1)


def test_collate_makes_model_inputs():
    label = np.array([[0, 0, 255], [2, 2, 255]])
    row = {"image": torch.zeros(3, 2, 3, dtype=torch.uint8), "label": label}
    inputs = SegmentationCollator(FASegImageProcessor())([row])
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["pixel_mask"].sum() == 6
    assert inputs["class_labels"][0].tolist() == [0, 2]
    assert [int(mask.sum()) for mask in inputs["mask_labels"][0]] == [2, 2]


# ---------------------------------------------------------------------------------------------------- bad samples


def write_with_broken(folder, good, broken):
    """Parquet file of rows `good_0, ...` with a grey image each, and rows `broken_0, ...` whose image is cut."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(good + broken):
        drawn = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        image = encoded(drawn, "JPEG")
        if index >= good:
            image = {"bytes": image["bytes"][:150]}
        name = f"good_{index}" if index < good else f"broken_{index - good}"
        rows.append({"image": image, "label": encoded(Image.new("L", (32, 24), 1), "PNG"), "image_id": name})
    features = {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / "rows.parquet")
    return DatasetArguments(dataset_name=str(folder / "rows.parquet"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_replaced_and_named(tmp_path, workers):
    arguments = write_with_broken(tmp_path, 8, 1)
    found = batches(arguments, batch_size=3, workers=workers, count=6)
    for batch in found:
        assert len(batch["names"]) == 3 and batch["pixel_values"].shape[0] == 3
        assert not any(name.startswith("broken") for name in batch["names"])
    messages = [message for batch in found for message in batch["bad"]]
    assert set(messages) == {messages[0]} and len(messages) == 2  # once per epoch
    assert messages[0].startswith("image of sample broken_0: cannot be read")
    # The first of the next batch stands in, under other random numbers.
    at = next(index for index, batch in enumerate(found[:3]) if batch["bad"])
    assert any(name == found[at + 1]["names"][0] for name in found[at]["names"])
    resumed = batches(arguments, batch_size=3, count=1, start=found[at - 1]["position"] if at else (0, 0))
    assert same(resumed[0], found[at])


def test_good_samples_of_the_batch_stand_in_where_the_spare_is_bad_too(tmp_path):
    found = batches(write_with_broken(tmp_path, 8, 6), batch_size=4, count=6)
    assert any(len(batch["bad"]) > 2 for batch in found)
    for batch in found:
        assert len(batch["names"]) == 4 and all(name.startswith("good") for name in batch["names"])
        # Whatever stands in more than once was augmented anew each time.
        assert len({tuple(values.flatten().tolist()) for values in batch["pixel_values"]}) == 4


def test_a_batch_without_any_good_sample_stops(tmp_path):
    with pytest.raises(
        UserError, match=r"no sample of a batch can be used: image of sample broken_[^;]*; and \d+ samples more$"
    ):
        batches(write_with_broken(tmp_path, 0, 4), batch_size=2, count=1)
