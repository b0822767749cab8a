"""Names and commands as they may stand in files that others read: what they hold is shown, never obeyed."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import yaml


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# Of Markdown's signs those that mean something inside a line; an underscore within a word does not.
SIGNS = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What pages make links or formulas of without a sign.
ENTITIES = {"://": ":&#47;&#47;", "www.": "www&#46;", "$": "&#36;"}


def one_line(text: Any) -> str:
    """Words with a space between them, without control characters."""
    return " ".join(CONTROL.sub(" ", str(text)).split())


def markdown(text: Any) -> str:
    """A text that Markdown shows as it is, within a line or a cell of a table."""
    shown = SIGNS.sub(r"\\\g<0>", html.escape(one_line(text), quote=False))
    for signs, entity in ENTITIES.items():
        shown = shown.replace(signs, entity)
    return shown


def code(text: Any) -> str:
    """A text as code within a line of Markdown."""
    shown = one_line(text)
    fence = "`" * (longest_run(shown) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def code_fence(text: str) -> str:
    """What a block of code that holds `text` begins and ends with."""
    return "`" * max(3, longest_run(text) + 1)


def longest_run(text: str) -> int:
    """How many backticks follow each other."""
    return max(map(len, re.findall("`+", text)), default=0)


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML at the head of a card."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def without_credentials(text: str) -> str:
    """A text, such as a command, without user and password in its URLs."""
    return re.sub(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"]*@", r"\1", text)
