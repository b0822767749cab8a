"""Mask2Former checkpoints of transformers run here: equal numbers, the commands that take them, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from mask2former_models import NAMES, write_mask2former
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import TINY_RESNET, TINY_SWIN
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
)

from configuration import FASegConfig, QLSegConfig, SeMaskConfig
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import convert_checkpoint, predict
from scripts.cli.errors import UserError
from scripts.models import mask2former
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config, build_model, build_processor


@pytest.fixture(scope="module", params=[TINY_RESNET, TINY_SWIN], ids=["resnet", "swin"])
def either(request, tmp_path_factory):
    """Folder of a Mask2Former on a ResNet or a Swin, whose name says its task."""
    return write_mask2former(tmp_path_factory.mktemp("models") / "mask2former-tiny-semantic", request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The one on a ResNet, for a copy that a test may spoil."""
    return write_mask2former(tmp_path_factory.mktemp("model") / "mask2former-tiny-semantic", TINY_RESNET)


@pytest.fixture
def spoilt(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    return copy


def here(folder):
    arguments = ModelArguments(model_name_or_path=str(folder))
    config = build_config(arguments)
    return build_model(arguments, config, new_classes=False).eval(), build_processor(arguments, config)


# ---- equal numbers


@pytest.mark.parametrize("size", [(1, 3, 96, 160), (2, 3, 128, 128)])
@torch.no_grad()
def test_logits_are_transformers(either, size):
    ours, theirs = here(either)[0], Mask2FormerForUniversalSegmentation.from_pretrained(either).eval()
    images = torch.randn(size)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        found, wanted = ours.to(dtype)(images.to(dtype)), theirs.to(dtype)(images.to(dtype))
        for name in ("class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(found[name], wanted[name], atol=tolerance, rtol=0)
    assert found.masks_queries_logits.std() > 0.1


def test_the_loss_is_transformers(either):
    """Of all predictions, points drawn alike."""
    ours, theirs = here(either)[0].train(), Mask2FormerForUniversalSegmentation.from_pretrained(either).train()
    assert ours.config.decoder_layers == theirs.config.decoder_layers - 1
    images, masks = torch.randn(1, 3, 96, 96), torch.zeros(2, 96, 96)
    masks[0, :40], masks[1, 50:] = 1, 1
    losses = []
    for model in (ours, theirs):
        model.model.requires_grad_(False)
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(model.eval()(images, mask_labels=[masks], class_labels=[torch.tensor([1, 4])]).loss)
    assert torch.isclose(*[loss.squeeze() for loss in losses], rtol=0.1)  # the points are drawn in another order


@torch.no_grad()
def test_segments_are_transformers_at_its_own_size(either):
    """Instances and panoptic segments where nothing has to be resized: transformers always passes 384 x 384.

    Pixels of a segment that its mask does not reach stay empty, as in the reference; transformers fills them.
    """
    model = here(either)[0]
    outputs = model(torch.randn(1, 3, 384, 384))
    theirs, sizes = Mask2FormerImageProcessor(), {"target_sizes": [(384, 384)]}
    ours = FASegImageProcessor(task="panoptic", size={"height": 384, "width": 384})
    found = ours.post_process_panoptic_segmentation(outputs, 0.1, label_ids_to_fuse={0, 1}, **sizes)[0]
    wanted = theirs.post_process_panoptic_segmentation(outputs, 0.1, label_ids_to_fuse={0, 1}, **sizes)[0]
    assert wanted["segments_info"]
    assert found["segments_info"] == wanted["segments_info"]
    filled = found["segmentation"] > 0
    assert filled.float().mean() > 0.05
    assert torch.equal(found["segmentation"][filled].long(), wanted["segmentation"][filled].long())
    maps = {"return_binary_maps": True, **sizes}  # transformers looks at as many pairs as there are queries
    instances = ours.post_process_instance_segmentation(outputs, 0.1, max_detections=6, **maps)[0]
    expected = theirs.post_process_instance_segmentation(outputs, 0.1, **maps)[0]
    labels = [segment["label_id"] for segment in instances["segments_info"]]
    assert sorted(labels) == sorted(segment["label_id"] for segment in expected["segments_info"]) and labels
    scores = sorted(segment["score"] for segment in instances["segments_info"])
    assert scores == pytest.approx(sorted(segment["score"] for segment in expected["segments_info"]), abs=1e-5)


# ---- processor


def test_the_processor_reads_images_as_the_checkpoints_does(folder):
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)  # of a size that nothing changes
    ours = here(folder)[1](images=image, return_tensors="pt")
    theirs = Mask2FormerImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"size": 512, "max_size": 2048}, {"size": {"shortest_edge": 512, "longest_edge": 2048}}),
        ({"size": {"height": 64, "width": 96}}, {"size": {"height": 64, "width": 96}}),
        ({"reduce_labels": True}, {"do_reduce_labels": True, "ignore_index": 255}),
        ({"size_divisibility": 64}, {"size_divisor": 64}),
        ({"image_mean": [0.1, 0.2, 0.3]}, {"image_mean": [0.1, 0.2, 0.3]}),
        ({"label_ids_to_fuse": [2]}, {"label_ids_to_fuse": [2]}),
    ],
)
def test_settings_of_old_and_new_files_are_carried_over(saved, expected, spoilt):
    (spoilt / "preprocessor_config.json").write_text(json.dumps(saved))
    settings = here(spoilt)[1].to_dict()
    for name, value in expected.items():
        found = settings[name]
        if isinstance(value, dict):
            found = {key: side for key, side in dict(found).items() if side is not None}
        assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize(("count", "first", "stuff"), [(133, "person", (80, 133)), (19, "road", (0, 11))])
def test_stuff_of_known_data(count, first, stuff):
    names = {index: first if index == 0 else str(index) for index in range(count)}
    config = FASegConfig(id2label=names, task="panoptic")
    assert mask2former.known_stuff(config) == list(range(*stuff))
    assert mask2former.known_stuff(FASegConfig(id2label={0: "a", 1: "b"}, task="panoptic")) is None


# ---- commands


def test_a_converted_folder_loads_and_is_equal(folder, tmp_path, command):
    flags = ["--mask2former", folder, "--output_dir", tmp_path / "out"]
    code, _, errors = command(convert_checkpoint, *flags)
    assert code == 0, errors
    said = "run as FASeg without DFPQ and HRCA, for semantic segmentation; licence of its weights: unknown"
    assert any(line.endswith(said) for line in errors)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(model, FASegForUniversalSegmentation) and isinstance(processor, FASegImageProcessor)
    assert model.config.id2label == NAMES and processor.task == "semantic"
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        wanted = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()(images)
        assert torch.allclose(model(images).masks_queries_logits, wanted.masks_queries_logits, atol=1e-4)


def test_predict_takes_the_folder_itself(folder, tmp_path, command):
    """And gives the map of the reference's rule: scores resized, not squares."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    image.save(tmp_path / "one.png")
    flags = [tmp_path / "one.png", "--model_name_or_path", folder, "--output_dir", tmp_path / "out"]
    code, _, errors = command(predict, *flags)
    assert code == 0 and sum("is a Mask2Former" in line for line in errors) == 1, errors
    model, processor = here(folder)
    with torch.no_grad():
        outputs = model(
            **{key: value for key, value in processor(image, return_tensors="pt").items() if "pixel" in key}
        )
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(96, 128)])[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "one_labels.png")), expected.numpy())
    assert len(expected.unique()) > 1


def test_the_task_is_told_by_the_name_or_a_flag(folder, tmp_path, command):
    nameless = tmp_path / "model"
    shutil.copytree(folder, nameless)
    flags = ["--mask2former", nameless, "--output_dir", tmp_path / "out"]
    code, _, errors = command(convert_checkpoint, *flags)
    assert code == 2 and "its name tells no task: give --task" in errors[-1] and not (tmp_path / "out").exists()
    assert command(convert_checkpoint, *flags, "--task", "instance")[0] == 0
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").task == "instance"
    assert mask2former.task_of("facebook/mask2former-swin-large-coco-panoptic", None) == "panoptic"
    assert mask2former.task_of("/data/semantic-segmentation/mask2former-coco-instance", None) == "instance"


# ---- what is refused


@pytest.mark.parametrize("kind", [FASegConfig, SeMaskConfig, QLSegConfig])
def test_from_pretrained_names_the_command(kind, folder):
    with pytest.raises(ValueError, match=r"is a checkpoint of mask2former, not of .*--mask2former .*--output_dir"):
        kind.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"convert_checkpoint\.py --mask2former"):
        FASegForUniversalSegmentation.from_pretrained(folder)


def damaged(spoilt, how):
    """The folder after some damage."""
    file = spoilt / "model.safetensors"
    weights = load_file(file)
    if how == "lacks":
        del weights["model.transformer_module.level_embed.weight"]
    elif how == "surplus":
        weights["model.transformer_module.another.weight"] = torch.zeros(3)
    elif how in ("queries", "classes"):
        config = json.loads((spoilt / "config.json").read_text())
        if how == "queries":
            config["num_queries"] = 7
        else:
            config["id2label"] = {"0": "a", "1": "b"}
            config["label2id"] = {"a": 0, "b": 1}
        (spoilt / "config.json").write_text(json.dumps(config))
    if how == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "no weights":
        file.unlink()
    elif how == "no processor":
        (spoilt / "preprocessor_config.json").unlink()
    elif how == "pre-norm":
        config = json.loads((spoilt / "config.json").read_text())
        (spoilt / "config.json").write_text(json.dumps({**config, "pre_norm": True}))
    elif how == "maskformer":
        MaskFormerConfig().save_pretrained(spoilt)
    elif how in ("lacks", "surplus"):
        save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("lacks", "the checkpoint lacks model.transformer_module.level_embed.weight"),
        ("surplus", "holds what its config.json knows nothing of: model.transformer_module.another.weight"),
        ("queries", "holds other sizes than its config.json: "),
        ("classes", "holds other sizes than its config.json: class_predictor."),
        ("cut", "error: "),
        ("no weights", "model.safetensors"),
        ("no processor", "no image processor"),
        ("pre-norm", "pre_norm=True"),
        ("maskformer", "a checkpoint of maskformer: name a Mask2Former"),
    ],
)
def test_damage_is_one_line_and_nothing_is_written(how, said, spoilt, tmp_path, command):
    damaged(spoilt, how)
    code, _, errors = command(convert_checkpoint, "--mask2former", spoilt, "--output_dir", tmp_path / "out")
    assert code == 2 and said in errors[-1], errors
    assert not (tmp_path / "out").exists()


def test_older_files_lack_a_constant(spoilt):
    file = spoilt / "model.safetensors"
    weights = load_file(file)
    constant = weights.pop("criterion.empty_weight")
    save_file(weights, file, metadata={"format": "pt"})
    assert torch.equal(here(spoilt)[0].criterion.empty_weight, constant)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mask2former", "no/such-model"], "no folder with a config.json, no model of the Hub in reach"),
        (["--mask2former", "x", "--config", "y"], "--config and --mask2former name two checkpoints"),
        (["--mask2former", "x", "--checkpoint", "y"], "--checkpoint and --mask2former name two checkpoints"),
        (["--model_id", "faseg-resnet50-ade20k", "--task", "instance"], "--task is for --mask2former"),
        (["--mask2former", "x", "--task", "depth"], "--task depth: give one of semantic, instance, panoptic"),
    ],
)
def test_flags_that_cannot_work(flags, said, tmp_path, command):
    code, _, errors = command(convert_checkpoint, *flags, "--output_dir", tmp_path / "out")
    assert code == 2 and said in errors[-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"model_type": "faseg"}', "a checkpoint of faseg: name a Mask2Former of transformers"),
        ("null", "config.json holds null, not an object"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "config.json is not a valid JSON file: it is nested too deeply"),
    ],
)
def test_what_is_no_mask2former_is_named(content, said, tmp_path, command):
    """Before transformers reads any of it."""
    (tmp_path / "config.json").write_text(content)
    code, _, errors = command(convert_checkpoint, "--mask2former", tmp_path, "--output_dir", tmp_path / "out")
    assert code == 2 and f"--mask2former {tmp_path}: {said}" in errors[-1]


def test_a_relative_is_refused_wherever_a_model_is_named(spoilt):
    damaged(spoilt, "maskformer")
    with pytest.raises(UserError, match="a checkpoint of maskformer, which this project cannot run"):
        build_config(ModelArguments(model_name_or_path=str(spoilt)))
