"""Label maps `(H, W)` of class or instance ids -> one binary mask and one class id per segment.

Everything here is NumPy, so that both backends of the processor give the same integers.
"""

import os
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps


def split_label_maps(segmentation_maps: Any, num_images: int) -> list[Any]:
    """One entry per image: a list, a batch array `(B, H, W)`, or a single map when there is a single image."""
    is_batch = getattr(segmentation_maps, "ndim", 2) == 3 and segmentation_maps.shape[0] == num_images
    if is_batch or isinstance(segmentation_maps, (list, tuple)):
        maps = list(segmentation_maps)
    else:
        maps = [segmentation_maps]
    if len(maps) != num_images:
        shape = getattr(segmentation_maps, "shape", None)
        got = f"{len(maps)} segmentation maps" if shape is None else f"segmentation maps of shape {tuple(shape)}"
        raise ValueError(f"{got} for {num_images} images: pass one map (H, W) per image")
    return maps


def read_label_map(label_map: Any, index: int) -> np.ndarray:
    """One label map as an int64 array `(H, W)`.

    Args:
        label_map: PIL image of one channel, NumPy array or torch tensor `(H, W)`, `(1, H, W)` or `(H, W, 1)`, or the
            path of an image file. Floating point numbers must be whole.
        index: position in the batch, for the error messages.
    Raises:
        ValueError: more than one channel (a colour-coded map), numbers that are not whole, an empty map.
    """
    if isinstance(label_map, (str, os.PathLike)):
        with PIL.Image.open(label_map) as file:
            label_map = PIL.ImageOps.exif_transpose(file)
    elif hasattr(label_map, "detach"):
        label_map = label_map.detach().cpu()
    array = np.asarray(label_map)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2:
        raise ValueError(
            f"segmentation map {index} has shape {array.shape}: pass one id per pixel, (H, W)."
            " Turn a COCO panoptic PNG into ids with R + 256 * G + 65536 * B first."
        )
    if array.size == 0:
        raise ValueError(f"segmentation map {index} is empty: its shape is {array.shape}")
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.trunc(array)) or not np.isfinite(array).all():
            value = array[~np.isfinite(array) | (array != np.trunc(array))].flat[0]
            raise ValueError(f"segmentation map {index} holds {value}: pass whole numbers, one id per pixel")
    elif array.dtype.kind not in "iub":
        raise ValueError(f"segmentation map {index} has dtype {array.dtype}: pass integers, one id per pixel")
    return array.astype(np.int64)


def unique_ids(label_map: np.ndarray) -> np.ndarray:
    """The sorted ids of a map; counted rather than sorted where the ids are small."""
    if 0 <= label_map.min() and label_map.max() < 65536:
        return np.flatnonzero(np.bincount(label_map.ravel()))
    return np.unique(label_map)


def check_ids(
    label_map: np.ndarray,
    index: int,
    ignore_index: int | None,
    do_reduce_labels: bool,
    num_labels: int | None,
    id_to_class: dict[int, int] | None,
) -> None:
    """Raise ValueError for an id that is no class, naming the id, the map and the fix.

    Looks at the map as given, before resizing can drop a thin segment.
    """
    ids = [int(id_) for id_ in unique_ids(label_map)]
    if id_to_class is None:
        classes = {id_: id_ for id_ in ids if id_ != ignore_index}
    else:
        void = {ignore_index, 0} if do_reduce_labels else {ignore_index}
        unknown = [id_ for id_ in ids if id_ not in id_to_class and id_ not in void]
        if unknown:
            raise ValueError(
                f"id {unknown[0]} of segmentation map {index} is not in instance_id_to_semantic_id:"
                f" add it, or set ignore_index={unknown[0]} if it marks unlabelled pixels"
            )
        classes = {id_: int(id_to_class[id_]) for id_ in ids if id_ in id_to_class}
    first = 1 if do_reduce_labels else 0
    for id_, label in classes.items():
        if do_reduce_labels and label == 0:
            continue
        named = f"label {label} in segmentation map {index}" + ("" if id_to_class is None else f" (id {id_})")
        if label < 0:
            raise ValueError(f"{named} is negative: unlabelled pixels are marked with ignore_index={ignore_index}")
        if num_labels is not None and label >= num_labels + first:
            count = max(classes.values()) + 1 - first
            fix = f"set num_labels={count} if the model has so many, or map it to a class of id2label or ignore_index"
            if not do_reduce_labels and label == num_labels:
                # Either may be meant, and do_reduce_labels drops what is stored as 0.
                fix = f"set num_labels={count} if the model has so many, or do_reduce_labels=True if 0 is no class"
            raise ValueError(
                f"{named} but {num_labels} classes ({first}..{num_labels - 1 + first},"
                f" ignore_index={ignore_index}): {fix}"
            )


def nearest_centres(before: int, after: int) -> np.ndarray:
    """Index of the pixel, of `before` along a side, that each of `after` has its centre in.

    As PIL's NEAREST and torch's "nearest-exact", but for centres on the border of two pixels, where these round as
    they come.
    """
    return ((np.arange(after) + 0.5) * (before / after)).astype(np.int64).clip(max=before - 1)


def resize_label_map(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour at pixel centres.

    Deviation: the reference samples training maps with torch's "nearest" (pixel corners); centres agree with the
    bilinear image. Guarded by `test_label_map_resize_is_centred`.
    """
    height, width = label_map.shape
    if (height, width) == size:
        return label_map
    return label_map[nearest_centres(height, size[0])[:, None], nearest_centres(width, size[1])]


def label_map_to_masks(
    label_map: np.ndarray,
    canvas: tuple[int, int],
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
    id_to_class: dict[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Binary masks and class ids of the segments of one map, in ascending order of their ids.

    Args:
        label_map: `(h, w)` int64 ids, already at the network's size.
        canvas: `(H, W)` to pad to, right and bottom; the padding belongs to no mask.
        ignore_index: id that marks unlabelled pixels. An id that `id_to_class` names is a segment all the same.
        do_reduce_labels: class ids are stored one too high and 0 means unlabelled (ADE20K).
        id_to_class: for instance maps, the class id of each id, both as stored.
    Returns:
        masks `(T, H, W)` float32 of zeros and ones, classes `(T,)` int64; T is 0 where nothing is labelled.
    """
    masks: list[np.ndarray] = []
    classes: list[int] = []
    for id_ in unique_ids(label_map):
        mapped = id_to_class is not None and int(id_) in id_to_class
        if (id_ == ignore_index and not mapped) or (do_reduce_labels and id_ == 0):
            continue
        label = int(id_) if id_to_class is None else int(id_to_class[int(id_)])
        label -= int(do_reduce_labels)
        if label < 0:
            continue
        mask = np.zeros(canvas, dtype=np.float32)
        mask[: label_map.shape[0], : label_map.shape[1]] = label_map == id_
        masks.append(mask)
        classes.append(label)
    stacked = np.stack(masks) if masks else np.zeros((0, *canvas), dtype=np.float32)
    return stacked, np.asarray(classes, dtype=np.int64)
