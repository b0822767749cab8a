"""What `predict.py` writes of each image: label maps, overlays, probabilities, confidence, regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from image_processing.semantic_labels import ScoreRows
from scripts.cli.errors import UserError, errors_explained
from scripts.data.bands import for_eyes
from scripts.drawing.png import write_png
from scripts.drawing.visualization import Palette, label_image, with_legend
from scripts.inference import regions
from scripts.inference.output_kinds import COMMON_FILES, ENDINGS
from scripts.inference.predictors import LEAST_SUM, Confidence, Predictor, Watcher, labels_of
from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK, check_output_file


def probabilities_of(scores: Tensor, softmax: bool) -> Tensor:
    """Class scores `(n, width, K)` as probabilities in 0..1 that sum to 1: their softmax, or each one's share of all.
    Shares are 0 where nothing was found at all, that is, where the scores sum to less than 1e-38."""
    return scores.softmax(-1) if softmax else scores / scores.sum(-1, keepdim=True).clamp(min=LEAST_SUM)


@contextmanager
def probability_file(file: Path, scores: ScoreRows, softmax: bool) -> Iterator[Watcher]:
    """A watcher of an image's scores that writes their probabilities: an array `(H, W, K)` of float16, as NumPy saves
    it, a few rows at a time. The project's mark stands behind the array, where NumPy does not look."""
    with atomic_file(file) as partial, partial.open("wb") as stream:
        kind = np.lib.format.dtype_to_descr(np.dtype(np.float16))
        shape = (*scores.size, scores.num_classes)
        np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})

        def write(start: int, block: Tensor) -> None:
            stream.write(probabilities_of(block, softmax).to(torch.float16).cpu().numpy().tobytes())

        yield write
        stream.write(MARK.encode())


@dataclass
class OutputFiles:
    """Writes what was asked for of each image; a subclass says what that is.

    Args:
        kinds: some of the keys of `ENDINGS`.
        names: class id -> name.
        overwrite: whether files that this project did not write may be replaced.
    Attributes:
        of_images: by kind of `COMMON_FILES` of each image written what the file says of it, and its annotations.
    """

    endings: ClassVar[dict[str, tuple[str, ...]]] = ENDINGS
    kinds: list[str]
    output_dir: Path
    names: dict[int, str]
    palette: Palette
    overwrite: bool
    of_images: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.of_images = {kind: [] for kind in COMMON_FILES if kind in self.kinds}

    def write(self, path: Path, target: PurePath, image: Image.Image, predictor: Any) -> None:
        """Writes the outputs of one image.

        Args:
            path: of the image.
            target: of its outputs, below the folder of outputs and without an ending.
        Raises:
            UserError: a file of somebody else is in the way.
        """
        raise NotImplementedError

    def common_text(self, kind: str, images: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> str:
        """The content of the file of a kind that holds all images."""
        raise NotImplementedError

    def write_common(self, kind: str, images: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
        """Writes the file of a kind that holds the images of all processes."""
        file = self.output_dir / COMMON_FILES[kind]
        check_output_file("--output_dir:", file, self.overwrite)
        with atomic_file(file) as partial:
            partial.write_text(self.common_text(kind, images), encoding="utf-8")

    def file(self, target: PurePath, kind: str, number: int = 0) -> Path:
        """A file to be written, in a folder that is there."""
        file = self.output_dir / f"{target}{self.endings[kind][number]}"
        check_output_file("--output_dir:", file, self.overwrite)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def place_of(self, path: Path, size: tuple[int, ...]) -> regions.Georeference | None:
        """Where an image of this `(height, width)` lies on the map, if that is needed and known.

        Raises:
            UserError: what was asked for needs it.
        """
        place = regions.georeference(path) if {"polygons", "geotiff"} & {*self.kinds} else None
        if place is not None and place.size != size:
            raise UserError(f"{path}: it is turned by its orientation, its place on the map is not: store it upright")
        if place is None and "geotiff" in self.kinds:
            raise UserError(no_place(path))
        return place

    def write_polygons(
        self,
        path: Path,
        target: PurePath,
        place: regions.Georeference | None,
        found: Callable[[], Iterable[regions.Region]],
    ) -> None:
        """Writes, if asked to, the regions of an image in pixels, and where it has a place on the map there too."""
        if "polygons" not in self.kinds:
            return
        with atomic_file(self.file(target, "polygons")) as file:
            regions.write_geojson(found(), self.names, file, regions.PIXELS)
        if place is not None:
            with errors_explained(str(path), UserError), atomic_file(self.file(target, "polygons", 1)) as file:
                on_the_map = (regions.on_the_map(region, place) for region in found())
                regions.write_geojson(on_the_map, self.names, file, regions.DEGREES)


@dataclass
class ImageOutputs(OutputFiles):
    """Writes what was asked for of each image with a semantic model.

    Args:
        overlay_style: `opacity` and `untinted` of `with_legend`, where they are set.
    """

    overlay_style: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path, target: PurePath, image: Image.Image, predictor: Predictor) -> None:
        """As above.

        Raises:
            UserError: also if the image has no place on the map that it needs.
        """
        scores, softmax = predictor.scores(image), predictor.softmax
        confidence, watchers = Confidence(scores.size, softmax), []
        with ExitStack() as stack:
            if "probabilities" in self.kinds:
                file = self.file(target, "probabilities")
                watchers.append(stack.enter_context(probability_file(file, scores, softmax)))
            if "confidence" in self.kinds:
                watchers.append(confidence)
            labels = labels_of(scores, *watchers)
        del scores  # what they follow from is no longer needed, and drawing needs memory
        if "labels" in self.kinds:
            write_png(label_image(labels, self.palette), self.file(target, "labels"), self.overwrite)
        if "overlay" in self.kinds:
            drawn = with_legend(for_eyes(image), labels, self.names, self.palette, **self.overlay_style)
            write_png(drawn, self.file(target, "overlay"), self.overwrite)
        if "confidence" in self.kinds:
            grey = Image.fromarray((255 * confidence.values).round().astype(np.uint8))
            write_png(grey, self.file(target, "confidence"), self.overwrite)
        self._write_regions(path, target, labels)

    def _write_regions(self, path: Path, target: PurePath, labels: np.ndarray) -> None:
        """Writes polygons and what lies on the map."""
        place = self.place_of(path, labels.shape)
        self.write_polygons(path, target, place, partial(regions.regions_of, labels))
        if place is not None and "geotiff" in self.kinds:
            with atomic_file(self.file(target, "geotiff")) as file:
                regions.write_label_geotiff(labels, place, self.palette, file)
        if "coco" in self.kinds:
            height, width = labels.shape
            about = {"file_name": (target.parent / path.name).as_posix(), "height": height, "width": width}
            self.of_images["coco"].append((about, regions.coco_annotations(regions.regions_of(labels), labels.shape)))

    def common_text(self, kind: str, images: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> str:
        return regions.coco_text(images, self.names)


def no_place(path: Path) -> str:
    """What is said of an image that has no place on the map."""
    return f"{path} has no coordinate reference system and transform that can be read: leave geotiff out of --outputs"
