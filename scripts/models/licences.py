"""Licences of weights: what a checkpoint says of its own, and what stays with all that is trained from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load
from transformers.utils import cached_file

from scripts.cli.errors import UserError


# The model zoo of Mask2Former on the Hub; its code is MIT, its weights are not.
ZOO = re.compile(r"facebook/mask2former-[\w.-]+")
ZOO_LICENSE = "cc-by-nc-4.0"
# Fields that a configuration gets where its weights come from another checkpoint.
FIELDS = ("license", "base_model")


def license_of(name: str, config: Any) -> str:
    """The licence that a checkpoint's card or configuration names, "unknown" if neither does."""
    card = Path(name) / "README.md"
    if not card.is_file():
        try:
            cached = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):
            cached = None
        card = Path(cached) if cached else card
    facts = (metadata_load(card) or {}) if card.is_file() else {}
    return str(facts.get("license_name") or facts.get("license") or getattr(config, "license", None) or "unknown")


def inherited(name: str, config: Any) -> dict[str, str]:
    """What weights taken from a Mask2Former checkpoint carry along, as fields of the new configuration.

    Returns:
        `license` where it is known, and `base_model` where the checkpoint has a name on the Hub.
    """
    names = [name, str(getattr(config, "_name_or_path", ""))]
    if zoo := next((known for known in names if ZOO.fullmatch(known)), None):
        return {"license": ZOO_LICENSE, "base_model": zoo}
    license_name = license_of(name, config)
    found = {} if license_name == "unknown" else {"license": license_name}
    return found if Path(name).exists() else {**found, "base_model": name}


def origin_notice(config: Any) -> str:
    """A sentence for the card on where the weights come from; empty where the configuration says nothing of it."""
    name, license_name = (getattr(config, field, None) for field in reversed(FIELDS))
    if not license_name:
        return ""
    source = f"`{name}`, whose weights are" if name else "weights that are"
    return f"It starts from {source} licensed under {license_name}, and what is trained from them stays so."


def check_keeps_licence(given: str, config: Any) -> None:
    """Refuses to offer for any use what comes from weights for non-commercial use.

    Args:
        given: licence that the card names.
    Raises:
        UserError: with the licence to write.
    """
    origin = str(getattr(config, "license", None) or "")
    if "-nc" in origin.lower() and "-nc" not in given.lower():
        source = getattr(config, "base_model", None) or "the checkpoint that it starts from"
        raise UserError(
            f"the card says license: {given}, but the weights of {source} are licensed under {origin}, and what is "
            f"trained from them stays so: write license: {origin}"
        )
