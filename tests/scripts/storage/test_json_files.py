"""JSON files that hold anything else than they should are refused in one line that names them, wherever read."""

import json
import re

import pytest

from scripts import ablation
from scripts.benchmarking.tables import merge
from scripts.cli.errors import UserError
from scripts.data.bounds import Bounds
from scripts.data.class_names import read_names, read_palette
from scripts.data.sources import check_saved
from scripts.inference.shards import ShardFolder
from scripts.models.backbone_weights import shards
from scripts.models.model_files import CONFIG, KINDS, read_model_file
from scripts.sharing.results_files import read_results
from scripts.storage.atomic import MANIFEST, damage
from scripts.storage.json_files import DEEPEST, parse_json, read_json
from scripts.storage.lock import LOCK_FILE, FolderLock
from scripts.training.checkpointing import SETTINGS, find_checkpoint
from scripts.training.log import read_log
from scripts.training.tracking import tracked_run_id


NO_JSON = {
    "deep": b"[" * 5000 + b"]" * 5000,
    "less deep": b'{"a": ' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1),
    "latin": b'{"a": "\xe9"}',
    "half a letter": b'{"a": "\\ud800"}',
    "a number of many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "cut": b'{"a":',
}
NO_OBJECT = {"null": b"null", "list": b"[1, 2]", "text": b'"text"', "number": b"5"}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_named(content, tmp_path):
    file = tmp_path / "odd.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^--flag {re.escape(str(file))} is not a valid JSON file: [^\n]+$"):
        read_json(file, f"--flag {file}")


@pytest.mark.parametrize("content", NO_OBJECT.values(), ids=NO_OBJECT)
def test_what_is_no_object_is_named(content, tmp_path):
    file = tmp_path / "odd.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.json holds \w+, not an object$"):
        read_json(file, kinds={})
    assert read_json(file) == json.loads(content)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for file, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"^{re.escape(str(file))} cannot be read: {reason}"):
            read_json(file)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "has no 'names'"),
        ({"names": None}, "has a wrong field: Field 'names' expected a dict, got NoneType"),
        ({"names": {"a": 1}}, r"has a wrong field: Field 'names\['a'\]' expected str, got int"),
        (
            {"names": {}, "count": "x" * 10**5},
            r"has a wrong field: Field 'count' expected int, got str \(value: 'x+\.\.\.$",
        ),
    ],
)
def test_wrong_fields_are_named_in_a_line_of_some_length(value, message, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"odd\.json {message}") as refused:
        read_json(tmp_path / "odd.json", kinds={"names": dict[str, str], "count": int}, needed=["names"])
    assert len(str(refused.value)) < 600


def test_what_is_well_passes(tmp_path):
    value = {"names": {"0": "naïve ☃"}, "count": None, "more": [1.5, True]}
    (tmp_path / "well.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "well.json", kinds={"names": dict[str, str], "count": int}, needed=["names"]) == value
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None


# ---- whoever reads a file -------------------------------------------------------------------------------------------


def resume(file):
    folder = file.parent
    (folder / MANIFEST).write_text('{"files": {}}')
    find_checkpoint(str(folder), folder, {})


def read_state(file):
    made_by = {"model": "m", "dataset": "d"}
    ShardFolder(file.parent, "train", rows_per_shard=2, made_by=made_by).prepare({0: "a"})


READERS = {
    "--results": ("results.json", read_results),
    "palette": ("palette.json", read_palette),
    "id2label": ("id2label.json", read_names),
    "predictions": ("predictions.json", read_state),
    "index": ("model.safetensors.index.json", shards),
    "config": (CONFIG, lambda file: read_model_file(file, str(file), KINDS[CONFIG])),
    "settings": (SETTINGS, resume),
    "tracking": ("tracking.json", lambda file: tracked_run_id(file.parent, 5)),
    "benchmark": ("benchmark.json", lambda file: merge(file, "part", {})),
    "ablation": ("ablation.json", lambda file: ablation.check_flags(file, ablation.AblationArguments())),
    "ablation_runs": (
        "summary.json",
        lambda file: ablation.earlier_runs(ablation.AblationArguments(output_file=str(file))),
    ),
    "save_to_disk": ("dataset_dict.json", lambda file: check_saved(file.parent, Bounds((file.parent,)))),
    "state": ("state.json", lambda file: check_saved(file.parent, Bounds((file.parent,)))),
}


@pytest.mark.parametrize("content", [*NO_JSON, *NO_OBJECT])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_file(reader, content, tmp_path):
    name, read = READERS[reader]
    file = tmp_path / name
    file.write_bytes((NO_JSON | NO_OBJECT)[content])
    if reader == "palette" and content in ("null", "list", "number"):
        return  # no colours, colours by id, and `parse_palette` below
    with pytest.raises(UserError, match=re.escape(name)) as refused:
        read(file)
    assert "\n" not in str(refused.value)
    assert not re.search(r"has no attribute|not subscriptable|invalid literal|not iterable", str(refused.value))


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        ("palette", 5),
        ("palette", {"road": "#ffffff"}),
        ("id2label", {"road": 1}),
        ("id2label", {"0": ["road"]}),
        ("index", {"weight_map": {"a": 1}}),
        ("index", {"weight_map": {"a": "../b.safetensors"}}),
        ("index", {}),
        ("tracking", {"run_id": [1]}),
        ("tracking", {}),
        ("benchmark", {"parts": []}),
        ("ablation", {"train_recipe": 1}),
        ("save_to_disk", {"splits": 5}),
        ("save_to_disk", {"splits": [1]}),
        ("state", {"_data_files": [1]}),
        ("state", {"_data_files": [{}]}),
        ("state", {"_data_files": [{"filename": "a\0b"}]}),
    ],
)
def test_every_reader_refuses_wrong_kinds(reader, value, tmp_path):
    name, read = READERS[reader]
    file = tmp_path / name
    file.write_text(json.dumps(value))
    with pytest.raises(UserError) as refused:
        read(file)
    assert str(tmp_path) in str(refused.value)
    assert not re.search(r"has no attribute|not subscriptable|invalid literal|not iterable", str(refused.value))


@pytest.mark.parametrize("content", [*NO_JSON, *NO_OBJECT])
def test_those_that_go_on_without_the_file(content, tmp_path, capsys):
    """A damaged folder, a log with a line that is none, a lock that does not tell who holds it."""
    data = (NO_JSON | NO_OBJECT)[content]
    for name in (MANIFEST, LOCK_FILE):
        (tmp_path / name).write_bytes(data)
    assert damage(tmp_path).startswith(f"{MANIFEST} cannot be read: it ")
    assert FolderLock("--output_dir", tmp_path)._holder() == "another process"
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + data + b'\n{"step": 2}\n')
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert "line 2 is no line of a training log" in capsys.readouterr().err
