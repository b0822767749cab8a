"""Licences of weights: what a checkpoint says of its own, and what stays with all that is trained from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from scripts.cli.errors import UserError


# Models of Mask2Former's zoo, by their names on the Hub; its code is MIT, its weights are not.
ZOO = re.compile(
    r"mask2former-(swin-(tiny|small|base|large)(-IN21k)?|resnet-?(50|101))"
    r"-(ade|coco|cityscapes|mapillary-vistas|youtubevis-20\d\d)(-(semantic|instance|panoptic))?"
)
ZOO_LICENSE = "cc-by-nc-4.0"
# Fields that a configuration gets where its weights come from another checkpoint, and what they look like. They are
# written into cards, whoever wrote them.
FIELDS = {"license": re.compile(r"[\w.+-]{1,60}", re.ASCII), "base_model": re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)}


def license_of(name: str, config: Any) -> str:
    """The licence that a checkpoint's card or configuration names, "unknown" if neither does."""
    if zoo_model(name):
        return ZOO_LICENSE
    from huggingface_hub.repocard import metadata_load  # not before the flags of a command are checked
    from transformers.utils import cached_file

    card = Path(name) / "README.md"
    try:
        if not card.is_file():
            cached = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
            card = Path(cached) if cached else card
        facts = (metadata_load(card) or {}) if card.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError):  # no card that could be read
        facts = {}
    named = [facts.get("license_name"), facts.get("license"), getattr(config, "license", None)]
    return next((value for value in named if value and isinstance(value, str)), "unknown")


def zoo_model(name: str) -> str | None:
    """Name on the Hub of a model of Mask2Former's zoo, of which this is the name, a copy, or a folder of the cache."""
    if name.startswith("facebook/mask2former-"):
        return name
    found = [ZOO.fullmatch(part.rpartition("--")[2]) for part in Path(name).parts]
    return next((f"facebook/{match[0]}" for match in reversed(found) if match), None)


def inherited(name: str, config: Any, saved_from: Any = None) -> dict[str, str]:
    """What weights taken from a Mask2Former checkpoint carry along, as fields of the new configuration.

    Args:
        saved_from: name of the checkpoint that it was saved from, where its file tells.
    Returns:
        `license` where it is known, and `base_model` where the checkpoint has a name on the Hub.
    """
    if zoo := zoo_model(name) or zoo_model(str(saved_from)):
        return {"license": ZOO_LICENSE, "base_model": zoo}
    fields = {"license": license_of(name, config)}
    if not Path(name).exists():
        fields["base_model"] = name
    return {field: value for field, value in fields.items() if FIELDS[field].fullmatch(value) and value != "unknown"}


def origin_of(config: Any) -> dict[str, str]:
    """The fields of `inherited` that a configuration has."""
    found = {field: getattr(config, field, None) for field in FIELDS}
    return {
        field: value for field, value in found.items() if isinstance(value, str) and FIELDS[field].fullmatch(value)
    }


def is_non_commercial(license_name: str) -> bool:
    """Whether a licence allows non-commercial use alone, by its name."""
    return bool(re.search(r"\bnc\b|non[- ]?commercial", license_name.lower()))


def origin_notice(config: Any) -> str:
    """Sentences for the card on where the weights come from; empty where the configuration says nothing of it."""
    origin = origin_of(config)
    if "license" not in origin:
        return ""
    source = f"`{origin['base_model']}`" if "base_model" in origin else "another checkpoint"
    stays = ", and what is trained from them stays so" if is_non_commercial(origin["license"]) else ""
    return f"The weights come from {source} under {origin['license']}{stays}."


def check_keeps_licence(given: str, config: Any) -> None:
    """Refuses to offer for any use what comes from weights for non-commercial use.

    Args:
        given: licence that the card names.
    Raises:
        UserError: with the licence to write.
    """
    origin = origin_of(config)
    if is_non_commercial(origin.get("license", "")) and not is_non_commercial(given):
        raise UserError(
            f"the card says license: {given}, but by config.json the weights of "
            f"{origin.get('base_model', 'the checkpoint that they come from')} are licensed under "
            f"{origin['license']}, and what is trained from them stays so: give the card such a licence"
        )
