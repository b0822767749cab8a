"""What every hostile input must end in: a right answer, or a refusal that tells a user what to do.

A refusal is a `ValueError`, a `TypeError` for a value of the wrong kind, an error of the configurations' `@strict`, or
a `UserError` of the commands; its text is for people. Anything else is a fault of the program.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from scripts.cli.errors import UserError


REFUSALS = (ValueError, TypeError, StrictDataclassError, UserError)
# What Python and torch say of an argument that nobody looked at; no user can act on it.
INTERNAL = re.compile(
    r"object at 0x|'NoneType' object|unsupported operand|not subscriptable|not iterable|has no attribute"
    r"|positional argument|cannot convert float|too many values|not enough values|could not broadcast"
    r"|invalid literal|'<' not supported|'>' not supported|mat1 and mat2|size mismatch|out of bounds"
    r"|must be real number|Traceback"
)


def answered(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """`(result, None)`, or `(None, text)` of a refusal; any other error, and a text for nobody, fails the test."""
    try:
        return call(), None
    except REFUSALS as error:
        text = " ".join(str(error).split())
        length = len(text.replace("a" * 300, "a"))  # a hostile value, which the Hub's library repeats in its errors
        assert 10 <= length <= 1200 and not INTERNAL.search(text), f"{type(error).__name__}: {text}"
        return None, text


def check_command(code: int | str | None, errors: list[str], allowed: tuple[int, ...] = (0,)) -> bool:
    """Whether a command did its work; else it left with exit code 2 and one line that names it."""
    if code in allowed:
        return True
    assert code == 2, (code, errors)
    said = [line for line in errors if ": error: " in line]
    assert len(said) == 1 and said[0] == errors[-1], errors
    assert not INTERNAL.search(said[0].partition(": error: ")[2]), said[0]
    return False
