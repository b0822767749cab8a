"""Every shipped recipe: the reference's numbers, and one step of its training with a small model on small images."""

import json
import math

import pytest
import torch
from torchvision.transforms import v2
from transformers import AutoImageProcessor

from modeling_faseg import FASegForUniversalSegmentation
from scripts.cli.parser import PROJECT_ROOT, RECIPES, parse_arguments
from scripts.data import augmentation
from scripts.models.loading import build_config, refuse_dead_hrca
from scripts.training.arguments import TrainArguments, check_arguments, with_batch_sizes
from scripts.training.loop import training_step
from scripts.training.run import set_up


# Those of the other two systems have tests of their own, in their folders; those of segments in
# test_segment_recipes.py, those on newer backbones in test_backbone_recipes.py. Those whose numbers are in them:
# finetune takes its own from the data.
ELSEWHERE = {"semask", "qlseg", "finetune", "panoptic", "instance", "dinov3", "dinov2", "mobilenetv4"}
NAMES = sorted(r.stem for r in RECIPES.glob("*.yaml") if not ELSEWHERE & set(r.stem.split("-")))
CARDS = PROJECT_ROOT / "hub_cards"

# ---- the numbers of the reference (section 5 of its description), written down here and read from nowhere ----

ALL_RELEASED = {
    "total_train_batch_size": 16,
    "learning_rate": 0.0001,
    "backbone_lr_multiplier": 0.1,
    "weight_decay": 0.05,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 0.01,
    "lr_scheduler_type": "poly",
    "lr_power": 0.9,
    "num_warmup_steps": 0,
    "mixed_precision": "fp16",
    "color_jitter": True,
    "scale_range": None,
    "freeze_backbone": False,
    "ema_decay": None,
}
SIZES_512 = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
SIZES_640 = [320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280]
SIZES_1024 = [512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048]
ADE20K = {"max_train_steps": 160000, "do_reduce_labels": True, "seed": 0}
ADE20K_512 = ADE20K | {
    "crop_height": 512, "crop_width": 512, "shortest_edges": SIZES_512, "longest_edge": 2048,
    "eval_shortest_edge": 512, "eval_longest_edge": 2048,
}  # fmt: skip
ADE20K_640 = ADE20K | {
    "crop_height": 640, "crop_width": 640, "shortest_edges": SIZES_640, "longest_edge": 2560,
    "eval_shortest_edge": 640, "eval_longest_edge": 2560,
}  # fmt: skip
RELEASED = {
    "faseg-resnet50-ade20k": ADE20K_512,
    "faseg-swin-tiny-ade20k": ADE20K_512 | {"seed": 5},  # the only one with a seed of its own
    "faseg-swin-base-ade20k-640": ADE20K_640,
    "faseg-swin-large-ade20k-640": ADE20K_640,
    "faseg-resnet50-cityscapes": {
        "crop_height": 512, "crop_width": 1024, "shortest_edges": SIZES_1024, "longest_edge": 4096,
        "eval_shortest_edge": 1024, "eval_longest_edge": 2048,
        "max_train_steps": 90000, "do_reduce_labels": False, "seed": 0,
    },
}  # fmt: skip

ALL_MODELS = {
    "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "num_attention_heads": 8, "num_queries": 100,
    "encoder_layers": 6, "encoder_feedforward_dim": 1024, "decoder_layers": 13, "dim_feedforward": 2048,
    "dropout": 0.0, "high_resolution_reduction": 32, "high_resolution_min_windows": 0,
    "attention_mask_threshold": 0.15, "positional_encoding_type": "conditional",
    "use_dynamic_positional_queries": True, "use_high_resolution_cross_attention": True,
    "enforce_input_projection": False, "mask_padding": False, "exclude_ignored_pixels": False,
    "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1, "use_auxiliary_loss": True,
    "train_num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75, "ignore_value": 255,
}  # fmt: skip
RESNET = {"model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048],
          "embedding_size": 64, "layer_type": "bottleneck", "downsample_in_bottleneck": False}  # fmt: skip
SWIN = {"model_type": "swin", "drop_path_rate": 0.3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "mlp_ratio": 4.0, "qkv_bias": True, "use_absolute_embeddings": False, "patch_size": 4,
        "layer_norm_eps": 1e-5}  # fmt: skip
LARGE_SWIN = SWIN | {"depths": [2, 2, 18, 2], "window_size": 12}
# model id: (classes, whether the backbone's batch norms are constants, backbone)
MODELS = {
    "faseg-resnet50-ade20k": (150, True, RESNET),
    "faseg-resnet50-cityscapes": (19, False, RESNET),
    "faseg-swin-tiny-ade20k": (
        150, False, SWIN | {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    ),
    "faseg-swin-base-ade20k-640": (150, False, LARGE_SWIN | {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}),
    "faseg-swin-large-ade20k-640": (150, False, LARGE_SWIN | {"embed_dim": 192, "num_heads": [6, 12, 24, 48]}),
}  # fmt: skip
# The recipes that are this project's own.
CAMVID = {
    "crop_height": 256, "crop_width": 256, "scale_range": [0.6, 1.5], "color_jitter": True,
    "eval_shortest_edge": 360, "eval_longest_edge": 1440, "per_device_train_batch_size": 8,
    "max_train_steps": 520, "learning_rate": 0.0005, "backbone_lr_multiplier": 0.1, "weight_decay": 0.05,
    "max_grad_norm": 1.0, "lr_scheduler_type": "poly", "lr_power": 0.9, "seed": 0, "do_reduce_labels": False,
}  # fmt: skip
OWN = {
    "faseg-mobilenetv2-camvid": CAMVID | {"image_mean": None},
    "faseg-light-mobilenetv2-camvid": CAMVID | {"image_mean": None},
    "faseg-efficientnet-lite0-camvid": CAMVID | {
        "max_train_steps": 400, "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3,
    },
    "demo": {
        "crop_height": 128, "crop_width": 128, "scale_range": [1.1, 1.8], "color_jitter": False,
        "eval_shortest_edge": 192, "eval_longest_edge": 768, "per_device_train_batch_size": 8,
        "max_train_steps": 240, "learning_rate": 0.001, "backbone_lr_multiplier": 1.0, "weight_decay": 0.05,
        "max_grad_norm": 1.0, "lr_scheduler_type": "poly", "lr_power": 0.9, "seed": 0, "do_reduce_labels": False,
    },
}  # fmt: skip


def arguments_of(name, *flags):
    return parse_arguments(TrainArguments, [name, "--dataset_name", "data", "--output_dir", "out", *map(str, flags)])


def test_there_is_a_recipe_per_released_model_and_a_table_per_recipe():
    cards = {card.name for card in CARDS.glob("faseg-*") if (card / "config.json").is_file()}
    assert set(RELEASED) == set(MODELS) and cards >= set(RELEASED)
    assert set(RELEASED) | set(OWN) <= set(NAMES)


@pytest.mark.parametrize("name", [*RELEASED, *OWN])
def test_recipes_have_the_numbers_of_the_table(name):
    table = ALL_RELEASED | RELEASED[name] if name in RELEASED else OWN[name]
    arguments = arguments_of(name)
    assert {key: getattr(arguments, key) for key in table} == table


@pytest.mark.parametrize(("processes", "micro", "steps"), [(1, 1, 16), (8, 1, 2), (16, 1, 1), (4, 1, 4)])
def test_released_recipes_train_on_batches_of_16_on_any_number_of_processes(processes, micro, steps):
    arguments = with_batch_sizes(arguments_of("faseg-resnet50-ade20k"), processes)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (micro, steps)


def test_the_sizes_of_the_table_are_the_reference_rule():
    for base, sizes in ((512, SIZES_512), (640, SIZES_640), (1024, SIZES_1024)):
        assert sizes == [int(0.1 * k * base) for k in range(5, 21)] == augmentation.reference_sizes(base)
        assert len(set(sizes)) == 16


@pytest.mark.parametrize("name", RELEASED)
def test_models_have_the_numbers_of_the_table(name):
    num_labels, frozen, backbone = MODELS[name]
    config = build_config(arguments_of(name))
    table = ALL_MODELS | {"freeze_backbone_batch_norm": frozen, "num_labels": num_labels}
    assert {key: getattr(config, key) for key in table} == table
    found = config.backbone_config
    assert {key: getattr(found, key) for key in backbone} == backbone
    assert found.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("name", RELEASED)
def test_processors_have_the_numbers_of_the_table(name):
    processor = AutoImageProcessor.from_pretrained(CARDS / name)
    assert [round(255 * mean, 3) for mean in processor.image_mean] == [123.675, 116.28, 103.53]
    assert [round(255 * std, 3) for std in processor.image_std] == [58.395, 57.12, 57.375]
    assert processor.ignore_index == 255 and processor.do_reduce_labels == RELEASED[name]["do_reduce_labels"]
    size = (processor.size["shortest_edge"], processor.size["longest_edge"])
    assert size == (RELEASED[name]["eval_shortest_edge"], RELEASED[name]["eval_longest_edge"])


def test_augmentation_has_the_numbers_of_the_table():
    """Resize, crop, colour, flip with probability 1/2, padding with grey 128 and ignored 255."""
    steps = augmentation.training_augmentation(512, 1024, SIZES_1024, 4096).transforms
    resize, crop, colour, flip, pad = steps
    assert (resize.sizes, resize.longest_edge) == (SIZES_1024, 4096)
    assert (crop.height, crop.width) == (pad.height, pad.width) == (512, 1024)
    assert isinstance(colour, augmentation.RandomColour) and isinstance(flip, v2.RandomHorizontalFlip)
    assert flip.p == 0.5 and (augmentation.IMAGE_FILL, augmentation.LABEL_FILL) == (128, 255)


# ---- one step ----

SMALL_HEAD = [
    "feature_size=32", "mask_feature_size=32", "hidden_dim=32", "encoder_layers=1", "encoder_feedforward_dim=32",
    "decoder_layers=4", "dim_feedforward=32", "num_queries=20", "train_num_points=256",
]  # fmt: skip
SMALL_BACKBONE = {
    "resnet": ["embedding_size=8", "hidden_sizes=[16, 32, 64, 128]", "depths=[1, 1, 1, 1]"],
    # Heads keep their number; a head of two channels is the least that is divisible into them.
    "swin-tiny": ["embed_dim=6", "depths=[1, 1, 2, 1]"],
    "swin-base": ["embed_dim=8", "depths=[1, 1, 2, 1]"],
    "swin-large": ["embed_dim=12", "depths=[1, 1, 2, 1]"],
    "mobilenetv2": [],  # of one width and depth
    "efficientnet": [],
    "demo": ["embedding_size=8", "hidden_sizes=[8, 8, 16, 16]"],
}


def small_run(name, shapes, folder):
    """The recipe with narrow, shallow networks on the smallest crops on which HRCA keeps a window."""
    kind = next(kind for kind in SMALL_BACKBONE if kind in name)
    overrides = [*SMALL_HEAD, *(f"backbone_config.{item}" for item in SMALL_BACKBONE[kind])]
    recipe = arguments_of(name)
    config = build_config(recipe)
    edge = 32 * math.ceil(math.sqrt(config.high_resolution_reduction))
    flags = [
        "--dataset_name", shapes, "--output_dir", folder / "out", "--config_overrides", *overrides,
        "--crop_height", edge, "--crop_width", edge,
        "--dataloader_num_workers", 0, "--mixed_precision", "no",  # fp16 needs a GPU
        "--per_device_train_batch_size", 8,  # the batch of 16 in fewer micro steps
    ]  # fmt: skip
    if name in RELEASED:
        flags += ["--shortest_edges", edge, "--longest_edge", 4 * edge]
        classes = {index: f"class {index}" for index in range(MODELS[name][0])}
        (folder / "id2label.json").write_text(json.dumps(classes))
        flags += ["--id2label", folder / "id2label.json", "--allow_absent_classes"]
    return set_up(parse_arguments(TrainArguments, [name, *map(str, flags)]))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_takes_a_step(name, shapes, tmp_path):
    arguments = arguments_of(name)
    check_arguments(arguments)
    refuse_dead_hrca(build_config(arguments), arguments.crop_height, arguments.crop_width)

    run = small_run(name, shapes, tmp_path)
    assert run.images_per_step == (16 if name in RELEASED else 8) and run.max_steps == arguments.max_train_steps
    assert type(run.optimizer.optimizer) is torch.optim.AdamW
    for group in run.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in run.optimizer.param_groups}
    rate, multiplier = arguments.learning_rate, arguments.backbone_lr_multiplier
    assert groups["head"] == (rate, 0.05) and groups["head_no_decay"] == (rate, 0.0)
    assert groups["backbone"] == (rate * multiplier, 0.05)
    # Frozen batch norms are constants; those of Cityscapes, and Swin's layer norms, are trained without decay.
    assert groups.get("backbone_no_decay") == (None if name == "faseg-resnet50-ade20k" else (rate * multiplier, 0.0))
    backbone = run.network.base_model.backbone
    if "swin" in name:
        rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
        assert max(rates) == pytest.approx(0.3) and sorted(rates) == pytest.approx(rates)
    before = {key: value.clone() for key, value in run.network.state_dict().items()}

    run.model.train()
    step = training_step(run, run.batches())
    assert len(step.terms) == (2 if name in RELEASED else 1) and 0 < step.grad_norm < math.inf
    assert all(math.isfinite(value) for terms in step.terms for value in terms.values())
    after = run.network.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any("class_predictor" in key for key in moved) and any("backbone" in key for key in moved)
    statistics = any(key.endswith("running_mean") for key in moved)
    assert statistics == ("swin" not in name and name != "faseg-resnet50-ade20k")
    decayed = rate * (1 - 1 / arguments.max_train_steps) ** 0.9
    assert run.scheduler.get_last_lr()[-1] == pytest.approx(decayed, rel=1e-12)


def test_images_reach_efficientnet_lite_as_it_was_trained_on_them(shapes, tmp_path):
    """(x - 127) / 128 of whole numbers x: any other normalisation would pass unnoticed, and cost accuracy."""
    run = small_run("faseg-efficientnet-lite0-camvid", shapes, tmp_path)
    in_training = next(iter(run.batches()))["pixel_values"]
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    run.processor.save_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    later = processor(image, do_resize=False, do_pad=False, return_tensors="pt")["pixel_values"][..., :16, :16]
    torch.testing.assert_close(later[0], (image.float() - 127) / 128)
    for values in (in_training * 128 + 127, later * 128 + 127):
        torch.testing.assert_close(values, values.round().clamp(0, 255), atol=1e-3, rtol=0)


def test_the_light_recipe_is_a_narrower_and_shallower_one():
    """Its numbers under `config_overrides`, and nothing else, set it apart: figures of the two compare the models."""
    light, full = (arguments_of(name) for name in ("faseg-light-mobilenetv2-camvid", "faseg-mobilenetv2-camvid"))
    differing = {name for name, value in vars(light).items() if value != getattr(full, name)}
    assert differing <= {"config_overrides", "train_recipe", "recipe"}
    with torch.device("meta"):
        sizes = [
            sum(value.numel() for value in FASegForUniversalSegmentation(build_config(each)).parameters())
            for each in (light, full)
        ]
    assert sizes[0] < 0.45 * sizes[1]
