"""From an undecoded row to a checked image and label map."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from datasets.utils.file_utils import is_local_path, xopen
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from image_processing.label_maps import unique_ids
from scripts.cli.errors import UserError
from scripts.cli.parser import start_of
from scripts.data.bands import PLAIN, ImageForm
from scripts.data.bounds import NO_FILES, Bounds
from scripts.data.class_map import ClassMap
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.image_files import MAX_BYTES, bands_of_file, check_size
from scripts.data.mask_colours import MaskColours
from scripts.data.segments import Segments
from scripts.data.sources import NAME_COLUMNS, readable
from scripts.storage.retries import with_retries


if TYPE_CHECKING:
    from scripts.data.label_encodings import SegmentForm


CHUNK_BYTES = 2**20
TURNED = (5, 6, 7, 8)  # orientations whose width is the height
LONGEST_NAME = 500  # of a sample in a line
# As Pillow names a file that has none.
OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a dataset are to be read; all that the workers that decode them need to know of it.

    Args:
        do_reduce_labels: label 0 means ignored and the classes start at 1.
        class_map: what stands for the ids of the maps, None if they stay as they are.
        colours: ids of the colours, for maps in colours; None where none are known.
        bounds: the files that the rows may name.
        image_form: the bands and the depth of the images.
        segments: how segments are read, where label maps hold such; None for maps of class ids.
    """

    image_column: str = "image"
    label_column: str = "label"
    do_reduce_labels: bool = False
    class_map: ClassMap | None = None
    bounds: Bounds = NO_FILES
    colours: MaskColours | None = None
    image_form: ImageForm = PLAIN
    segments: SegmentForm | None = None


class BadSample(UserError):
    """A sample that cannot be used, while others may: unreadable, or image and map of different sizes."""


@dataclass
class BadSamples:
    """The bad samples that a run has skipped, each counted once; stops the run when they are too many.

    Args:
        limit: how many are let pass; by default 1% of the samples of the split and at least one.
        num_examples: samples of the split; None if unknown: then those seen stand for it, once they are 100.
    """

    limit: int | None = None
    num_examples: int | None = None
    messages: list[str] = field(default_factory=list)
    seen: int = 0

    def add(self, messages: Sequence[str], seen: int = 0) -> None:
        """Counts the bad ones of a batch and shows those that are new.

        Args:
            messages: one line per bad sample, which names it (`bad` of a batch).
            seen: how many samples the batch took, good or bad.
        Raises:
            UserError: more bad ones than are let pass.
        """
        self.seen += seen
        new = [message for message in dict.fromkeys(messages) if message not in self.messages]
        for message in new:
            tqdm.write(f"skipped: {message}", file=sys.stderr)
        self.messages += new
        allowed = self.allowed()
        if allowed is not None and len(self.messages) > allowed:
            raise UserError(
                f"{len(self.messages)} bad samples, more than the {allowed} of --max_bad_samples; "
                f"the last: {self.messages[-1]}"
            )

    def allowed(self) -> int | None:
        """How many are let pass by now; None if that cannot be told yet."""
        if self.limit is not None:
            return self.limit
        samples = self.num_examples or (self.seen if self.seen >= 100 else None)
        return None if samples is None else max(1, samples // 100)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"messages": list(self.messages), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.messages, self.seen = list(state["messages"]), state["seen"]


def decode_sample(
    row: dict[str, Any], form: RowFormat, num_labels: int, index: int | str
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Image `(C, H, W)` on the scale 0..255, label map `(H, W)` uint8 or int32, and name of an undecoded row.

    The image is uint8, or float32 where it has more than 8 bits.
    The map holds the ids of `--class_map`, if there is one; with `--do_reduce_labels` they start at 1 as before.

    Args:
        num_labels: classes of the model.
        index: place of the row in its stream, which names a sample without an id or file name.
    Raises:
        BadSample: the image or the map cannot be read, or their sizes differ.
        UserError: the map cannot be meant for these classes, so that others will not be either.
    """
    name = sample_name(row, form.image_column, index)
    image = decode_image(row[form.image_column], name, form.bounds, form.image_form)
    label = decode_classes(row, form, num_labels, name)
    check_same_size(image, tuple(label.shape), name)
    return image, label, name


def decode_segments(row: dict[str, Any], form: RowFormat, index: int | str) -> tuple[torch.Tensor, Segments, str]:
    """Image as `decode_sample` gives it, segments and name of an undecoded row whose maps hold segments.

    Raises:
        BadSample, UserError: as `decode_sample`.
    """
    name = sample_name(row, form.image_column, index)
    image = decode_image(row[form.image_column], name, form.bounds, form.image_form)
    assert form.segments is not None
    segments = form.segments.decode(row, form, name)
    check_same_size(image, segments.size, name)
    return image, segments, name


def check_same_size(image: torch.Tensor, size: tuple[int, ...], name: str) -> None:
    """Raises `BadSample` unless a map has the size `(H, W)` of its image."""
    if tuple(image.shape[-2:]) != size:
        turned = tuple(image.shape[-2:]) == size[::-1]
        hint = ": turned by its EXIF orientation? Turn the map as well, or remove the image's EXIF" if turned else ""
        raise BadSample(f"sample {name}: image {tuple(image.shape[-2:])} but label map {size}{hint}")


def decode_classes(row: dict[str, Any], form: RowFormat, num_labels: int, name: str) -> torch.Tensor:
    """`(H, W)` uint8 or int32 ids of an undecoded row: what its map holds, `--class_map` applied, or the classes of
    its segments.

    Raises:
        BadSample, UserError: as `decode_sample`.
    """
    if form.segments is not None:
        return form.segments.painted(row, form, name)
    return class_ids(decode_label(row[form.label_column], name, form.bounds, form.colours), form, num_labels, name)


def class_ids(label: torch.Tensor, form: RowFormat, num_labels: int, name: str) -> torch.Tensor:
    """The ids that a decoded map stands for: as they are, or what `--class_map` makes of them.

    Raises:
        UserError: the map cannot be meant for these classes.
    """
    if form.class_map is None:
        check_labels(label, num_labels, form.do_reduce_labels, name)
        return label
    count = len(form.class_map.id2label)
    if count != num_labels:
        raise UserError(f"{form.class_map.source} makes {count} classes but the model has {num_labels}")
    return form.class_map.apply(label, name)


def sample_name(row: dict[str, Any], image_column: str, index: int | str) -> str:
    """What errors call a sample: its id column, its file, or its place in the epoch; always in UTF-8."""
    image = row.get(image_column)
    path = image.get("path") if isinstance(image, dict) else None
    names = (str(row[column]) for column in NAME_COLUMNS if row.get(column) is not None)
    name = next(names, Path(path).name if path else f"#{index}")
    return name[:LONGEST_NAME].encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes


def reason(error: Exception) -> str:
    """What `error` says without addresses in memory, so that a sample's message is the same every time."""
    return OBJECT.sub("the file", str(error))


def pillow_image(value: Any, what: str, bounds: Bounds) -> Image.Image:
    """An undecoded image as Pillow reads it, if it is of its data set; `what` names it in errors."""

    def read() -> Image.Image:
        checked = with_bytes(bounds.checked_value(value, what))
        refuse_huge(checked)
        return datasets.Image().decode_example(checked)

    return with_retries(read, what)


def decoded(value: Any, what: str, bounds: Bounds, as_array: Callable[[Any], np.ndarray]) -> np.ndarray:
    """What `as_array` makes of an undecoded image; `what` names it in errors."""
    with read_or_bad(what):
        return as_array(pillow_image(value, what, bounds))


@contextmanager
def read_or_bad(what: str) -> Iterator[None]:
    """Makes a `BadSample` of whatever a broken file raises inside the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds
        raise BadSample(f"{what}: cannot be read: {reason(error)}") from error


def with_bytes(value: Any) -> Any:
    """An undecoded image; where it is in an archive or on a server, with its bytes, so that they can be looked at.

    Raises:
        ValueError: it has more bytes than any image that is read; an archive may make them of few.
    """
    if not isinstance(value, dict) or value.get("bytes") is not None or is_local_path(value["path"]):
        return value
    content = bytearray()
    with xopen(value["path"], "rb", download_config=datasets.DownloadConfig()) as file:
        # Of some servers a read gives what has arrived, however much is asked for: only an empty one is the end.
        while part := file.read(CHUNK_BYTES):
            content += part
            if len(content) > MAX_BYTES:
                raise ValueError(f"it has more than the {MAX_BYTES} bytes that are read: cut it into tiles")
    return {**value, "bytes": bytes(content)}


def refuse_huge(value: Any) -> None:
    """Refuses an undecoded image by the size in its header: few bytes may stand for gigabytes of equal pixels.

    Raises:
        ValueError: it has more than `MAX_PIXELS`.
    """
    if not isinstance(value, dict):
        return
    source: Any = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value.get("path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error says more
        with Image.open(source) as image:
            width, height = image.size
    check_size(width, height)


def image_content(value: Any, what: str, bounds: Bounds) -> tuple[Any, bool]:
    """An undecoded image with all its bands and bits, if it is of its data set, and whether the last is transparency.

    Args:
        what: names it in errors.
    Returns:
        a Pillow image, or an array `(C, H, W)` of what Pillow does not read whole.
    """

    def read() -> tuple[Any, bool]:
        checked = with_bytes(bounds.checked_value(value, what))
        if found := bands_of_file(checked):
            return found
        return datasets.Image().decode_example(checked), False

    return with_retries(read, what)


def image_sizes(rows: Iterable[dict[str, Any]], form: RowFormat) -> Iterator[tuple[int, int]]:
    """`(height, width)` of the images of undecoded rows, upright; those unreadable left out."""
    for index, row in enumerate(readable(rows)):
        try:
            what = sample_name(row, form.image_column, index)
            image, _ = image_content(row[form.image_column], what, form.bounds)
            if isinstance(image, Image.Image):
                yield image.height, image.width
            elif isinstance(image, np.ndarray):
                yield image.shape[1], image.shape[2]
        except UserError:
            raise
        except Exception:  # PIL raises many kinds on a broken file; the run will name it
            continue


def image_size(row: dict[str, Any], form: RowFormat, name: str) -> tuple[int, int]:
    """`(height, width)` of the image of an undecoded row, upright, of its header alone where Pillow reads that."""
    what = f"image of sample {name}"
    value = with_bytes(form.bounds.checked_value(row[form.image_column], what))
    if isinstance(value, dict):
        try:
            with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED
                return image.size if turned else image.size[::-1]
        except UnidentifiedImageError:  # such as arrays
            pass
    size = decode_image(value, name, form.bounds, form.image_form).shape[-2:]
    return size[0], size[1]


def decode_image(value: Any, name: str, bounds: Bounds = NO_FILES, form: ImageForm = PLAIN) -> torch.Tensor:
    """`(C, H, W)` of an undecoded image on the scale 0..255, turned upright by its EXIF orientation.

    uint8, or float32 where it has more than 8 bits; RGB unless the form says otherwise.
    """
    what = f"image of sample {name}"
    with read_or_bad(what):
        return torch.from_numpy(np.ascontiguousarray(form.pixels(*image_content(value, what, bounds))))


def decode_label(value: Any, name: str, bounds: Bounds = NO_FILES, colours: MaskColours | None = None) -> torch.Tensor:
    """`(H, W)` uint8 or int32 class ids of an undecoded image, of its colours where `colours` says so.

    Raises:
        BadSample: it cannot be read.
        UserError: it holds no ids, which concerns the other maps as well.
    """
    if value is None:
        raise BadSample(f"label map of sample {name}: there is none")

    def as_array(image: Image.Image) -> np.ndarray:
        return colours.label_map(image, name) if colours and colours.applies_to(image) else np.asarray(image)

    label = decoded(value, f"label map of sample {name}", bounds, as_array)
    if label.ndim != 2:
        are_equal = label.ndim == 3 and not (label[..., :3] != label[..., :1]).any()
        fix = "its channels are equal: keep one" if are_equal else "give --mask_colors with the colour of each class"
        raise UserError(
            f"label map of sample {name} has shape {label.shape}: need one channel of class ids, not colours ({fix})"
        )
    if label.dtype.kind not in "uib":
        raise UserError(f"label map of sample {name} holds {label.dtype}: need integers, one class id per pixel")
    if label.min(initial=0) < 0:
        raise UserError(f"label map of sample {name} holds {label.min()}: ids start at 0, ignored is {IGNORE_INDEX}")
    return torch.from_numpy(label.astype(np.uint8 if label.max(initial=0) < 256 else np.int32))


def check_labels(label: torch.Tensor, num_labels: int, do_reduce_labels: bool, name: str) -> None:
    """Refuses a map with an id outside the classes.

    Raises:
        UserError: names the id, the sample and the likely cause.
    """
    present = unique_ids(label.numpy()).tolist()
    first, last = (1, num_labels) if do_reduce_labels else (0, num_labels - 1)
    ids = [value for value in present if value != IGNORE_INDEX and not (do_reduce_labels and value == 0)]
    outside = [value for value in ids if not first <= value <= last]
    if outside:
        raise UserError(
            f"label {outside[-1]} in image {name} but {num_labels} classes ({first}..{last}): "
            + likely_cause(ids, outside, num_labels, do_reduce_labels)
        )


def likely_cause(ids: list[int], outside: list[int], num_labels: int, do_reduce_labels: bool) -> str:
    """Why a map holds ids outside the classes, as far as its ids tell, and the fix.

    Args:
        ids: ids of the map in ascending order, ignored ones left out.
        outside: those that are no class.
    """
    largest = outside[-1]
    if largest == num_labels and not do_reduce_labels:
        return "set --do_reduce_labels? (ids that start at 1 are off by one) If 0 is a class too, check --id2label"
    if largest > 65535:
        return "colours coded as R + 256 G + 65536 B? Convert them to class ids"
    if largest > IGNORE_INDEX:
        return (
            "ids of instances? --task instance --label_encoding instances reads them; class * 1000 + instance? Turn "
            "them into class ids"
        )
    if (num_labels, do_reduce_labels) in ((19, False), (171, True)) and largest <= num_labels + 14:
        return f"raw ids of Cityscapes or COCO-Stuff? {start_of('eval')} --protocol reads them with --label_ids raw"
    if len(outside) > 10:
        return "grey values between the ids, as after JPEG or a resize with interpolation? Or check --id2label"
    return f"check --id2label; if {largest} marks unlabelled pixels, --class_map with `ignore: [{largest}]` drops it"


def reduced_labels(ids: np.ndarray) -> np.ndarray:
    """uint8 ids with 0 ignored and classes from 1 on -> classes from 0 on, ignored 255."""
    return np.where(ids == IGNORE_INDEX, np.uint8(IGNORE_INDEX), ids - np.uint8(1))
