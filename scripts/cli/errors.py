"""The error that a user gets to see as one line, and what is said of all others."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


LONGEST_REASON = 300  # letters; the file has them all


class UserError(Exception):
    """Something the user can put right: printed as one line, exit code 2, no traceback."""


@contextmanager
def errors_explained(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raises errors of `kinds` as a `UserError` that begins with `what` they concern, such as a flag and its value."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what}: {error}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def fault_message(error: BaseException) -> str:
    """What is said of an error that nobody foresaw, in one line; its traceback goes into a file.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="faseg-fault-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    reason = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"this is a fault of the program: {reason[:LONGEST_REASON]}: please report it with {file.name}"
