"""The `card.yaml` that a user fills in: what is known of a model, and blanks for the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.models.licences import FIELDS, license_of, origin_of
from scripts.models.tasks import task_of
from scripts.sharing.card_facts import BLANK, OTHER, blank_fields
from scripts.sharing.fit import architecture, class_names, trained_on
from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK


FAMILY_NAMES = {"faseg": "FASeg", "semask": "SeMask FPN", "qlseg": "QLSeg"}
# Licences that the Hub lists by such names; a card names any other beside `other`.
OF_THE_HUB = r"apache-2\.0|mit|isc|unlicense|mpl-2\.0|(bsd|cc|a?gpl|lgpl|odc)-[\w.-]+|odbl|[\w-]*openrail[\w-]*"
LICENCE_HELP = (
    "as the Hub writes it: apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0, ...; one that it does not list is",
    "`other`, with its name and address in license_name and license_link; what the licences of the",
    "training data and of the first weights allow, such as no commercial use, binds these weights too",
)


@dataclass(frozen=True)
class Known:
    """What is known of a model whose card is to be written.

    Args:
        recipe: that it was trained with; empty where none lies beside it.
        results: of `read_results`, None where nothing was measured.
    """

    config: Any
    recipe: dict[str, Any]
    results: dict[str, Any] | None

    @property
    def dataset(self) -> str:
        """Name of the data that it was trained or evaluated on; empty where nothing names it."""
        return trained_on(self.recipe) or (self.results or {}).get("dataset") or ""

    @property
    def split(self) -> str:
        """Name of the split that it was evaluated on, or would be by its recipe."""
        return (self.results or {}).get("split") or str(self.recipe.get("eval_split_name") or "validation")

    @property
    def origin(self) -> dict[str, str]:
        """Licence and name of the checkpoint that the training started from, as far as they are known here."""
        start = self.recipe.get("model_name_or_path") or self.recipe.get("warm_start")
        found = origin_of(self.config)
        if isinstance(start, str):
            if Path(start).is_dir():
                found = {"license": license_of(start, self.config), **found}
            elif FIELDS["base_model"].fullmatch(start):
                found = {"base_model": start, **found}
        return {name: value for name, value in found.items() if value != "unknown"}


def blank(what: str) -> str:
    """What stands where only the owner of the model knows what to write."""
    return f"{BLANK}: {what}"


def entry(name: str, value: Any, *comments: str, indent: str = "") -> list[str]:
    """Lines of a YAML field under its comments."""
    text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=10**6)
    return [*(f"{indent}# {comment}" for comment in comments), *(f"{indent}{line}" for line in text.splitlines())]


def licence_entries(name: str | None) -> list[str]:
    """The fields of the licence of this name; one that is none of the Hub's own words is named beside `other`."""
    if name is None:
        return entry("license", blank("the licence of the weights"), *LICENCE_HELP)
    if re.fullmatch(OF_THE_HUB, name):
        return entry("license", name, *LICENCE_HELP)
    link = blank("where that licence can be read")
    return [*entry("license", OTHER, *LICENCE_HELP), *entry("license_name", name), *entry("license_link", link)]


def card_text(known: Known) -> str:
    """The whole file."""
    names, family = class_names(known.config), FAMILY_NAMES.get(known.config.model_type, known.config.model_type)
    backbone = architecture(known.config).partition(" on ")[2] or architecture(known.config)
    weights = known.recipe.get("backbone_weights")
    steps = known.recipe.get("max_train_steps")
    dataset, origin = known.dataset, known.origin
    trained = f", trained for {steps} steps" if steps else ""
    lines = [
        f"# {MARK}: scripts/export_hub.py --init_card",
        f"# Write over every {BLANK!r}; the export refuses the card until then, and takes it by --card.",
        *entry("name", f"{family}, {dataset}" if dataset else blank("a short title")),
        *entry(
            "summary",
            f"A {family} for the {task_of(known.config)} segmentation of {dataset} into {len(names)} classes{trained}."
            if dataset
            else blank(f"one or two sentences: what this {family} of {len(names)} classes is for{trained}"),
        ),
        *entry("backbone", f"{backbone}{f', started from {Path(str(weights)).name}' if weights else ''}"),
        *licence_entries(origin.get("license")),
        *(entry("base_model", origin["base_model"]) if "base_model" in origin else []),
        "notice:",
        *entry(
            "trained",
            blank("what the licence follows from: the data and its licence, and that of the first weights"),
            indent="  ",
        ),
        "dataset:",
        *entry("name", dataset or blank("the data set's name for readers"), indent="  "),
        *entry("id", dataset or blank("a short name of the data, such as its name on the Hub"), indent="  "),
        *(
            entry("known_as", dataset, "other names of the same data, such as its folder's", indent="  ")
            if dataset
            else []
        ),
        *entry("url", blank("where the data can be had or read about"), indent="  "),
        *entry("split", known.split, "the data set's own name of the split that figures are of", indent="  "),
        *entry("license", blank("the licence of the data"), indent="  "),
        *entry("description", blank("what the images show, how many, how large"), indent="  "),
        *entry("limits", [blank("what the model was never shown and should not be used for; or remove this line")]),
        *entry("architecture", architecture(known.config), "Compared with the model at each export, as classes are:"),
        *entry("classes", names),
    ]
    return "\n".join(lines) + "\n"


def write_card(file: Path, known: Known) -> list[str]:
    """Writes the file atomically; returns the names of the fields to be filled in."""
    text = card_text(known)
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")
    return blank_fields(yaml.safe_load(text))
