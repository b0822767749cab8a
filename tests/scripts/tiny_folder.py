"""A tiny model's folder, for tests that need a checkpoint but no training."""

from pathlib import Path

import torch

from scripts.cli.parser import parse_arguments
from scripts.models.loading import build_config, build_model, build_processor, save_model_folder
from scripts.training.arguments import TrainArguments


def decided(model: torch.nn.Module) -> torch.nn.Module:
    """A random model with larger weights of its predictions, for else it finds one class everywhere."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("class_predictor.weight"):
                value.mul_(100)
            elif "mask_embedder" in name and name.endswith("weight"):
                value.mul_(12)
    return model


def write_model_folder(recipe: Path, folder: Path) -> Path:
    """Writes the recipe's model with random weights for the six classes of the generated data."""
    arguments = parse_arguments(TrainArguments, [str(recipe)])
    torch.manual_seed(0)
    config = build_config(arguments, {index: f"class {index}" for index in range(6)})
    processor = build_processor(arguments, config, size={"shortest_edge": 64, "longest_edge": 128}, num_labels=6)
    save_model_folder(build_model(arguments, config), processor, folder)
    return folder
