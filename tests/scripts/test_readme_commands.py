"""The commands and programs of README and docs: all flags parse, and all but a cluster's run on tiny data.

Those of docs/data.md run in test_own_data_guide.py, Trainer's programs in test_trainer.py.
"""

import dataclasses
import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
from mask2former_models import write_mask2former
from page_commands import script_commands, shell_lines
from PIL import Image
from safetensors.torch import save_file
from tiny_models import TINY_RESNET
from transformers import AutoConfig, DINOv3ViTConfig, DINOv3ViTModel, ResNetBackbone

import modeling_faseg  # noqa: F401 - registers the model
from scripts.cli.parser import PROJECT_ROOT, parse_arguments


PAGES = [PROJECT_ROOT / "README.md", PROJECT_ROOT / "CONTRIBUTING.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]
COMMANDS = [(page.name, module, flags) for page in PAGES for module, flags in script_commands(page)]


class ParsedError(Exception):
    """Carries the arguments out of a command that was to be parsed only."""


def parsed(module_name, flags, monkeypatch):
    """What the command's own `main` makes of `flags`."""
    module = importlib.import_module(f"scripts.{module_name}")

    def parse_only(arguments_class, argv=None, **positional):
        raise ParsedError(parse_arguments(arguments_class, argv, **positional))

    monkeypatch.setattr(module, "parse_arguments", parse_only)
    monkeypatch.setattr(sys, "argv", [f"{module_name}.py", *flags])
    with pytest.raises(ParsedError) as found:
        module.main()
    return found.value.args[0]


def test_the_pages_have_commands():
    readme = {module for page, module, _ in COMMANDS if page == "README.md"}
    assert {"check_dataset", "train", "predict", "convert_checkpoint"} <= readme
    assert {"train", "eval", "predict", "convert_checkpoint"} <= {module for page, module, _ in COMMANDS}


@pytest.mark.parametrize(("page", "module", "flags"), COMMANDS, ids=lambda value: str(value)[:40])
def test_flags_parse(page, module, flags, monkeypatch):
    arguments = parsed(module, flags, monkeypatch)
    named = {flag[2:].split("=")[0] for flag in flags if flag.startswith("--")}
    fields = {field.name for field in dataclasses.fields(arguments)}
    assert {name.removeprefix("no_") if name not in fields else name for name in named} <= fields


def test_unknown_flags_do_not_parse(monkeypatch):
    from scripts.cli.errors import UserError

    with pytest.raises(UserError, match="--no_such_flag"):
        importlib.import_module("scripts.train")
        parse_arguments(importlib.import_module("scripts.train").TrainArguments, ["--no_such_flag", "1"])


def test_make_targets_exist():
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    targets = {words[1] for page in PAGES for words in shell_lines(page) if words[0] == "make" and len(words) > 1}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "for_developers"), [("demo", False), ("space", False), ("test", True)])
def test_who_only_runs_the_commands_installs_no_tools_of_developers(target, for_developers, tmp_path):
    """Into an environment that is not there yet; nothing is run."""
    plan = ["make", "--dry-run", "-C", PROJECT_ROOT, target, f"VENV={tmp_path / 'none'}"]
    printed = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
    assert "--editable ." in printed and ("[dev]" in printed) == for_developers


# ---- the blocks, run ----

# Training comes first: it makes the models that the other pages use. docs/results.md repeats commands of other pages
# on CamVid, and docs/clusters.md needs a cluster.
RUN_PAGES = ["training.md", "README.md", "evaluating.md", "models.md", "sharing.md"]

# What the two long trainings are cut down by.
SHRUNK_FASEG = [
    "--config_overrides", "encoder_layers=1", "decoder_layers=2", "num_queries=10", "train_num_points=64",
]  # fmt: skip
SHRUNK = {
    "train": [
        "--max_train_steps", "1", "--crop_height", "192", "--crop_width", "192", "--per_device_train_batch_size", "1",
        "--dataloader_num_workers", "0", "--shortest_edges", "192", "--mixed_precision", "no",
        "--checkpointing_steps", "1", "--total_train_batch_size", "1",
        "--allow_absent_classes",  # the data that stand for a benchmark's have few of its classes
    ],
    "eval": ["--dataloader_num_workers", "0", "--allow_absent_classes"],
    "predict": [],
    "check_dataset": [],
    "explain": [],
    "export_onnx": ["--height", "64", "--width", "64", "--timing_runs", "0", "--least_agreement", "0"],
}  # fmt: skip


@pytest.fixture(scope="module")
def placeholders(shapes, tmp_path_factory):
    """The pages' `path/to/...` -> what it stands for here."""
    folder = tmp_path_factory.mktemp("readme")
    timm_net = timm.create_model("mobilenetv2_100")
    save_file(timm_net.state_dict(), folder / "mobilenetv2_100.safetensors")
    config = AutoConfig.from_pretrained(PROJECT_ROOT / "hub_cards" / "faseg-resnet50-ade20k").backbone_config
    save_file(ResNetBackbone(config).state_dict(), folder / "model.safetensors")
    mask2former = folder / "mask2former-tiny-ade-semantic"
    write_mask2former(mask2former, TINY_RESNET, num_queries=10)
    DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4)).save_pretrained(folder / "dinov3")
    return {
        "facebook/dinov3-vits16-pretrain-lvd1689m": str(folder / "dinov3"),
        "facebook/mask2former-swin-tiny-ade-semantic": str(mask2former),
        "path/to/camvid": str(shapes),
        "path/to/ade20k": str(shapes),
        "path/to/dataset": str(shapes),
        "path/to/mobilenetv2_100.safetensors": str(folder / "mobilenetv2_100.safetensors"),
        "timm/mobilenetv2_100.ra_in1k": str(folder / "mobilenetv2_100.safetensors"),
        "timm/resnet50.tv_in1k": str(folder / "model.safetensors"),
        "path/to/images": "images/",
        "outputs/faseg-mobilenetv2-camvid": "outputs/train",
        "outputs/faseg-swin-tiny-ade20k": "outputs/train",
    }


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """A user's folder, which commands are run in: images and label maps are named by relative paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "photos", "masks"):
        (tmp_path / name).mkdir()
    for number in range(2):
        for name in ("images", "photos"):
            Image.new("RGB", (96, 64), "teal").save(tmp_path / name / f"{number}.jpg")
        Image.new("L", (96, 64), number).save(tmp_path / "masks" / f"{number}.png")
    for name in ("cells", "instances"):
        (tmp_path / name).mkdir()
    for number in range(8):
        ids = np.zeros((64, 96), np.uint16)
        ids[8:40, 8:40], ids[20:50, 40:80] = 300, 7
        Image.fromarray((ids > 0).astype(np.uint8) * 90 + 60).save(tmp_path / "cells" / f"{number}.png")
        Image.fromarray(ids).save(tmp_path / "instances" / f"{number}.png")
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "street.jpg")
    (tmp_path / "id2label.json").write_text('{"0": "left", "1": "right"}')
    return tmp_path


def test_the_readmes_two_folders(placeholders, own_folders, command):
    """As they stand there but for the number of steps and the backbone, which is on the Hub."""
    ran = []
    for page, module, flags in COMMANDS:
        if page != "README.md" or "images/" not in flags or "outputs/finetuned" in flags:
            continue
        flags = [placeholders["timm/mobilenetv2_100.ra_in1k"] if flag.startswith("timm/") else flag for flag in flags]
        shrunk = [*SHRUNK[module], *(SHRUNK_FASEG if module == "train" else [])]
        code, out, errors = command(importlib.import_module(f"scripts.{module}"), *flags, *shrunk)
        assert code == 0, (module, flags, out, errors[-3:])
        ran.append(module)
    assert ran == ["check_dataset", "train", "predict"]
    assert (own_folders / "outputs" / "mine_predictions" / "0_labels.png").is_file()


def test_the_readmes_instances(placeholders, own_folders, command):
    """As they stand there but for the number of steps and the backbone, which is on the Hub."""
    ran = []
    for page, module, flags in COMMANDS:
        if page != "README.md" or not {"outputs/cells", "outputs/cells_found"} & {*flags}:
            continue
        flags = [placeholders.get(flag, flag) for flag in flags]
        shrunk = [*SHRUNK[module], *(SHRUNK_FASEG if module == "train" else [])]
        code, out, errors = command(importlib.import_module(f"scripts.{module}"), *flags, *shrunk)
        assert code == 0, (module, flags, out, errors[-3:])
        ran.append(module)
    assert ran == ["train", "eval", "predict"]
    assert (own_folders / "outputs" / "cells_found" / "instances.json").is_file()


@pytest.mark.slow
def test_commands_run(placeholders, own_folders, command):
    ran = []
    for page, module, flags in sorted(
        (entry for entry in COMMANDS if entry[0] in RUN_PAGES), key=lambda entry: RUN_PAGES.index(entry[0])
    ):
        if module not in SHRUNK or "--protocol" in flags:
            # The converter needs a released checkpoint, the export results of these weights, a protocol its classes:
            # test_convert_checkpoint.py, test_export_hub.py and test_eval_command.py have them.
            continue
        flags = [placeholders.get(flag, flag) for flag in flags]
        if unknown := [flag for flag in flags if flag.startswith("path/to/")]:
            raise AssertionError(f"say in this test what {unknown[0]} stands for")
        shrunk = [*SHRUNK[module], *(SHRUNK_FASEG if module == "train" and "semask-tiny-camvid" not in flags else [])]
        if "--config_overrides" in flags and "--config_overrides" in shrunk:  # which a flag of its own would replace
            place = flags.index("--config_overrides") + 1
            flags, shrunk = [*flags[:place], *SHRUNK_FASEG[1:], *flags[place:]], SHRUNK[module]
        code, _, errors = command(importlib.import_module(f"scripts.{module}"), *flags, *shrunk)
        assert code == 0, (page, module, flags, errors[-3:])
        ran.append(module)
    assert set(ran) == set(SHRUNK)
    assert (own_folders / "outputs" / "train" / "model.safetensors").is_file()
