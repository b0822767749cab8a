"""What both backends of the processor share: the resize rule, reading images, the order of the steps.

An image becomes RGB, or keeps as many bands as `image_mean` has numbers, is resized so that its shortest edge is
`size["shortest_edge"]`, normalised, and padded with zeros (the mean colour) at the right and bottom. The backends
differ only in who resizes and normalises.
"""

import math
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import Unpack
from transformers.utils import logging

from .intensities import DEEP_MODES, lost_by_pillow, scaled_intensities
from .label_maps import (
    check_ids,
    label_map_to_masks,
    nearest_centres,
    read_label_map,
    resize_label_map,
    split_label_maps,
)
from .model_outputs import MAX_PIXELS
from .post_processing import FASegPostProcessing
from .processor_settings import (
    SAVED_NAMES,
    FASegImageProcessorKwargs,
    check_names,
    check_settings,
    check_size,
    pillow_filter,
    round_up,
)


logger = logging.get_logger(__name__)

LOADING_NAMES = ("device_map",)  # near to the name of a setting, and meant for the model
EXIF_ORIENTATION = 0x0112


def network_size(height: int, width: int, size: SizeDict, pad_size: SizeDict | None = None) -> tuple[int, int]:
    """The size `(height, width)` that an image is resized to.

    `shortest_edge` and `longest_edge` are the reference's rule: the shortest edge gets its length unless the longest
    would exceed its own; sides round half up. An image larger than `pad_size` shrinks further until it fits.
    """
    new_height: float
    new_width: float
    if size.shortest_edge:
        scale = size.shortest_edge / min(height, width)
        if height < width:
            new_height, new_width = size.shortest_edge, scale * width
        else:
            new_height, new_width = scale * height, size.shortest_edge
        longest = max(new_height, new_width)
        if size.longest_edge and longest > size.longest_edge:
            scale = size.longest_edge / longest
            new_height, new_width = new_height * scale, new_width * scale
    elif size.longest_edge:
        scale = size.longest_edge / max(height, width)
        new_height, new_width = height * scale, width * scale
    elif size.height and size.width:
        new_height, new_width = size.height, size.width
    elif size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    else:
        raise ValueError(f"size is {dict(size)}: pass shortest_edge and longest_edge, or height and width")
    if pad_size is not None and pad_size.height and pad_size.width:
        scale = min(1.0, pad_size.height / new_height, pad_size.width / new_width)
        new_height, new_width = new_height * scale, new_width * scale
    if new_height * new_width > MAX_PIXELS:
        raise ValueError(
            f"size {dict(size)} makes {int(new_height)}x{int(new_width)} pixels of an image of {height}x{width}:"
            f" pass one that makes {MAX_PIXELS} at most, for example by longest_edge"
        )
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool, of_any_depth: bool = False) -> np.ndarray:
    """`(H, W, C)` or `(H, W)` of a Pillow image; to RGB as `Image.convert` does it: transparency is dropped.

    With `of_any_depth`, one band of more than 8 bits stays as it is. The image stays as stored, in agreement with its
    label map and with `image.size`; a viewer's rotation (EXIF) is only warned about. Files given by path are turned
    upright.
    """
    if lost := lost_by_pillow(image):
        raise ValueError(f"an image file holds {lost}, which Pillow does not read whole: pass it as a NumPy array")
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation not in (0, 1):
        logger.warning_once(
            f"an image carries EXIF orientation {orientation} and is used as stored, which viewers show turned:"
            " apply PIL.ImageOps.exif_transpose first, or pass the file's path"
        )
    if of_any_depth and image.mode in DEEP_MODES:
        return np.array(image)
    if not do_convert_rgb:
        if image.mode in ("P", "PA"):
            raise ValueError(f"an image has mode {image.mode!r}, indices of a palette: set do_convert_rgb=True")
        return np.array(image.convert("L") if image.mode == "1" else image)
    if image.mode in DEEP_MODES:
        low, high = image.getextrema()
        raise ValueError(
            f"an image has mode {image.mode!r}, more than 8 bits, and holds {low:g}..{high:g}: scale it to 0..255 and"
            f" 8 bits first, or set intensity_range to what becomes 0 and 255, such as [{low:g}, {high:g}]"
        )
    return np.array(image.convert("RGB"))


def channels_axis(
    shape: tuple[int, ...], input_data_format: str | ChannelDimension | None, bands: int | None = None
) -> int:
    """0 or 2: where the channels of a 3-dimensional array are. RGB and RGBA win over grey where both fit.

    Args:
        bands: how many there must be, if that is known.
    """
    if input_data_format is not None:
        return 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    for channels in ((3, 4), (1,)) if bands is None else ((bands,),):
        first, last = shape[0] in channels, shape[2] in channels
        if first and last:
            logger.warning_once(f"an image of shape {shape} is read as (C, H, W): pass input_data_format to be sure")
        if first or last:
            return 0 if first else 2
    counts = "1, 3 or 4" if bands is None else f"{bands}, as image_mean has numbers,"
    raise ValueError(f"an image has shape {shape}: pass (H, W), (H, W, C) or (C, H, W) with {counts} channels")


def eight_bits(image: Any) -> Any:
    """An array or tensor of uint8 or float32; other integers only if they fit into 8 bits."""
    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 or image.is_floating_point():
            return image if image.dtype == torch.uint8 else image.float()
        image = image.cpu().numpy()
    elif image.dtype == np.uint8 or image.dtype.kind == "f":
        return image if image.dtype == np.uint8 else image.astype(np.float32, copy=False)
    if image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
        values = f"{image.min()}..{image.max()}" if image.dtype.kind in "iub" else "no numbers"
        raise ValueError(
            f"an image of dtype {image.dtype} holds {values}: pass 8 bits, 0..255, or set intensity_range to what"
            " becomes 0 and 255"
        )
    return image.astype(np.uint8)


class FASegImageProcessorBase(FASegPostProcessing, BaseImageProcessor):
    """Everything but resizing and normalising; see `FASegImageProcessor`."""

    valid_kwargs = FASegImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_pad = True
    pad_size = None
    size_divisor = 32
    task = "semantic"
    do_reduce_labels = False
    ignore_index = 255
    num_labels = None
    label_ids_to_fuse = None
    intensity_range = None

    # What the backends bring.
    resize: Callable[..., Any]

    def __init__(self, **kwargs: Unpack[FASegImageProcessorKwargs]):
        check_names(kwargs, [*self.valid_kwargs.__annotations__, *SAVED_NAMES])
        super().__init__(**kwargs)  # type: ignore[misc]
        check_settings(vars(self))

    # ---- settings -------------------------------------------------------------------------------------------------

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size `(height, width)` to which this processor resizes an image."""
        if not self.do_resize:
            return height, width
        return network_size(height, width, as_size_dict(self.size), as_size_dict(self.pad_size))

    def canvas_size(self, sizes: Any) -> tuple[int, int]:
        """The size `(height, width)` to which this processor pads a batch of images of these (resized) sizes."""
        return padded_size(sizes, as_size_dict(self.pad_size), self.size_divisor if self.do_pad else 0)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        for name in ("size", "pad_size"):
            check_size(name, kwargs.get(name))
        return super()._standardize_kwargs(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A processor of saved settings and others, which win.

        Raises:
            ValueError: a name that is no setting but near to one. Others are left alone: loaders pass their own.
        """
        for name in kwargs:
            if get_close_matches(name, cls.valid_kwargs.__annotations__, n=1, cutoff=0.65):
                check_names([name], [*cls.valid_kwargs.__annotations__, *LOADING_NAMES])
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Settings as saved in `preprocessor_config.json`; `auto_map` names both backends."""
        settings = super().to_dict()
        if settings.get("intensity_range") is None:  # processors that were saved before there was one stay as they are
            settings.pop("intensity_range", None)
        if "auto_map" in settings:
            settings["auto_map"]["AutoImageProcessor"] = {
                "torchvision": "image_processing_faseg.FASegImageProcessor",
                "pil": "image_processing_pil_faseg.FASegImageProcessorPil",
            }
        return settings

    # ---- reading --------------------------------------------------------------------------------------------------

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Paths and URLs read by Pillow in both backends, upright: files as they are, what URLs name as RGB."""
        if isinstance(image_url_or_urls, os.PathLike):
            image_url_or_urls = os.fspath(image_url_or_urls)
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            with PIL.Image.open(image_url_or_urls) as image:
                if lost := lost_by_pillow(image):
                    raise ValueError(f"{image_url_or_urls} holds {lost}: read it, and pass it as a NumPy array")
                return PIL.ImageOps.exif_transpose(image)
        return ImageProcessingMixin.fetch_images(self, image_url_or_urls)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        """A flat list of images from an image, a batch array, or lists of them."""
        if images is None:
            raise ValueError("images=None: pass at least one image")
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            return [image for item in images for image in self._prepare_images_structure(item, expected_ndims)]
        if not isinstance(images, PIL.Image.Image) and images.ndim > expected_ndims:
            return list(images)
        return [images]

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        image_mean: Any = None,
        intensity_range: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One image as the backend's array `(C, H, W)`, uint8 or floating point."""
        bands = len(image_mean) if isinstance(image_mean, (list, tuple)) and len(image_mean) != 3 else None
        to_rgb = bool(do_convert_rgb) and bands is None
        if isinstance(image, PIL.Image.Image):
            image = pil_to_array(image, to_rgb, of_any_depth=intensity_range is not None)
            input_data_format = ChannelDimension.LAST
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(f"an image has shape {tuple(image.shape)}: pass (H, W), (H, W, C) or (C, H, W)")
        if image.ndim == 2:
            image = image[None]
        elif channels_axis(tuple(image.shape), input_data_format, bands) == 2:
            image = image.permute(2, 0, 1) if isinstance(image, torch.Tensor) else image.transpose(2, 0, 1)
        if to_rgb:
            if image.shape[0] not in (1, 3, 4):
                raise ValueError(
                    f"an image has {image.shape[0]} channels, of which do_convert_rgb=True makes no RGB: pass 1, 3 or"
                    " 4, or give the processor a mean and a deviation for each (image_mean, image_std)"
                )
            image = image[[0, 0, 0]] if image.shape[0] == 1 else image[:3]
        image = eight_bits(image) if intensity_range is None else scaled_intensities(image, *intensity_range)
        return self.to_backend(image, device)

    def to_backend(self, image: Any, device: str | torch.device | None) -> Any:
        """NumPy array or torch tensor -> the array type of the backend."""
        raise NotImplementedError

    # ---- preprocessing --------------------------------------------------------------------------------------------

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: list[dict[int, int]] | dict[int, int] | None = None,
        **kwargs: Unpack[FASegImageProcessorKwargs],
    ) -> BatchFeature:
        """Images, and for training their label maps, as the model's inputs.

        Args:
            images: one or more Pillow images, NumPy arrays or torch tensors (0..255, or of `intensity_range`), paths
                or URLs. With the default `do_convert_rgb` they become RGB: grey is repeated and transparency dropped;
                with an `image_mean` of another length than 3 they must have as many channels.
            segmentation_maps: per image a map `(H, W)` of class ids, or of instance ids; as large as the image.
            instance_id_to_semantic_id: for instance maps, the class of each id, one dictionary for all or one each.
            kwargs: any setting of the processor, for this call.
        Returns:
            `pixel_values` `(B, C, H, W)` float32, C mostly 3, `pixel_mask` `(B, H, W)` int64 with 1 on the image and 0
            on the padding, `input_sizes` B sizes of the resized images before padding; with maps also `mask_labels`,
            per image `(T, H, W)` float32, and `class_labels`, per image `(T,)` int64. An unlabelled image has T = 0.
        Raises:
            ValueError: an image or map that cannot be right; the message names it and the fix.
        """
        check_names(kwargs, self.valid_kwargs.__annotations__)
        own = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        check_settings(self._standardize_kwargs(**{**own, **kwargs}))
        try:
            return super().preprocess(images, segmentation_maps, instance_id_to_semantic_id, **kwargs)
        except StrictDataclassFieldValidationError as error:  # a setting of another type, said in several lines
            raise ValueError(" ".join(str(error).split())) from error

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        names = ("do_convert_rgb", "input_data_format", "device", "image_mean", "intensity_range")
        reading: Any = {name: kwargs.get(name) for name in names}
        prepared = self._prepare_image_like_inputs(images, **reading)
        return self._preprocess(prepared, segmentation_maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess(
        self, images: list[Any], segmentation_maps: Any, instance_id_to_semantic_id: Any, **kwargs: Any
    ) -> BatchFeature:
        pad_size, size_divisor = kwargs["pad_size"], kwargs["size_divisor"] if kwargs["do_pad"] else 0
        if not images:
            raise ValueError("no images: pass at least one")
        check_stack(images)
        original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        sizes = original_sizes
        if kwargs["do_resize"]:
            sizes = [network_size(height, width, kwargs["size"], pad_size) for height, width in sizes]
        canvas = padded_size(sizes, pad_size, size_divisor)
        if kwargs["return_tensors"] is not None and not kwargs["do_pad"] and len(set(sizes)) > 1:
            raise ValueError(f"images of sizes {sorted(set(sizes))} make no batch: set do_pad=True")

        resample = pillow_filter(kwargs["resample"])
        pixel_values, pixel_mask = [], []
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            check_channels(image, index, kwargs)
            check_range(image, index, kwargs)
            if size != original_sizes[index] and resample == PILImageResampling.NEAREST:  # alike in both backends
                rows, columns = map(nearest_centres, original_sizes[index], size)
                image = image[:, rows][:, :, columns]
            elif size != original_sizes[index]:
                image = self.resize(image, SizeDict(height=size[0], width=size[1]), resample=resample)
            own_canvas = canvas if kwargs["do_pad"] else size
            pixel_values.append(self.pad_to(self.scale(image, kwargs), own_canvas))
            mask = np.zeros(own_canvas, dtype=np.int64)
            mask[: size[0], : size[1]] = 1
            pixel_mask.append(self.to_backend(mask, device_of(image)))
        inputs = BatchFeature(
            data={"pixel_values": pixel_values, "pixel_mask": pixel_mask, "input_sizes": sizes},
            tensor_type=kwargs["return_tensors"],
        )
        if segmentation_maps is None:
            return inputs

        maps = split_label_maps(segmentation_maps, len(images))
        id_to_class = instance_id_to_semantic_id
        if isinstance(id_to_class, (list, tuple)) and len(id_to_class) != len(images):
            raise ValueError(f"instance_id_to_semantic_id has {len(id_to_class)} entries for {len(images)} images")
        settings = {name: kwargs[name] for name in ("ignore_index", "do_reduce_labels")}
        mask_labels, class_labels = [], []
        for index, (label_map, size) in enumerate(zip(maps, sizes, strict=True)):
            ids = read_label_map(label_map, index)
            if ids.shape != original_sizes[index]:
                raise ValueError(
                    f"segmentation map {index} has size {ids.shape} but its image has {original_sizes[index]}"
                    " (height, width): pass a map of the image as it is given"
                )
            mapping = id_to_class[index] if isinstance(id_to_class, (list, tuple)) else id_to_class
            check_ids(ids, index, num_labels=kwargs["num_labels"], id_to_class=mapping, **settings)
            ids = resize_label_map(ids, size)
            masks, classes = label_map_to_masks(
                ids, canvas if kwargs["do_pad"] else size, id_to_class=mapping, **settings
            )
            mask_labels.append(masks)
            class_labels.append(classes)
        # One image has more segments than another, so these stay lists.
        result, device = kwargs["return_tensors"], device_of(pixel_values[0])
        inputs["mask_labels"] = [self.to_result(masks, result, device) for masks in mask_labels]
        inputs["class_labels"] = [self.to_result(classes, result, device) for classes in class_labels]
        return inputs

    def scale(self, image: Any, kwargs: dict[str, Any]) -> Any:
        """Rescale and normalise one image as the settings ask."""
        raise NotImplementedError

    def pad_to(self, image: Any, canvas: tuple[int, int]) -> Any:
        """Zeros at the right and bottom up to `canvas`."""
        raise NotImplementedError

    def to_result(self, array: np.ndarray, return_tensors: str | None, device: torch.device) -> Any:
        """Targets in the type that `return_tensors` names; left out, the backend's own."""
        if return_tensors is None:
            return self.to_backend(array, device)
        return torch.from_numpy(array).to(device) if return_tensors == "pt" else array


def device_of(image: Any) -> torch.device:
    """Where a tensor is; NumPy arrays are on the CPU."""
    return image.device if isinstance(image, torch.Tensor) else torch.device("cpu")


def as_size_dict(size: Any) -> Any:
    """`size` as `SizeDict`, also where a user has set a plain dictionary on the processor."""
    return SizeDict(**size) if isinstance(size, dict) else size


def padded_size(sizes: Any, pad_size: SizeDict | None, size_divisor: int) -> tuple[int, int]:
    """The canvas `(height, width)` that a batch of images of these sizes is padded to."""
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if pad_size is not None and pad_size.height and pad_size.width:
        canvas = (pad_size.height, pad_size.width)
        if height > canvas[0] or width > canvas[1]:
            raise ValueError(
                f"an image of {(height, width)} does not fit pad_size {canvas}:"
                " set do_resize=True or a larger pad_size"
            )
        return canvas
    canvas = (round_up(height, size_divisor), round_up(width, size_divisor))
    if canvas[0] * canvas[1] > MAX_PIXELS:
        raise ValueError(
            f"images of up to {height}x{width} are padded to {canvas}, more than {MAX_PIXELS} pixels:"
            " resize them first, or set a smaller size_divisor"
        )
    return canvas


def check_stack(images: list[Any]) -> None:
    """Raise ValueError for a batch of images of several numbers of channels."""
    for index, image in enumerate(images):
        if image.shape[0] != images[0].shape[0]:
            raise ValueError(
                f"image {index} has {image.shape[0]} channels but image 0 has {images[0].shape[0]}:"
                " set do_convert_rgb=True"
            )


def check_channels(image: Any, index: int, kwargs: dict[str, Any]) -> None:
    """Raise ValueError unless there is a mean and a deviation for each channel; nothing is repeated to fit."""
    for name in ("image_mean", "image_std"):
        numbers = kwargs[name]
        if kwargs["do_normalize"] and isinstance(numbers, (list, tuple)) and len(numbers) != image.shape[0]:
            fix = f"pass images of {len(numbers)}, or {image.shape[0]} numbers as image_mean and as image_std"
            if len(numbers) == 3 and image.shape[0] in (1, 4):
                fix = "set do_convert_rgb=True"
            raise ValueError(f"image {index} has {image.shape[0]} channels but {name} has {len(numbers)}: {fix}")


def check_range(image: Any, index: int, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for numbers that are not finite; warn where the settings cannot be meant for the image.

    What is normalised should lie where the mean does, in 0..1 or 0..255.
    """
    factor = kwargs["rescale_factor"] if kwargs["do_rescale"] else 1.0
    top = 1.0 if kwargs["do_rescale"] else math.inf
    if kwargs["do_normalize"]:
        top = 1.0 if np.max(kwargs["image_mean"]) <= 1 else 255.0
    eight_bits = image.dtype in (torch.uint8, np.uint8)
    if eight_bits and 255 * factor <= 1.5 * top:
        return
    low, high = image.min().item(), image.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"image {index} holds {high if math.isfinite(low) else low}: pass finite numbers")
    if low < -0.1 * abs(high) and (kwargs["do_rescale"] or kwargs["do_normalize"]):
        logger.warning_once(
            f"image {index} holds numbers down to {low:.4g}, as if normalised already: pass do_rescale=False and"
            " do_normalize=False for such images"
        )
    elif kwargs["do_rescale"] and not eight_bits and 0 < factor * high <= top / 255:
        logger.warning_once(
            f"image {index} looks already scaled to 0..1 and is scaled by {factor:.4g} again:"
            " pass do_rescale=False for such images"
        )
    elif factor * high > 1.5 * top:
        fix = "scale it to 0..255 first" if kwargs["do_rescale"] else "pass do_rescale=True for such images"
        logger.warning_once(f"image {index} reaches {factor * high:.4g}, where at most {top:g} is expected: {fix}")
