"""Transforms of albumentations, an optional package, from a file that its `save` wrote."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torchvision import tv_tensors

from image_processing.label_maps import unique_ids
from scripts.cli.errors import UserError, errors_explained
from scripts.data.augmentation import LABEL_FILL
from scripts.storage.json_files import read_json


MASK_FILLS = ("fill_mask", "mask_drop_value")  # attributes of transforms: what they write into label maps
NEAREST = (0, 6)  # cv2.INTER_NEAREST and INTER_NEAREST_EXACT
CONSTANT_BORDER = 0  # cv2.BORDER_CONSTANT, the only one that is filled


class AlbumentationsFile:
    """The transforms of a file, as `extra` of `training_augmentation`.

    Their random numbers come from a seed that is drawn from torch's generator, which each sample seeds: they depend
    neither on the worker that a sample comes to nor on the samples before it.

    Args:
        file: JSON or YAML of `albumentations.save` or `to_dict`.
        unlabelled: ids of label maps that are no class; the last is the one to fill with.
    Raises:
        UserError: albumentations 2 is not installed, the file is not one of its transforms, or they write a class, or
            mixtures of ids, into label maps.
    """

    def __init__(self, file: str, unlabelled: Sequence[int] = (LABEL_FILL,)) -> None:
        self.file = file
        self.unlabelled = tuple(unlabelled)
        self.transforms = load(file)
        for transform in leaves(self.transforms):
            self.check(transform)

    def __repr__(self) -> str:
        return f"--albumentations {self.file}"

    def check(self, transform: Any) -> None:
        """Refuses a transform that would teach something wrong in silence."""
        name = type(transform).__name__
        is_filled = getattr(transform, "border_mode", CONSTANT_BORDER) == CONSTANT_BORDER
        if is_filled and getattr(transform, "pad_if_needed", True):
            for attribute in MASK_FILLS:
                fill = getattr(transform, attribute, None)
                if fill is not None and not set(np.ravel(fill).tolist()) <= set(self.unlabelled):
                    raise UserError(
                        f"{self}: {name} fills label maps with {fill}, which is a class: set its {attribute} to "
                        f"{self.unlabelled[-1]}, the ignored id"
                    )
        if getattr(transform, "mask_interpolation", NEAREST[0]) not in NEAREST:
            raise UserError(f"{self}: {name} mixes ids of label maps: set its mask_interpolation to 0 (nearest)")

    def __call__(self, image: tv_tensors.Image, label: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        seed = int(torch.randint(2**31 - 1, ()))
        # Not `set_random_seed`: later versions add the worker's own seed to it.
        self.transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))
        ids = label.as_subclass(torch.Tensor).numpy()
        pixels = np.ascontiguousarray(image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        mask = ids if ids.dtype == np.uint8 else ids.astype(np.float32)  # OpenCV turns no int32; ids stay exact
        kind, maps = ("mask", np.ascontiguousarray(mask)) if ids.ndim == 2 else ("masks", list(mask))
        try:
            found = self.transforms(image=pixels, **{kind: maps})
        except Exception as error:  # each transform raises its own
            raise UserError(f"{self}: {type(error).__name__}: {error}") from error
        image_found, ids_found = found["image"], np.asarray(found[kind])
        if not isinstance(image_found, np.ndarray) or image_found.ndim != 3:
            raise UserError(f"{self}: it made no image (H, W, 3) of an image: leave ToTensorV2 and ToGray out")
        ids_found = np.ascontiguousarray(ids_found).astype(ids.dtype)
        new = set(unique_ids(ids_found).tolist()) - set(unique_ids(ids).tolist()) - set(self.unlabelled)
        if new:
            raise UserError(f"{self}: it wrote id {min(new)} into a label map without it: change that transform")
        turned = torch.from_numpy(np.ascontiguousarray(image_found)).permute(2, 0, 1).contiguous()
        return tv_tensors.Image(turned), tv_tensors.Mask(torch.from_numpy(ids_found))


def check_installed(file: str) -> None:
    """Raises a `UserError` if there is no albumentations, or no such file; without importing anything."""
    package = importlib.util.find_spec("albumentations")
    if package is None or package.origin is None:
        raise UserError(f"--albumentations {file}: not installed: pip install albumentations")
    if not Path(file).is_file():
        raise UserError(f"--albumentations {file}: no such file")


def load(file: str) -> Any:
    """The transforms of a file.

    Raises:
        UserError: see `AlbumentationsFile`.
    """
    check_installed(file)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks a server for its newest version
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # workers share the cores: one thread each
    what = f"--albumentations {file}"
    if Path(file).suffix.lower() in (".yaml", ".yml"):
        with errors_explained(what, OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    else:
        content = read_json(Path(file), what)
    if not isinstance(content, dict) or not isinstance(content.get("transform"), dict):
        raise UserError(f"{what}: it holds no transforms: write it with albumentations.save(A.Compose([...]), FILE)")
    try:
        transforms = albumentations.from_dict(content)
    except Exception as error:  # each transform raises its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what}: albumentations {albumentations.__version__} cannot read it: {reason}") from error
    if not isinstance(transforms, albumentations.BaseCompose) or not hasattr(transforms, "set_random_state"):
        raise UserError(f"{what}: it holds no A.Compose of albumentations 2: write one with A.save(A.Compose([...]))")
    return transforms


def leaves(transforms: Any) -> Iterator[Any]:
    """The transforms inside of others."""
    inside = getattr(transforms, "transforms", None)
    if inside is None:
        yield transforms
    else:
        for each in inside:
            yield from leaves(each)
