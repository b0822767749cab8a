"""The error that a user gets to see as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right: printed as one line, exit code 2, no traceback."""


@contextmanager
def errors_explained(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raises errors of `kinds` as a `UserError` that begins with `what` they concern, such as a flag and its value."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what}: {error}") from error
