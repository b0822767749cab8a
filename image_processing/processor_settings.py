"""The settings of the processor, checked by name and value: when it is made, loaded, and at each call."""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .intensities import is_range


TASKS = ("semantic", "instance", "panoptic")
# Names in a saved processor that are no settings.
SAVED_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
FLAGS = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad", "do_reduce_labels")
# What torchvision and Pillow both know.
RESAMPLE = (
    PILImageResampling.NEAREST,
    PILImageResampling.BILINEAR,
    PILImageResampling.BICUBIC,
    PILImageResampling.LANCZOS,
)
MAX_SIDE = 2**15
BOUNDS = ("longest_edge", "max_height", "max_width")  # of sizes: they only keep others small


class FASegImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of the processor, beside those of transformers; `FASegImageProcessorBase` has their defaults.

    task: What the model was trained for: `"semantic"`, `"instance"` or `"panoptic"`. Decides which `post_process_*`
        methods there are, and so what `pipeline("image-segmentation")` answers.
    do_reduce_labels: Label maps store class ids one too high and 0 for unlabelled pixels (ADE20K): 0 becomes
        `ignore_index`, the others go down by one.
    ignore_index: The id of unlabelled pixels in label maps; they belong to no mask. An id that is no class, or 0.
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
    intensity_range: list[float | int] | tuple[float | int, ...] | None


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first of `names` that is no setting, with the nearest that is one."""
    known = sorted(known)
    for name in names:
        if name not in known:
            nearest = get_close_matches(name, known, n=1, cutoff=0.5)
            fix = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(known)}"
            raise ValueError(f"{name} is no setting of the image processor: {fix}")


def check_size(name: str, size: Any) -> None:
    """Raise ValueError unless `size`, as a user gives it, holds whole numbers of pixels from 1 on."""
    if size is None:
        return
    if isinstance(size, dict) and (unknown := set(size) - set(SizeDict.__dataclass_fields__)):
        raise ValueError(f"{name}={size}: {unknown.pop()!r} is unknown, pass shortest_edge and longest_edge")
    if isinstance(size, (list, tuple)) and len(size) != 2:
        raise ValueError(f"{name}={size}: pass (height, width), or a dictionary")
    if isinstance(size, (dict, SizeDict)):
        sides = [min(side, MAX_SIDE) if is_whole(side) and key in BOUNDS else side for key, side in dict(size).items()]
    else:
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if not all(is_whole(side) and 1 <= side <= MAX_SIDE for side in sides):
        given = dict(size) if isinstance(size, SizeDict) else size
        raise ValueError(f"{name}={given}: pass whole numbers of pixels, from 1 to {MAX_SIDE}")


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that cannot be, or that contradict each other; sizes are `SizeDict`s by now."""
    for name in FLAGS:
        require(settings, name, settings[name] is None or isinstance(settings[name], bool), "pass True or False")
    if settings["task"] not in TASKS:
        raise ValueError(f"task={settings['task']!r}: choose one of {', '.join(TASKS)}")
    if settings.get("do_center_crop"):
        raise ValueError("do_center_crop=True is not offered: crop the image and its label map first")
    layout = settings.get("data_format")
    require(settings, "data_format", layout in (None, ChannelDimension.FIRST), "the models take channels first, only")
    wanted = settings.get("return_tensors")
    require(settings, "return_tensors", wanted in (None, "pt", "np"), "choose pt or np")
    names = ", ".join(f"{kind.value} ({kind.name.lower()})" for kind in RESAMPLE)
    resample = getattr(settings["resample"], "value", settings["resample"])
    known = resample is None or resample in RESAMPLE or resample in [kind.name.lower() for kind in RESAMPLE]
    require(settings, "resample", known or resample == "nearest-exact", f"choose one of {names}")
    check_colours(settings)
    limits = settings.get("intensity_range")
    require(settings, "intensity_range", limits is None or is_range(limits), "pass two numbers, [low, high]")
    check_labels(settings)
    check_padding(settings["size_divisor"], settings["pad_size"])


def pillow_filter(resample: Any) -> PILImageResampling:
    """Pillow's name of a filter, which may be a number, a name, or torchvision's; bilinear for None."""
    value = getattr(resample, "value", resample)
    names = {kind.name.lower(): kind for kind in RESAMPLE} | {"nearest-exact": PILImageResampling.NEAREST}
    if value is None:
        return PILImageResampling.BILINEAR
    return names[value] if isinstance(value, str) else PILImageResampling(value)


def require(settings: Mapping[str, Any], name: str, condition: bool, fix: str) -> None:
    """Raise ValueError that names the setting, its value and the fix unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={settings[name]!r}: {fix}")


def check_colours(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless the scale, mean and deviation are finite numbers by which one can divide."""
    mean, std, factor = settings["image_mean"], settings["image_std"], settings["rescale_factor"]
    if factor is not None:
        finite = isinstance(factor, Real) and 1e-12 <= float(factor) <= 1e12
        require(settings, "rescale_factor", finite, "pass a positive number, 1/255 for 8 bits")
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = settings[name] if isinstance(settings[name], (list, tuple)) else [settings[name]]
        right = all(v is None or (isinstance(v, Real) and least < float(v) < math.inf) for v in values)
        fix = "pass finite numbers, one per channel" + (" and above 0" if least == 0 else "")
        require(settings, name, len(values) > 0 and right, fix)
    if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and len(mean) != len(std):
        raise ValueError(f"image_mean={mean} and image_std={std}: pass as many numbers for both")


def check_labels(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for classes that cannot be, and for an ignored id that is one of them."""
    count, ignored, stuff = settings["num_labels"], settings["ignore_index"], settings["label_ids_to_fuse"]
    whole = count is None or (is_whole(count) and count >= 1)
    require(settings, "num_labels", whole, "pass a whole number from 1 on, or None for no check")
    require(settings, "ignore_index", ignored is None or is_whole(ignored), "pass a whole number or None")
    if settings["do_reduce_labels"] and ignored is None:
        raise ValueError("do_reduce_labels=True turns label 0 into ignore_index, which is None: set ignore_index=255")
    if settings["do_reduce_labels"] and ignored == 0:
        raise ValueError("do_reduce_labels=True makes 0 the first class, and ignore_index=0: set ignore_index=255")
    # 0 may be ignored, the background that is no class; any other id of a class is a mistake.
    last = None if count is None else count - 1 + bool(settings["do_reduce_labels"])
    if last is not None and ignored is not None and 0 < ignored <= last:
        raise ValueError(
            f"ignore_index={ignored} is the id of a class, for num_labels={count}: choose one that is none, such as"
            f" ignore_index={max(255, last + 1) if ignored != 255 else max(65535, last + 1)}"
        )
    if stuff is not None:
        right = isinstance(stuff, Iterable) and not isinstance(stuff, str) and all(is_whole(id_) for id_ in stuff)
        require(settings, "label_ids_to_fuse", right, "pass a list of class ids")
        require(settings, "label_ids_to_fuse", min(stuff, default=0) >= 0, "class ids start at 0")
        inside = count is None or max(stuff, default=0) < count
        require(settings, "label_ids_to_fuse", inside, f"num_labels={count} has classes 0..{(count or 0) - 1}")


def check_padding(size_divisor: int, pad_size: SizeDict | None) -> None:
    """Raise ValueError for padding that cannot be."""
    if not is_whole(size_divisor) or not 0 <= size_divisor <= MAX_SIDE:
        raise ValueError(f"size_divisor={size_divisor!r}: pass 0 for none, or a whole number (the models need 32)")
    if pad_size is None:
        return
    if not (pad_size.height and pad_size.width):
        raise ValueError(f"pad_size={dict(pad_size)}: pass height and width")
    given = (pad_size.height, pad_size.width)
    fix = (round_up(given[0], size_divisor), round_up(given[1], size_divisor))
    if given != fix:
        raise ValueError(f"pad_size {given} is no multiple of size_divisor={size_divisor}: use {fix}")


def round_up(side: int, divisor: int) -> int:
    """The next multiple of `divisor`; 0 leaves the side as it is."""
    return math.ceil(side / divisor) * divisor if divisor else side
