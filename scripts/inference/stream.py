"""Images to label maps: files one by one, a streamed dataset in shards, of which every process fills its own.

All processes read the stream; a shard is decoded and segmented by one of them. Which one follows from the shards left
alone, and rows from their place in the stream, so the result depends neither on the number of processes nor on stops.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.processes import on_main, raised_on_all
from scripts.data.bands import PLAIN, ImageForm, as_image, for_eyes, form_of
from scripts.data.bounds import Bounds
from scripts.data.images import FoundImage, mirrored_names, read_image
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.loading import StreamRow, first_example, good_batches, worker_loader
from scripts.data.samples import BadSample, BadSamples, decode_image, sample_name
from scripts.data.sources import readable
from scripts.drawing.png import write_png
from scripts.drawing.visualization import label_image, model_palette, with_legend
from scripts.inference.found_segments import SegmentPredictor
from scripts.inference.image_outputs import OutputFiles
from scripts.inference.output_kinds import COMMON_FILES, ENDINGS, SEGMENT_ENDINGS
from scripts.inference.predictors import SingleScale
from scripts.inference.segment_maps import segment_map
from scripts.inference.shards import Finished, ShardFolder
from scripts.inference.shrinking import Shrinking
from scripts.models.tasks import SEMANTIC


def output_files(images: list[FoundImage], output_dir: Path, kinds: list[str], task: str) -> list[Path]:
    """The files of these kinds for each image, and those for all of them, of a model of this task."""
    of_kinds = ENDINGS if task == SEMANTIC else SEGMENT_ENDINGS
    endings = [ending for kind in kinds for ending in of_kinds[kind]]
    files = [output_dir / f"{target}{ending}" for target in mirrored_names(images) for ending in endings]
    return files + [output_dir / COMMON_FILES[kind] for kind in kinds if kind in COMMON_FILES]


def predict_images(
    images: list[FoundImage],
    segment: SingleScale | SegmentPredictor,
    outputs: OutputFiles,
    accelerator: Accelerator,
) -> int:
    """Writes the outputs of each image; returns how many of this process's could not be read."""
    jobs = list(zip(images, mirrored_names(images), strict=True))
    form = form_of(segment.model.config, segment.processor)
    own = jobs[accelerator.process_index :: accelerator.num_processes]
    failed, shrinking = 0, Shrinking(segment.processor)
    with (
        raised_on_all(accelerator),
        errors_explained(f"--output_dir {outputs.output_dir}", OSError),
        accelerator.autocast(),
        tqdm(own, desc="predict", unit="image", disable=not accelerator.is_main_process) as bar,
    ):
        if isinstance(segment, SingleScale):
            segment.when_read = lambda number, count: bar.set_postfix_str(f"tile {number}/{count}")
        outputs.output_dir.mkdir(parents=True, exist_ok=True)
        for (path, _), target in bar:
            image = read_image(path, form)
            if image is None:
                failed += 1
                continue
            shrinking.add(str(path), image)
            outputs.write(path, target, image, segment)
    accelerator.wait_for_everyone()
    for kind, own_part in outputs.of_images.items():
        parts = gather_object(own_part) if accelerator.num_processes > 1 else own_part
        if accelerator.is_main_process:
            with errors_explained(f"--output_dir {outputs.output_dir}", OSError):
                outputs.write_common(kind, parts)
    say_shrinking(shrinking, accelerator)
    if failed:
        print(f"{failed} of {len(own)} images could not be read", file=sys.stderr)
    return failed


def say_shrinking(shrinking: Shrinking, accelerator: Accelerator) -> None:
    """Prints the line about images that are read far smaller, if there are such."""
    text = shrinking.summary(accelerator)
    if text:
        accelerator.print(text, file=sys.stderr)


def model_sha256(model: Any, processor: Any) -> str:
    """SHA-256 of everything that a label map depends on: weights, configuration and processor."""
    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if key != "transformers_version"}
    for settings in (config, processor.to_dict()):
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class PredictionRows(Sampler[list[StreamRow]]):
    """One pass over the stream: the rows of this process's share of the shards that are left, undecoded.

    Args:
        total: rows of the stream, once the pass is over.
    """

    data: datasets.IterableDataset
    image_column: str
    rows_per_shard: int
    finished: dict[int, Finished]
    process_index: int
    num_processes: int
    total: int = 0

    def __iter__(self) -> Iterator[list[StreamRow]]:
        left = -1  # the how-manieth shard that is left the current one is
        self.total = 0
        for index, row in enumerate(readable(self.data)):
            self.total = index + 1
            shard, place = divmod(index, self.rows_per_shard)
            if shard in self.finished:
                self._check_same(shard, place, sample_name(row, self.image_column, index))
                continue
            left += place == 0
            if left % self.num_processes == self.process_index:
                yield [StreamRow(0, index, row)]
        predicted = sum(len(shard.names) for shard in self.finished.values())
        last = max(self.finished, default=-1)
        if last >= 0 and last * self.rows_per_shard + len(self.finished[last].names) > self.total:
            raise UserError(
                f"{predicted} rows were predicted before, but the split ends after {self.total}: it changed"
            )

    def _check_same(self, shard: int, place: int, name: str) -> None:
        names = self.finished[shard].names
        if place >= len(names) or names[place] != name:
            expected = repr(names[place]) if place < len(names) else "the end of the split"
            raise UserError(
                f"row {shard * self.rows_per_shard + place} is {name!r} and was {expected} when it was predicted: "
                "the dataset changed: give another --output_dir"
            )


@dataclass
class ImageSamples(Dataset):
    """Decodes the image of the row that it is given as an index."""

    image_column: str
    bounds: Bounds
    form: ImageForm = PLAIN

    def __getitem__(self, item: StreamRow) -> dict[str, Any] | UserError:
        name = sample_name(item.row, self.image_column, item.index)
        try:
            image = as_image(decode_image(item.row[self.image_column], name, self.bounds, self.form))
        except BadSample as error:
            return {"index": item.index, "name": name, "error": f"{error} (row {item.index})"}
        except UserError as error:
            return error
        return {"index": item.index, "name": name, "image": image}


def png(image: Image.Image, name: str) -> dict[str, Any]:
    """An image as a row of an `Image` column holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{PurePath(name).stem}.png"}


@dataclass
class Prediction:
    """A prediction run of one process.

    Args:
        overlays: images of the stream, from its start, that get an overlay with a legend in `overlays/`.
        stuff: classes without instances, of a panoptic model that says which.
        overlay_style: `opacity` and `untinted` of `with_legend`, where they are set.
    """

    accelerator: Accelerator
    segment: SingleScale | SegmentPredictor
    shards: ShardFolder
    data: LabelledDataset
    overlays: int = 0
    stuff: Collection[int] | None = None
    overlay_style: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shrinking = Shrinking(self.segment.processor)

    def run(self, max_bad_samples: int | None, num_workers: int) -> int:
        """Writes every shard that is not there yet; returns the rows without a label map.

        Args:
            max_bad_samples: unreadable images that are let pass, see `BadSamples`; each process counts its own and
                those of the shards that were there before.
        Raises:
            UserError: the folder is another run's, the dataset changed, or too many images cannot be read.
        """
        accelerator, shards, examples = self.accelerator, self.shards, self.data.num_examples
        names = {int(index): str(name) for index, name in (self.segment.model.config.id2label or {}).items()}
        on_main(accelerator, lambda: shards.prepare(names))
        if not shards.state_file.exists():
            raise UserError(f"--output_dir {shards.folder}: not shared by all processes: give a folder that is")
        finished = {number: shards.read(number) for number in shards.numbers()}
        accelerator.wait_for_everyone()  # nobody writes before all have seen the same shards
        before = sum(len(shard.names) for shard in finished.values())
        if before:
            accelerator.print(f"going on after {len(finished)} shards, {before} rows")
        rows = PredictionRows(
            self.data.stream, self.data.arguments.image_column_name, shards.rows_per_shard, finished,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        bad = BadSamples(max_bad_samples, examples)
        check_errors(bad, list(finished.values()))
        with raised_on_all(accelerator):
            self._fill(rows, examples and max(0, examples - before), num_workers, names, bad)
        accelerator.wait_for_everyone()
        say_shrinking(self.shrinking, accelerator)
        return self._finish(rows.total, bad)

    def _fill(
        self, rows: PredictionRows, left: int | None, num_workers: int, names: dict[int, str], bad: BadSamples
    ) -> None:
        """Segments this process's rows and writes a shard whenever one is full."""
        accelerator, size = self.accelerator, self.shards.rows_per_shard
        samples = ImageSamples(rows.image_column, self.data.bounds, self.data.image_form)
        loader = worker_loader(samples, rows, first_example, num_workers)
        share = left and -(-left // accelerator.num_processes)
        shard: list[dict[str, Any]] = []
        bar = tqdm(
            total=share, desc="predict", unit="image", dynamic_ncols=True, disable=not accelerator.is_main_process
        )
        with accelerator.autocast(), bar:
            for sample in good_batches(loader):
                index = sample["index"]
                bad.add([sample["error"]] if "error" in sample else [], seen=1)
                shard.append(self._row(sample, names))
                bar.update()
                if (index + 1) % size == 0:
                    self.shards.write(index // size, shard)
                    shard = []
        if shard:
            self.shards.write(shard[-1]["index"] // size, shard)

    def _row(self, sample: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(self.shards.features)
        row |= {"index": sample["index"], "image_id": sample["name"], "error": sample.get("error")}
        if "image" not in sample:
            return row
        self.shrinking.add(sample["name"], sample["image"])
        predicted = self._labels if isinstance(self.segment, SingleScale) else self._segments
        columns, draw = predicted(sample["image"], names)
        if sample["index"] < self.overlays:
            folder = self.shards.folder / "overlays"
            file = folder / f"{sample['index']:06d}.png"
            with errors_explained(f"--output_dir {self.shards.folder}", OSError):
                folder.mkdir(exist_ok=True)
                write_png(draw(), file, self.shards.overwrite)
        images = {key: png(value, sample["name"]) for key, value in columns.items() if isinstance(value, Image.Image)}
        return row | columns | images

    def _labels(self, image: Any, names: dict[int, str]) -> tuple[dict[str, Any], Callable[[], Image.Image]]:
        """Columns of a label map, and what draws it."""
        assert isinstance(self.segment, SingleScale)
        palette, columns = model_palette(self.segment.model.config), {}
        if self.shards.with_scores:
            labels, confidence = self.segment.with_confidence(image)
            columns["score"] = Image.fromarray((255 * confidence).round().astype(np.uint8))
        else:
            labels = self.segment(image)
        columns["label"] = label_image(labels, palette)
        return columns, lambda: with_legend(for_eyes(image), labels, names, palette, **self.overlay_style)

    def _segments(self, image: Any, names: dict[int, str]) -> tuple[dict[str, Any], Callable[[], Image.Image]]:
        """Columns of a map of segments and their list, and what draws them."""
        assert isinstance(self.segment, SegmentPredictor)
        found, stuff = self.segment(image), self.stuff or ()
        segments = segment_map(found, stuff)
        columns = {"label": segments.coloured(), "segments_info": segments.info(self.stuff is not None)}
        palette = model_palette(self.segment.model.config)
        return columns, lambda: segment_map(found, stuff, small_on_top=True).drawn(for_eyes(image), names, palette)

    def _finish(self, total: int, bad: BadSamples) -> int:
        """Makes sure that every row is there once, and says so in the card; returns the rows without a label map."""
        if total == 0:
            raise UserError(f"split {self.shards.split!r} is empty")

        def check() -> int:
            parts = [self.shards.read(number) for number in self.shards.numbers()]
            rows = sum(len(part.names) for part in parts)
            if rows != total:
                raise UserError(f"{rows} of {total} rows in {self.shards.folder}: run the command again")
            self.shards.write_readme(total)
            check_errors(bad, parts)  # of all processes
            return len(bad.messages)

        return on_main(self.accelerator, check)


def check_errors(bad: BadSamples, shards: list[Finished]) -> None:
    """Makes `bad` count what could not be read in `shards`.

    Raises:
        UserError: more images than are let pass.
    """
    rows = sum(len(shard.names) for shard in shards)
    bad.load_state_dict({"messages": [error for shard in shards for error in shard.errors], "seen": rows})
    bad.add([])
