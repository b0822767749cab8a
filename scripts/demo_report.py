"""The demo's one-page HTML report: loss curve, IoU per class, image | truth | prediction; all in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.drawing.charts import curve
from scripts.drawing.page import class_cell, facts_table, figure, row, table, write_page
from scripts.drawing.visualization import colour_map


def write_report(
    output_dir: Path,
    facts: dict[str, Any],
    results: dict[str, Any],
    log_file: Path,
    example: tuple[Image.Image, np.ndarray, np.ndarray],
    id2label: dict[int, str],
) -> None:
    """Writes `output_dir/report.html`.

    Args:
        facts: what stands at the top, name -> text.
        results: of `scripts.evaluation.results.build_results`.
        log_file: `train_log.jsonl`.
        example: image, true label map and predicted label map of the same size.
    """
    log = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    classes = [(class_cell(index, name), str(results["per_class"][name]["iou"])) for index, name in id2label.items()]
    image, truth, labels = example
    panels = row(
        [
            figure(image, "image"),
            figure(Image.fromarray(colour_map(truth)), "truth (black: ignored)"),
            figure(Image.fromarray(colour_map(labels)), "prediction, through pipeline()"),
        ]
    )
    body = f"""<p>A small FASeg, trained from scratch on a stream of generated images and evaluated on others.</p>
{facts_table(facts)}
<h2>A validation image</h2>{panels}
<h2>Loss, summed over the decoder's predictions</h2>{curve(losses, "training loss by step")}
<h2>IoU per class, %</h2>{table(classes)}"""
    write_page(output_dir / "report.html", "FASeg demo", body)
