"""JSON files of models that hold something else than they should are named in one line."""

import json
import shutil

import pytest

from scripts import convert_checkpoint, export_hub, export_onnx
from scripts import eval as eval_command
from scripts.models.model_files import CONFIG, INDEX, KINDS, PROCESSOR, check_model_files, read_model_file


DEEP = '{"a": ' * 3000 + "1" + "}" * 3000
ODD = [
    (CONFIG, "null", "holds null, not an object"),
    (CONFIG, "[1]", "holds list, not an object"),
    (CONFIG, "5", "holds int, not an object"),
    (CONFIG, "", "is not a valid JSON file"),
    (CONFIG, DEEP, "is nested too deeply"),
    (CONFIG, {"id2label": json.loads('{"a": ' * 200 + "1" + "}" * 200)}, "is nested too deeply"),
    (CONFIG, {"id2label": ["a", "b"]}, "'id2label' expected a dict, got list"),
    (CONFIG, {"id2label": "a"}, "'id2label' expected a dict, got str"),
    (CONFIG, {"id2label": {"0": {"a": [1]}}}, "expected str, got dict"),
    (CONFIG, {"id2label": {"0": "\ud800"}}, "holds text that is none: 'utf-8' codec can't encode"),
    (CONFIG, {"model_type": ["faseg"]}, "'model_type' expected str, got list"),
    (CONFIG, {"num_labels": "many"}, "'num_labels' expected int, got str"),
    (CONFIG, {"dtype": "float7"}, "dtype='float7', which torch does not know"),
    (CONFIG, {"quantization_config": 5}, "'quantization_config' expected a dict"),
    (PROCESSOR, "null", "holds null, not an object"),
    (PROCESSOR, "[1]", "holds list, not an object"),
    (PROCESSOR, {"image_processor_type": 5}, "'image_processor_type' expected str"),
    (PROCESSOR, {"auto_map": 5}, "'auto_map' expected a dict"),
    (PROCESSOR, {"image_mean": "x"}, "'image_mean' with value 'x'"),
    (PROCESSOR, {"resample": "x"}, "'resample' expected int"),
    (INDEX, "null", "holds null, not an object"),
    (INDEX, {"weight_map": [1]}, "'weight_map' expected a dict"),
    (
        INDEX,
        {"weight_map": {"a": "../../elsewhere.safetensors"}},
        "names '../../elsewhere.safetensors', which is",
    ),
]


@pytest.fixture
def odd_model(model_folder, tmp_path):
    """Copies the tiny model, with a file changed or replaced."""

    def build(name, change):
        folder = shutil.copytree(model_folder, tmp_path / "odd")
        file = folder / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(change if isinstance(change, str) else json.dumps(before | change))
        return folder

    return build


@pytest.mark.parametrize(("name", "change", "message"), ODD)
def test_odd_files_are_named(name, change, message, odd_model, command):
    folder = odd_model(name, change)
    code, _, errors = command(eval_command, "--model_name_or_path", folder, "--dataset_name", "none")
    assert code == 2 and f"--model_name_or_path {folder}: {name}" in errors[-1] and message in errors[-1], errors


def test_every_command_looks(odd_model, tmp_path, command):
    folder = odd_model(CONFIG, "null")
    model = ["--model_name_or_path", folder, "--output_dir", tmp_path / "out"]
    for answer in (
        command(export_onnx, *model),
        command(export_hub, *model, "--model_id", "faseg-resnet50-ade20k", "--dry_run"),
        command(
            convert_checkpoint, "--config", folder / CONFIG, "--checkpoint", folder / "model.safetensors",
            "--output_dir", tmp_path / "out",
        ),
    ):  # fmt: skip
        assert answer[0] == 2 and "config.json holds null, not an object" in answer[2][-1], answer


def test_the_processor_beside_a_configuration_is_looked_at(odd_model, tmp_path, command):
    folder = odd_model(PROCESSOR, "null")
    flags = ["--config", folder / CONFIG, "--checkpoint", folder / "model.safetensors"]
    code, _, errors = command(convert_checkpoint, *flags, "--output_dir", tmp_path / "out")
    assert code == 2 and f"{PROCESSOR} beside it holds null, not an object" in errors[-1], errors
    (folder / PROCESSOR).write_text('{"size": "large"}')
    code, _, errors = command(convert_checkpoint, *flags, "--output_dir", tmp_path / "out")
    assert code == 2 and str(folder / PROCESSOR) in errors[-1], errors


def test_what_is_well_passes(model_folder):
    for name in (CONFIG, PROCESSOR):
        assert read_model_file(model_folder / name, name, KINDS[name])


def test_a_folder_that_is_not_there_is_said_so_before_the_hub_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / CONFIG).write_text("{}")
    check_model_files("--model_name_or_path", "outputs/mne")
    said = "--model_name_or_path outputs/mne: there is no such folder, so the Hub is asked for it"
    assert capsys.readouterr().err.strip() == f"{said}: did you mean outputs/mine?"
    check_model_files("--model_name_or_path", "nobody/none")
    check_model_files("--model_name_or_path", "outputs/mine")
    assert not capsys.readouterr().err
