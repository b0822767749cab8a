"""Streams over HTTP that break off, stall or are refused: the same samples in the same order, or one line."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
from hub_server import HubServer
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from training_processes import free_port

from clean_process import run_apart
from scripts import train
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.sources import readable
from scripts.data.streaming import shuffled_rows
from scripts.storage import retries
from scripts.storage.retries import network_fault, with_retries
from scripts.training.fingerprint import check_data_unchanged, data_settings


ROOT = Path(__file__).parents[3]
PROGRAM = """
import json
sys.path.insert(0, sys.argv[2])
import datasets
from itertools import islice
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.streaming import StreamBatches
stream = StreamBatches(LabelledDataset(DatasetArguments(sys.argv[1]), "train").stream, 2, 0, 3)
print(json.dumps([[row.row["image_id"], len(row.row["image"]["bytes"])] for row in islice(stream.rows(), 14)]))
"""


def stream_of(name, folder, **environment):
    """What two epochs of a dataset show in a process of its own, and its standard error."""
    printed, errors = run_apart(PROGRAM, [name, str(ROOT)], folder, **environment)
    return json.loads(printed), errors


@pytest.mark.system
def test_a_hub_stream_outlives_every_fault(shapes, tmp_path):
    """The connection breaks off, stalls, and is refused with 429 and 503 while the files are read."""
    data = LabelledDataset(DatasetArguments(str(shapes)), "train").stream
    expected = [
        [row["image_id"], len(row["image"]["bytes"])]
        for epoch in range(2)
        for _, row in shuffled_rows(data, 0, epoch, 3)
    ]
    faults = [None, "drop", None, 429, "stall", 503, None, "drop"]
    with HubServer(shapes, faults, stall_seconds=4) as server:
        found, errors = stream_of(
            "tester/shapes",
            tmp_path,
            HF_ENDPOINT=server.url,
            HF_HUB_DOWNLOAD_TIMEOUT="1",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_DATASETS_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        assert not server.faults, "the stream ended before the last fault"
    assert found == expected
    for sign in ("429", "503", "timed out", "Retrying in"):
        assert sign in errors, sign


@pytest.mark.slow
def test_a_busy_hub_opens_later(shapes, tmp_path):
    """Requests for the repository, its card, its tree and its files are refused, every second one at first."""
    data = LabelledDataset(DatasetArguments(str(shapes)), "train").stream
    expected = sorted(row["image_id"] for row in data)
    statuses = [429, None, 500, None, 502, None, 503, None, 429, None, None, 503]
    with HubServer(shapes, statuses=statuses) as server:
        found, _ = stream_of(
            "tester/shapes",
            tmp_path,
            HF_ENDPOINT=server.url,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_DATASETS_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        assert not server.statuses
    assert sorted(name for name, _ in found[:7]) == expected


@pytest.fixture
def quick(monkeypatch):
    """Short waits."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(retries, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr("fsspec.config.conf", {})
    for name in ("READ_RETRY", "READ_SERVER_UNAVAILABLE_RETRY", "READ_RATE_LIMIT_RETRY", "OPEN_RETRY"):
        monkeypatch.setattr(f"datasets.config.STREAMING_{name}_INTERVAL", 0.02)


@pytest.mark.system
def test_a_plain_url_outlives_every_fault(shapes, quick):
    file = "data/train-00000-of-00003.parquet"
    expected = [row["image_id"] for row in LabelledDataset(DatasetArguments(str(shapes / file)), "train").stream]
    assert len(expected) == 3
    with HubServer(shapes, stall_seconds=1.5) as server:
        data = LabelledDataset(DatasetArguments(f"{server.url}/plain/{file}"), "train").stream
        for faults in ([], ["drop"], [429], ["stall"], [503], ["drop", 503, "drop"]):
            server.faults = list(faults)
            assert [row["image_id"] for row in readable(data)] == expected
            assert not server.faults


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_opens_a_plain_url_later(shapes, quick, status):
    """One request of those that open and read a file is refused, whichever it is; then three in a row are."""
    file = "data/train-00000-of-00003.parquet"
    with HubServer(shapes) as server:
        arguments = DatasetArguments(f"{server.url}/plain/{file}")
        expected = [row["image_id"] for row in readable(LabelledDataset(arguments, "train").stream)]
        for statuses in [*([None] * before + [status] for before in range(len(server.asked))), [status] * 3]:
            server.statuses = statuses
            data = LabelledDataset(arguments, "train")
            assert [row["image_id"] for row in readable(data.stream)] == expected
            assert not server.statuses


def test_a_url_that_is_not_there_is_one_line(shapes, quick):
    missing = pytest.raises(UserError, match=r"gone.parquet, split 'train': cannot be opened: .*404")
    with HubServer(shapes) as server, missing:
        LabelledDataset(DatasetArguments(f"{server.url}/plain/gone.parquet"), "train")
    with pytest.raises(UserError, match="cannot be opened: Cannot connect to host"):
        LabelledDataset(DatasetArguments(f"http://127.0.0.1:{free_port()}/gone.parquet"), "train")


def test_offline_mode_is_no_passing_fault(quick, monkeypatch):
    """It is a setting: nothing is tried again, at the start or in the middle of a stream."""
    monkeypatch.setattr(retries, "MAX_RETRIES", 1)
    opened = []

    def rows():
        opened.append(1)
        raise OfflineModeIsEnabled("offline")
        yield

    with pytest.raises(UserError, match="dataset cannot be read: offline"):
        list(readable(Opened(rows)))
    assert opened == [1]


def test_a_file_that_changes_on_its_server_is_other_data(shapes, tmp_path):
    """Of the same size, so that its ETag alone tells; and gone."""
    file = "data/train-00000-of-00003.parquet"
    copy = tmp_path / file
    copy.parent.mkdir()
    shutil.copy(shapes / file, copy)
    with HubServer(tmp_path) as server:
        data = LabelledDataset(DatasetArguments(f"{server.url}/plain/{file}"), "train")
        settings = data_settings(data)
        assert "data: sizes and ETags of files" in settings
        check_data_unchanged(data, settings)
        copy.write_bytes(copy.read_bytes()[:-1] + b"x")
        with pytest.raises(UserError, match=r"changed while it was trained on: data: sizes and ETags of files"):
            check_data_unchanged(data, settings)
        copy.unlink()
        with pytest.raises(UserError, match=r"00000-of-00003\.parquet: "):
            check_data_unchanged(data, settings)


@pytest.mark.system
def test_training_over_a_bad_connection_ends_as_from_disk(shapes, tiny_recipe, quick, command, tmp_path):
    """Two epochs: the samples, and so the losses, are those of the run that reads the same file locally."""
    file = "data/train-00000-of-00003.parquet"

    def losses(name, folder):
        flags = ["--dataset_name", name, "--id2label", shapes / "id2label.json", "--output_dir", folder]
        code, _, errors = command(train, tiny_recipe, *flags, "--max_train_steps", 3)
        assert code == 0, errors
        return [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]

    expected = losses(shapes / file, tmp_path / "disk")
    with HubServer(shapes, ["drop", 429, None, "stall", 503, "drop"], stall_seconds=1.5) as server:
        assert losses(f"{server.url}/plain/{file}", tmp_path / "http") == expected
        assert not server.faults, "the run ended before the last fault"
    assert len(expected) == 3


class Opened:
    """Rows that a function makes anew each time they are opened."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return self.rows()


class Faulty:
    """Rows 0..9 whose stream breaks off before some of them, each time it is opened."""

    def __init__(self, *breaks):
        self.breaks = list(breaks)
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        for number in range(10):
            if self.breaks and self.breaks[0] == number:
                self.breaks.pop(0)
                raise ConnectionResetError("gone")
            yield {"id": number}


def test_a_stream_is_opened_anew_where_it_broke_off(quick, capsys):
    rows = Faulty(0, 3, 3, 9)
    assert [row["id"] for row in readable(rows)] == list(range(10))
    assert rows.opened == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "dataset: ConnectionResetError: gone: retry 1 of 20 in 0.02 s"
    assert [line.split("retry ")[1][0] for line in lines] == ["1", "1", "2", "1"]


def test_giving_up_is_one_line(quick, monkeypatch):
    monkeypatch.setattr(retries, "MAX_RETRIES", 2)
    with pytest.raises(UserError, match="dataset: ConnectionResetError: gone: gave up after 2 retries"):
        list(readable(Faulty(4, 4, 4)))
    with pytest.raises(UserError, match="dataset cannot be read: broken file"):
        list(readable(row for row in [1 / 1] if broken_file()))


def broken_file():
    raise OSError("broken file")


class Refused(Exception):
    """An answer that was an error."""

    def __init__(self, status, retry_after):
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status, "headers": {"Retry-After": retry_after}})()


def test_the_server_says_how_long_to_wait(quick, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    answers = [Refused(429, wait) for wait in ("7", "0", "Wed, 21 Oct 2026 07:28:00 GMT")]

    def refused_three_times():
        if answers:
            raise answers.pop(0)

    with_retries(refused_three_times, "x")
    assert waits == [7, 0.04, 0.08]
    assert network_fault(Refused(404, "0")) is None
    wrapped = ConnectionError("Couldn't reach it")
    wrapped.__cause__ = Refused(404, "0")
    assert network_fault(wrapped) is None


def test_a_name_that_nobody_answers_to_is_not_tried_again(quick):
    def fails():
        raise ConnectionError("no such host")

    with pytest.raises(ConnectionError):
        with_retries(fails, "x", if_answered=True)


@pytest.mark.parametrize(
    ("faults", "expected"), [([Refused(503, "0"), Refused(429, "0")], {0: "a", 1: "b"}), ([], None)]
)
def test_class_names_outlive_a_busy_hub(quick, monkeypatch, tmp_path, faults, expected):
    """Without them a run would train on other classes; only an answer that there are none counts as none."""
    (tmp_path / "id2label.json").write_text('{"0": "a", "1": "b"}')
    answers = [*faults, tmp_path / "id2label.json"] if faults else [EntryNotFoundError("no such file")]

    def download(*_, **__):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("scripts.data.sources.hf_hub_download", download)
    stream = datasets.Dataset.from_dict({"image": [None]}).to_iterable_dataset()
    monkeypatch.setattr("scripts.data.labelled_dataset.open_source", lambda *_: (stream, []))
    assert LabelledDataset(DatasetArguments("tester/not-here"), "train").id2label == expected
    assert not answers
