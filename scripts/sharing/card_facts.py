"""What a `card.yaml` says of a model, and `published.yaml` of the papers' figures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT
from scripts.models.licences import is_non_commercial
from scripts.storage.json_files import object_fault


HUB_CARDS = PROJECT_ROOT / "hub_cards"
PUBLISHED = HUB_CARDS / "published.yaml"
DATASET_FACTS = ("name", "id", "url", "split", "license", "description")
OTHER = "other"  # licence of a card whose own the Hub does not list
BLANK = "FILL IN"  # stands in a card that --init_card wrote where only its owner knows what to write


@dataclass
class CardFacts:
    """A `card.yaml`: what no results file knows, and no figures.

    Args:
        notice: what the licence follows from, by where the weights come from: "trained" (there is a recipe beside
            them) and "converted" (from the authors' release).
        dataset: `DATASET_FACTS`, and perhaps `known_as`: other names of the data, separated by commas.
        classes: names of the model's classes in the order of their ids; None where the card does not say.
        architecture: of the model, as `fit.architecture` words it; None where the card does not say.
        license_name: of a licence that the Hub does not list, whose `license` is "other".
        license_link: where that licence can be read.
    """

    name: str
    summary: str
    backbone: str
    license: str
    notice: dict[str, str]
    dataset: dict[str, str]
    limits: list[str] = field(default_factory=list)
    base_model: str | None = None
    classes: list[str] | None = None
    architecture: str | None = None
    license_name: str | None = None
    license_link: str | None = None

    @property
    def licence(self) -> str:
        """The name of the licence."""
        return self.license_name or self.license

    @property
    def is_non_commercial(self) -> bool:
        """Whether commercial use is ruled out: by the licence, or, where the Hub does not list it, by the data's."""
        return is_non_commercial(self.licence) or (
            self.license == OTHER and is_non_commercial(self.dataset["license"])
        )


def read_yaml(file: Path) -> Any:
    """Contents of a YAML file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: {error}") from error


def read_card(file: Path) -> CardFacts:
    """The facts of a `card.yaml`.

    Raises:
        UserError: names the file and the field that is missing, unknown or of another kind.
    """
    found = read_yaml(file)
    known = {item.name for item in fields(CardFacts)}
    needed = known - {"limits", "base_model", "classes", "architecture", "license_name", "license_link"}
    if not isinstance(found, dict) or (unknown := found.keys() - known) or (missing := needed - found.keys()):
        what = "no mapping" if not isinstance(found, dict) else f"{(unknown and 'unknown') or 'missing'} field "
        which = "" if not isinstance(found, dict) else sorted(unknown or missing)[0]
        raise UserError(f"{file}: {what}{which}: a card has {', '.join(sorted(known))}")
    if blanks := blank_fields(found):
        raise UserError(f"{file}: still to be filled in: {', '.join(blanks)}: write over {BLANK!r}, then export again")
    for name in ("notice", "dataset"):
        if not isinstance(found[name], dict):
            raise UserError(f"{file}: {name} holds {found[name]!r}: write `key: value` lines")
    if lacking := [name for name in DATASET_FACTS if not found["dataset"].get(name)]:
        raise UserError(f"{file}: dataset lacks {lacking[0]}")
    if not found["notice"] or found["notice"].keys() - {"trained", "converted"}:
        raise UserError(f"{file}: notice has {sorted(found['notice'])}: give trained, converted or both")
    if fault := object_fault(found, get_type_hints(CardFacts), needed):
        raise UserError(f"{file} {fault}")
    card = CardFacts(**{name: value for name, value in found.items() if value is not None})
    given = (card.license_name, card.license_link)
    if not all(given) if card.license == OTHER else any(given):
        raise UserError(
            f"{file}: license {card.license}: give license_name and license_link to the licence {OTHER!r} alone"
        )
    return card


def blank_fields(value: Any, name: str = "") -> list[str]:
    """Names of the fields of a card that hold nothing but what `--init_card` wrote for a user to replace."""
    if isinstance(value, dict):
        return [field for key, part in value.items() for field in blank_fields(part, f"{name}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [field for index, part in enumerate(value) for field in blank_fields(part, f"{name}[{index}]")]
    return [name] if isinstance(value, str) and BLANK in value else []


def card_file(model_id: str) -> Path:
    """Where the card's facts of a model id are.

    Raises:
        UserError: it has none.
    """
    known = {path.parent.name: path for path in sorted(HUB_CARDS.glob("*/card.yaml"))}
    if model_id not in known:
        raise UserError(
            f"--model_id {model_id}: no hub_cards/{model_id}/card.yaml: one of {', '.join(known)}; or give --card FILE"
        )
    return known[model_id]


def read_published(file: Path = PUBLISHED) -> dict[str, dict[str, Any]]:
    """Model id -> what the paper's authors report for it; models of this project's own are not there."""
    return read_yaml(file) or {}
