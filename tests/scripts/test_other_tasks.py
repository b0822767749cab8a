"""Commands on models of instances and of panoptic segments: what is for semantic models alone is refused in a line."""

import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoConfig

from scripts import ablation, export_hub, export_onnx
from scripts import predict as predict_command
from scripts.cli.parser import PROJECT_ROOT
from scripts.data.synthetic_scenes import draw_sample
from scripts.sharing.card_facts import card_file
from scripts.sharing.fit import architecture


TASKS = ["instance", "panoptic"]
MODEL_ID = "faseg-mobilenetv2-camvid"
# Commands that take a model, and where it is tested what they do with one of another task.
TESTED = {
    "predict": "here and inference/test_segment_outputs.py",
    "explain": "explaining/test_explain.py",
    "export_onnx": "here",
    "export_hub": "here and sharing/test_cards.py",
    "space": "tests/hub_cards/test_space.py",
    "eval": "evaluation/",
    "train": "training/",
    "demo": "it trains its own model",
    "check_dataset": "it reads data; of the model only how many bands it takes",
}


def test_every_command_that_takes_a_model_is_tested():
    found = set()
    for file in (PROJECT_ROOT / "scripts").glob("[a-z]*.py"):
        module = importlib.import_module(f"scripts.{file.stem}")
        parsed = [getattr(module, name) for name in re.findall(r"parse_arguments\((\w+)", file.read_text())]
        if any("model_name_or_path" in {each.name for each in fields(arguments)} for arguments in parsed):
            found.add(file.stem)
    assert found == TESTED.keys()


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("images") / "street.png"
    draw_sample(np.random.default_rng(1))[0].save(file)
    return file


@pytest.mark.parametrize("task", TASKS)
def test_a_label_map_out_of_onnx_is_refused(task, model_of, tmp_path, command):
    flags = ["--model_name_or_path", model_of(task), "--output_dir", tmp_path / "out", "--with_processing"]
    code, _, errors = command(export_onnx, *flags)
    assert code == 2 and errors[-1].startswith("export_onnx.py: error: --with_processing is for semantic models")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["labels", "confidence", "probabilities", "coco"])
def test_outputs_of_label_maps_are_refused(task, kind, street, model_of, tmp_path, command):
    flags = [street, "--model_name_or_path", model_of(task), "--output_dir", tmp_path / "out", "--outputs", kind]
    code, _, errors = command(predict_command, *flags)
    assert code == 2 and f"--outputs {kind} of this {task} model: " in errors[-1] and "choose among" in errors[-1]


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("learning_rate: 0.1\n", "--task instance"),
        ("task: panoptic\n", ""),
        ("config_overrides: {task: instance}\n", ""),
        ("config_overrides: [task=instance]\n", ""),
    ],
)
def test_an_ablation_compares_mean_iou(recipe, flags, tmp_path, command):
    (tmp_path / "recipe.yaml").write_text(recipe)
    given = ["--train_recipe", tmp_path / "recipe.yaml", "--dataset_name", tmp_path, "--output_dir", tmp_path / "out"]
    code, _, errors = command(ablation, *given, "--output_file", tmp_path / "a.json", f"--train_flags={flags}")
    assert code == 2 and "what is compared here is the mean IoU of semantic models" in errors[-1]
    assert not (tmp_path / "out").exists()


def card_flags(model, folder):
    """A card of the tiny model's own classes, and the flags of a dry run with it."""
    config = AutoConfig.from_pretrained(model)
    own = {"classes": list(config.id2label.values()), "architecture": architecture(config)}
    (folder / "card.yaml").write_text(yaml.safe_dump(yaml.safe_load(card_file(MODEL_ID).read_text()) | own))
    named = ["--model_name_or_path", model, "--model_id", MODEL_ID, "--card", folder / "card.yaml"]
    return [*named, "--output_dir", folder / "out", "--dry_run"]


@pytest.mark.system
@pytest.mark.parametrize("task", TASKS)
def test_an_export_loads_in_a_clean_process(task, street, model_of, tmp_path, command):
    flags = card_flags(model_of(task), tmp_path)
    code, out, errors = command(export_hub, *flags, "--sample_images", street, "--repo_id", "tester/tiny", "--space")
    assert code == 0, errors
    assert "loads without this project; largest difference of logits 0" in out and "demo written to" in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"post_process_{task}_segmentation" in card and (tmp_path / "out" / "samples" / "1.jpg").is_file()


def test_figures_of_another_task_are_refused(model_of, tmp_path, command):
    results = json.loads((PROJECT_ROOT / "results" / f"{MODEL_ID}.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results))
    flags = [*card_flags(model_of("instance"), tmp_path), "--results", tmp_path / "results.json"]
    code, _, errors = command(export_hub, *flags)
    assert code == 2 and "about semantic segmentation, but the model is for instance" in errors[-1]
