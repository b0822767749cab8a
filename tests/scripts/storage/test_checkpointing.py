"""Folders and files are written atomically, whatever happens in between; checkpoints are checked before use."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scripts.cli.errors import UserError
from scripts.storage import atomic
from scripts.storage.atomic import (
    MANIFEST,
    atomic_file,
    atomic_files,
    atomic_folder,
    damage,
    publish,
    recover,
    remove,
    write_errors_explained,
)
from scripts.training.checkpointing import SETTINGS, checkpoints, find_checkpoint, step_of
from scripts.training.fingerprint import BY_BATCHES, BY_SHARDS, SHARING, check_settings


def fill(folder, text):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text * 2)


def write(folder, text, manifest=True):
    with atomic_folder(folder, manifest) as partial:
        fill(partial, text)


def content(folder):
    return (folder / "sub" / "a.txt").read_text(), (folder / "b.txt").read_text()


@pytest.fixture
def saved(tmp_path):
    """Folder with the checkpoints of steps 2, 4 and 10."""
    for step in (10, 2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        with atomic_folder(folder) as partial:
            (partial / SETTINGS).write_text(json.dumps({"--seed": step}))
    return tmp_path


def test_a_folder_is_written_replaced_and_told_whole(tmp_path):
    folder = tmp_path / "best"
    for text in ("old", "new"):
        write(folder, text)
        assert content(folder) == (text, text * 2) and damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"sub/a.txt", "b.txt"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "b.txt").write_text("longer than before"), "b.txt is damaged: 18 bytes, 4 were"),
        (lambda folder: (folder / "sub" / "a.txt").write_text("xx"), "sub/a.txt is damaged: its SHA-256"),
        (lambda folder: (folder / "b.txt").unlink(), "b.txt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing, so it was not written whole"),
        (lambda folder: (folder / MANIFEST).write_text("{"), f"{MANIFEST} cannot be read"),
        (
            lambda folder: (folder / MANIFEST).write_text(
                f'{{"files": {{"{"x" * 300}": {{"size": 1, "sha256": ""}}}}}}'
            ),
            "xxx is missing",
        ),
        *(
            (lambda folder, text=text: (folder / MANIFEST).write_text(text), f"{MANIFEST} cannot be read")
            for text in (
                "null",
                "[1]",
                "{}",
                '{"files": [1]}',
                '{"files": {"b.txt": 5}}',
                '{"files": {"b.txt": {"size": 4}}}',
                '{"files": ' * 3000 + "1" + "}" * 3000,
            )
        ),
    ],
)
def test_damage_is_named(harm, message, tmp_path):
    write(tmp_path / "best", "ab")
    harm(tmp_path / "best")
    assert message in damage(tmp_path / "best")


def test_killed_at_every_system_call_the_old_or_the_new_is_there(tmp_path):
    """Killed before each sync, rename and deletion in turn: after `recover` one of the two is whole, and only it."""
    seen = set()
    for number in range(1, 30):
        folder = tmp_path / str(number) / "best"
        write(folder, "old")
        child = multiprocessing.get_context("fork").Process(target=replace_and_die, args=(folder, number))
        child.start()
        child.join()
        recover(folder.parent)
        assert [path.name for path in folder.parent.iterdir()] == ["best"]
        assert damage(folder) is None and content(folder) in (("old", "oldold"), ("new", "newnew"))
        seen.add((content(folder)[0], child.exitcode))
        if child.exitcode == 0:
            break
    assert seen == {("old", -signal.SIGKILL), ("new", -signal.SIGKILL), ("new", 0)}


def counter_that_kills(number):
    """Wraps functions: of all their calls together, this one kills the process."""
    calls = []

    def counted(original):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    return counted


def replace_and_die(folder, number):
    counted = counter_that_kills(number)
    os.fsync, Path.rename, shutil.rmtree = counted(os.fsync), counted(Path.rename), counted(shutil.rmtree)
    write(folder, "new")


def write_model(folder, text, shards, error=None):
    with atomic_files(folder, last="config.json", replaced="model*.safetensors") as partial:
        for name in ["config.json", *(f"model-{shard}.safetensors" for shard in range(shards))]:
            (partial / name).write_text(text)
        if error:
            raise error


def write_model_and_die(folder, number):
    counted = counter_that_kills(number)
    os.fsync, Path.replace, shutil.rmtree = counted(os.fsync), counted(Path.replace), counted(shutil.rmtree)
    Path.unlink = counted(Path.unlink)
    write_model(folder, "new", 2)


def test_killed_at_every_system_call_no_mixture_can_be_read(tmp_path):
    """A model of three shards is replaced by one of two, beside a log: whole, or without the file that names it."""
    seen = set()
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "log").write_text("log")
        write_model(folder, "old", 3)
        child = multiprocessing.get_context("fork").Process(target=write_model_and_die, args=(folder, number))
        child.start()
        child.join()
        recover(folder)
        found = {path.name: path.read_text() for path in folder.iterdir()}
        assert found.pop("log") == "log"
        if "config.json" in found:
            assert len(set(found.values())) == 1 and len(found) == (4 if found["config.json"] == "old" else 3)
        seen.add((found.get("config.json"), child.exitcode))
        if child.exitcode == 0:
            break
    assert seen == {("old", -signal.SIGKILL), (None, -signal.SIGKILL), ("new", -signal.SIGKILL), ("new", 0)}


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_model(tmp_path, "old", 1)
    with pytest.raises(OSError, match="No space left"):
        write_model(tmp_path, "new", 1, error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "config.json": "old", "model-0.safetensors": "old",
    }  # fmt: skip


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_keeps_the_old_folder(call, tmp_path, monkeypatch):
    write(tmp_path / "best", "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr("os.fsync", full)
        else:
            original = Path.rename
            patch.setattr(Path, "rename", lambda path, to: full() if "partial" in path.name else original(path, to))
        explained = write_errors_explained(tmp_path / "best")
        with pytest.raises(UserError, match="best could not be written: the disk is full"), explained:
            write(tmp_path / "best", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert content(tmp_path / "best") == ("old", "oldold")


def test_leftovers_go_and_other_hidden_folders_stay(tmp_path):
    for name in (".checkpoint-4.partial", ".checkpoint-2.replaced", ".git", ".other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    for name in (".recipe.yaml.partial", ".notes", "curves.png"):
        (tmp_path / name).write_text("")
    recover(tmp_path)
    recover(tmp_path / "not there")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", ".notes", ".other.partial", "curves.png"]


def test_removal_leaves_no_half_folder_under_the_name(saved, monkeypatch):
    original = shutil.rmtree

    def die(path, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt
        original(path, ignore_errors)

    monkeypatch.setattr(atomic.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove(saved / "checkpoint-2")
    assert [step_of(path) for path in checkpoints(saved)] == [4, 10]


def test_latest_is_the_newest_whole_one(saved, capsys):
    assert [step_of(path) for path in checkpoints(saved)] == [2, 4, 10]
    assert find_checkpoint("latest", saved, {"--seed": 10}).name == "checkpoint-10"
    (saved / "checkpoint-10" / SETTINGS).write_text("{}")
    assert find_checkpoint("latest", saved, {"--seed": 4}).name == "checkpoint-4"
    assert f"passed over {saved / 'checkpoint-10'}: {SETTINGS} is damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"{SETTINGS} is damaged.*go on with .*checkpoint-4$"):
        find_checkpoint(str(saved / "checkpoint-10"), saved, {})
    for step in (2, 4):
        (saved / f"checkpoint-{step}" / SETTINGS).unlink()
    with pytest.raises(UserError, match=r"latest: no whole checkpoint: .*checkpoint-2: settings\.json is missing"):
        find_checkpoint("latest", saved, {})


def test_checkpoints_that_cannot_be_found(tmp_path):
    with pytest.raises(UserError, match="no checkpoint-<step> in"):
        find_checkpoint("latest", tmp_path, {})
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(str(tmp_path / "checkpoint-3"), tmp_path, {})


def test_other_settings_are_refused_with_both_values():
    saved = {"--learning_rate": 0.1, "--seed": 1, "gone": 3, "model: hidden_dim": 32}
    check_settings(Path("x"), saved, {**saved, "new": 2})
    with pytest.raises(UserError) as refused:
        check_settings(Path("x"), saved, {"--learning_rate": 0.2, "--seed": 1, "model: hidden_dim": 64})
    assert "--learning_rate 0.1, not 0.2; model: hidden_dim 32, not 64:" in str(refused.value)


def test_a_flag_that_is_newer_than_the_checkpoint_had_its_default():
    check_settings(Path("x"), {"--seed": 1}, {"--seed": 1, "--rotation": 0.0, "--shortest_edges": None})
    with pytest.raises(UserError, match=r"--rotation 0\.0, not 5\.0"):
        check_settings(Path("x"), {"--seed": 1}, {"--seed": 1, "--rotation": 5.0})


def test_processes_once_shared_samples_by_batches_alone():
    check_settings(Path("x"), {"--seed": 1}, {"--seed": 1, SHARING: BY_BATCHES})
    with pytest.raises(
        UserError, match=r'samples shared among processes by "batches", not "shards": to go on exactly'
    ):
        check_settings(Path("x"), {"--seed": 1}, {"--seed": 1, SHARING: BY_SHARDS})


def test_other_versions_of_code_and_libraries_are_named(capsys):
    saved = {"--seed": 1, "version: torch": "2.4", "version: timm": "1.0", "version: the project's code": "a1"}
    check_settings(Path("x"), saved, dict(saved))
    assert capsys.readouterr().err == ""
    check_settings(Path("x"), saved, {"--seed": 1, "version: torch": "2.5", "version: the project's code": "a1"})
    warned = capsys.readouterr().err
    assert warned.startswith('warning: x was trained with torch "2.4", not "2.5"; timm "1.0", not null: ')
    assert warned.endswith("but not exactly as if it had never stopped\n") and warned.count("\n") == 1


def test_publish_syncs_files_folders_and_parent(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic, "sync", synced.append)
    folder = tmp_path / "best"
    partial = atomic.hidden_name(folder, "partial")
    partial.mkdir()
    fill(partial, "x")
    publish(folder)
    assert {path.relative_to(tmp_path).as_posix() for path in synced} == {
        ".", *(f".best.partial{name}" for name in ("", "/sub", "/sub/a.txt", "/b.txt", f"/{MANIFEST}")),
    }  # fmt: skip


# ---- files, and folders without a manifest


def write_file(file, text):
    with atomic_file(file) as partial:
        partial.write_text(text[:1])
        partial.write_text(text)


def write_file_and_die(file, number):
    counted = counter_that_kills(number)
    os.fsync, Path.replace, Path.write_text = counted(os.fsync), counted(Path.replace), counted(Path.write_text)
    write_file(file, "new")


def write_plain_folder_and_die(folder, number):
    counted = counter_that_kills(number)
    os.fsync, Path.rename, shutil.rmtree = counted(os.fsync), counted(Path.rename), counted(shutil.rmtree)
    write(folder, "new", manifest=False)


def test_a_file_killed_at_every_system_call_is_the_old_or_the_new(tmp_path):
    seen = set()
    for number in range(1, 10):
        file = tmp_path / str(number) / "results.json"
        write_file(file, "old")
        child = multiprocessing.get_context("fork").Process(target=write_file_and_die, args=(file, number))
        child.start()
        child.join()
        seen.add((file.read_text(), child.exitcode))
        write_file(file, "next")
        assert [path.name for path in file.parent.iterdir()] == ["results.json"] and file.read_text() == "next"
        if seen >= {("new", 0)}:
            break
    assert seen == {("old", -signal.SIGKILL), ("new", -signal.SIGKILL), ("new", 0)}


def test_a_folder_without_manifest_killed_anywhere_is_put_back_by_the_next_write(tmp_path):
    """Even if the next write fails: the old or the new one is there, and nothing else."""
    for number in range(1, 30):
        folder = tmp_path / str(number) / "export"
        write(folder, "old", manifest=False)
        child = multiprocessing.get_context("fork").Process(target=write_plain_folder_and_die, args=(folder, number))
        child.start()
        child.join()
        with pytest.raises(RuntimeError, match="in between"), atomic_folder(folder, manifest=False):
            raise RuntimeError("in between")
        assert content(folder) in (("old", "oldold"), ("new", "newnew"))
        write(folder, "next", manifest=False)
        assert [path.name for path in folder.parent.iterdir()] == ["export"]
        assert content(folder) == ("next", "nextnext") and len(list(folder.iterdir())) == 2
        if child.exitcode == 0:
            break
    assert child.exitcode == 0


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "new folder" / "page.html", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "new folder" / "page.html") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in (tmp_path / "new folder").iterdir()] == [("page.html", "old")]


def test_a_link_stays_and_a_file_is_no_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write(tmp_path / "out", "new", manifest=False)
    assert (tmp_path / "out").is_symlink() and content(tmp_path / "disk") == ("new", "newnew")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(tmp_path / "link", "mine")
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(NotADirectoryError, match="file"):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_is_written_to_and_stays():
    write_file(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()


def test_others_may_read_what_safetensors_writes(tmp_path):
    """It gives a file to its owner alone; the umask decides, as for every other file."""
    with atomic_folder(tmp_path / "model") as partial:
        save_file({"weight": torch.zeros(2)}, partial / "model.safetensors")
        (partial / "config.json").write_text("{}")
        (partial / "script.sh").touch(mode=0o700)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] and modes["script.sh"] == 0o700 & ~atomic.UMASK
