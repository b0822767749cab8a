"""A tiny model's folder, for tests that need a checkpoint but no training."""

from pathlib import Path

import torch

from scripts.cli.parser import parse_arguments
from scripts.models.loading import build_config, build_model, build_processor, save_model_folder
from scripts.training.arguments import TrainArguments


TINY_MODEL = """\
config_overrides:
  backbone_config:
    model_type: resnet
    layer_type: basic
    embedding_size: 8
    hidden_sizes: [8, 8, 16, 16]
    depths: [1, 1, 1, 1]
    out_features: [stage1, stage2, stage3, stage4]
  feature_size: 32
  mask_feature_size: 32
  hidden_dim: 32
  encoder_layers: 1
  encoder_feedforward_dim: 32
  decoder_layers: 4
  dim_feedforward: 32
  num_attention_heads: 4
  num_queries: 6
  high_resolution_reduction: 2
  train_num_points: 64
crop_height: 64
crop_width: 64
scale_range: [0.5, 1]
per_device_train_batch_size: 2
dataloader_num_workers: 0
learning_rate: 1e-3
max_grad_norm: 1.0
logging_steps: 1
"""


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
