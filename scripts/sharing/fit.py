"""Whether what goes with a model is about it: the card, the figures, the processor, the sample images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import start_of
from scripts.data.bands import ImageForm
from scripts.evaluation.results import distinct_names
from scripts.models.model_files import CONFIG
from scripts.models.tasks import task_of
from scripts.sharing.array_images import sample_array
from scripts.sharing.card_facts import CardFacts
from scripts.sharing.results_files import task_of_results
from scripts.storage.shared_text import without_credentials


FIX = "write a card for this model with --init_card FILE.yaml, fill it in, and export with --card FILE.yaml"
# Of a backbone's configuration, what tells one size of it from another; the last two where it has no stages.
SIZES = ("backbone", "layer_type", "patch_size", "embed_dim", "hidden_sizes", "depths")
SIZES_OF_PLAIN = ("hidden_size", "num_hidden_layers")
FEW_VALUES = 40  # no photo has as few grey values or colours
SHORTEST_NAME = 3  # letters of a data set's name that may be looked for inside another one


# ---- what a model is ------------------------------------------------------------------------------------------------


def class_names(config: Any) -> list[str]:
    """The model's class names in the order of their ids, told apart where several classes share one."""
    return distinct_names({int(index): str(name) for index, name in config.id2label.items()})


def architecture(config: Any) -> str:
    """Type of the model and type and size of its backbone, in a few words that two equal models share."""
    backbone = getattr(config, "backbone_config", None) or config
    sizes = SIZES if getattr(backbone, "depths", None) else (*SIZES, *SIZES_OF_PLAIN)
    found = [f"{name} {as_words(value)}" for name in sizes if (value := getattr(backbone, name, None)) is not None]
    kind = "" if backbone is config else f" on {backbone.model_type}"
    return f"{config.model_type}{kind} ({', '.join(found)})"


def as_words(value: Any) -> str:
    """`[2, 2, 6, 2]` as `2-2-6-2`, all else as it is."""
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- the card -------------------------------------------------------------------------------------------------------


def check_card(facts: CardFacts, card: Path, config: Any) -> None:
    """Refuses a card of another model, as far as the card and the config.json beside it say which model they describe.

    Args:
        config: of the model to be exported.
    Raises:
        UserError: names the first difference and both values.
    """
    if facts.classes is not None:
        check_classes(str(card), [str(name) for name in facts.classes], config)
    if facts.architecture is not None:
        check_architecture(str(card), facts.architecture, config)
    check_described(card.parent, config)


def check_described(folder: Path, config: Any) -> None:
    """Refuses a folder whose config.json, if it has one, is of another model.

    Raises:
        UserError: names the first difference and both values.
    """
    file = folder / CONFIG
    if not file.is_file():
        return
    with errors_explained(str(file), OSError, ValueError, KeyError):
        described = AutoConfig.from_pretrained(folder)
    check_classes(str(file), class_names(described), config)
    check_architecture(str(file), architecture(described), config)


def check_classes(where: str, stated: Sequence[str], config: Any, fix: str = FIX) -> None:
    """Refuses other classes than the model's.

    Args:
        where: what states them.
    Raises:
        UserError: with both numbers, or the first name that differs.
    """
    names = class_names(config)
    if len(stated) != len(names):
        raise UserError(f"{where} is about {shown(stated)}, but the model has {shown(names)}: {fix}")
    for index, (other, name) in enumerate(zip(stated, names)):
        if other != name:
            raise UserError(f"{where} calls class {index} {other!r}, but the model calls it {name!r}: {fix}")


def shown(names: Sequence[str], most: int = 3) -> str:
    """How many classes, and what the first are called."""
    more = ", ..." if len(names) > most else ""
    return f"{len(names)} classes ({', '.join(names[:most])}{more})"


def check_architecture(where: str, stated: str, config: Any) -> None:
    """Refuses another type of model or another backbone than the model's.

    Raises:
        UserError: with both.
    """
    if stated != architecture(config):
        raise UserError(f"{where} is about a {stated}, but the model is a {architecture(config)}: {FIX}")


def check_dataset(facts: CardFacts, dataset: str, whose: str) -> None:
    """Refuses a card about other data than the model was trained or evaluated on.

    Names agree if one is part of the other, whatever their case, signs and spaces.

    Args:
        dataset: name of the data, such as that of its folder; empty where it is not known.
        whose: where that name was found.
    Raises:
        UserError: with both names.
    """
    if not dataset:
        return
    known = [facts.dataset["name"], facts.dataset["id"], *facts.dataset.get("known_as", "").split(",")]
    if not any(alike(dataset, name) for name in known):
        raise UserError(
            f"the card is about the data set {facts.dataset['name']} (id {facts.dataset['id']}), but {whose} names "
            f"{dataset}: if this is the same data, write `known_as: {dataset}` under `dataset` of the card; else {FIX}"
        )


def trained_on(recipe: dict[str, Any]) -> str:
    """Name of the data that a recipe trains on; empty where it names none, as with folders of images and masks."""
    name = recipe.get("dataset_name")
    return Path(without_credentials(name)).name if isinstance(name, str) else ""


def alike(one: str, other: str) -> bool:
    """Whether two names of data sets may stand for the same one."""
    short, long = sorted((letters(one), letters(other)), key=len)
    return short == long or (len(short) >= SHORTEST_NAME and short in long)


def letters(name: str) -> str:
    """Letters and digits of the last part of a name, in lower case."""
    return re.sub(r"[\W_]", "", name.rstrip("/").rpartition("/")[2].lower())


# ---- what else goes with it -----------------------------------------------------------------------------------------


def check_results(results: dict[str, Any], config: Any, parameters: int | None = None) -> None:
    """Refuses figures of a model of another task, of other classes or of another size.

    Args:
        parameters: how many the model has; None where it is not loaded.
    Raises:
        UserError: with both values.
    """
    fix = f"evaluate this checkpoint: {start_of('eval')} --model_name_or_path CHECKPOINT --output_file FILE"
    if (task := task_of_results(results)) != task_of(config):
        raise UserError(
            f"the file of --results is about {task} segmentation, but the model is for {task_of(config)}: {fix}"
        )
    check_classes("the file of --results", list(results["per_class"]), config, fix)
    measured = results.get("parameters")
    if None not in (measured, parameters) and measured != parameters:
        raise UserError(
            f"the file of --results is about a model of {measured} parameters, but this one has {parameters}: {fix}"
        )


def check_processor(processor: Any, config: Any, checkpoint: str) -> None:
    """Refuses an image processor that was made for another number of classes or another task.

    Raises:
        UserError: with both values.
    """
    for name, own in (("num_labels", config.num_labels), ("task", getattr(config, "task", None))):
        found = getattr(processor, name, None)
        if None not in (found, own) and found != own:
            raise UserError(
                f"{checkpoint}: preprocessor_config.json says {name} {found}, but config.json says {own}: write {own} "
                "there, or take the preprocessor_config.json that was saved with this model"
            )


def check_sample(file: Path, form: ImageForm) -> None:
    """Refuses a label map in the place of an image to be segmented.

    Raises:
        UserError: it has one channel, and few values; or it is no image of this form.
    """
    if form.is_plain:
        faults = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
        with errors_explained(f"--sample_images {file}", *faults), Image.open(file) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                return
            values = np.unique(np.asarray(image))
    else:
        array = sample_array(file, form)
        if (array != array[..., :1]).any():
            return
        values = np.unique(array)
    if len(values) <= FEW_VALUES:
        raise UserError(
            f"--sample_images {file}: one channel of {len(values)} values is a label map, and a sample is an image "
            "that the model segments: give the image"
        )
