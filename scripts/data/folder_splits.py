"""Which images and labels are a split's where it is given as folders, and what `--train_val_split` makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scripts.cli.errors import UserError
from scripts.cli.processes import say_once
from scripts.data.annotated_folders import Annotations, Place, annotated_splits, of_split, with_class_maps
from scripts.data.arguments import HELD_BACK, SPLITS, DatasetArguments
from scripts.data.folders import Pair, counted, matched_pairs
from scripts.data.held_back import HeldBack, held_back
from scripts.data.layouts import Layout, folder_layout


class SplitFolders(NamedTuple):
    """The flags that give a split as folders, with their values; see `split_folders`."""

    kind: str
    images: str
    masks: str | None
    annotations: str | None
    class_masks: str | None

    def place(self, part: str) -> Place:
        """The folder or file of a part, called as its flag and value."""
        value = getattr(self, part)
        return Place(Path(value), f"--{self.kind}_{part} {value}")


class FolderSamples(NamedTuple):
    """Images and labels of a split.

    Args:
        held_back: what `--train_val_split` holds back of the training split, if it does.
        annotations: what is known of the segments that the labels hold, where something is.
    """

    pairs: list[Pair]
    held_back: HeldBack | None = None
    annotations: Annotations | None = None


def split_folders(arguments: DatasetArguments, split: str) -> SplitFolders | None:
    """The folders of the images and labels of a split, None if it is not given as folders.

    The split that is trained on (`train`, or `--train_split_name`) is in the training folders, any other in those of
    evaluation.

    Raises:
        UserError: one folder without the other, folders of the other split only, or labels of two kinds.
    """
    kind = "train" if split in ("train", arguments.train_split_name) else "eval"
    parts = ("images", "masks", "annotations", "class_masks")
    given = {each: [getattr(arguments, f"{each}_{part}") for part in parts] for each in ("train", "eval")}
    images, masks, annotations, class_masks = given[kind]
    if annotations and class_masks:
        raise UserError(
            f"--{kind}_class_masks {class_masks} is for maps of instances, but --{kind}_annotations {annotations} "
            "names the class of each segment: give one of both"
        )
    if images and (annotations or masks):
        return SplitFolders(kind, images, masks, annotations, class_masks)
    if any(given[kind]) or (any(map(any, given.values())) and not arguments.dataset_name):
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


def folder_samples(arguments: DatasetArguments, split: str, with_labels: bool = True) -> FolderSamples | None:
    """Images and labels of a split that is given as folders, or as a folder that holds them; None for any other data.

    Says in one line what was found, where that is more than two folders of equal names.

    Raises:
        UserError: images and labels that cannot be matched, or no such split.
    """
    stored = stored_split(arguments, split)
    splits: list[str] = []
    annotations: Annotations | None = None
    if folders := split_folders(arguments, stored):
        pairs, annotations = samples_of_flags(arguments, folders)
        warn_of_training_folders(arguments, folders.images)
    elif annotated := annotated_splits(arguments):
        splits, asked = list(annotated), SPLITS.get(stored, stored)
        if asked not in annotated:
            raise UserError(
                f"--dataset_name {arguments.dataset_name}, split {stored!r}: the folder holds {', '.join(splits)}"
            )
        pairs, annotations, line = of_split(*annotated[asked])
        say_once(line)
    else:
        layout = layout_of(arguments, with_labels)
        if layout is None:
            return None
        say_once(layout.described())
        splits, pairs = list(layout.splits), layout.pairs(stored, with_labels)
        if trained := layout.trained_on(stored):
            say_once(f"warning: {trained} images of split {stored!r} are images of the training split, by their files")
    if arguments.train_val_split is None or stored != arguments.train_split_name:
        return FolderSamples(pairs, None, annotations)
    choice = shared_out(arguments, splits, len(pairs), [pair.name for pair in pairs])
    kept = [pair for pair, is_kept in zip(pairs, choice.kept(split), strict=True) if is_kept]
    return FolderSamples(kept, choice, annotations)


def samples_of_flags(arguments: DatasetArguments, folders: SplitFolders) -> tuple[list[Pair], Annotations | None]:
    """Images and labels of the folders that flags name, and what is known of their segments."""
    if folders.annotations:
        if arguments.mask_suffix is not None:
            raise UserError(
                f"--mask_suffix {arguments.mask_suffix}: {folders.place('annotations').name} names files itself"
            )
        maps = folders.place("masks") if folders.masks else None
        pairs, annotations, line = of_split(folders.place("images"), folders.place("annotations"), maps)
        say_once(line)
        return pairs, annotations
    images_flag, masks_flag, masks = f"--{folders.kind}_images", f"--{folders.kind}_masks", str(folders.masks)
    found = matched_pairs(images_flag, folders.images, masks_flag, masks, arguments.mask_suffix)
    if found.mask_suffix:
        others = ", ".join(f"*{suffix} ({counted(count, 'file')})" for suffix, count in found.left_out.items())
        what = f"{counted(len(found.pairs), 'pair')}, masks *{found.mask_suffix}"
        say_once(f"{masks_flag} {masks}: {what}{f'; left out: {others}' if others else ''}")
    if not folders.class_masks:
        return found.pairs, None
    class_flag = f"--{folders.kind}_class_masks"
    pairs, annotations, line = with_class_maps(
        found.pairs, folders.images, class_flag, folders.class_masks, images_flag
    )
    say_once(line)
    return pairs, annotations


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
        if annotated_splits(arguments):
            raise UserError(
                f"--dataset_name {arguments.dataset_name}: outlines of segments, which are not packed: train.py and "
                "all other commands read the folder as it is"
            )
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
    found = {split: folder_samples(arguments, split) for split in dict.fromkeys(names)}
    return {split: samples.pairs for split, samples in found.items() if samples}
