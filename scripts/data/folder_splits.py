"""Which images and label maps are a split's where it is given as folders, and what `--train_val_split` makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.processes import say_once
from scripts.data.arguments import HELD_BACK, SPLITS, DatasetArguments
from scripts.data.folders import Pair, counted, matched_pairs
from scripts.data.held_back import HeldBack, held_back
from scripts.data.layouts import Layout, folder_layout


def split_folders(arguments: DatasetArguments, split: str) -> tuple[str, str, str, str] | None:
    """`(flag, folder, flag, folder)` of the images and maps of a split, None if it is not given as folders.

    The split that is trained on (`train`, or `--train_split_name`) is in the training folders, any other in those of
    evaluation.

    Raises:
        UserError: one folder without the other, or folders of the other split only.
    """
    kind = "train" if split in ("train", arguments.train_split_name) else "eval"
    given = {flag: getattr(arguments, flag) for flag in ("train_images", "train_masks", "eval_images", "eval_masks")}
    images, masks = given[f"{kind}_images"], given[f"{kind}_masks"]
    if images and masks:
        return f"--{kind}_images", images, f"--{kind}_masks", masks
    if images or masks or (any(given.values()) and not arguments.dataset_name):
        missing = f"--{kind}_masks" if images else f"--{kind}_images"
        raise UserError(f"split {split!r}: no {missing}: give both folders, images and label maps")
    return None


def stored_split(arguments: DatasetArguments, split: str) -> str:
    """The split of the data that `split` is, or is a part of by `--train_val_split`.

    Raises:
        UserError: a slice of the split that is shared out.
    """
    if arguments.train_val_split is None:
        return split
    trained = arguments.train_split_name
    if SPLITS.get(split, split) in (HELD_BACK, SPLITS.get(trained, trained)):
        return trained
    if split.startswith((f"{trained}[", f"{trained}+")) or f"+{trained}" in split:
        raise UserError(f"--train_val_split shares out {trained!r}: give no slice of it, {split!r}")
    return split


def shared_out(
    arguments: DatasetArguments, splits: Iterable[str], count: int, names: list[Any] | None = None
) -> HeldBack:
    """What `--train_val_split` holds back, said once.

    Args:
        splits: all that the data has.
    Raises:
        UserError: the data has a validation split.
    """
    share = arguments.train_val_split or 0.0
    if other := [split for split in splits if SPLITS.get(split) == HELD_BACK]:
        raise UserError(f"--train_val_split {share:g}: the data has a validation split, {other[0]!r}: leave it out")
    choice = held_back(share, count, names)
    say_once(choice.described(share))
    return choice


def layout_of(arguments: DatasetArguments, with_labels: bool = True) -> Layout | None:
    """What is recognised in the folder of `--dataset_name`, see `folder_layout`."""
    return folder_layout(arguments.dataset_name or "", arguments.mask_suffix, with_labels, arguments.allow_links)


def folder_pairs(
    arguments: DatasetArguments, split: str, with_labels: bool = True
) -> tuple[list[Pair], HeldBack | None] | None:
    """Images and maps of a split that is given as folders, or as a folder that holds them; None for any other data.

    Says in one line what was found, where that is more than two folders of equal names.

    Raises:
        UserError: images and maps that cannot be matched, or no such split.
    """
    stored = stored_split(arguments, split)
    splits: list[str] = []
    if folders := split_folders(arguments, stored):
        found = matched_pairs(*folders, arguments.mask_suffix)
        pairs = found.pairs
        if found.mask_suffix:
            others = ", ".join(f"*{suffix} ({counted(count, 'file')})" for suffix, count in found.left_out.items())
            what = f"{counted(len(pairs), 'pair')}, masks *{found.mask_suffix}"
            say_once(f"{folders[2]} {folders[3]}: {what}{f'; left out: {others}' if others else ''}")
        warn_of_training_folders(arguments, folders[1])
    else:
        layout = layout_of(arguments, with_labels)
        if layout is None:
            return None
        say_once(layout.described())
        splits, pairs = list(layout.splits), layout.pairs(stored, with_labels)
        if trained := layout.trained_on(stored):
            say_once(f"warning: {trained} images of split {stored!r} are images of the training split, by their files")
    if arguments.train_val_split is None or stored != arguments.train_split_name:
        return pairs, None
    choice = shared_out(arguments, splits, len(pairs), [name for name, *_ in pairs])
    return [pair for pair, kept in zip(pairs, choice.kept(split), strict=True) if kept], choice


def warn_of_training_folders(arguments: DatasetArguments, images: str) -> None:
    """A line where images are evaluated on that are trained on."""
    trained, evaluated = (
        Path(folder).resolve() if folder else None for folder in (arguments.train_images, arguments.eval_images)
    )
    if trained and evaluated and (trained.is_relative_to(evaluated) or evaluated.is_relative_to(trained)):
        same = "are the folder of" if trained == evaluated else "share files with"
        say_once(
            f"warning: --eval_images {arguments.eval_images} {same} --train_images {arguments.train_images}: figures "
            "on images that were trained on say nothing about others"
        )


def labelled_splits(arguments: DatasetArguments) -> dict[str, list[Pair]]:
    """Images and maps of every split that has maps, of folders or a folder that holds them.

    Raises:
        UserError: no such folders, or images and maps that cannot be matched.
    """
    if arguments.dataset_name:
        layout = layout_of(arguments)
        if layout is None:
            raise UserError(
                f"--dataset_name {arguments.dataset_name}: no folder of image files, which alone can be packed"
            )
        names = [split for split, found in layout.splits.items() if found.has_masks]
    else:
        names = ["train"] if arguments.train_images else []
        names += [HELD_BACK] if arguments.eval_images else []
    if arguments.train_val_split is not None:
        names[1:1] = [HELD_BACK]
    splits = {}
    for split in dict.fromkeys(names):
        if found := folder_pairs(arguments, split):
            splits[split] = found[0]
    return splits
