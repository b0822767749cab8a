"""Training augmentation, joint over image and label map, in `torchvision.transforms.v2`: the reference's, and what may
be added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import SizeDict

from image_processing.preprocessing import network_size
from scripts.cli.errors import UserError


IMAGE_FILL = 128  # before normalisation; the reference pads with mid-grey
LABEL_FILL = 255  # ignored
CROP_TRIES = 10  # as the references do
LEAST_SHARE = 1e-4  # of all labelled pixels: a rarer class is drawn, or weighs, as if it had this share
BLUR_SIGMA = (0.1, 2.0)  # pixels, as SimCLR draws them
BLUR_KERNEL = 13  # pixels: three of the largest sigma to either side, and the middle one

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]


def uniform(low: float, high: float) -> float:
    """One number drawn from [low, high) with torch's generator, which each sample seeds."""
    return low + (high - low) * torch.rand(()).item()


def shortest_edge_size(height: int, width: int, shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    """Size whose shorter side is `shortest_edge`, unless its longer side would pass `longest_edge`."""
    return network_size(height, width, SizeDict(shortest_edge=shortest_edge, longest_edge=longest_edge))


class RandomShortestEdge(v2.Transform):
    """Resizes so that the shorter side is one of `sizes`, each as likely, and the longer at most `longest_edge`."""

    def __init__(self, sizes: Sequence[int], longest_edge: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.longest_edge = longest_edge

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return {"size": shortest_edge_size(height, width, size, self.longest_edge)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, list(params["size"]), antialias=True)


class RandomScale(v2.Transform):
    """Scales both sides by a factor drawn uniformly from `[low, high]`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        factor = uniform(self.low, self.high)
        return {"size": (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, list(params["size"]), antialias=True)


class LargeScaleJitter(v2.Transform):
    """Resizes to what fits into `height x width`, times a factor drawn uniformly from `[low, high]`; the aspect ratio
    stays ("Simple Copy-Paste", CVPR 2021; detectron2's `ResizeScale`).

    Deviation: the crop that follows is drawn across and down apart; detectron2's `FixedSizeCrop` draws one fraction
    for both, so that no crop leaves the diagonal.
    """

    def __init__(self, height: int, width: int, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.height = height
        self.width = width

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        factor = uniform(self.low, self.high) * min(self.height / height, self.width / width)
        return {"size": (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, list(params["size"]), antialias=True)


class RandomCrop(v2.Transform):
    """Cuts a random window of `min(size, height) x min(size, width)`.

    Args:
        max_class_share: drawn anew, up to `CROP_TRIES` times, while one class has at least this share of the window's
            labelled pixels, or all of them; 1: the first window is taken.
        unlabelled: ids that are no class.
        rare_class_share: probability from 0 to 1 that the window is laid around a pixel of a class that is drawn
            among those of the map, each as likely as it is rare; as far as the image's borders let it.
        id_shares: share of all labelled pixels of the data set by id of the label maps, from 0 on; without it each
            class of a map is as likely.
    """

    def __init__(
        self,
        height: int,
        width: int,
        max_class_share: float = 1.0,
        unlabelled: Sequence[int] = (LABEL_FILL,),
        rare_class_share: float = 0.0,
        id_shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.height = height
        self.width = width
        self.max_class_share = max_class_share
        self.unlabelled = torch.tensor(unlabelled)
        self.rare_class_share = rare_class_share
        self.id_weights = None if id_shares is None else 1 / torch.tensor(id_shares).double().clamp(min=LEAST_SHARE)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        window = self.window(flat_inputs)
        if self.max_class_share < 1:
            for _ in range(CROP_TRIES):
                labels = F.crop(flat_inputs[1].as_subclass(torch.Tensor), **window)
                _, counts = labels[~torch.isin(labels, self.unlabelled)].unique(return_counts=True)
                if len(counts) > 1 and counts.max() / counts.sum() < self.max_class_share:
                    break
                window = self.window(flat_inputs)
        return window

    def window(self, flat_inputs: list[Any]) -> dict[str, int]:
        """One window, around a pixel of a rare class or anywhere."""
        height, width = flat_inputs[0].shape[-2:]
        if self.rare_class_share > 0 and uniform(0, 1) < self.rare_class_share:
            pixel = self.rare_pixel(flat_inputs[1].as_subclass(torch.Tensor))
            if pixel is not None:
                return self.around(*pixel, height, width)
        return self.draw(height, width)

    def rare_pixel(self, labels: torch.Tensor) -> tuple[int, int] | None:
        """Row and column of a random pixel of a class drawn from a map `(H, W)`; None if it shows no class."""
        present = labels.unique()
        present = present[~torch.isin(present, self.unlabelled)].long()
        if not len(present):
            return None
        weights = torch.ones(len(present)) if self.id_weights is None else self.id_weights[present]
        drawn = present[torch.multinomial(weights, 1)]
        places = (labels == drawn).flatten().nonzero()
        place = int(places[torch.randint(len(places), ())])
        return place // labels.shape[1], place % labels.shape[1]

    def around(self, row: int, column: int, height: int, width: int) -> dict[str, int]:
        """The window of an image of this size that has the pixel in its middle, or as near to it as it gets."""
        top = min(max(row - self.height // 2, 0), max(0, height - self.height))
        left = min(max(column - self.width // 2, 0), max(0, width - self.width))
        return {"top": top, "left": left, "height": min(height, self.height), "width": min(width, self.width)}

    def draw(self, height: int, width: int) -> dict[str, int]:
        """A window of an image of this size."""
        top = int(torch.randint(max(0, height - self.height) + 1, ()))
        left = int(torch.randint(max(0, width - self.width) + 1, ()))
        return {"top": top, "left": left, "height": min(height, self.height), "width": min(width, self.width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PadTo(v2.Transform):
    """Pads on the right and below to at least `height x width`: images with `IMAGE_FILL`, maps with `label_fill`."""

    def __init__(self, height: int, width: int, label_fill: int = LABEL_FILL) -> None:
        super().__init__()
        self.height = height
        self.width = width
        self.label_fill = label_fill

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        padding = [0, 0, max(0, self.width - width), max(0, self.height - height)]
        fill = self.label_fill if isinstance(inpt, tv_tensors.Mask) else IMAGE_FILL
        return F.pad(inpt, padding, fill=fill) if any(padding) else inpt


class RandomColour(v2.Transform):
    """Colour distortion of SSD, as detectron2 applies it: each of the four with probability one half.

    Of images that are not RGB of 8 bits, saturation and hue stay as they are; float32 is not rounded.

    Brightness adds up to 32 of 255, contrast multiplies all values and saturation that of HSV by 0.5 to 1.5, hue turns
    by up to a tenth of the circle. Contrast comes before or after saturation and hue, either as likely.
    """

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        def maybe(low: float, high: float) -> float | None:
            value = uniform(low, high)
            return value if torch.rand(()).item() < 0.5 else None

        return {
            "brightness": maybe(-32, 32),
            "contrast_first": torch.rand(()).item() < 0.5,
            "contrast": maybe(0.5, 1.5),
            "saturation": maybe(0.5, 1.5),
            "hue": maybe(-0.1, 0.1),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        image = inpt.as_subclass(torch.Tensor)
        is_rgb = image.dtype == torch.uint8 and len(image) == 3
        if params["brightness"] is not None:
            image = within_scale(image.float() + params["brightness"], image.dtype)
        if params["contrast"] is not None and params["contrast_first"]:
            image = within_scale(image.float() * params["contrast"], image.dtype)
        if params["saturation"] is not None and is_rgb:
            image = scale_saturation(image, params["saturation"])
        if params["hue"] is not None and is_rgb:
            image = F.adjust_hue(image, params["hue"])
        if params["contrast"] is not None and not params["contrast_first"]:
            image = within_scale(image.float() * params["contrast"], image.dtype)
        return tv_tensors.wrap(image, like=inpt)


def within_scale(image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float image clipped to the scale 0..255; rounded for uint8."""
    return to_uint8(image) if dtype == torch.uint8 else image.clamp(0, 255)


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Float image on the 0..255 scale, rounded and clipped to uint8."""
    return image.round().clamp(0, 255).to(torch.uint8)


def scale_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies the saturation of HSV by `factor` (clipped to 1), hue and value unchanged; `(3, H, W)` uint8."""
    pixels = image.float()
    value = pixels.amax(dim=0, keepdim=True)
    chroma = value - pixels.amin(dim=0, keepdim=True)
    # The new chroma is at most `value`; both are zero where the pixel is black.
    ratio = torch.minimum(torch.full_like(chroma, factor), value / chroma.clamp(min=1e-6))
    return to_uint8(value - (value - pixels) * ratio)


class RandomBlur(v2.Transform):
    """Blurs the image with probability `p` by a Gaussian whose sigma is drawn from `BLUR_SIGMA`."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sigma = uniform(*BLUR_SIGMA)
        return {"sigma": sigma if uniform(0, 1) < self.p else None}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["sigma"] is None:
            return inpt
        # The border is mirrored, so that the kernel may reach no further than the image.
        sizes = [min(BLUR_KERNEL, 2 * side - 1) for side in (inpt.shape[-1], inpt.shape[-2])]
        return F.gaussian_blur(inpt, sizes, [params["sigma"]])


class OwnTransforms:
    """Calls a function that somebody else wrote, and refuses what cannot be trained on.

    Args:
        function: `(Image, Mask) -> (Image, Mask)`; random numbers that it draws should be torch's. Where segments are
            learnt the mask is their layers, `(L, H, W)`.
        height, width: the largest result, in pixels.
    """

    def __init__(self, function: Callable[[tv_tensors.Image, tv_tensors.Mask], Any], height: int, width: int) -> None:
        self.function = function
        self.height = height
        self.width = width

    def __call__(self, image: tv_tensors.Image, label: tv_tensors.Mask) -> Pair:
        before = label.shape[:-2]
        image, label = self.function(image, label)
        size = tuple(image.shape[-2:])
        if image.dtype != torch.uint8 or len(image) != 3 or image.ndim != 3:
            raise UserError(
                f"{self.function}: it made an image of {image.dtype} and shape {tuple(image.shape)}: leave it uint8 "
                "and (3, H, W); it is normalised later"
            )
        if tuple(label.shape) != (*before, *size) or label.is_floating_point():
            raise UserError(
                f"{self.function}: it made a label map of {label.dtype} and shape {tuple(label.shape)} of an image of "
                f"{size}: transform both alike, and keep ids"
            )
        if size[0] > self.height or size[1] > self.width:
            raise UserError(
                f"{self.function}: it made an image of {size[0]}x{size[1]}, more than the crop of "
                f"{self.height}x{self.width}: leave the size to --crop_height and --crop_width"
            )
        return tv_tensors.Image(image), tv_tensors.Mask(label)


def reference_sizes(base: int) -> list[int]:
    """The reference's 16 shortest edges: `int(0.1 * k * base)` for k = 5..20."""
    return [int(0.1 * k * base) for k in range(5, 21)]


def training_augmentation(
    crop_height: int,
    crop_width: int,
    shortest_edges: Sequence[int] | None = None,
    longest_edge: int | None = None,
    scale_range: Sequence[float] | None = None,
    colour_jitter: bool = True,
    horizontal_flip: float = 0.5,
    max_class_share: float = 1.0,
    unlabelled: Sequence[int] = (LABEL_FILL,),
    vertical_flip: float = 0.0,
    rotation: float = 0.0,
    blur: float = 0.0,
    rare_class_share: float = 0.0,
    id_shares: Sequence[float] | None = None,
    extra: Callable[[tv_tensors.Image, tv_tensors.Mask], Any] | None = None,
    large_scale_jitter: Sequence[float] | None = None,
) -> v2.Compose:
    """Scale, crop, colour, flip and padding of the reference (spec of FASeg, section 5), on (Image, Mask) pairs; what
    the reference does not have is left out by default. Masks are label maps `(H, W)` or layers of segments
    `(L, H, W)`, of which each pixel goes the same way.

    Args:
        shortest_edges: shorter sides to choose from; `reference_sizes(min(crop))` by default.
        longest_edge: bound of the longer side; four times the crop's shorter side by default.
        scale_range: (low, high) factor on the image's own size, drawn uniformly, in place of `shortest_edges`.
        horizontal_flip, vertical_flip: probabilities of mirroring left and right, top and bottom.
        large_scale_jitter: (low, high) factor on the size at which an image fits into the crop, in place of both.
        max_class_share, unlabelled, rare_class_share, id_shares: see `RandomCrop`; the last of `unlabelled`, the
            processor's `ignore_index`, pads label maps.
        rotation: the image is turned about its middle by an angle drawn from -rotation to rotation degrees before it
            is cropped; what comes into view is mid-grey and unlabelled.
        blur: probability of a Gaussian blur, see `RandomBlur`.
        extra: a transform of your own, of torchvision's v2 or any `(Image, Mask) -> (Image, Mask)` on a uint8 image
            `(3, H, W)` and its ids `(H, W)`. It gets the crop before that is padded, may make it smaller, and should
            draw from torch's generator, which each sample seeds.
    Raises:
        UserError: when called, by an `extra` whose result cannot be trained on.
    """
    base = min(crop_height, crop_width)
    scale: v2.Transform
    if large_scale_jitter:
        scale = LargeScaleJitter(crop_height, crop_width, *large_scale_jitter)
    elif scale_range:
        scale = RandomScale(*scale_range)
    else:
        scale = RandomShortestEdge(shortest_edges or reference_sizes(base), longest_edge or 4 * base)
    steps: list[Any] = [scale]
    if rotation:
        fill: Any = {tv_tensors.Image: IMAGE_FILL, tv_tensors.Mask: unlabelled[-1]}
        steps.append(v2.RandomRotation(rotation, v2.InterpolationMode.BILINEAR, fill=fill))  # maps: always nearest
    steps.append(RandomCrop(crop_height, crop_width, max_class_share, unlabelled, rare_class_share, id_shares))
    if colour_jitter:
        steps.append(RandomColour())
    if blur:
        steps.append(RandomBlur(blur))
    steps.append(v2.RandomHorizontalFlip(horizontal_flip))
    if vertical_flip:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if extra is not None:
        steps.append(OwnTransforms(extra, crop_height, crop_width))
    steps.append(PadTo(crop_height, crop_width, unlabelled[-1]))
    return v2.Compose(steps)
