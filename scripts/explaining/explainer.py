"""A model asked where its queries looked, and the answer as images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.data.bands import form_of, use_range
from scripts.drawing.png import write_png
from scripts.drawing.segments import drawing_number, drawing_numbers, entry
from scripts.drawing.visualization import model_palette, segment_colours, with_legend
from scripts.explaining.focus import FocusCounts, Look, check_tells_focus, look
from scripts.explaining.focus_page import Explained, Model, class_names, queries_kind
from scripts.explaining.images import path_sheet, windows_image
from scripts.explaining.paths import focus_path
from scripts.inference.found_segments import SegmentPredictor
from scripts.inference.predictors import label_array
from scripts.inference.segment_maps import segment_map
from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite
from scripts.models.tasks import SEMANTIC, check_task, check_threshold, stuff_of, task_of, threshold_of


LONGEST_WORDS = 60  # of a class's name in the name of a file


class Explainer:
    """A model that tells its focus, and what is counted of it."""

    def __init__(self, arguments: Any, device: Any) -> None:
        config = build_config(arguments)
        check_threshold(arguments.threshold, task_of(config))
        self.model = build_model(arguments, config, new_classes=False).to(device).eval()
        refuse_non_finite(self.model, f"{arguments.checkpoint_flag} {arguments.model_name_or_path}")
        check_tells_focus(self.model, f"{arguments.checkpoint_flag} {arguments.model_name_or_path}")
        self.processor = use_range(build_processor(arguments, config), arguments.intensity_range)
        where = f"{arguments.checkpoint_flag} {arguments.model_name_or_path}"
        check_task(self.processor, config, where)
        self.threshold = arguments.threshold
        self.form = form_of(config, self.processor)
        self.device = device
        self.name = Path(arguments.model_name_or_path or "").resolve().name
        self.counts = FocusCounts(self.model, self.processor, device)

    def look(self, image: Image.Image) -> Look:
        """The focus in one image, counted."""
        seen = look(self.model, self.processor, image, self.device, True, self.threshold)
        self.counts.count(seen)
        return seen

    def explain(self, image: Image.Image, seen: Look, count: int) -> Explained:
        """The prediction, and the paths of the largest segments."""
        config = self.model.config
        paths = [focus_path(seen, segment, config) for segment in seen.segments[:count]]
        names, palette, task = class_names(config), model_palette(config), self.processor.task
        if task == SEMANTIC:
            labels = self.processor.post_process_semantic_segmentation(
                seen.outputs, target_sizes=[(image.height, image.width)], input_sizes=[seen.input_size]
            )[0]
            return Explained(seen, label_array(labels), paths, names, palette)
        threshold = threshold_of(self.threshold, task)
        predictor = SegmentPredictor(self.model, self.processor, self.device, threshold, threshold, False)
        found = predictor.found(seen.outputs, seen.input_size, (image.height, image.width))
        segments = segment_map(found, stuff_of(self.processor) or (), small_on_top=True)
        numbers = {drawing_number(each.id): each for each in segments.segments}
        colours = segment_colours({number: each.label for number, each in numbers.items()}, palette)
        entries = {number: entry(each, names) for number, each in numbers.items()}
        return Explained(seen, drawing_numbers(segments.ids), paths, entries, colours, segments)

    def described(self, names_kind: bool) -> Model:
        """For the page; with the kind of its queries where two models are told apart."""
        config = self.model.config
        title = f"{self.name}, {queries_kind(config)}" if names_kind else self.name
        return Model(title, config, model_palette(config), self.counts.scores())


def write_images(
    folder: Path, name: str, image: Image.Image, explained: Explained, model: Model, overwrite: bool = False
) -> None:
    """The prediction, each path and HRCA's windows as PNGs."""
    names = class_names(model.config)
    if explained.segments is None:
        drawn = {"prediction": with_legend(image, explained.labels, names, model.palette)}
    else:
        drawn = {"prediction": explained.segments.drawn(image, names, model.palette)}
    for number, path in enumerate(explained.paths, 1):
        label = model.name(path.segment.label)
        title = f"{model.title}: where query {path.segment.query} looked, which decides this segment as {label}"
        words = re.sub(r"[^A-Za-z0-9]+", "-", label)[:LONGEST_WORDS]
        drawn[f"segment{number}_{words}"] = path_sheet(image, path, explained.seen, title, model.levels)
    for step in explained.paths[0].steps if explained.paths else ():
        if step.windows:
            drawn[f"windows_layer{step.number}"] = windows_image(image, step, explained.seen, 640)
    for kind, drawing in drawn.items():
        write_png(drawing, folder / f"{name}_{kind}.png", overwrite)
