"""`scripts/export_onnx.py` at the released widths and depths, with the recorded cases' computed weights.

Minutes each: slow. Weights drawn at random would not do, for noise grows in them from layer to layer.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoImageProcessor

from golden_cases import hashed_state_dict, load_case
from modeling_faseg import (
    FASegForUniversalSegmentation,
    QLSegForSemanticSegmentation,
    SeMaskForSemanticSegmentation,
)
from scripts.cli.parser import parse_arguments
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.models import qlseg_names, semask_names
from scripts.models.loading import save_model_folder
from scripts.models.parameter_names import convert_state_dict


ROOT = Path(__file__).parents[3]
CARDS = ROOT / "hub_cards"
CASES = {"faseg-resnet50-ade20k": "fullsize_ade20k_r50", "faseg-swin-tiny-ade20k": "fullsize_ade20k_swin_tiny"}


def write_computed_model(shared, model_id, folder):
    _, meta = load_case(shared, CASES[model_id])
    keys = json.loads((shared / "keys" / "faseg" / f"{meta['variant']}.json").read_text())["keys"]
    official = hashed_state_dict(shared, {key: tuple(entry["shape"]) for key, entry in keys.items()}, meta["salt"])
    model = FASegForUniversalSegmentation(AutoConfig.from_pretrained(CARDS / model_id))
    official["criterion.empty_weight"] = model.criterion.empty_weight
    model.load_state_dict(convert_state_dict(official, model.config), strict=True)
    save_model_folder(model, AutoImageProcessor.from_pretrained(CARDS / model_id), folder)


def exported(folder, output_dir, size, capsys):
    """What the command prints of a file that it wrote; shown too, for its figures."""
    flags = ["--model_name_or_path", str(folder), "--output_dir", str(output_dir), *size, "--timing_runs", "3"]
    file = export_onnx(parse_arguments(ExportArguments, flags))
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{printed}")
    assert file.is_file()
    return printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [["--height", "512", "--width", "512"], []], ids=["static", "dynamic"])
@pytest.mark.parametrize("model_id", list(CASES))
def test_released_architecture(model_id, size, shared, tmp_path, capsys):
    """Three sizes (static: three images) within tolerance, or the command would raise; it prints the speed."""
    write_computed_model(shared, model_id, tmp_path / model_id)
    printed = exported(tmp_path / model_id, tmp_path / "out", size, capsys)
    assert printed.count("mask logits within") == 3 and "speed on 1 x 512 x " in printed


# model id -> its class, converter, recorded case and list of names
OTHERS = {
    "semask-fpn-tiny-ade20k": (
        SeMaskForSemanticSegmentation,
        semask_names.convert_state_dict,
        "semask/full_semask_fpn_tiny_ade20k.json",
        "semask/semask_fpn_tiny_ade20k.json",
    ),
    "qlseg-vit-base-ade20k": (
        QLSegForSemanticSegmentation,
        qlseg_names.convert_state_dict,
        "qlseg/full_qlseg_vit-b_ade20k.json",
        "qlseg/qlseg_vit-b_jax_512x512_160k_ade20k.json",
    ),
}


def write_recipe_model(shared, model_id, folder):
    model_class, convert, case, keys = OTHERS[model_id]
    spec = importlib.util.spec_from_file_location("recipe_weights", ROOT / "tests" / "golden" / "recipe_weights.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    seed = json.loads((shared / "golden" / case).read_text())["weights_recipe"]["seed"]
    entries = json.loads((shared / "keys" / keys).read_text())["keys"].items()
    shapes = {name: tuple(entry["shape"]) for name, entry in entries if entry["dtype"].startswith("float")}
    official = recipe.state_dict(shapes, seed)
    model = model_class(AutoConfig.from_pretrained(CARDS / model_id))
    if hasattr(model, "criterion"):
        official["decode_head.loss_decode.criterion.empty_weight"] = model.criterion.empty_weight
    model.load_state_dict(convert(official, model.config), strict=True)
    save_model_folder(model, AutoImageProcessor.from_pretrained(CARDS / model_id), folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("model_id", "size"),
    [
        ("semask-fpn-tiny-ade20k", ["--height", "512", "--width", "512"]),
        ("semask-fpn-tiny-ade20k", []),
        ("qlseg-vit-base-ade20k", ["--height", "512", "--width", "512"]),
    ],
    ids=["semask-static", "semask-dynamic", "qlseg-static"],
)
def test_released_architecture_of_the_other_models(model_id, size, shared, tmp_path, capsys):
    """As for FASeg; of SeMask one output is compared, of QLSeg two."""
    write_recipe_model(shared, model_id, tmp_path / model_id)
    printed = exported(tmp_path / model_id, tmp_path / "out", size, capsys)
    assert printed.count("logits within") == (3 if "semask" in model_id else 6)
    assert "speed on 1 x 512 x " in printed
