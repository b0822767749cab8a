"""Data on which a score cannot fail, or does not exist: fewer than two classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.cli.errors import UserError


def refuse_one_class(names: Mapping[Any, str]) -> None:
    """Refuses a model of a single class, which can call no pixel anything else.

    Raises:
        UserError: says how such data are labelled.
    """
    if len(names) < 2:
        name = next(iter(names.values()), "")
        raise UserError(
            f"there is one class, {name!r}: every pixel is that or ignored, so no score can fail: label what "
            f'surrounds it as a class too, {{"0": "background", "1": "{name}"}}'
        )


def why_it_says_nothing(valid: np.ndarray, names: Mapping[int, str]) -> str | None:
    """Why there is no mean IoU on these references, or one that cannot fail; None where it can.

    Args:
        valid: see `mean_iou.valid_part`.
    """
    present = np.flatnonzero(valid.sum(axis=1))
    if len(present) > 1:
        return None
    if not len(present):
        return "all pixels of the label maps are ignored, so there is no score: see scripts/check_dataset.py"
    name = names[int(present[0])]
    return f"only {name!r} occurs in the label maps: a model that sees nothing else scores 100, so this says nothing"
