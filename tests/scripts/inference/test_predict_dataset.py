"""Prediction over a streamed dataset: shards that `load_dataset` reads back, and runs that go on where one stopped."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from command_runs import run_here
from scripts import predict as predict_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.arguments import DatasetArguments
from scripts.data.images import output_names
from scripts.data.labelled_dataset import LabelledDataset
from scripts.inference.predictors import SingleScale
from scripts.inference.shards import ShardFolder
from scripts.inference.stream import PredictionRows
from scripts.models.loading import build_config, build_model, build_processor


ROOT = Path(__file__).parents[3]


def flags_for(model_folder, shapes, output_dir):
    """The seven training images in shards of two."""
    return [
        "--model_name_or_path", model_folder, "--dataset_name", shapes, "--split_name", "train",
        "--rows_per_shard", 2, "--dataloader_num_workers", 0, "--output_dir", output_dir,
    ]  # fmt: skip


@pytest.fixture
def flags(model_folder, shapes, tmp_path):
    return flags_for(model_folder, shapes, tmp_path / "out")


def read_back(folder, cache):
    """All rows as `load_dataset` gives them, label maps as stored."""
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    return data.cast_column("label", datasets.Image(decode=False)).to_list()


def file_hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data").iterdir()}


def test_load_dataset_gives_all_rows_back(flags, model_folder, shapes, tmp_path, command):
    code, out, errors = command(predict_command, *flags, "--overlays", 1, "--score_maps")
    folder = tmp_path / "out"
    assert code == 0 and "load_dataset" in out, errors
    assert sorted(path.name for path in (folder / "data").iterdir()) == [f"train-{i:05d}.parquet" for i in range(4)]
    data = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["train"] and data["train"].num_rows == 7
    streamed = list(datasets.load_dataset(str(folder), split="train", streaming=True))
    assert [row["index"] for row in streamed] == list(range(7))
    assert [row["image_id"] for row in streamed] == [f"train_{index:05d}" for index in range(7)]
    assert [row["error"] for row in streamed] == [None] * 7

    arguments = parse_arguments(predict_command.PredictArguments, ["--model_name_or_path", str(model_folder)])
    config = build_config(arguments)
    segment = SingleScale(build_model(arguments, config).eval(), build_processor(arguments, config), "cpu")
    source = datasets.load_dataset(str(shapes), split="train", streaming=True)
    for row, example in zip(streamed, source, strict=True):
        assert np.array_equal(np.asarray(row["label"]), segment(example["image"].convert("RGB")))
        score = np.asarray(row["score"])
        assert score.dtype == np.uint8 and score.shape == (128, 160) and score.min() > 255 / 7 - 1
    assert json.loads((folder / "id2label.json").read_text())["5"] == "class 5"
    assert [path.name for path in (folder / "overlays").iterdir()] == ["000000.png"]
    assert str(ROOT) not in (folder / "predictions.json").read_text()
    assert "num_examples: 7" in (folder / "README.md").read_text()

    plain = tmp_path / "plain"
    assert command(predict_command, *flags[:-1], plain)[0] == 0
    for row, other in zip(streamed, datasets.load_dataset(str(plain), split="train", streaming=True), strict=True):
        assert (np.asarray(row["label"]) == np.asarray(other["label"])).mean() > 0.999  # ties


class Killed(BaseException):
    """Stands for a signal that no `except Exception` sees."""


def test_stopped_run_goes_on(flags, tmp_path, command, monkeypatch):
    """Finished shards stay as they are, an unfinished and a damaged one are made again, no row is lost or doubled."""
    assert command(predict_command, *flags)[0] == 0
    whole, folder = file_hashes(tmp_path / "out"), tmp_path / "out"
    rows = read_back(folder, tmp_path / "cache")
    shutil.rmtree(folder)

    write = ShardFolder.write

    def killed_in_the_third(self, number, rows):
        if number == 2:
            self.path(2).with_name(f".{self.path(2).name}.partial").write_bytes(b"PAR1 and no more")
            raise Killed
        write(self, number, rows)

    monkeypatch.setattr(ShardFolder, "write", killed_in_the_third)
    with pytest.raises(Killed):
        predict_command.predict(
            parse_arguments(predict_command.PredictArguments, list(map(str, flags)), images="images")
        )
    assert len(list((folder / "data").glob("train-*"))) == 2
    assert datasets.load_dataset(str(folder), split="train", streaming=True).take(1)  # readable when unfinished
    assert "unfinished" in (folder / "README.md").read_text()

    written = []
    monkeypatch.setattr(
        ShardFolder, "write", lambda self, number, rows: [written.append(number), write(self, number, rows)]
    )
    damaged = folder / "data" / "train-00001.parquet"
    content = bytearray(damaged.read_bytes())
    middle = content.index(b"IDAT") + 8
    content[middle] ^= 1  # one bit within a label map
    damaged.write_bytes(content)
    code, out, errors = command(predict_command, *flags)
    assert code == 0 and "going on after 1 shards, 2 rows" in out
    assert any("train-00001.parquet: damaged, predicted anew" in line for line in errors)
    assert written == [1, 2, 3]
    assert file_hashes(folder) == whole
    assert read_back(folder, tmp_path / "cache2") == rows

    written.clear()
    assert command(predict_command, *flags)[0] == 0 and written == []


@pytest.fixture(scope="module")
def finished(model_folder, shapes, tmp_path_factory):
    """Folder of a finished prediction, and the flags that made it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    flags = flags_for(model_folder, shapes, folder)
    assert run_here(predict_command, *flags) == 0
    return folder, flags


@pytest.fixture
def refused(finished, command):
    """Checks that a prediction into the finished one's folder, of other flags, is one line and changes nothing."""
    folder, flags = finished
    before = file_hashes(folder)

    def check(*changed, message):
        code, _, errors = command(predict_command, *flags, *changed)
        lines = [line for line in errors if line and not line.startswith(("Loading weights: ", "predict: "))]
        assert code == 2 and len(lines) == 1 and message in lines[0], errors
        assert file_hashes(folder) == before

    return check


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--rows_per_shard", 3], "made with rows_per_shard 2, not 3"),
        (["--split_name", "validation"], "made with split_name 'train', not 'validation'"),
        (["--config_overrides", "attention_mask_threshold=0.5"], "made with model_sha256"),
        (["--score_maps"], "made with score_maps False, not True"),
        ([ROOT / "docs" / "demo.png"], "give one of the two"),
        (["--rows_per_shard", 0], "--rows_per_shard 0: give at least 1"),
        (["--image_column_name", "photo"], "no column 'photo'"),
    ],
    ids=lambda value: str(value[0]).rpartition("/")[2] if isinstance(value, list) else value,
)
def test_other_settings_are_refused(changed, message, refused):
    refused(*changed, message=message)


def test_another_first_row_is_refused(refused, shapes, tmp_path):
    other = tmp_path / shapes.name
    shutil.copytree(shapes, other)
    (other / "data" / "train-00000-of-00003.parquet").unlink()
    refused("--dataset_name", other, message="row 0 is 'train_00003' and was 'train_00000' when it was predicted")


def test_a_split_that_ends_before_is_refused(refused, shapes, tmp_path):
    other = tmp_path / shapes.name
    shutil.copytree(shapes, other)
    (other / "data" / "train-00002-of-00003.parquet").unlink()
    refused("--dataset_name", other, message="7 rows were predicted before, but the split ends after 5")


def test_a_split_that_goes_on_is_refused(refused, shapes, tmp_path):
    other = tmp_path / shapes.name
    shutil.copytree(shapes, other)
    shutil.copy(shapes / "data" / "validation-00000-of-00003.parquet", other / "data" / "train-00003-of-00003.parquet")
    refused("--dataset_name", other, message="row 7 is 'validation_00000' and was the end of the split")


def test_a_folder_of_other_files_is_refused(refused, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "strange")
    refused("--output_dir", tmp_path / "strange", message="holds parquet files of something else")


@pytest.fixture
def half_broken(tmp_path):
    """Dataset without a label column: images of three sizes, the second is no image."""
    folder = tmp_path / "half_broken"
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, size in enumerate([(40, 60), (1, 1), (33, 90)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no image")
    rows = [{"image": {"bytes": (folder / f"{n}.png").read_bytes(), "path": f"{n}.png"}} for n in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def test_unreadable_images_are_named_and_keep_their_row(flags, half_broken, tmp_path, command):
    flags = [*flags, "--dataset_name", half_broken]
    code, _, errors = command(predict_command, *flags)
    assert code == 0
    assert any("skipped: image of sample 1.png: cannot be read" in line for line in errors)
    assert errors[-1] == "1 image could not be read: see the column 'error'"
    rows = list(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True))
    assert [row["image_id"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row["label"] and row["label"].size for row in rows] == [(60, 40), None, (90, 33)]
    assert "cannot be read" in rows[1]["error"] and rows[0]["error"] is None
    code, _, errors = command(predict_command, *flags, "--max_bad_samples", 0)
    assert code == 2 and "1 bad samples, more than the 0 of --max_bad_samples" in errors[-1]


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[1, 2]", b"not json"])
def test_a_damaged_state_file_is_one_line(flags, tmp_path, command, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.json").write_bytes(content)
    code, _, errors = command(predict_command, *flags)
    assert code == 2 and "error: --output_dir" in errors[-1], errors


def test_names_of_outputs_never_collide():
    images = [Path(name) for name in ("a.png", "x/a_png.jpg", "x/a.png", "a_3.png", "y/a.png", "z/a.png")]
    names = output_names(images)
    assert len(set(names)) == len(names) and names[:2] == ["a", "a_png"]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("finished", [(), (0,), (1, 2)])
def test_processes_share_the_shards_that_are_left(shapes, tmp_path, num_processes, finished):
    data = LabelledDataset(DatasetArguments(str(shapes)), "train", with_labels=False).stream
    folder = ShardFolder(tmp_path, "train", 2, {"model": "m", "dataset": "d"})
    folder.prepare({0: "a"})
    for shard in finished:
        rows = [
            {"index": index, "image_id": f"train_{index:05d}", "label": None, "error": None}
            for index in (2 * shard, 2 * shard + 1)
        ]
        folder.write(shard, rows)
    done = {number: folder.read(number) for number in folder.numbers()}
    assert sorted(done) == list(finished)
    shares = []
    for rank in range(num_processes):
        rows = PredictionRows(data, "image", 2, done, rank, num_processes)
        shares.append([item.index for (item,) in rows])
        assert rows.total == 7
    expected = [index for index in range(7) if index // 2 not in finished]
    assert sorted(index for share in shares for index in share) == expected
    shards = [{index // 2 for index in share} for share in shares]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_empty_split(flags, tmp_path, command):
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(tmp_path / "none.parquet")
    code, _, errors = command(predict_command, *flags, "--dataset_name", tmp_path / "none.parquet")
    assert code == 2 and "split 'train' is empty" in errors[-1]


def test_full_disk_keeps_the_shards_before(tmp_path, monkeypatch):
    folder = ShardFolder(tmp_path, "train", 1, {"model": "m", "dataset": "d"})
    folder.prepare({0: "a"})
    folder.write(0, [{"index": 0, "image_id": "a", "label": None, "error": None}])

    def no_space(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(UserError, match="No space left on device: free space and run the command again"):
        folder.write(1, [{"index": 1, "image_id": "b", "label": None, "error": None}])
    assert folder.numbers() == [0]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_at_random(flags, tmp_path, num_processes):
    """SIGKILL of all processes five times, then the run to its end: what a run never killed writes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    config = ROOT / "configs" / "accelerate" / "cpu.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", num_processes]
    start = [sys.executable, *launcher] if num_processes > 1 else [sys.executable]
    flags[flags.index("--rows_per_shard") + 1] = 1

    def run(folder):
        command = [*start, ROOT / "scripts" / "predict.py", *flags[:-1], folder]
        return subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True)

    started = time.monotonic()
    assert run(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - started
    rng = np.random.default_rng(num_processes)
    for _ in range(5):
        process = run(tmp_path / "killed")
        time.sleep(seconds * rng.uniform(0.5, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run(tmp_path / "killed").wait() == 0
    assert file_hashes(tmp_path / "killed") == file_hashes(tmp_path / "whole")
    assert len(read_back(tmp_path / "killed", tmp_path / "cache")) == 7


# ------------------------------------------------------------------------------------------- odd names, files, disks


def test_names_that_are_not_utf8(flags, tmp_path, command):
    (tmp_path / "photos").mkdir()
    with open(os.fsencode(tmp_path / "photos") + b"/caf\xe9.png", "wb") as file:
        Image.new("RGB", (40, 30)).save(file, "PNG")
    code, _, errors = command(predict_command, *flags, "--dataset_name", tmp_path / "photos")
    assert code == 0, errors
    rows = list(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True))
    assert [row["image_id"] for row in rows] == ["caf\\udce9.png"]


def test_a_dataset_with_a_loading_script_is_refused(flags, tmp_path, command):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('it ran')")
    code, _, errors = command(predict_command, *flags, "--dataset_name", tmp_path / "script")
    assert code == 2 and "a script is code, which is not run: convert the data to parquet" in errors[-1], errors


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos" / "a.png"


def test_a_pipe_among_images_is_skipped(model_folder, photo, tmp_path, command):
    os.mkfifo(photo.parent / "b.png")
    given = [photo.parent, "--model_name_or_path", model_folder, "--output_dir", tmp_path / "out"]
    code, _, errors = command(predict_command, *given)
    assert code == 1 and any("b.png: skipped, cannot be read: it is no regular file" in line for line in errors)
    assert (tmp_path / "out" / "a_labels.png").is_file()


def test_a_disk_that_cannot_be_written_is_one_line(model_folder, photo, tmp_path, command, monkeypatch):
    given = [photo, "--model_name_or_path", model_folder, "--output_dir"]
    code, _, errors = command(predict_command, *given, "/proc/none")
    assert code == 2 and "error: --output_dir /proc/none: [Errno 2]" in errors[-1], errors

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, errors = command(predict_command, *given, tmp_path / "out")
    assert code == 2 and "No space left on device" in errors[-1], errors


def test_an_overlay_that_cannot_be_written_is_one_line(flags, tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").write_text("a file")
    code, _, errors = command(predict_command, *flags, "--overlays", 1)
    assert code == 2 and "error: --output_dir" in errors[-1] and "overlays" in errors[-1], errors


def test_a_name_that_gets_too_long_is_one_line(model_folder, photo, tmp_path, command):
    long = photo.rename(photo.with_name("x" * 250 + ".png"))
    code, _, errors = command(
        predict_command, long, "--model_name_or_path", model_folder, "--output_dir", tmp_path / "out"
    )
    assert code == 2 and "File name too long" in errors[-1], errors
