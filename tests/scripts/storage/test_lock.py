"""A folder is locked by one process at a time, and a lock ends with its process."""

import json
import multiprocessing
import os
import signal

import pytest

from scripts.cli.errors import UserError
from scripts.storage.lock import LOCK_FILE, FolderLock


FORK = multiprocessing.get_context("fork")


def hold(folder, ready, worker=None):
    """Holds the lock until it is killed; its worker, if it gets one, lives on."""
    FolderLock("--output_dir", folder).take()
    if worker is not None:
        child = FORK.Process(target=signal.pause)
        child.start()
        worker.put(child.pid)
    ready.set()
    signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds `tmp_path/run`."""
    started = []

    def start(worker=None):
        ready = FORK.Event()
        started.append(FORK.Process(target=hold, args=(tmp_path / "run", ready, worker)))
        started[-1].start()
        assert ready.wait(60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_process_is_told_who_holds_the_folder(holder, tmp_path):
    process = holder()
    with pytest.raises(UserError) as refused:
        FolderLock("--output_dir", tmp_path / "run").take()
    assert f"--output_dir {tmp_path / 'run'}: process {process.pid} on " in str(refused.value)
    assert "is writing into it: wait until that has ended, or name another folder" in str(refused.value)
    (tmp_path / "run" / LOCK_FILE).write_text("{")
    with pytest.raises(UserError, match=r"run: another process is writing into it"):
        FolderLock("--output_dir", tmp_path / "run").take()


def test_what_a_killed_process_leaves_locks_nothing(holder, tmp_path):
    """Even while one of its forked workers lives on."""
    worker = FORK.SimpleQueue()  # writes before `put` returns: a queue with a thread may lose it to the kill
    process = holder(worker)
    process.kill()
    process.join()
    left = worker.get()
    try:
        assert (tmp_path / "run" / LOCK_FILE).exists()
        lock = FolderLock("--output_dir", tmp_path / "run")
        lock.take()
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["process"] == os.getpid()
        lock.release()
    finally:
        os.kill(left, signal.SIGKILL)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_file_that_was_just_deleted_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """The last holder deletes it between this process's opening and locking of it."""
    lock, original, opened = FolderLock("--output_dir", tmp_path), os.open, []

    def open_then_lose(path, *args):
        descriptor = original(path, *args)
        opened.append(path)
        if len(opened) == 1:
            lock.file.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_then_lose)
    lock.take()
    assert len(opened) == 2 and os.path.samestat(os.fstat(lock.descriptor), lock.file.stat())
    lock.release()


def test_folders_made_for_a_lock_go_unless_something_was_written(tmp_path):
    lock = FolderLock("--output_dir", tmp_path / "a" / "b")
    lock.take()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.take()
    (tmp_path / "a" / "file").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--output_dir .*link: "):
        FolderLock("--output_dir", tmp_path / "link").take()
