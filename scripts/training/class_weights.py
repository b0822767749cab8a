"""The classes' weights in the loss and shares of the pixels, from the flags."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from scripts.cli.errors import UserError
from scripts.cli.processes import on_main
from scripts.data.class_counts import balanced_weights, count_class_pixels, read_class_pixels, shares_of
from scripts.data.labelled_dataset import LabelledDataset
from scripts.training.arguments import TrainArguments, named_weights


SHOWN = 6  # of the heaviest classes, and as many of the lightest


def shares_needed(
    arguments: TrainArguments, accelerator: Accelerator, data: LabelledDataset, id2label: dict[Any, str]
) -> list[float] | None:
    """Share of each class in the pixels of the training split, if a flag goes by it; the main process counts.

    Raises:
        UserError: the file of `--class_counts` is of other data, or a label map holds no class that there is.
    """
    by_share = arguments.class_weights is not None and named_weights(arguments.class_weights) is None
    if not by_share and not arguments.rare_class_crops:
        return None

    def shares() -> list[float]:
        if arguments.class_counts:
            return shares_of(read_class_pixels(arguments.class_counts, data.split, id2label))
        return shares_of(count_class_pixels(data, len(id2label)))

    return on_main(accelerator, shares)


def weights_of(values: Sequence[str], id2label: dict[Any, str], shares: Sequence[float] | None) -> list[float]:
    """What `--class_weights` asks for: a weight of each class, by id.

    Args:
        shares: of the classes, for `auto`.
    Raises:
        UserError: a name that no class has, or weights that are all 0.
    """
    named = named_weights(values)
    if named is None:
        return balanced_weights(shares or [])
    names = [id2label[index] for index in sorted(id2label)]
    for name in named:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"give names of id2label, such as {names[0]!r}"
            raise UserError(f"--class_weights: no class is called {name!r}: {hint}")
    weights = [named.get(name, 1.0) for name in names]
    if not any(weights):
        raise UserError("--class_weights: all classes weigh 0, so that there is nothing to learn: give one more")
    return weights


def in_words(weights: Sequence[float], id2label: dict[Any, str]) -> str:
    """Weights by name, the heaviest first; of many those at both ends."""
    order = sorted(id2label, key=lambda index: (-weights[index], index))
    texts = [f"{id2label[index]} {weights[index]:g}" for index in order]
    if len(texts) > 2 * SHOWN:
        texts = [*texts[:SHOWN], "...", *texts[-SHOWN:]]
    return ", ".join(texts)


def put_into(config: Any, arguments: TrainArguments, shares: Sequence[float] | None) -> None:
    """Sets `class_weights` of a model's configuration, if the flags ask for it.

    Raises:
        UserError: see `weights_of`; or a model whose loss has no weights of classes.
    """
    if arguments.class_weights:
        if not hasattr(config, "class_weights"):
            raise UserError(f"--class_weights: a {config.model_type} has no weights of classes: leave it out")
        config.class_weights = weights_of(arguments.class_weights, config.id2label, shares)
