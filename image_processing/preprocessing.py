"""What both backends of the processor share: the resize rule, reading images, the order of the steps.

An image becomes RGB, is resized so that its shortest edge is `size["shortest_edge"]`, normalised, and padded with
zeros (the mean colour) at the right and bottom. The backends differ only in who resizes and normalises.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
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
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .label_maps import check_ids, label_map_to_masks, read_label_map, resize_label_map, split_label_maps
from .post_processing import FASegPostProcessing


logger = logging.get_logger(__name__)

TASKS = ("semantic", "instance", "panoptic")
EXIF_ORIENTATION = 0x0112
# Modes that Pillow's conversion to RGB would clip to 8 bits or refuse.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class FASegImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of the processor, beside those of transformers; `FASegImageProcessorBase` has their defaults.

    task: What the model was trained for: `"semantic"`, `"instance"` or `"panoptic"`. Decides which `post_process_*`
        methods there are, and so what `pipeline("image-segmentation")` answers.
    do_reduce_labels: Label maps store class ids one too high and 0 for unlabelled pixels (ADE20K): 0 becomes
        `ignore_index`, the others go down by one.
    ignore_index: The id of unlabelled pixels in label maps; they belong to no mask.
    num_labels: Number of classes. If set, label maps are checked against it.
    label_ids_to_fuse: The "stuff" classes of a panoptic model, which have one segment per image.
    size_divisor: Images are padded to a multiple of this; 0 for no such rule.
    pad_size: Fixed `{"height", "width"}` to pad every image to, so that batches of any images have one size. Images
        that would be larger are resized to fit inside. Left out, a batch is padded to its largest image.
    """

    task: str
    do_reduce_labels: bool
    ignore_index: int | None
    num_labels: int | None
    label_ids_to_fuse: list[int] | None
    size_divisor: int


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
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool) -> np.ndarray:
    """`(H, W, C)` or `(H, W)` of a Pillow image; to RGB as `Image.convert` does it: transparency is dropped.

    The image stays as stored, in agreement with its label map and with `image.size`; a viewer's rotation (EXIF) is
    only warned about. Files given by path are turned upright.
    """
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation not in (0, 1):
        logger.warning_once(
            f"an image carries EXIF orientation {orientation} and is used as stored, which viewers show turned:"
            " apply PIL.ImageOps.exif_transpose first, or pass the file's path"
        )
    if not do_convert_rgb:
        return np.array(image)
    if image.mode in DEEP_MODES:
        raise ValueError(f"an image has mode {image.mode!r}, more than 8 bits: scale it to 0..255 and 8 bits first")
    return np.array(image.convert("RGB"))


def channels_axis(shape: tuple[int, ...], input_data_format: str | ChannelDimension | None) -> int:
    """0 or 2: where the channels of a 3-dimensional array are. RGB and RGBA win over grey where both fit."""
    if input_data_format is not None:
        return 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    for channels in ((3, 4), (1,)):
        first, last = shape[0] in channels, shape[2] in channels
        if first and last:
            logger.warning_once(f"an image of shape {shape} is read as (C, H, W): pass input_data_format to be sure")
        if first or last:
            return 0 if first else 2
    raise ValueError(f"an image has shape {shape}: pass (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels")


def eight_bits(image: Any) -> Any:
    """An array or tensor of uint8 or floating point; other integers only if they fit into 8 bits."""
    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 or image.is_floating_point():
            return image
        image = image.cpu().numpy()
    elif image.dtype == np.uint8 or image.dtype.kind == "f":
        return image
    if image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
        values = f"{image.min()}..{image.max()}" if image.dtype.kind in "iub" else "no numbers"
        raise ValueError(f"an image of dtype {image.dtype} holds {values}: pass 8 bits, 0..255")
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

    # What the backends bring.
    resize: Callable[..., Any]

    def __init__(self, **kwargs: Unpack[FASegImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]
        check_settings(self.task, self.size_divisor, self.pad_size, self.ignore_index, self.do_reduce_labels)

    # ---- settings -------------------------------------------------------------------------------------------------

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size `(height, width)` to which this processor resizes an image."""
        if not self.do_resize:
            return height, width
        return network_size(height, width, as_size_dict(self.size), as_size_dict(self.pad_size))

    def canvas_size(self, sizes: Any) -> tuple[int, int]:
        """The size `(height, width)` to which this processor pads a batch of images of these (resized) sizes."""
        return padded_size(sizes, as_size_dict(self.pad_size), self.size_divisor if self.do_pad else 0)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        super()._validate_preprocess_kwargs(**kwargs)
        names = ("task", "size_divisor", "pad_size", "ignore_index", "do_reduce_labels")
        check_settings(*(kwargs[name] for name in names))
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop=True is not offered: crop the image and its label map first")

    def to_dict(self) -> dict[str, Any]:
        """Settings as saved in `preprocessor_config.json`; `auto_map` names both backends."""
        settings = super().to_dict()
        if "auto_map" in settings:
            settings["auto_map"]["AutoImageProcessor"] = {
                "torchvision": "image_processing_faseg.FASegImageProcessor",
                "pil": "image_processing_pil_faseg.FASegImageProcessorPil",
            }
        return settings

    # ---- reading --------------------------------------------------------------------------------------------------

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Paths and URLs read by Pillow in both backends: upright and RGB."""
        if isinstance(image_url_or_urls, os.PathLike):
            image_url_or_urls = os.fspath(image_url_or_urls)
        return ImageProcessingMixin.fetch_images(self, image_url_or_urls)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        """A flat list of images from an image, a batch array, or lists of them."""
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
        **kwargs: Any,
    ) -> Any:
        """One image as the backend's array `(C, H, W)`, uint8 or floating point."""
        if isinstance(image, PIL.Image.Image):
            image = pil_to_array(image, bool(do_convert_rgb))
            input_data_format = ChannelDimension.LAST
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(f"an image has shape {tuple(image.shape)}: pass (H, W), (H, W, C) or (C, H, W)")
        if image.ndim == 2:
            image = image[None]
        elif channels_axis(tuple(image.shape), input_data_format) == 2:
            image = image.permute(2, 0, 1) if isinstance(image, torch.Tensor) else image.transpose(2, 0, 1)
        if do_convert_rgb:
            image = image[[0, 0, 0]] if image.shape[0] == 1 else image[:3]
        return self.to_backend(eight_bits(image), device)

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
            images: one or more Pillow images, NumPy arrays or torch tensors (0..255), paths or URLs.
            segmentation_maps: per image a map `(H, W)` of class ids, or of instance ids; as large as the image.
            instance_id_to_semantic_id: for instance maps, the class of each id, one dictionary for all or one each.
            kwargs: any setting of the processor, for this call.
        Returns:
            `pixel_values` `(B, 3, H, W)` float32, `pixel_mask` `(B, H, W)` int64 with 1 on the image and 0 on the
            padding, `input_sizes` B sizes of the resized images before padding; with maps also `mask_labels`, per
            image `(T, H, W)` float32, and `class_labels`, per image `(T,)` int64. An unlabelled image has T = 0.
        Raises:
            ValueError: an image or map that cannot be right; the message names it and the fix.
        """
        return super().preprocess(images, segmentation_maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        reading: Any = {name: kwargs.get(name) for name in ("do_convert_rgb", "input_data_format", "device")}
        prepared = self._prepare_image_like_inputs(images, **reading)
        return self._preprocess(prepared, segmentation_maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess(
        self, images: list[Any], segmentation_maps: Any, instance_id_to_semantic_id: Any, **kwargs: Any
    ) -> BatchFeature:
        pad_size, size_divisor = kwargs["pad_size"], kwargs["size_divisor"] if kwargs["do_pad"] else 0
        original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        sizes = original_sizes
        if kwargs["do_resize"]:
            sizes = [network_size(height, width, kwargs["size"], pad_size) for height, width in sizes]
        canvas = padded_size(sizes, pad_size, size_divisor)

        pixel_values, pixel_mask = [], []
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            check_channels(image, index, kwargs)
            if size != original_sizes[index]:
                image = self.resize(image, SizeDict(height=size[0], width=size[1]), resample=kwargs["resample"])
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
    return round_up(height, size_divisor), round_up(width, size_divisor)


def round_up(side: int, divisor: int) -> int:
    """The next multiple of `divisor`; 0 leaves the side as it is."""
    return math.ceil(side / divisor) * divisor if divisor else side


def check_channels(image: Any, index: int, kwargs: dict[str, Any]) -> None:
    """Raise or warn where normalising would be silently wrong."""
    mean = kwargs["image_mean"]
    if kwargs["do_normalize"] and isinstance(mean, (list, tuple)) and len(mean) != image.shape[0]:
        raise ValueError(
            f"image {index} has {image.shape[0]} channels but image_mean has {len(mean)}: set do_convert_rgb=True"
        )
    if kwargs["do_rescale"] and image.dtype not in (torch.uint8, np.uint8) and 0 < image.max() <= 1:
        logger.warning_once(
            f"image {index} looks already scaled to 0..1 and is scaled by {kwargs['rescale_factor']:.4g} again:"
            " pass do_rescale=False for such images"
        )


def check_settings(
    task: str, size_divisor: int, pad_size: SizeDict | None, ignore_index: int | None, do_reduce_labels: bool
) -> None:
    """Raise ValueError for settings that contradict each other."""
    if task not in TASKS:
        raise ValueError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    if not isinstance(size_divisor, int) or size_divisor < 0:
        raise ValueError(f"size_divisor={size_divisor!r}: pass 0 for none, or a whole number (the models need 32)")
    if do_reduce_labels and ignore_index is None:
        raise ValueError("do_reduce_labels=True turns label 0 into ignore_index, which is None: set ignore_index=255")
    if pad_size is None:
        return
    if not (pad_size.height and pad_size.width):
        raise ValueError(f"pad_size={dict(pad_size)}: pass height and width")
    given = (pad_size.height, pad_size.width)
    fix = (round_up(given[0], size_divisor), round_up(given[1], size_divisor))
    if given != fix:
        raise ValueError(f"pad_size {given} is no multiple of size_divisor={size_divisor}: use {fix}")
