"""A backbone's configuration under overrides: which of its stages are read follows from what else changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


SELECTION = {"out_features", "out_indices"}


def after_overrides(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration after the `given` ones.

    Names of stages are left to the library, which derives them. The two fields that select stages are one choice: one
    of them replaces both. A choice that ends at the last stage ends there at another number of stages too: without
    either field the library's choice is its last stage, and a feature pyramid reads no other.
    """
    left_out = {"stage_names"}
    if SELECTION & given.keys() or (other_number_of_stages(before, given) and ends_at_last(before)):
        left_out |= SELECTION
    if given.get("backbone", before.get("backbone")) != before.get("backbone"):
        left_out |= {"out_features"}  # another network of timm has other names, and its indices may stay
    return {**{name: value for name, value in before.items() if name not in left_out}, **given}


def other_number_of_stages(before: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the overrides give a plain transformer other layers, or a pyramid other stages."""
    layers = before.get("num_hidden_layers")
    depths, changed = before.get("depths"), given.get("depths")
    if isinstance(depths, list | tuple) and isinstance(changed, list | tuple) and len(depths) != len(changed):
        return True
    return given.get("num_hidden_layers", layers) != layers


def ends_at_last(fields: Mapping[str, Any]) -> bool:
    """Whether the last stage is the last one that is selected."""
    names, selected = fields.get("stage_names") or [], fields.get("out_features") or []
    return bool(names) and list(selected)[-1:] == list(names)[-1:]
