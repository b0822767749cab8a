"""A model by its Hub name or folder, and what it finds in an image. Needs transformers, but not the FASeg project."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from PIL import Image, ImageOps
from tiles import BlendedRows, Rows, Span, spans
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation
from visualization import IGNORE_INDEX, Palette, label_image, model_palette, segment_colours, with_legend


TASKS = ("semantic", "instance", "panoptic")
THRESHOLDS = {"instance": 0.5, "panoptic": 0.8}  # those of the processor
LEAST_TILE = 32  # pixels
MOST_SHRINK = 2  # times smaller without a word
STRIP = 16  # rows of tiles' scores at a time
Size = tuple[int, int]  # height and width
DEEP_MODES = ("I", "F")  # with I;16 and the like: more than 8 bits


class Problem(Exception):
    """Something that a visitor can put right; the page shows it as it stands."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its processor."""

    model: Any
    processor: Any

    @property
    def tasks(self) -> list[str]:
        """What the processor offers, the task that the model was trained for first."""
        offered = [task for task in TASKS if hasattr(self.processor, f"post_process_{task}_segmentation")]
        return sorted(offered, key=lambda task: task != getattr(self.processor, "task", None))

    @property
    def names(self) -> dict[int, str]:
        """Class id -> name."""
        return {int(index): str(name) for index, name in self.model.config.id2label.items()}


@dataclass(frozen=True)
class Found:
    """A class of a semantic map, or a segment: `number` is its value in `Result.regions`."""

    number: int
    name: str
    score: float | None
    pixels: int


@dataclass(frozen=True)
class Result:
    """What was found in one image.

    Attributes:
        class_ids: `(H, W)` class of each pixel, 255 where nothing was found.
        regions: `(H, W)` the same as `class_ids` for a semantic map, else numbers of segments from 1, 255 where there
            is none and no segment's.
        found: by area, largest first.
        palette: colours of the regions: of classes, if the model has its dataset's, or a shade for each segment.
        class_palette: colours of the classes.
        note: what the visitor should know of it, in a sentence; often nothing.
    """

    image: Image.Image
    class_ids: np.ndarray
    regions: np.ndarray
    found: list[Found]
    palette: Palette | None = None
    class_palette: Palette | None = None
    note: str = ""

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Writes the label map first, then the overlay and, if there are segments, their map and list."""
        files = [folder / f"{stem}_labels.png", folder / f"{stem}_overlay.png"]
        label_image(self.class_ids, self.class_palette).save(files[0])
        numbered = {entry.number: entry.name for entry in self.found}
        with_legend(self.image, self.regions, numbered, self.palette).save(files[1])
        if self.regions is not self.class_ids:
            files += [folder / f"{stem}_segments.png", folder / f"{stem}_segments.json"]
            label_image(self.regions, self.palette).save(files[2])
            files[3].write_text(json.dumps([vars(entry) for entry in self.found], indent=1), encoding="utf-8")
        return files


@lru_cache(maxsize=2)
def load_model(name: str) -> LoadedModel:
    """The model and processor of a folder or a Hub repository, whose own code is run.

    Raises:
        Problem: there is none, or it is no segmentation model.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise Problem(f"The folder {name} holds no config.json: name the folder of an exported model.")
    else:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise Problem(f"{name!r} is neither a folder nor a name on the Hub, as user/model is.") from error
    try:
        # The model first: the processor's errors do not say why it could not be fetched.
        model = AutoModelForUniversalSegmentation.from_pretrained(name, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    except Exception as error:  # transformers raises many kinds, and remote code any
        raise Problem(f"The model {name} cannot be loaded: {loading_failure(error)}") from error
    if getattr(processor, "intensity_range", None) is not None or len(list(processor.image_mean)) != 3:
        raise Problem(f"The model {name} reads other images than RGB of 8 bits, which this page does not take.")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = model.to(device).eval()
    if can_be_compiled(model):
        # Without CUDA graphs: the page answers in many threads, each of which would keep graphs of its own.
        model.compile_for_inference(mode="default")
    return LoadedModel(model, processor)


def can_be_compiled(model: Any) -> bool:
    """Whether compiling is worth its minutes and can work: on CUDA, with the C compiler that Triton needs, and not by
    the code of models exported before there was a way to."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return (
        model.device.type == "cuda"
        and hasattr(model, "compile_for_inference")
        and any(shutil.which(name) for name in compilers if name)
    )


def loading_failure(error: BaseException) -> str:
    """In one line, why `from_pretrained` failed, with what to do about it."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 20:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "its access is restricted: ask for it on its page, and give the Space a token."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the Hub has no such model, or it is private: check the name."
    if any(isinstance(cause, ConnectionError) or "offline" in str(cause).lower() for cause in causes):
        return "it is not on this machine, and the Hub cannot be reached: try again later."
    if "Unrecognized" in str(error):
        return "it is not a universal segmentation model: choose one that FASeg exported."
    return " ".join(str(error).split())[:300] or type(error).__name__


def read_image(path: Path, max_pixels: int) -> Image.Image:
    """RGB image, upright by its EXIF orientation.

    Raises:
        Problem: it cannot be read, has more than 8 bits per channel, or more than `max_pixels`.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Problem(
                    f"{path.name} is too large: {width} x {height} are {width * height / 1e6:.1f} megapixels, "
                    f"at most {max_pixels / 1e6:.1f} are taken. Make it smaller and try again."
                )
            if image.mode.startswith(DEEP_MODES):
                raise Problem(f"{path.name} has more than 8 bits per channel (mode {image.mode}): convert it to 8.")
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise Problem(f"{path.name} is too large: at most {max_pixels / 1e6:.1f} megapixels are taken.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise Problem(f"{path.name} cannot be read: is it an image (PNG, JPEG, WebP, ...), and whole?") from error


@torch.no_grad()
def segment(
    loaded: LoadedModel, image: Image.Image, task: str, threshold: float, tile: int = 0, shortest_edge: int = 0
) -> Result:
    """What the model finds in an RGB image.

    Args:
        task: one of `loaded.tasks`.
        threshold: least score of an instance or panoptic segment, in `[0, 1]`; a semantic map has none.
        tile: side of the tiles in which the image is read, 0 to read it whole.
        shortest_edge: pixels of the shorter side at which it is read; 0: the model's own, or with tiles the image's.
    Raises:
        Problem: a task that the model does not offer, or a threshold or a size that is none.
    """
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise Problem(f"The threshold is {threshold!r}: give a number from 0 to 1.")
    if task not in loaded.tasks:
        raise Problem(f"The model offers no {task} segmentation: choose {' or '.join(loaded.tasks)}.")
    if tile and task != "semantic":
        raise Problem("Tiles are for semantic maps: choose the task semantic, or the tile 0.")
    if tile and tile < LEAST_TILE:
        raise Problem(f"The tile is {tile}: give 0, or at least {LEAST_TILE} pixels.")
    if tile:
        view = resized(image, shortest_edge)
        class_ids = tiled_labels(loaded, view, tile)
        if view.size != image.size:
            enlarged = Image.fromarray(class_ids.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST)
            class_ids = np.asarray(enlarged).astype(class_ids.dtype)
        return semantic_result(loaded, image, class_ids, (view.height, view.width))
    size = {"size": {"shortest_edge": shortest_edge, "longest_edge": 4 * shortest_edge}} if shortest_edge else {}
    inputs = loaded.processor(images=[image], return_tensors="pt", **size)
    read_at = tuple(int(side) for side in inputs["input_sizes"][0])
    outputs = loaded.model(**{key: inputs[key].to(loaded.model.device) for key in ("pixel_values", "pixel_mask")})
    post_process = getattr(loaded.processor, f"post_process_{task}_segmentation")
    settings = {} if task == "semantic" else {"threshold": threshold}
    answer = post_process(
        outputs,
        target_sizes=[(image.height, image.width)],
        input_sizes=inputs["input_sizes"],
        **settings,
    )[0]
    if task == "semantic":
        return semantic_result(loaded, image, answer.cpu().numpy(), read_at)
    colours = model_palette(loaded.model.config)
    return replace(segments_result(image, answer, loaded.names, colours), note=shrink_note(image, read_at))


def semantic_result(loaded: LoadedModel, image: Image.Image, class_ids: np.ndarray, read_at: Size) -> Result:
    """A label map, with the area of each of its classes."""
    ids, pixels = np.unique(class_ids, return_counts=True)
    found = [
        Found(index, loaded.names.get(index, str(index)), None, area)
        for index, area in zip(ids.tolist(), pixels.tolist(), strict=True)
    ]
    palette = model_palette(loaded.model.config)
    return Result(image, class_ids, class_ids, by_area(found), palette, palette, shrink_note(image, read_at))


def shrink_note(image: Image.Image, read_at: Size) -> str:
    """A sentence if the model read the image far smaller than it is."""
    times = max(image.height / read_at[0], image.width / read_at[1])
    if times <= MOST_SHRINK:
        return ""
    return (
        f"Read at {read_at[1]} x {read_at[0]} pixels, {times:.1f} times smaller than it is: what is small may be "
        "missed. Set a tile, or a larger shortest edge."
    )


def resized(image: Image.Image, shortest_edge: int) -> Image.Image:
    """An image whose shorter side has so many pixels; as it is for 0."""
    if not shortest_edge:
        return image
    scale = shortest_edge / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


@torch.no_grad()
def tiled_labels(loaded: LoadedModel, image: Image.Image, tile: int) -> np.ndarray:
    """Label map of an image that is read in square tiles, which share a quarter of their side.

    Raises:
        Problem: the model's code is older than tiles are.
    """

    def read(down: Span, across: Span) -> Rows:
        piece = image.crop((across.start, down.start, across.stop, down.stop))
        inputs = loaded.processor(images=[piece], return_tensors="pt", do_resize=False)
        outputs = loaded.model(**{key: inputs[key].to(loaded.model.device) for key in ("pixel_values", "pixel_mask")})
        (scores,) = loaded.processor.semantic_scores(outputs, input_sizes=inputs["input_sizes"])
        if not hasattr(scores, "rows"):
            raise Problem("The code of this model is older than tiles are: export it again, or choose the tile 0.")
        return scores

    down, across = (spans(side, tile, tile - tile // 4, falling=True) for side in (image.height, image.width))
    blended = BlendedRows(down, across, read)
    labels = np.empty((image.height, image.width), dtype=np.int64)
    for start in range(0, image.height, STRIP):
        stop = min(start + STRIP, image.height)
        labels[start:stop] = blended.rows(start, stop).argmax(dim=-1).cpu().numpy()
    return labels


def segments_result(
    image: Image.Image, answer: dict[str, Any], names: dict[int, str], palette: Palette | None = None
) -> Result:
    """Of the processor's map of segments and their list, what is seen of each segment.

    Args:
        palette: of the classes.
    """
    segment_map = answer["segmentation"].cpu().numpy()
    class_ids, regions = np.full_like(segment_map, IGNORE_INDEX), np.full_like(segment_map, IGNORE_INDEX)
    found, labels = [], {}
    for entry in answer["segments_info"]:
        inside = segment_map == entry["id"]
        if not inside.any():  # covered by better instances
            continue
        number, label = len(found) + 1 + (len(found) + 1 >= IGNORE_INDEX), int(entry["label_id"])
        class_ids[inside], regions[inside], labels[number] = label, number, label
        name = f"{names.get(label, label)} {number}"
        found.append(Found(number, name, entry["score"], int(inside.sum())))
    return Result(image, class_ids, regions, by_area(found), segment_colours(labels, palette), palette)


def by_area(found: list[Found]) -> list[Found]:
    """Largest first."""
    return sorted(found, key=lambda entry: -entry.pixels)
