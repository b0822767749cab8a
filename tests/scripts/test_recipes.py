"""Every shipped recipe parses, names real fields and builds; the released ones carry the reference's numbers."""

import pytest
import torch
from transformers import AutoModelForUniversalSegmentation

from scripts.train import TrainArguments, check_arguments
from scripts.training.augmentation import reference_sizes
from scripts.training.command_line import RECIPES, parse_arguments
from scripts.training.model_folder import build_config, refuse_dead_hrca


NAMES = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
# crop, base of the 16 sizes, longest edge, evaluation sizes, steps, reduced labels
RELEASED = {
    "faseg-resnet50-ade20k": ((512, 512), 512, 2048, (512, 2048), 160000, True),
    "faseg-swin-tiny-ade20k": ((512, 512), 512, 2048, (512, 2048), 160000, True),
    "faseg-swin-base-ade20k-640": ((640, 640), 640, 2560, (640, 2560), 160000, True),
    "faseg-swin-large-ade20k-640": ((640, 640), 640, 2560, (640, 2560), 160000, True),
    "faseg-resnet50-cityscapes": ((512, 1024), 1024, 4096, (1024, 2048), 90000, False),
}


def arguments_of(name):
    return parse_arguments(TrainArguments, [name, "--dataset_name", "data", "--output_dir", "out"])


def test_there_is_a_recipe_per_released_model(pytestconfig):
    cards = {card.name for card in (pytestconfig.rootpath / "hub_cards").glob("faseg-*") if card.is_dir()}
    assert cards == set(RELEASED) and cards | {"faseg-mobilenetv2-camvid", "demo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_builds(name):
    arguments = arguments_of(name)
    check_arguments(arguments)
    config = build_config(arguments)
    refuse_dead_hrca(config, arguments.crop_height, arguments.crop_width)
    if "swin" not in name:  # their construction takes seconds; the optimiser's and the cards' tests build them
        with torch.device("meta"):
            AutoModelForUniversalSegmentation.from_config(config)


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_recipes_have_the_numbers_of_the_reference(name):
    crop, base, longest, evaluation, steps, reduced = RELEASED[name]
    arguments = arguments_of(name)
    assert (arguments.crop_height, arguments.crop_width) == crop
    assert arguments.shortest_edges == reference_sizes(base) and arguments.longest_edge == longest
    assert (arguments.eval_shortest_edge, arguments.eval_longest_edge) == evaluation
    assert (arguments.max_train_steps, arguments.do_reduce_labels) == (steps, reduced)
    assert (arguments.total_train_batch_size, arguments.mixed_precision) == (16, "fp16")
    assert (arguments.learning_rate, arguments.backbone_lr_multiplier, arguments.weight_decay) == (1e-4, 0.1, 0.05)
    assert (arguments.max_grad_norm, arguments.lr_scheduler_type, arguments.lr_power) == (0.01, "poly", 0.9)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert arguments.color_jitter and arguments.num_warmup_steps == 0
