"""From an image to its label map and the confidence in it, single scale or multi-scale with flip.

The confidence says how sure the model is of each pixel: the best class's share of the scores of all classes. FASeg's
score of a class is a sum over queries of class probability times mask probability, which is no distribution over
classes: the share makes it one. Scores of SeMask and QLSeg become probabilities by a softmax, as in their evaluation.
Scores of several windows or sizes are averaged before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict

from image_processing.preprocessing import network_size
from image_processing.segments import resize
from image_processing.semantic_labels import best_classes
from scripts.data.bands import BandImage
from scripts.inference.sliding_window import Windows
from scripts.models.families import family_of


LEAST_SUM = torch.finfo(torch.float32).tiny  # where nothing was found at all, the confidence is 0


# ---- from an image to class scores ---------------------------------------------------------------------------------


@torch.no_grad()
def outputs_of(model: Any, inputs: dict[str, Tensor]) -> tuple[Any, tuple[int, int]]:
    """The model's outputs for one processed image, and the image's `(height, width)` in it, without padding."""
    mask = inputs["pixel_mask"][0]
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    return outputs, (int(mask[:, 0].sum()), int(mask[0].sum()))


def post_processed(
    model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int], with_scores: bool
) -> Any:
    """What the processor makes of one processed image at `target_size`: labels, or labels and scores."""
    outputs, input_size = outputs_of(model, inputs)
    (result,) = processor.post_process_semantic_segmentation(
        outputs, [target_size], input_sizes=[input_size], return_segmentation_scores=with_scores
    )
    return result


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
    processor: Any, image: Image.Image | BandImage, device: Any, do_resize: bool | None = None
) -> dict[str, Tensor]:
    """Inputs of an image on the scale 0..255 after the processor's own resize, or without one."""
    settings: dict[str, Any] = {} if do_resize is None else {"do_resize": do_resize}
    if getattr(processor, "intensity_range", None) is not None:
        settings["intensity_range"] = None  # the image has been brought to 0..255 where it was read
    if isinstance(image, BandImage):
        settings["input_data_format"] = "channels_first"
    pixels = image.pixels if isinstance(image, BandImage) else image
    inputs = processor(images=[pixels], return_tensors="pt", **settings)
    return {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}


def view_size(image: Image.Image, shortest: int, longest: int | None) -> tuple[int, int]:
    """`(height, width)` of an image whose shorter side is `shortest`, unless its longer would pass `longest`."""
    return network_size(image.height, image.width, SizeDict(shortest_edge=shortest, longest_edge=longest))


def resized_view(image: Image.Image, size: tuple[int, int], flip: bool) -> Image.Image:
    """A uint8 image that PIL has resized bilinearly to `(height, width)` and perhaps mirrored."""
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
        view = resized_view(image, view_size(image, shortest, longest), mirrored)
        if windows is None:
            inputs = processed_inputs(processor, view, device, do_resize=False)
            scores = semantic_scores(model, processor, inputs, target_size)
        else:
            scores = resize(window_scores(model, processor, view, windows, device), target_size)
        scores = comparable_scores(model, scores)
        scores = scores.flip(-1) if mirrored else scores
        total = scores if total.ndim == 0 else total.add_(scores)
    return total.div_(len(views))


# ---- from an image to its label map --------------------------------------------------------------------------------


def confidence_of(scores: Tensor, classes: int = 0) -> Tensor:
    """Share of the best class in `scores` (at least 0), whose dimension `classes` goes; in 0..1."""
    return scores.amax(dim=classes) / scores.sum(dim=classes).clamp(min=LEAST_SUM)


def watched(blocks: Iterable[Tensor], confidence: Tensor, softmax: bool) -> Iterator[Tensor]:
    """The blocks `(n, width, K)` of an image as they are; their confidence goes into `confidence` on the way."""
    start = 0
    for block in blocks:
        confidence[start : start + len(block)] = confidence_of(block.softmax(-1) if softmax else block, -1)
        start += len(block)
        yield block


@torch.no_grad()
def labels_and_confidence(
    model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int], softmax: bool
) -> tuple[Tensor, Tensor]:
    """What `semantic_labels` gives, and the confidence in it, float32, both of `target_size`.

    All scores at that size never exist at once.

    Args:
        softmax: whether the scores become probabilities by a softmax.
    """
    outputs, input_size = outputs_of(model, inputs)
    (scores,) = processor.semantic_scores(outputs, [target_size], [input_size])
    device = inputs["pixel_mask"].device
    confidence = torch.empty(target_size, device=device)
    return best_classes(watched(scores, confidence, softmax), target_size, device), confidence


@dataclass
class SingleScale:
    """Label map of an image at its own size, after the processor's resize.

    Args:
        windows: if given, the resized image is read through them.
    """

    model: Any
    processor: Any
    device: Any
    windows: Windows | None = None

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            return label_array(semantic_labels(self.model, self.processor, inputs, (image.height, image.width)))
        return label_array(self.scores_through_windows(image, self.windows).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence."""
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


@dataclass
class MultiScale:
    """Label map of an image at its own size, over several sizes and their mirror images.

    Args:
        base: (shortest, longest) edge of single-scale evaluation, to which FASeg's reference resizes first; None:
            views are made of the image itself, as in mmsegmentation.
        edges: (shortest, longest) edge of each view.
    """

    model: Any
    processor: Any
    device: Any
    base: tuple[int, int | None] | None
    edges: Sequence[tuple[int, int | None]]
    windows: Windows | None = None

    def __call__(self, image: Image.Image) -> np.ndarray:
        return label_array(self.scores(image).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence."""
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
