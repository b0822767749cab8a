"""Trackers through Accelerate, and images of the same few validation images as the model gets better."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from PIL import Image

from scripts.cli.errors import errors_explained
from scripts.data.bands import as_image, for_eyes
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_sample, decode_segments, reduced_labels
from scripts.data.segments import Segments
from scripts.data.sources import readable
from scripts.drawing.headings import headed_strip
from scripts.drawing.segments import DrawnSegment, strip_of_segments
from scripts.drawing.sheets import stacked
from scripts.inference.found_segments import SegmentPredictor
from scripts.inference.predictors import SingleScale
from scripts.inference.segment_maps import segment_map
from scripts.models.tasks import SEMANTIC
from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import read_json


PROJECT = "faseg"


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], output_dir: Path, first_step: int, settings: Mapping[str, Any]
) -> None:
    """Starts the trackers; a resumed run goes on in the curves that it began.

    TensorBoard's files lie in `output_dir/faseg` (`tensorboard --logdir OUTPUT_DIR`); events of steps that the run
    repeats are hidden. W&B and Trackio find the run by the id in `output_dir/tracking.json`; they keep repeated steps.

    Args:
        names: from `check_trackers`.
        settings: the effective recipe, shown beside the curves.
    Raises:
        UserError: a tracker does not start.
    """
    if not names:
        return
    run_id = tracked_run_id(output_dir, first_step) if accelerator.is_main_process else ""
    accelerator.project_configuration.set_directories(str(output_dir))
    accelerator.log_with = filter_trackers(list(names), str(output_dir))
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
    }
    # Each tracker raises its own kinds, at a missing login for instance.
    with errors_explained(f"--report_to {' '.join(names)}", Exception):
        accelerator.init_trackers(
            PROJECT,
            config=None if first_step else plain,
            init_kwargs={
                "tensorboard": {"purge_step": first_step + 1} if first_step else {},
                "wandb": {"id": run_id, "name": output_dir.name, "resume": "allow", "dir": str(output_dir)},
                "trackio": {"name": f"{output_dir.name}-{run_id}", "resume": "allow", "embed": False},
            },
        )


def finish_trackers(accelerator: Accelerator) -> None:
    """Sends what the trackers still hold, where a run ends before its last step."""
    for tracker in accelerator.trackers:
        tracker.finish()


def tracked_run_id(output_dir: Path, first_step: int) -> str:
    """The id under which trackers know the run in `output_dir`: a new one for a new run."""
    file = output_dir / "tracking.json"
    with errors_explained(str(file), OSError):
        if first_step and file.is_file():
            return read_json(file, kinds={"run_id": str}, needed=["run_id"])["run_id"]
        run_id = uuid.uuid4().hex[:12]
        with atomic_file(file) as partial:
            partial.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
    return run_id


def log_images(accelerator: Accelerator, images: Mapping[str, Image.Image], step: int) -> None:
    """Sends images to every tracker."""
    if not accelerator.is_main_process:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            arrays = {name: np.asarray(image)[None] for name, image in images.items()}
            tracker.log_images(arrays, step=step, dataformats="NHWC")
        elif tracker.name == "trackio":  # accelerate's tracker takes numbers only
            import trackio

            tracker.log({name: trackio.Image(image) for name, image in images.items()}, step=step)
        else:
            tracker.log_images({name: [image] for name, image in images.items()}, step=step)


@dataclass
class TrackedImages:
    """The first images of the validation split and what the model makes of them, step by step.

    Each is a strip of image | truth | prediction under these names, of label maps or of segments, sent to the
    trackers; all of them, one below the other, are `output_dir/images/step-<step>.png`. Draws no random numbers, so
    that training goes on as without it.
    """

    accelerator: Accelerator
    processor: Any
    data: LabelledDataset
    count: int
    folder: Path
    samples: list[tuple[str, Image.Image, Any]] | None = None

    def load(self, num_labels: int) -> list[tuple[str, Image.Image, Any]]:
        """`(name, image, label map of class ids, or segments)` of the first samples; unreadable ones are left out."""
        samples: list[tuple[str, Image.Image, Any]] = []
        form = self.data.row_format
        for index, row in enumerate(islice(readable(self.data.stream), self.count)):
            try:
                if self.data.task != SEMANTIC:
                    image, segments, name = decode_segments(row, form, index)
                    samples.append((name, as_image(image), segments.chosen(~segments.crowd)))
                    continue
                image, label, name = decode_sample(row, form, num_labels, index)
            except BadSample:
                continue
            ids = label.numpy().astype(np.uint8)  # checked: nothing above 255 is left
            truth = reduced_labels(ids) if form.do_reduce_labels else ids
            samples.append((name, as_image(image), truth))
        return samples

    def drawer(self, model: Any) -> Callable[[Image.Image, Any], Image.Image]:
        """What makes a strip of an image and its truth."""
        device = self.accelerator.device
        if self.data.task == SEMANTIC:
            label_map = SingleScale(model, self.processor, device)
            return lambda image, truth: headed_strip(for_eyes(image), truth, label_map(image), model.config)
        find = SegmentPredictor(model, self.processor, device, with_instances=False)
        stuff = self.processor.label_ids_to_fuse or ()

        def strip(image: Image.Image, truth: Segments) -> Image.Image:
            found = segment_map(find(image), stuff, small_on_top=True)
            listed = [
                DrawnSegment(number, index, None, index not in stuff)
                for number, index in enumerate(truth.classes.tolist(), 1)
            ]
            ids = truth.on_top().int().numpy()
            return strip_of_segments(for_eyes(image), [(ids, listed), (found.ids, found.segments)], model.config)

        return strip

    def write(self, model: Any, step: int) -> None:
        """Takes, saves and sends the images; all processes take part, since a sharded model needs them all.

        Args:
            model: without accelerate's wrappers.
        """
        if not self.count:
            return
        if self.samples is None:
            self.samples = self.load(model.config.num_labels)
        was_training = model.training
        model.eval()
        draw = self.drawer(model)
        with self.accelerator.autocast(), torch.no_grad():
            strips = {
                f"images/{index}_{name}": draw(image, truth) for index, (name, image, truth) in enumerate(self.samples)
            }
        model.train(was_training)
        if not strips:
            return
        log_images(self.accelerator, strips, step)
        if self.accelerator.is_main_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stacked(list(strips.values())).save(self.folder / f"step-{step:08}.png")
            except OSError as error:  # an image is not worth a run
                print(f"images not saved: {error}")
