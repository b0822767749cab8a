"""The commands on SeMask: recipes, converter, weights of a plain Swin, crops by class share, evaluation."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision import tv_tensors
from transformers import AutoModelForSemanticSegmentation, SwinConfig, SwinForImageClassification

from configuration import SeMaskConfig
from image_processing import FASegImageProcessor
from modeling_faseg import SeMaskForSemanticSegmentation
from scripts import convert_checkpoint, eval, predict, train
from scripts.cli.errors import UserError
from scripts.cli.parser import RECIPES, parse_arguments
from scripts.data.augmentation import RandomCrop
from scripts.models.backbone_weights import load_backbone_weights
from scripts.models.loading import build_config, save_model_folder
from scripts.models.semask_names import official_source
from scripts.sharing.clean_load import load_back
from scripts.training.arguments import TrainArguments, check_arguments
from scripts.training.loop import training_step
from scripts.training.run import set_up


BACKBONE = {
    "model_type": "semask_swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "global_semantic_stages": [3],
}
RELEASED = sorted(recipe.stem for recipe in RECIPES.glob("semask-fpn-*.yaml"))
OWN = ["faseg-semask-camvid", "semask-tiny-camvid"]
# ---- the numbers of the reference, written down here and read from nowhere ----
ALL_RELEASED = {
    "max_train_steps": 80000, "num_warmup_steps": 1500, "adam_beta1": 0.9, "adam_beta2": 0.999, "max_grad_norm": 0,
    "lr_scheduler_type": "poly", "lr_power": 1.0, "backbone_lr_multiplier": 1.0, "mixed_precision": "no",
    "color_jitter": True,
}  # fmt: skip


def tiny(**overrides):
    fields = {"backbone_config": dict(BACKBONE), "decoder_hidden_size": 16, "num_labels": 3}
    torch.manual_seed(0)
    return SeMaskForSemanticSegmentation(SeMaskConfig(**{**fields, **overrides}))


def arguments_of(name, *flags):
    return parse_arguments(TrainArguments, [name, "--dataset_name", "data", "--output_dir", "out", *map(str, flags)])


# ---- recipes ----


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_have_the_numbers_of_the_reference(name):
    size, _, data = name.removeprefix("semask-fpn-").partition("-")
    arguments = arguments_of(name)
    check_arguments(arguments)
    large, streets = size == "large", data == "cityscapes"
    edge = 640 if large else 512
    table = ALL_RELEASED | {
        "learning_rate": 1e-3 if streets else 1e-4,
        "weight_decay": 0.05 if streets else 1e-4,
        "total_train_batch_size": 8 if streets else 16,
        "crop_height": 768 if streets else edge,
        "crop_width": 768 if streets else edge,
        "crop_max_class_share": 0.75 if streets or name == "semask-fpn-tiny-ade20k" else 1.0,
        "scale_range": [0.5, 2.0] if streets else None,
        "shortest_edges": None if streets else [edge * quarters // 4 for quarters in range(2, 8)],
        "eval_shortest_edge": 1024 if streets else edge,
        "eval_longest_edge": 2048 if streets else 4 * edge,
        "do_reduce_labels": not streets,
    }
    assert {key: getattr(arguments, key) for key in table} == table
    assert build_config(arguments).model_type == "semask"


@pytest.mark.parametrize("name", ["semask-fpn-tiny-ade20k", *OWN])
def test_recipe_takes_a_step(name, shapes, tmp_path):
    """With a narrow network on small crops; every part moves, the semantic attention's weight from its 0."""
    flags = ["backbone_config.embed_dim=12", "backbone_config.depths=[1, 1, 1, 1]"]
    if name.startswith("faseg"):
        flags += ["encoder_layers=1", "decoder_layers=4", "hidden_dim=32", "feature_size=32", "mask_feature_size=32"]
    run = set_up(
        arguments_of(
            name, "--dataset_name", shapes, "--output_dir", tmp_path / "out", "--config_overrides", *flags,
            "--crop_height", 96, "--crop_width", 96, "--shortest_edges", 96, "--dataloader_num_workers", 0,
            "--per_device_train_batch_size", 2, "--total_train_batch_size", 4,
            "--id2label", classes_file(tmp_path, 150 if "fpn" in name else 12), "--allow_absent_classes",
        )
    )  # fmt: skip
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.model.train()
    step = training_step(run, run.batches())
    assert {"loss", "loss_semantic"} <= step.terms[0].keys() and step.grad_norm > 0
    moved = {key for key, value in run.network.state_dict().items() if not torch.equal(value, before[key])}
    assert sum(key.endswith(".gamma") for key in moved) == 4
    assert any("decoder" in key for key in moved) and any("relative_position_bias" in key for key in moved)


def classes_file(folder, count):
    file = folder / "id2label.json"
    file.write_text(json.dumps({index: f"class {index}" for index in range(count)}))
    return file


# ---- training, evaluation, prediction ----


@pytest.fixture(scope="module")
def on_shapes(shapes, tmp_path_factory):
    """Flags that name a tiny random model and the data set of its classes."""
    processor = FASegImageProcessor(size={"shortest_edge": 50, "longest_edge": 200}, size_divisor=0)
    classes = len(json.loads((shapes / "id2label.json").read_text()))
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(tiny(num_labels=classes), processor, folder)
    return ["--model_name_or_path", folder, "--dataset_name", shapes]


FEW = ["--max_eval_samples", 2, "--dataloader_num_workers", 0]


@pytest.mark.parametrize(
    "extra",
    [[], ["--tta", "--tta_shortest_edges", 40, 60], ["--sliding_window", "--crop_size", 48]],
    ids=["plain", "several sizes", "windows"],
)
def test_evaluation(extra, on_shapes, tmp_path, command):
    code, out, _ = command(eval, *on_shapes, *FEW, *extra, "--output_file", tmp_path / "results.json")
    assert code == 0 and "results in" in out
    assert json.loads((tmp_path / "results.json").read_text())["images"] == 2


def test_the_lens_is_refused(on_shapes, command):
    code, _, error = command(eval, *on_shapes, *FEW, "--protocol_lens")
    assert code == 2 and "masks of queries, which semask gives none of" in error[-1]


def test_prediction(on_shapes, tmp_path, command):
    flags = ["--split_name", "validation", "--output_dir", tmp_path / "maps", "--score_maps"]
    code, *_ = command(predict, *on_shapes, *flags)
    assert code == 0 and list((tmp_path / "maps").rglob("*.parquet"))


# ---- crops ----


def test_crops_of_one_class_are_drawn_anew():
    """The left half is one class, the right stripes of two: windows of nothing but the left are not taken."""
    labels = torch.zeros(40, 80, dtype=torch.uint8)
    labels[:, 40:] = 1 + (torch.arange(40) // 4 % 2)
    pair = [tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8)), tv_tensors.Mask(labels)]
    shares = {}
    for limit in (1.0, 0.75):
        crop = RandomCrop(24, 24, limit)
        windows = [crop.make_params(pair) for _ in range(60)]
        shares[limit] = sum(window["left"] + 24 <= 40 for window in windows)
    assert shares[1.0] > 5 and shares[0.75] == 0
    unlabelled = RandomCrop(24, 24, 0.75, unlabelled=(0, 1, 2))
    assert unlabelled.make_params(pair).keys() == {"top", "left", "height", "width"}


# ---- weights of a plain Swin ----


def test_imagenet_swin_fits_with_resized_position_tables(tmp_path):
    """transformers' own Swin with another window; what it has not, the semantic layers, keeps its new weights."""
    torch.manual_seed(1)
    fields = ("embed_dim", "depths", "num_heads")
    swin = SwinForImageClassification(SwinConfig(**{name: BACKBONE[name] for name in fields}, window_size=6))
    for name, value in swin.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(value)
    swin.save_pretrained(tmp_path)
    model = tiny()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    said = load_backbone_weights(model, str(tmp_path))
    assert "tensors loaded" in said
    after, given = model.backbone.state_dict(), swin.swin.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(".semantic_layer." not in name for name in moved)
    name = "encoder.layers.2.blocks.0.attention.q_proj.weight"
    if name in given:  # as transformers spells it since 5.23
        assert after[name].equal(given[name])
        table = "encoder.layers.2.blocks.0.attention.relative_position_bias.relative_position_bias_table"
        square = given[table].T.reshape(1, -1, 11, 11)
        resized = torch.nn.functional.interpolate(square, size=(7, 7), mode="bicubic", align_corners=False)
        torch.testing.assert_close(after[table], resized.reshape(-1, 49).T)
    assert sum("relative_position_bias_table" in name for name in moved) == 4


# ---- converter ----


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with a small model's configuration and its weights under official names, as mmsegmentation saves."""
    folder = tmp_path_factory.mktemp("official")
    model = tiny()
    model.config.save_pretrained(folder)
    state, packed = {}, {}
    for name, value in model.state_dict().items():
        source = official_source(name)
        if source.third is None:
            state[source.name] = value.clone()
        else:
            packed.setdefault(source.name, {})[source.third] = value
    state |= {name: torch.cat([thirds[index] for index in range(3)]) for name, thirds in packed.items()}
    torch.save({"meta": {"CLASSES": ["a", "b", "c"]}, "state_dict": state}, folder / "model.pth")
    save_file({name: value for name, value in state.items() if "backbone" in name}, folder / "backbone.safetensors")
    without = {name: value for name, value in state.items() if "semantic_layer" not in name}
    save_file(without, folder / "plain.safetensors")
    return folder, model


def test_converted_folder_is_the_model(official, tmp_path, command):
    folder, model = official
    arguments = ["--checkpoint", folder / "model.pth", "--config", folder / "config.json"]
    code, out, errors = command(convert_checkpoint, *arguments, "--output_dir", tmp_path / "new")
    assert code in (0, None) and "3 classes" in out, errors
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "new").eval()
    images = torch.randn(1, 3, 40, 52)
    with torch.no_grad():
        assert loaded(images).logits.equal(model.eval()(images).logits)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("backbone.safetensors", "the checkpoint has no head weights (decode_head.conv_seg): a backbone alone"),
        ("plain.safetensors", "the checkpoint has no semantic layers"),
    ],
)
def test_other_checkpoints_are_refused(official, tmp_path, command, file, message):
    folder, _ = official
    arguments = ["--checkpoint", folder / file, "--config", folder / "config.json"]
    code, _, errors = command(convert_checkpoint, *arguments, "--output_dir", tmp_path / "new")
    assert code == 2 and message in errors[-1] and not (tmp_path / "new").exists()


def test_released_files_are_fetched_by_hand(tmp_path, command):
    arguments = ["--model_id", "semask-fpn-base-ade20k", "--output_dir", tmp_path / "new"]
    code, _, errors = command(convert_checkpoint, *arguments)
    assert code == 2 and "fetch the file from https://drive.google.com/" in errors[-1] and "--checkpoint" in errors[-1]


def test_a_folder_without_head_weights_is_refused(tmp_path, command):
    """As a user once got noise out of an ImageNet backbone: a saved model that lacks its head stops every command."""
    model = tiny()
    save_model_folder(model, FASegImageProcessor(size_divisor=0), tmp_path / "model")
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    image = tmp_path / "image.png"
    from PIL import Image

    Image.effect_noise((60, 40), 80).convert("RGB").save(image)
    arguments = ["--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out"]
    code, _, error = command(predict, image, *arguments)
    assert code == 2 and "missing or of another shape: decoder.classifier.bias and 43 more" in error[-1]


def test_share_of_a_class_is_checked():
    with pytest.raises(UserError, match=r"--crop_max_class_share 0\.0: give a share above 0"):
        check_arguments(arguments_of("semask-tiny-camvid", "--crop_max_class_share", 0))


@pytest.mark.slow
def test_an_export_loads_back_in_a_clean_process(tmp_path):
    model, processor = tiny().eval(), FASegImageProcessor(size={"shortest_edge": 50}, size_divisor=0)
    save_model_folder(model, processor, tmp_path / "model")
    assert load_back(str(tmp_path / "model"), None, model, processor) < 1e-4


def test_a_wrong_field_is_one_line_of_our_own(shapes, tmp_path, command):
    flags = ["--dataset_name", shapes, "--output_dir", tmp_path / "out", "--config_overrides", "decoder_dropout=2"]
    code, _, error = command(train, "semask-tiny-camvid", *flags)
    assert code == 2 and error == ["train.py: error: decoder_dropout=2: set it to 0 or more and below 1"]
