"""What a command may write over: files that this project wrote, which carry its mark, and nothing else unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_folder, flag


MARK = "Written by faseg-transformers"
# The last two are of versions that set no mark: of results files, and of README's image.
MARKS = (MARK.encode(), b'"command": "python scripts/', b"tEXtsources\0")
EMPTY = len("[]\n")  # bytes; an empty list, which has no place for a mark, is nothing to lose either
ENDS = 2**16  # bytes: every format has its mark near the start or the end of the file


def bears_mark(file: Path) -> bool:
    """Whether this project wrote the file."""
    with file.open("rb") as stream:
        ends = stream.read(ENDS)
        stream.seek(max(len(ends), file.stat().st_size - ENDS))
        ends += stream.read()
    return any(mark in ends for mark in MARKS)


def overwrite_flag() -> Any:
    """The flag by which a user asks for what `check_output_file` refuses."""
    return flag(False, "Also write over files that this project did not write.")


def check_output_file(name: str, file: Path, overwrite: bool) -> None:
    """Refuses a file that cannot be written, or that is somebody else's.

    Devices such as /dev/stdout and pipes are written to, and links stay: what they point to is replaced.

    Args:
        name: of the flag.
        overwrite: whether the user asked for a file of somebody else to be replaced.
    Raises:
        UserError: names the flag, the file and the fix.
    """
    with errors_explained(f"{name} {file}", OSError):
        if file.is_dir():
            raise UserError(f"{name} {file} is a folder: name a file")
        check_folder(name, file.parent)
        if file.is_block_device() or file.is_socket():
            raise UserError(f"{name} {file} is a device or a socket: name a file")
        if file.is_file() and file.stat().st_size > EMPTY and not overwrite and not bears_mark(file):
            raise UserError(
                f"{name} {file} is there, and this project did not write it: name another file, or add --overwrite"
            )
