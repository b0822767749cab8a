"""Tiny models' folders for the tests of the Space."""

from pathlib import Path

import numpy as np
import torch
from tiny_folder import decided
from tiny_models import tiny_config

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts.data.synthetic_scenes import draw_sample
from scripts.inference.predictors import SingleScale


NAMES = {0: "sky", 1: "road & <kerb>", 2: "car"}


def write_tiny_model(folder: Path, task: str) -> Path:
    """A random model that finds all three classes in a drawn image, with its processor and its code."""
    size = {"shortest_edge": 64, "longest_edge": 160}
    processor = FASegImageProcessor(size=size, task=task, num_labels=3, label_ids_to_fuse=[0])
    image = draw_sample(np.random.default_rng(1))[0]
    inputs = processor(images=[image], return_tensors="pt")
    for seed in range(100):
        torch.manual_seed(seed)
        config = tiny_config(id2label=NAMES, label2id={}, task=task, num_queries=20)
        model = decided(FASegForUniversalSegmentation(config)).eval()
        with torch.no_grad():
            # Random queries are much alike: their differences are to decide, and seldom for "no object".
            logits = model(inputs["pixel_values"], pixel_mask=inputs["pixel_mask"]).class_queries_logits
            model.class_predictor.bias -= logits.mean(dim=(0, 1))
            model.class_predictor.bias[-1] -= 20
        areas = np.bincount(SingleScale(model, processor, "cpu")(image).flatten(), minlength=3)
        if areas.min() > 500:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            return folder
    raise AssertionError("no random model finds all classes")
