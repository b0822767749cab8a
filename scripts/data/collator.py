"""What transformers' `Trainer` needs to train our models: a collator, and the augmentation as a dataset transform.

The rows are those of `datasets.load_dataset`, with an image and a label map. The Trainer knows the labels that a model
learns from by the names in its forward, and needs `remove_unused_columns=False`, because the columns are not the
model's arguments. A `compute_metrics` is best given the label maps, by `label_names=["labels"]`; without one set
`prediction_loss_only=True`, or the Trainer keeps the logits of the evaluation set for nothing. The processor says
which id is ignored: if it is not 255, give it to the augmentation too, as `unlabelled`. docs/training.md has an
example; mIoU comes from `scripts/eval.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from modeling_faseg.loss_semask import label_maps_of_masks
from scripts.data.bands import PLAIN, ImageForm
from scripts.data.ignored import IGNORE_INDEX


@dataclass
class AugmentRows:
    """Transform for `Dataset.with_transform`: rows whose image and map went through `augmentation` together.

    Args:
        augmentation: `(Image, Mask) -> (Image, Mask)`, such as `training_augmentation(512, 512)`.
        image_form: the bands and the range of the images' numbers, where they are not RGB of 8 bits.
    """

    augmentation: Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]
    image_column_name: str = "image"
    label_column_name: str = "label"
    image_form: ImageForm = PLAIN

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
        images, labels = [], []
        for image, label in zip(rows[self.image_column_name], rows[self.label_column_name], strict=True):
            pixels = tv_tensors.Image(_image(image, self.image_form))
            pixels, mask = self.augmentation(pixels, tv_tensors.Mask(_label_map(label)))
            images.append(pixels.as_subclass(torch.Tensor))
            labels.append(mask.as_subclass(torch.Tensor))
        return {self.image_column_name: images, self.label_column_name: labels}


@dataclass
class SegmentationCollator:
    """Rows with an image and a label map to `pixel_values` (B, C, H, W), `pixel_mask` (B, H, W), `mask_labels` and
    `class_labels` (lists of B), from which the models learn, and the same as `labels` (B, H, W), from which metrics
    are computed.

    Images as `datasets` decodes them are resized by the processor's rule. Tensors, which `AugmentRows` gives, have
    been through all resizing and keep their size; they are on the scale 0..255.

    Args:
        processor: image processor of the model; its `ignore_index`, `do_reduce_labels` and `num_labels` hold.
        with_labels: whether `labels` are made; the models learn without them.
    """

    processor: Any
    image_column_name: str = "image"
    label_column_name: str = "label"
    with_labels: bool = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = [row[self.image_column_name] for row in rows]
        are_tensors = {isinstance(image, torch.Tensor) for image in images}
        if len(are_tensors) > 1:
            raise ValueError("a batch of images and tensors: give all rows the same transform")
        settings: dict[str, Any] = {}
        if are_tensors == {True}:
            settings["input_data_format"] = "channels_first"
            if getattr(self.processor, "intensity_range", None) is not None:
                settings["intensity_range"] = None  # tensors are on the scale 0..255 already
        elif is_plain(self.processor):
            images = [_image(image, PLAIN) for image in images]
        inputs = self.processor(
            images=images,
            segmentation_maps=[_label_map(row[self.label_column_name]) for row in rows],
            do_resize=self.processor.do_resize and are_tensors != {True},
            return_tensors="pt",
            **settings,
        )
        batch = {key: inputs[key] for key in ("pixel_values", "pixel_mask", "mask_labels", "class_labels")}
        if not self.with_labels:
            return batch
        size, device = batch["pixel_values"].shape[-2:], batch["pixel_values"].device
        ignored = IGNORE_INDEX if self.processor.ignore_index is None else self.processor.ignore_index
        labels = label_maps_of_masks(batch["mask_labels"], batch["class_labels"], size, ignored, device)
        return {**batch, "labels": labels}


@dataclass
class SegmentsCollator:
    """Rows of an `image`, a tensor `(C, H, W)` on the scale 0..255 that has been through all resizing, and its
    `segments` to `pixel_values` (B, C, H, W), `pixel_mask` (B, H, W), and lists of B `mask_labels`, `(T, H, W)` uint8,
    and `class_labels`, `(T,)` int64."""

    processor: Any

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        settings: dict[str, Any] = {"input_data_format": "channels_first", "do_resize": False}
        if getattr(self.processor, "intensity_range", None) is not None:
            settings["intensity_range"] = None  # tensors are on the scale 0..255 already
        inputs = self.processor(images=[row["image"] for row in rows], return_tensors="pt", **settings)
        height, width = inputs["pixel_values"].shape[-2:]
        masks = []
        for segments in (row["segments"] for row in rows):
            inside = segments.masks().view(torch.uint8)  # not copied: hundreds of masks of an image take gigabytes
            padding = (0, width - inside.shape[2], 0, height - inside.shape[1])
            masks.append(torch.nn.functional.pad(inside, padding) if any(padding) else inside)
        classes = [row["segments"].classes for row in rows]
        return {
            "pixel_values": inputs["pixel_values"],
            "pixel_mask": inputs["pixel_mask"],
            "mask_labels": masks,
            "class_labels": classes,
        }


def is_plain(processor: Any) -> bool:
    """Whether a processor reads RGB of 8 bits."""
    mean = processor.image_mean
    is_rgb = not isinstance(mean, list | tuple) or len(mean) == 3
    return is_rgb and getattr(processor, "intensity_range", None) is None


def _image(image: Any, form: ImageForm) -> torch.Tensor:
    """`(C, H, W)` on the scale 0..255 of a PIL image or an array `(C, H, W)`; tensors pass."""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.ascontiguousarray(form.pixels(image)))


def _label_map(label: Any) -> torch.Tensor:
    """`(H, W)` integers of a PIL image or an array; tensors pass."""
    if isinstance(label, torch.Tensor):
        return label
    ids = np.asarray(label)
    if ids.ndim != 2 or ids.dtype.kind not in "uib":
        raise ValueError(f"label map of shape {ids.shape} and {ids.dtype}: need one channel of integer class ids")
    return torch.from_numpy(ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.int32))
