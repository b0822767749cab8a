"""The error that a user gets to see as one line."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: printed as one line, exit code 2, no traceback."""
