"""The recipes of instance and panoptic models: Mask2Former's published numbers, and one step with a small model."""

import json
import math

import pytest
import torch
from torchvision.transforms import v2
from transformers import AutoConfig, AutoImageProcessor

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.parser import PROJECT_ROOT, RECIPES, parse_arguments
from scripts.data import augmentation
from scripts.models.loading import build_config, refuse_dead_hrca
from scripts.training.arguments import TrainArguments, check_arguments
from scripts.training.loop import training_step
from scripts.training.optimization import build_scheduler
from scripts.training.run import augmentation_of, set_up


CARDS = PROJECT_ROOT / "hub_cards"
# Mask2Former's configuration files for these data sets, and detectron2's defaults for what they leave out.
ALL = {
    "total_train_batch_size": 16, "learning_rate": 0.0001, "backbone_lr_multiplier": 0.1, "weight_decay": 0.05,
    "max_grad_norm": 0.01, "num_warmup_steps": 0, "mixed_precision": "fp16", "horizontal_flip": 0.5,
    "scale_range": None, "do_reduce_labels": False, "min_segment_area": 1, "rotation": 0.0, "vertical_flip": 0.0,
}  # fmt: skip
COCO = ALL | {
    "crop_height": 1024, "crop_width": 1024, "large_scale_jitter": [0.1, 2.0], "color_jitter": False,
    "eval_shortest_edge": 800, "eval_longest_edge": 1333, "max_train_steps": 368750,
    "lr_scheduler_type": "multistep", "lr_step_milestones": [327778, 355092],
}  # fmt: skip
ADE20K = ALL | {
    "crop_height": 640, "crop_width": 640, "large_scale_jitter": None, "color_jitter": True,
    "shortest_edges": [int(x * 0.1 * 640) for x in range(5, 21)], "longest_edge": 2560,
    "eval_shortest_edge": 640, "eval_longest_edge": 2560, "max_train_steps": 160000,
    "lr_scheduler_type": "poly", "lr_power": 0.9, "lr_step_milestones": None,
}  # fmt: skip
# model id: (task, numbers, classes, first stuff and how many)
PUBLISHED = {
    "faseg-resnet50-coco-panoptic": ("panoptic", COCO, 133, ("banner", 53)),
    "faseg-resnet50-coco-instance": ("instance", COCO, 80, None),
    "faseg-resnet50-ade20k-panoptic": ("panoptic", ADE20K, 150, ("wall", 50)),
}
NAMES = [*PUBLISHED, "demo-panoptic"]


def arguments_of(name, *flags):
    return parse_arguments(TrainArguments, [name, "--dataset_name", "data", "--output_dir", "out", *map(str, flags)])


def test_every_recipe_of_segments_is_in_the_table():
    assert {file.stem for file in RECIPES.glob("*.yaml") if {"panoptic", "instance"} & set(file.stem.split("-"))} == {
        *NAMES
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_numbers(name):
    task, numbers, *_ = PUBLISHED[name]
    arguments = arguments_of(name)
    assert arguments.task == task and {key: getattr(arguments, key) for key in numbers} == numbers


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_and_processors_are_those_of_the_released_semantic_one_but_for_the_classes(name):
    task, numbers, num_labels, stuff = PUBLISHED[name]
    config, released = (AutoConfig.from_pretrained(CARDS / each) for each in (name, "faseg-resnet50-ade20k"))
    of_classes = {"_name_or_path", "id2label", "label2id", "task"}
    fields = [{k: v for k, v in each.to_dict().items() if k not in of_classes} for each in (config, released)]
    assert fields[0] == fields[1] and config.num_queries == 100
    assert config.task == task and config.num_labels == num_labels == len(set(config.id2label.values()))
    with torch.device("meta"):
        FASegForUniversalSegmentation(config)
    processor = AutoImageProcessor.from_pretrained(CARDS / name)
    assert processor.task == task and processor.num_labels == num_labels and not processor.do_reduce_labels
    size = (processor.size["shortest_edge"], processor.size["longest_edge"])
    assert size == (numbers["eval_shortest_edge"], numbers["eval_longest_edge"])
    if stuff is None:
        assert processor.label_ids_to_fuse is None
    else:
        assert config.id2label[processor.label_ids_to_fuse[0]] == stuff[0]
        assert len(set(processor.label_ids_to_fuse)) == stuff[1]


def test_ade20k_has_the_things_of_its_panoptic_set():
    """Some that one could take for the other."""
    processor = AutoImageProcessor.from_pretrained(CARDS / "faseg-resnet50-ade20k-panoptic")
    names = AutoConfig.from_pretrained(CARDS / "faseg-resnet50-ade20k-panoptic").id2label
    stuff = {names[index] for index in processor.label_ids_to_fuse}
    assert {"house", "rug", "base", "bar", "stairway", "blanket", "shower", "pier", "crt screen"} <= stuff
    assert not {"stairs", "step", "flower", "palm", "windowpane", "countertop", "screen", "pole", "flag"} & stuff


def test_coco_is_augmented_by_large_scale_jitter_crop_flip_and_padding():
    steps = augmentation_of(arguments_of("faseg-resnet50-coco-instance"), task="instance").transforms
    jitter, crop, flip, pad = steps
    assert isinstance(jitter, augmentation.LargeScaleJitter) and (jitter.low, jitter.high) == (0.1, 2.0)
    assert {(step.height, step.width) for step in (jitter, crop, pad)} == {(1024, 1024)}
    assert isinstance(flip, v2.RandomHorizontalFlip) and pad.label_fill == 0


def test_the_rate_falls_to_a_tenth_at_each_milestone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, "multistep", 10, milestones=[3, 5])
    rates = []
    for _ in range(7):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


# ---- one step ----

SMALL = [
    "feature_size=32", "mask_feature_size=32", "hidden_dim=32", "encoder_layers=1", "encoder_feedforward_dim=32",
    "decoder_layers=4", "dim_feedforward=32", "num_queries=20", "train_num_points=256",
    "backbone_config.embedding_size=8", "backbone_config.hidden_sizes=[16, 32, 64, 128]",
    "backbone_config.depths=[1, 1, 1, 1]",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_recipe_takes_a_step(name, segmented, tmp_path):
    arguments = arguments_of(name)
    check_arguments(arguments)
    config = build_config(arguments)
    refuse_dead_hrca(config, arguments.crop_height, arguments.crop_width)
    edge = 32 * math.ceil(math.sqrt(config.high_resolution_reduction))
    flags = [
        "--dataset_name",
        segmented,
        "--output_dir",
        tmp_path / "out",
        "--crop_height",
        edge,
        "--crop_width",
        edge,
    ]
    flags += ["--dataloader_num_workers", 0, "--mixed_precision", "no", "--per_device_train_batch_size", 8]
    if name in PUBLISHED:
        flags += ["--config_overrides", *SMALL]
    if arguments.shortest_edges:
        flags += ["--shortest_edges", edge, "--longest_edge", 4 * edge]
    run = set_up(parse_arguments(TrainArguments, [name, *map(str, flags)]))
    assert run.data.task == run.network.config.task == run.processor.task == arguments.task
    assert run.max_steps == arguments.max_train_steps
    run.model.train()
    step = training_step(run, run.batches())
    assert 0 < step.grad_norm < math.inf
    assert all(math.isfinite(value) for terms in step.terms for value in terms.values())
    assert json.loads(json.dumps(run.settings)) == run.settings
