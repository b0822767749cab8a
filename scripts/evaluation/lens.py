"""Why published numbers disagree: one model's mean IoU under the habits of common evaluation scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from image_processing.semantic_labels import ImageScores
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion, valid_part
from scripts.inference.predictors import (
    SingleScale,
    label_array,
    outputs_of,
    processed_inputs,
    resized_view,
    semantic_labels,
)


# transformers' Mask2Former post-processing resizes every mask to this, whatever the image's shape.
SQUASHED = 384
HABITS = ("protocol", "masks squashed to 384x384", "image and ground truth resized to a square")


class ProtocolLens:
    """Confusion matrices under each habit, at a single scale; two or three more forward passes per image.

    - "protocol": the processor's resize and the image's own size.
    - "masks squashed": `post_process_semantic_segmentation` of transformers' Mask2Former, which resizes the masks of
      the padded image to 384x384, sums them there, and resizes the sum to the image.
    - "resized": transformers' `run_semantic_segmentation` example, which resizes image and map (nearest) to a square
      of the processor's shortest edge and compares there.

    Args:
        alone: predict for "protocol" as well, for the prediction that is evaluated has several scales or windows.
    Attributes:
        totals: `(3, K + 2, K + 2)` or larger, int64 counts by (reference id, predicted id).
    """

    def __init__(self, model: Any, processor: Any, device: Any, alone: bool = False) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.num_labels = model.config.num_labels
        self.single_scale = SingleScale(model, processor, device) if alone else None
        size = processor.size
        self.edge = size["shortest_edge"] or size["height"]
        side = max(256, self.num_labels + 2)
        self.totals = np.zeros((len(HABITS), side, side), dtype=np.int64)

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image; `sample["label"]` has ids below K or 255."""
        image, reference = sample["image"], sample["label"]
        square = (self.edge, self.edge)
        pairs = (
            (self.single_scale(image) if self.single_scale else prediction, reference),
            (self.squashed_labels(image), reference),
            (
                self.labels_at(resized_view(image, square, flip=False)),
                np.asarray(Image.fromarray(reference).resize(square, Image.Resampling.NEAREST)),
            ),
        )
        for total, (labels, truth) in zip(self.totals, pairs, strict=True):
            total += confusion_matrix(labels, truth, len(total))

    def labels_at(self, image: Image.Image) -> np.ndarray:
        """Label map of an image that the model sees as it is."""
        inputs = processed_inputs(self.processor, image, self.device, do_resize=False)
        return label_array(semantic_labels(self.model, self.processor, inputs, (image.height, image.width)))

    @torch.no_grad()
    def squashed_labels(self, image: Image.Image) -> np.ndarray:
        """Label map of an image as transformers' Mask2Former processor makes it."""
        inputs = processed_inputs(self.processor, image, self.device)
        outputs, _ = outputs_of(self.model, inputs)
        masks, classes = outputs.masks_queries_logits[0], outputs.class_queries_logits[0]
        squashed = (SQUASHED, SQUASHED)
        size = (image.height, image.width)
        return label_array(ImageScores(masks, squashed, target_size=size, class_logits=classes).labels())

    def rows(self) -> list[dict[str, Any]]:
        """Per habit, mean IoU by each rule, in 0..1: `detectron2`, `mmseg` and torchmetrics' macro Jaccard index.

        The last two agree: both count a class that is predicted but in no reference as 0.
        """
        rows = []
        for habit, total in zip(HABITS, self.totals, strict=True):
            scores = scores_from_confusion(valid_part(total, self.num_labels))
            rows.append(
                {
                    "habit": habit,
                    "detectron2": scores["mean_iou"],
                    "mmseg": scores["mmseg_mean_iou"],
                    "torchmetrics_macro": scores["mmseg_mean_iou"],
                }
            )
        return rows
