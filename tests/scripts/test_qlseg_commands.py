"""QLSeg through the same commands as FASeg: train a step, evaluate through its windows, predict, convert."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configuration import QLSegConfig
from modeling_faseg import QLSegForSemanticSegmentation
from modeling_faseg.backbone_qlseg import resize_positions
from scripts import convert_checkpoint, predict
from scripts import eval as eval_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.models.arguments import ModelArguments
from scripts.models.backbone_weights import load_backbone_weights
from scripts.models.loading import build_config, build_model, save_model_folder
from scripts.models.qlseg_names import official_source
from scripts.training.arguments import TrainArguments
from scripts.training.loop import training_step
from scripts.training.run import describe, set_up


SMALL = [
    "image_size=48", "window_stride=32", "patch_size=8", "hidden_size=32", "num_hidden_layers=3",
    "out_indices=[0, 1, 2]", "encoder_layers=1", "hidden_dim=16", "encoder_feedforward_dim=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Folder of a small QLSeg after one step of the CamVid recipe."""
    folder = tmp_path_factory.mktemp("qlseg")
    flags = [
        "--dataset_name", shapes, "--output_dir", folder / "out", "--config_overrides", *SMALL,
        "--crop_height", 48, "--crop_width", 48, "--eval_shortest_edge", 64, "--eval_longest_edge", 256,
        "--per_device_train_batch_size", 2, "--dataloader_num_workers", 0,
    ]  # fmt: skip
    run = set_up(parse_arguments(TrainArguments, ["qlseg-vit-tiny-camvid", *map(str, flags)]))
    groups = {group["name"] for group in run.optimizer.param_groups}
    assert groups == {"backbone", "backbone_no_decay", "head"}  # the head's norms and queries decay
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.model.train()
    step = training_step(run, run.batches())
    assert len(step.terms) == 1 and 0 < step.grad_norm < math.inf
    assert len(step.terms[0]) == 1 + 3 * 2 and all(math.isfinite(value) for value in step.terms[0].values())
    moved = {name for name, value in run.network.state_dict().items() if not torch.equal(value, before[name])}
    assert any("class_predictor" in name for name in moved) and any("backbone" in name for name in moved)
    assert "crop" in describe(run) and "windows of" not in describe(run)
    run.arguments.crop_width = 56
    assert "48x56, but it will read windows of 48x48: set crops or image_size to the same" in describe(run)
    save_model_folder(run.result, run.processor, folder / "out")
    return folder / "out"


def test_evaluates_through_its_own_windows(command, shapes, trained, tmp_path):
    flags = ["--model_name_or_path", trained, "--dataset_name", shapes, "--dataloader_num_workers", 0]
    code, out, _ = command(eval_command, *flags, "--output_file", tmp_path / "plain.json")
    assert code == 0 and "mean IoU" in out
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert plain["protocol"]["sliding_window"] == {"crop": 48, "stride": 32}
    assert plain["protocol"]["shortest_edge"] == 64 and plain["protocol"]["longest_edge"] is None
    command(eval_command, *flags, "--sliding_window", "--stride", 48, "--output_file", tmp_path / "wide.json")
    wide = json.loads((tmp_path / "wide.json").read_text())
    assert wide["protocol"]["sliding_window"] == {"crop": 48, "stride": 48}


def test_predicts_images_of_any_size(command, trained, tmp_path):
    generator = np.random.default_rng(0)
    for name, (height, width) in {"small": (20, 30), "large": (90, 120), "long": (16, 200)}.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    code, _, _ = command(predict, tmp_path, "--model_name_or_path", trained, "--output_dir", tmp_path / "maps")
    assert code == 0
    for name, size in {"small": (30, 20), "large": (120, 90), "long": (200, 16)}.items():
        assert Image.open(tmp_path / "maps" / f"{name}_labels.png").size == size


def test_converts_an_official_file(command, tmp_path):
    config = QLSegConfig(
        image_size=48, window_stride=32, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        out_indices=[0, 1, 2], encoder_layers=1, hidden_dim=16, decoder_attention_heads=2, num_labels=12,
    )  # fmt: skip
    model = QLSegForSemanticSegmentation(config)
    official: dict[str, list[torch.Tensor]] = {}
    for name, value in model.state_dict().items():
        official.setdefault(official_source(name).name, []).append(value)
    save_file({name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in official.items()},
              tmp_path / "official.safetensors")  # fmt: skip
    config.save_pretrained(tmp_path)
    flags = ["--config", tmp_path / "config.json", "--output_dir", tmp_path / "converted"]
    code, out, _ = command(convert_checkpoint, "--checkpoint", tmp_path / "official.safetensors", *flags)
    assert code == 0 and "12 classes" in out
    loaded = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "converted").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_pretrained_weights_of_timm(tmp_path):
    """A classifier's file of another image size: positions are resized, the head is left out."""
    import timm

    twin = timm.create_model(
        "vit_tiny_patch16_224", img_size=96, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.0, num_classes=7
    )
    save_file(twin.state_dict(), tmp_path / "vit.safetensors")
    config = QLSegConfig(
        image_size=64, window_stride=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2,
        out_indices=[0, 1, 2], encoder_layers=1, hidden_dim=16, decoder_attention_heads=2, num_labels=3,
    )  # fmt: skip
    model = QLSegForSemanticSegmentation(config)
    said = load_backbone_weights(model, str(tmp_path / "vit.safetensors"))
    tensors = len(model.model.backbone.state_dict())
    assert f"{tensors} of {tensors} tensors loaded" in said and "left out (head, norm)" in said
    assert torch.equal(model.model.backbone.blocks[1].attn.qkv.weight, twin.blocks[1].attn.qkv.weight)
    assert torch.equal(model.model.backbone.pos_embed[:, 0], twin.pos_embed[:, 0])
    config.num_hidden_layers = 4
    with pytest.raises(UserError, match="is lacking"):
        load_backbone_weights(QLSegForSemanticSegmentation(config), str(tmp_path / "vit.safetensors"))


def test_a_checkpoint_goes_on_at_another_window(trained, capsys):
    """Its position embeddings are resized to the new grid; all other weights are the checkpoint's."""
    plain = ModelArguments(model_name_or_path=str(trained))
    wider = ModelArguments(model_name_or_path=str(trained), config_overrides=["image_size=64", "window_stride=40"])
    before = build_model(plain, build_config(plain)).state_dict()
    after = build_model(wider, build_config(wider), new_classes=False).state_dict()
    assert "position embeddings resized to windows of 64" in capsys.readouterr().out
    name = "model.backbone.pos_embed"
    assert before[name].shape == (1, 1 + 36, 32) and after[name].shape == (1, 1 + 64, 32)
    assert after[name].equal(resize_positions(before[name], (8, 8)))
    assert all(value.equal(before[key]) for key, value in after.items() if key != name)
    other = ModelArguments(model_name_or_path=str(trained), config_overrides=["hidden_size=64", "image_size=64"])
    with pytest.raises(UserError, match="missing or of another shape"):
        build_model(other, build_config(other))
