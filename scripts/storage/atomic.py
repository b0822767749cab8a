"""Files and folders that are written atomically: after a kill at any moment the old one or the new one is there, a
folder perhaps under its hidden name, from which `recover` or the next write brings it back.

What is written goes under a hidden name, is synced to the disk, and renamed. A folder may get a manifest of its files,
by which it can tell later whether it is still as written; what a killed process left of such a folder is put right by
`recover`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from scripts.cli.errors import UserError
from scripts.storage.digests import sha256
from scripts.storage.json_files import read_json


MANIFEST = "manifest.json"
HIDDEN = re.compile(r"^\.(best|model|checkpoint-\d+)\.(partial|replaced)$")
HIDDEN_FILE = re.compile(r"^\..+\.partial$")
LONGEST_NAME = 255  # bytes, of every common file system
UMASK = os.umask(0)  # it can only be read by setting it
os.umask(UMASK)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What torch, safetensors and the system raise when a file cannot be written.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def hidden_name(path: Path, kind: str) -> Path:
    """Where `path` lies while it is being written ("partial") or replaced ("replaced")."""
    hidden = f".{path.name}.{kind}"
    if len(os.fsencode(hidden)) > LONGEST_NAME:  # though `path` itself may be short enough
        hidden = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.{kind}"
    return path.with_name(hidden)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk; a file that its library keeps private may be read by others, too.

    safetensors gives files to their owner alone, whatever the umask.
    """
    if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
        with suppress(OSError):  # some mounts have no modes of their own
            path.chmod(0o666 & ~UMASK)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file` only when the block ends well; for one process.

    Raises:
        OSError: it cannot be written; nothing of it is left, and an older `file` is as it was.
    """
    if file.exists() and not file.is_file():  # a device or a pipe, such as /dev/stdout, cannot be replaced
        yield file
        return
    file = file.resolve()  # a link stays, and what it points to is replaced
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_name(file, "partial")
    try:
        yield partial
        sync(partial)
        partial.replace(file)
        sync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, manifest: bool = True) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` only when the block ends well; for one process.

    Raises:
        OSError: it cannot be written; nothing of it is left, and an older `folder` is as it was.
    """
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    replaced = hidden_name(folder, "replaced")
    if replaced.exists() and not folder.exists():  # killed between the two renames of `publish`
        replaced.rename(folder)
    with _empty_folder(hidden_name(folder, "partial")) as partial:
        yield partial
        publish(folder, manifest)


@contextmanager
def atomic_files(folder: Path, last: str, replaced: str) -> Iterator[Path]:
    """An empty folder to fill, whose files move into `folder` when the block ends well; for one process. Other files
    there stay, but for those of the pattern `replaced`.

    The file `last`, without which nothing reads the others, is the first to go and the last to come: no kill leaves a
    mixture of old and new files that could be taken for whole.

    Raises:
        OSError: they cannot be written; what was in `folder` before is as it was unless the moving failed, and then
            `last` is missing.
    """
    with _empty_folder(hidden_name(folder / "model", "partial")) as partial:
        yield partial
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            sync(path)
        names = [path.relative_to(partial) for path in files]
        (folder / last).unlink(missing_ok=True)
        sync(folder)
        for name in names:
            if name != Path(last):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(folder / name)
        for older in folder.glob(replaced):
            if older.relative_to(folder) not in names:
                older.unlink()
        sync(folder)
        (partial / last).replace(folder / last)
        sync(folder)


@contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    """A new folder that is gone in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, manifest: bool = True) -> None:
    """Makes what was written below `hidden_name(folder, "partial")` into `folder`, in place of an older one.

    Raises:
        OSError: the disk is full or gone; the older folder is as it was.
    """
    partial, replaced = hidden_name(folder, "partial"), hidden_name(folder, "replaced")
    if manifest:
        files = sorted(path for path in partial.rglob("*") if path.is_file() and path != partial / MANIFEST)
        entries = {
            str(file.relative_to(partial)): {"size": file.stat().st_size, "sha256": sha256(file)} for file in files
        }
        (partial / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    for path in (*partial.rglob("*"), partial):
        sync(path)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    try:
        partial.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def write_errors_explained(place: Path) -> Iterator[None]:
    """Raises `UserError` with a reason in a few words where `place` cannot be written."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise UserError(f"{place} could not be written: {write_failure(error, place)}") from error


def write_failure(error: BaseException, folder: Path) -> str:
    """In a few words, why a file below `folder` could not be written."""
    # torch and safetensors do not pass the system's error number on.
    text = (str(error).splitlines() or [type(error).__name__])[0]
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if getattr(error, "errno", None) in DISK_FULL or "No space left" in text:
        return "the disk is full"
    if shutil.disk_usage(existing).free < 2**20:
        return "the disk is full"
    return text


def remove(folder: Path) -> None:
    """Deletes a folder, so that a kill in between leaves no half of it under its name."""
    replaced = hidden_name(folder, "replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    folder.rename(replaced)
    shutil.rmtree(replaced)


def recover(parent: Path) -> None:
    """Puts right what a killed process left in `parent`: whole folders get their name, the rest goes."""
    leftovers = []
    for path in parent.iterdir() if parent.is_dir() else ():
        if path.is_file() and HIDDEN_FILE.match(path.name):
            path.unlink()
        elif HIDDEN.match(path.name):
            leftovers.append(path)
    # A new folder that was whole before its kill ("partial") comes before the one it was to replace.
    for path in sorted(leftovers):
        folder = path.with_name(path.name[1:].rpartition(".")[0])
        being_replaced = path.suffix == ".replaced" or hidden_name(folder, "replaced").exists()
        if being_replaced and not folder.exists() and damage(path) is None:
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a published folder: its first missing or changed file; None if it is whole."""
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing, so it was not written whole"
    try:
        entries = read_json(folder / MANIFEST, "it", {"files": dict[str, dict[str, Any]]}, ["files"])["files"]
        written = {name: (entry["size"], entry["sha256"]) for name, entry in entries.items()}
    except (UserError, KeyError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, (size, digest) in written.items():
        file = folder / name
        if not os.path.isfile(file):  # `Path.is_file` raises at names that are too long
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} is damaged: {file.stat().st_size} bytes, {size} were written"
        if sha256(file) != digest:
            return f"{name} is damaged: its SHA-256 is not that of what was written"
    return None
