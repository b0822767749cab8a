"""From an image to its label map and from a split to a confusion matrix, single scale or multi-scale with flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict

from image_processing.post_processing import resize
from image_processing.preprocessing import network_size
from scripts.inference.confidence import confidence_of, labels_and_confidence
from scripts.inference.sliding_window import Windows
from scripts.models.families import family_of


# ---- from an image to class scores ---------------------------------------------------------------------------------


@torch.no_grad()
def post_processed(
    model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int], with_scores: bool
) -> Any:
    """What the processor makes of one processed image at `target_size`: labels, or labels and scores."""
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    mask = inputs["pixel_mask"][0]
    return processor.post_process_semantic_segmentation(
        outputs,
        target_sizes=[target_size],
        input_sizes=[(int(mask[:, 0].sum()), int(mask[0].sum()))],
        return_segmentation_scores=with_scores,
    )[0]


def semantic_scores(model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int]) -> Tensor:
    """`(K, *target_size)` class scores of one processed image.

    Args:
        inputs: `pixel_values` (1, 3, H, W) and `pixel_mask` (1, H, W), 1 where there is image.
    """
    return post_processed(model, processor, inputs, target_size, with_scores=True).segmentation_scores


def comparable_scores(model: Any, scores: Tensor) -> Tensor:
    """Class scores `(K, H, W)` as multi-scale evaluation averages them: of some models their softmax."""
    return scores.softmax(dim=0) if family_of(model.config).softmax_scores else scores


def semantic_labels(model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int]) -> Tensor:
    """`target_size` map of the class with the best score; all scores at that size never exist at once."""
    return post_processed(model, processor, inputs, target_size, with_scores=False)


def label_array(labels: Tensor) -> np.ndarray:
    """Class ids on the CPU, in one byte each where they fit."""
    return labels.to(torch.uint8 if int(labels.max()) < 256 else torch.int32).cpu().numpy()


def processed_inputs(
    processor: Any, image: Image.Image, device: Any, do_resize: bool | None = None
) -> dict[str, Tensor]:
    """Inputs of an image after the processor's own resize, or without one."""
    settings = {} if do_resize is None else {"do_resize": do_resize}
    inputs = processor(images=[image], return_tensors="pt", **settings)
    return {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}


def resized_inputs(
    processor: Any, image: Image.Image, size: tuple[int, int], flip: bool, device: Any
) -> dict[str, Tensor]:
    """Processed inputs of a uint8 image that PIL has resized bilinearly to `size` and perhaps mirrored."""
    return processed_inputs(processor, resized_view(image, size, flip), device, do_resize=False)


def view_size(image: Image.Image, shortest: int, longest: int | None) -> tuple[int, int]:
    """`(height, width)` of an image whose shorter side is `shortest`, unless its longer would pass `longest`."""
    return network_size(image.height, image.width, SizeDict(shortest_edge=shortest, longest_edge=longest))


def resized_view(image: Image.Image, size: tuple[int, int], flip: bool) -> Image.Image:
    """An image resized bilinearly to `(height, width)` and perhaps mirrored."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized


def window_scores(model: Any, processor: Any, image: Image.Image, windows: Windows, device: Any) -> Tensor:
    """`(K, height, width)` mean class scores of the windows over an image, at the image's size."""

    def scores(piece: Image.Image) -> Tensor:
        inputs = processed_inputs(processor, piece, device, do_resize=False)
        return semantic_scores(model, processor, inputs, (piece.height, piece.width))

    return windows.mean_scores(image, scores)


def multi_scale_scores(
    model: Any,
    processor: Any,
    image: Image.Image,
    target_size: tuple[int, int],
    edges: Sequence[tuple[int, int | None]],
    flip: bool = True,
    device: Any = "cpu",
    windows: Windows | None = None,
) -> Tensor:
    """`(K, *target_size)` mean of the class scores over sizes and mirror images, as the reference averages them.

    Each view runs alone at its own padded size; its scores are resized to `target_size` and mirrored back before the
    plain mean.

    Args:
        image: RGB image; of FASeg already at the size of single-scale evaluation, as in the reference.
        edges: (shortest, longest) edge of each view.
        windows: if given, each view is read through them.
    """
    views = [(edge, mirrored) for edge in edges for mirrored in ((False, True) if flip else (False,))]
    total = torch.zeros(())
    for (shortest, longest), mirrored in views:
        size = view_size(image, shortest, longest)
        if windows is None:
            scores = semantic_scores(
                model, processor, resized_inputs(processor, image, size, mirrored, device), target_size
            )
        else:
            view = resized_view(image, size, mirrored)
            scores = resize(window_scores(model, processor, view, windows, device), target_size)
        scores = comparable_scores(model, scores)
        scores = scores.flip(-1) if mirrored else scores
        total = scores if total.ndim == 0 else total.add_(scores)
    return total.div_(len(views))


# ---- from an image to its label map --------------------------------------------------------------------------------


class SingleScale:
    """Label map of an image at its own size, after the processor's resize.

    Args:
        windows: if given, the resized image is read through them.
    """

    def __init__(self, model: Any, processor: Any, device: Any, windows: Windows | None = None) -> None:
        self.model, self.processor, self.device, self.windows = model, processor, device, windows

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            return label_array(semantic_labels(self.model, self.processor, inputs, (image.height, image.width)))
        return label_array(self.scores_through_windows(image, self.windows).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence, see `confidence.py`."""
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            size, softmax = (image.height, image.width), family_of(self.model.config).softmax_scores
            labels, confidence = labels_and_confidence(self.model, self.processor, inputs, size, softmax)
            return label_array(labels), confidence.cpu().numpy()
        scores = self.scores_through_windows(image, self.windows)
        return label_array(scores.argmax(dim=0)), confidence_of(comparable_scores(self.model, scores)).cpu().numpy()

    def scores_through_windows(self, image: Image.Image, windows: Windows) -> Tensor:
        """`(K, H, W)` class scores at the image's size."""
        size = (image.height, image.width)
        view = resized_view(image, self.processor.network_size(*size), flip=False)
        return resize(window_scores(self.model, self.processor, view, windows, self.device), size)


class MultiScale:
    """Label map of an image at its own size, over several sizes and their mirror images.

    Args:
        base: (shortest, longest) edge of single-scale evaluation, to which FASeg's reference resizes first; None:
            views are made of the image itself, as in mmsegmentation.
        edges: (shortest, longest) edge of each view.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: Any,
        base: tuple[int, int | None] | None,
        edges: Sequence[tuple[int, int | None]],
        windows: Windows | None = None,
    ) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.base, self.edges, self.windows = base, list(edges), windows

    def __call__(self, image: Image.Image) -> np.ndarray:
        return label_array(self.scores(image).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence, see `confidence.py`."""
        scores = self.scores(image)
        return label_array(scores.argmax(dim=0)), confidence_of(scores).cpu().numpy()

    def scores(self, image: Image.Image) -> Tensor:
        """`(K, H, W)` mean class scores at the image's size."""
        size = (image.height, image.width)
        if self.base is not None:
            image = resized_view(image, view_size(image, *self.base), flip=False)
        return multi_scale_scores(
            self.model, self.processor, image, size, self.edges, device=self.device, windows=self.windows
        )
