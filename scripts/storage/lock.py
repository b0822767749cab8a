"""A folder that one process at a time may write into."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from scripts.cli.errors import UserError, errors_explained
from scripts.storage.json_files import read_json
from scripts.storage.shared_text import one_line


try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


class FolderLock:
    """The right to write into a folder, which is made if need be.

    The lock is the system's on a file in the folder, so that it ends with the process, however that ends: a file left
    behind by a kill locks nothing. Unlike `flock`'s, a lock of `lockf` does not pass to forked workers, which may
    outlive the process.

    Args:
        flag: the flag that names the folder, for messages.
    """

    def __init__(self, flag: str, folder: Path) -> None:
        self.flag = flag
        self.folder = folder
        self.file = folder / LOCK_FILE
        self.descriptor: int | None = None
        self.new_folders: list[Path] = []

    def take(self) -> None:
        """Locks the folder.

        Raises:
            UserError: another process holds it, or it cannot be written into.
        """
        self.new_folders = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        with errors_explained(f"{self.flag} {self.folder}", OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._taken():
                pass

    def _taken(self) -> bool:
        """Locks the file; false if its last holder has just deleted it, so that the next one would make another."""
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # which of the two is the system's choice
            os.close(descriptor)
            raise UserError(
                f"{self.flag} {self.folder}: {self._holder()} is writing into it: wait until that has ended, or name "
                "another folder"
            ) from error
        except OSError as error:  # some network file systems
            print(
                f"{self.folder} cannot be locked ({error.strerror}): let no other run write into it", file=sys.stderr
            )
        self.descriptor = descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(self.file)):
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode())
                return True
        os.close(descriptor)
        self.descriptor = None
        return False

    def _holder(self) -> str:
        """Who holds the lock, as far as the file tells."""
        try:
            holder = read_json(self.file, kinds={"process": int, "machine": str}, needed=["process", "machine"])
        except UserError:
            return "another process"
        return f"process {holder['process']} on {one_line(holder['machine'])}"

    def release(self) -> None:
        """Gives the folder free, if this process holds it; folders made for it go if nothing was written."""
        if self.descriptor is None:
            return
        self.file.unlink(missing_ok=True)
        os.close(self.descriptor)
        self.descriptor = None
        with suppress(OSError):  # those that hold something now stay
            for place in self.new_folders:
                place.rmdir()
