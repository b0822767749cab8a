"""From an image to its label map and the confidence in it, single scale or multi-scale with flip.

The confidence says how sure the model is of each pixel: the best class's share of the scores of all classes. FASeg's
score of a class is a sum over queries of class probability times mask probability, which is no distribution over
classes: the share makes it one. Scores of SeMask and QLSeg become probabilities by a softmax, as in their evaluation.
Scores of several windows or sizes are averaged before. Scores are made and used a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict

from image_processing.host_transfers import to_host
from image_processing.model_outputs import require_finite
from image_processing.preprocessing import network_size
from image_processing.semantic_labels import ImageScores, RowResize, ScoreRows, Size, best_classes
from scripts.data.bands import BandImage
from scripts.inference.sliding_window import Tiles, Windows
from scripts.inference.tiles import BlendedRows, Span
from scripts.models.families import family_of


LEAST_SUM = torch.finfo(torch.float32).tiny  # where nothing was found at all, the confidence is 0


# ---- from an image to class scores ---------------------------------------------------------------------------------


@torch.no_grad()
def outputs_of(model: Any, inputs: dict[str, Any]) -> tuple[Any, Size]:
    """The model's outputs for one processed image, and the image's `(height, width)` in it, without padding."""
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    return outputs, input_size_of(inputs)


def input_size_of(inputs: Any) -> Size:
    """`(height, width)` of one processed image without padding; waits for no device if `processed_inputs` made it."""
    if "input_sizes" in inputs:
        height, width = inputs["input_sizes"][0]
        return int(height), int(width)
    mask = inputs["pixel_mask"][0]
    return int(mask[:, 0].sum()), int(mask[0].sum())


def image_scores(model: Any, processor: Any, inputs: dict[str, Any], target_size: Size) -> ScoreRows:
    """Class scores of one processed image at `target_size`.

    Args:
        inputs: `pixel_values` (1, 3, H, W) and `pixel_mask` (1, H, W), 1 where there is image.
    """
    outputs, input_size = outputs_of(model, inputs)
    (scores,) = processor.semantic_scores(outputs, [target_size], [input_size])
    return scores


def piece_scores(model: Any, processor: Any, inputs: dict[str, Any]) -> ScoreRows:
    """Class scores of one processed piece of an image at its own size, of which little is kept in memory."""
    outputs, input_size = outputs_of(model, inputs)
    if getattr(outputs, "semantic_scores", None) is not None and outputs.masks_queries_logits is not None:
        # One window of a QLSeg: its scores follow from its masks, which are a patch's side smaller each way.
        require_finite(semantic_scores=outputs.semantic_scores)
        height, width = inputs["pixel_values"].shape[-2:]
        masks, classes = outputs.masks_queries_logits[0], outputs.class_queries_logits[0]
        return ImageScores(masks, (height, width), input_size, class_logits=classes)
    (scores,) = processor.semantic_scores(outputs, input_sizes=[input_size])
    return scores


def semantic_scores(model: Any, processor: Any, inputs: dict[str, Any], target_size: Size) -> Tensor:
    """`(K, *target_size)` class scores of one processed image, see `image_scores`."""
    return image_scores(model, processor, inputs, target_size).stacked()


def semantic_labels(model: Any, processor: Any, inputs: dict[str, Any], target_size: Size) -> Tensor:
    """`target_size` map of the class with the best score; all scores at that size never exist at once."""
    return image_scores(model, processor, inputs, target_size).labels()


def comparable_scores(model: Any, scores: Tensor, classes: int = 0) -> Tensor:
    """Class scores as multi-scale evaluation averages them: of some models their softmax over dimension `classes`."""
    return scores.softmax(dim=classes) if family_of(model.config).softmax_scores else scores


def label_array(labels: Tensor) -> np.ndarray:
    """Class ids on the CPU, in one byte each where they fit."""
    return labels.to(torch.uint8 if int(labels.max()) < 256 else torch.int32).cpu().numpy()


def processed_inputs(
    processor: Any, image: Image.Image | BandImage, device: Any, do_resize: bool | None = None, **settings: Any
) -> dict[str, Any]:
    """Inputs of an image on the scale 0..255 after the processor's own resize, or without one.

    Args:
        settings: further ones of the processor.
    Returns:
        `pixel_values` and `pixel_mask` on the device, and `input_sizes`, a list of the size without padding.
    """
    if do_resize is not None:
        settings["do_resize"] = do_resize
    if getattr(processor, "intensity_range", None) is not None:
        settings["intensity_range"] = None  # the image has been brought to 0..255 where it was read
    if isinstance(image, BandImage):
        settings["input_data_format"] = "channels_first"
    pixels = image.pixels if isinstance(image, BandImage) else image
    inputs = processor(images=[pixels], return_tensors="pt", **settings)
    on_device = {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}
    return {**on_device, "input_sizes": [input_size_of(inputs)]}


def view_size(image: Image.Image, shortest: int, longest: int | None) -> tuple[int, int]:
    """`(height, width)` of an image whose shorter side is `shortest`, unless its longer would pass `longest`."""
    return network_size(image.height, image.width, SizeDict(shortest_edge=shortest, longest_edge=longest))


def resized_view(image: Image.Image, size: tuple[int, int], flip: bool) -> Image.Image:
    """A uint8 image that PIL has resized bilinearly to `(height, width)` and perhaps mirrored."""
    same = size == (image.height, image.width)
    resized = image if same else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized


class BlendedScores(ScoreRows):
    """Class scores of an image that is read through windows or tiles, at the image's size.

    The model runs when rows of a piece are asked for first, in the precision of when this was made.

    Args:
        grid: the pieces.
        when_read: called with how many pieces have been read, and how many there are.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image: Image.Image,
        grid: Windows | Tiles,
        device: Any,
        when_read: Callable[[int, int], None] | None = None,
    ) -> None:
        self.size, self.device = (image.height, image.width), torch.device(device)
        self.num_classes = model.config.num_labels
        kind = self.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        precision = torch.autocast(kind, dtype, enabled)
        rows, columns = grid.grid(*self.size)
        numbers, last = count(1), len(rows) * len(columns)

        def read(down: Span, across: Span) -> ScoreRows:
            piece = image.crop((across.start, down.start, across.stop, down.stop))
            inputs = processed_inputs(processor, piece, device, do_resize=False)
            with precision:
                scores = piece_scores(model, processor, inputs)
            if when_read:
                when_read(next(numbers), last)
            return scores

        # A function that knows nothing of these scores: so their memory is free as soon as nobody needs them.
        self.blended = BlendedRows(rows, columns, read)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.blended.rows(start, stop)


class ResizedScores(ScoreRows):
    """Class scores resized bilinearly to `size`, each strip from the rows of the source that it lies between."""

    def __init__(self, source: ScoreRows, size: Size) -> None:
        self.source, self.size = source, size
        self.num_classes, self.device = source.num_classes, source.device
        self.resize = RowResize(source.size, size, source.device)

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = self.resize.first_rows[start], self.resize.last_rows[stop - 1]
        return self.resize(self.source.rows(first, last + 1), first, start, stop)


class MeanScores(ScoreRows):
    """The plain mean of class scores of several views of an image, all of one size.

    Args:
        views: `comparable_scores` are made of their scores; and whether they are of the image mirrored.
    """

    def __init__(self, model: Any, views: Sequence[tuple[ScoreRows, bool]]) -> None:
        self.model, self.views = model, views
        first, _ = views[0]
        self.size, self.num_classes, self.device = first.size, first.num_classes, first.device

    def rows(self, start: int, stop: int) -> Tensor:
        total = torch.zeros(stop - start, self.size[1], self.num_classes, device=self.device)
        for view, mirrored in self.views:
            scores = comparable_scores(self.model, view.rows(start, stop), -1)
            total += scores.flip(1) if mirrored else scores
        return total.div_(len(self.views))


def window_scores(
    model: Any,
    processor: Any,
    image: Image.Image,
    target_size: Size,
    windows: Windows | Tiles,
    device: Any,
    when_read: Callable[[int, int], None] | None = None,
) -> ScoreRows:
    """Class scores at `target_size` of an image that is read through windows or tiles at its own size."""
    blended = BlendedScores(model, processor, image, windows, device, when_read)
    return blended if blended.size == target_size else ResizedScores(blended, target_size)


def multi_scale_scores(
    model: Any,
    processor: Any,
    image: Image.Image,
    target_size: Size,
    edges: Sequence[tuple[int, int | None]],
    flip: bool = True,
    device: Any = "cpu",
    windows: Windows | None = None,
) -> ScoreRows:
    """Mean at `target_size` of the class scores over sizes and mirror images, as the reference averages them.

    Each view runs alone at its own padded size; its scores are resized to `target_size` and mirrored back before the
    plain mean.

    Args:
        image: RGB image; of FASeg already at the size of single-scale evaluation, as in the reference.
        edges: (shortest, longest) edge of each view.
        windows: if given, each view is read through them.
    """
    views: list[tuple[ScoreRows, bool]] = []
    for shortest, longest in edges:
        for mirrored in (False, True) if flip else (False,):
            view = resized_view(image, view_size(image, shortest, longest), mirrored)
            if windows is None:
                inputs = processed_inputs(processor, view, device, do_resize=False)
                views.append((image_scores(model, processor, inputs, target_size), mirrored))
            else:
                views.append((window_scores(model, processor, view, target_size, windows, device), mirrored))
    return MeanScores(model, views)


# ---- from an image to its label map --------------------------------------------------------------------------------


Watcher = Callable[[int, Tensor], None]  # gets the first row of a block of scores, and the block (n, width, K)


@torch.no_grad()
def labels_of(scores: ScoreRows, *watchers: Watcher) -> np.ndarray:
    """Label map of an image, whose scores are seen by the watchers on the way; it stays on their device until it is
    whole."""
    kind = torch.uint8 if scores.num_classes <= 256 else torch.int32
    on_device = torch.empty(scores.size, dtype=kind, device=scores.device)
    start = 0
    with torch.autocast(scores.device.type, enabled=False):  # scores are float32 whatever the model runs in
        for block in scores:
            for watcher in watchers:
                watcher(start, block)
            on_device[start : start + len(block)] = best_classes([block], (len(block), scores.size[1]), scores.device)
            start += len(block)
    (labels,) = to_host(on_device)
    return labels if labels.max() > 255 else labels.astype(np.uint8, copy=False)


def confidence_of(scores: Tensor, classes: int = 0) -> Tensor:
    """Share of the best class in `scores` (at least 0), whose dimension `classes` goes; in 0..1."""
    return scores.amax(dim=classes) / scores.sum(dim=classes).clamp(min=LEAST_SUM)


@dataclass
class Confidence:
    """A watcher that keeps the confidence in a label map of `size`.

    Args:
        softmax: whether the scores become probabilities by a softmax.
    """

    size: Size
    softmax: bool

    def __post_init__(self) -> None:
        self._on_device = torch.zeros(0)

    def __call__(self, start: int, block: Tensor) -> None:
        if start == 0:
            self._on_device = torch.zeros(self.size, device=block.device)
        found = confidence_of(block.softmax(-1) if self.softmax else block, -1)
        self._on_device[start : start + len(block)] = found

    @property
    def values(self) -> np.ndarray:
        """`size` float32 in 0..1."""
        (values,) = to_host(self._on_device)
        return values


def labels_and_confidence(scores: ScoreRows, softmax: bool) -> tuple[np.ndarray, np.ndarray]:
    """Label map of an image and the confidence in it, float32; all scores never exist at once.

    Args:
        softmax: whether the scores become probabilities by a softmax.
    """
    confidence = Confidence(scores.size, softmax)
    return labels_of(scores, confidence), confidence.values


class Predictor:
    """Label map of an image at its own size; a subclass says by which scores."""

    softmax: bool  # whether the scores become probabilities by a softmax

    def scores(self, image: Image.Image) -> ScoreRows:
        """Class scores at the image's size."""
        raise NotImplementedError

    def __call__(self, image: Image.Image) -> np.ndarray:
        return labels_of(self.scores(image))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence."""
        return labels_and_confidence(self.scores(image), self.softmax)


@dataclass
class SingleScale(Predictor):
    """Label map of an image at its own size, after the processor's resize.

    Args:
        windows: if given, the resized image is read through them.
        when_read: called with how many windows of an image have been read, and how many there are.
    """

    model: Any
    processor: Any
    device: Any
    windows: Windows | Tiles | None = None
    when_read: Callable[[int, int], None] | None = None

    @property
    def softmax(self) -> bool:  # type: ignore[override]
        return family_of(self.model.config).softmax_scores

    def scores(self, image: Image.Image) -> ScoreRows:
        size = (image.height, image.width)
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            return image_scores(self.model, self.processor, inputs, size)
        view = resized_view(image, self.processor.network_size(*size), flip=False)
        return window_scores(self.model, self.processor, view, size, self.windows, self.device, self.when_read)


@dataclass
class MultiScale(Predictor):
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

    softmax = False  # the views' scores are probabilities where they need be

    def scores(self, image: Image.Image) -> ScoreRows:
        size = (image.height, image.width)
        if self.base is not None:
            image = resized_view(image, view_size(image, *self.base), flip=False)
        return multi_scale_scores(
            self.model, self.processor, image, size, self.edges, device=self.device, windows=self.windows
        )
