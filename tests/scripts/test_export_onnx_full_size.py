"""`scripts/export_onnx.py` at the released widths and depths, with the recorded cases' computed weights.

Minutes each: slow. Weights drawn at random would not do, for noise grows in them from layer to layer.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoImageProcessor

from golden_cases import hashed_state_dict, load_case
from modeling_faseg import FASegForUniversalSegmentation
from scripts.conversion.parameter_names import convert_state_dict
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.training.command_line import parse_arguments
from scripts.training.model_folder import save_model_folder


CARDS = Path(__file__).parents[2] / "hub_cards"
CASES = {"faseg-resnet50-ade20k": "fullsize_ade20k_r50", "faseg-swin-tiny-ade20k": "fullsize_ade20k_swin_tiny"}


def write_computed_model(shared, model_id, folder):
    _, meta = load_case(shared, CASES[model_id])
    keys = json.loads((shared / "keys" / "faseg" / f"{meta['variant']}.json").read_text())["keys"]
    official = hashed_state_dict(shared, {key: tuple(entry["shape"]) for key, entry in keys.items()}, meta["salt"])
    model = FASegForUniversalSegmentation(AutoConfig.from_pretrained(CARDS / model_id))
    official["criterion.empty_weight"] = model.criterion.empty_weight
    model.load_state_dict(convert_state_dict(official, model.config), strict=True)
    save_model_folder(model, AutoImageProcessor.from_pretrained(CARDS / model_id), folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [["--height", "512", "--width", "512"], []], ids=["static", "dynamic"])
@pytest.mark.parametrize("model_id", list(CASES))
def test_released_architecture(model_id, size, shared, tmp_path, capsys):
    """Three sizes (static: three pictures) within tolerance, or the command would raise; it prints the speed."""
    write_computed_model(shared, model_id, tmp_path / model_id)
    flags = ["--model_name_or_path", str(tmp_path / model_id), "--output_dir", str(tmp_path / "out"), *size]
    file = export_onnx(parse_arguments(ExportArguments, [*flags, "--timing_runs", "3"]))
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{printed}")
    assert file.is_file()
    assert printed.count("mask logits within") == 3 and "speed on 1 x 512 x " in printed
