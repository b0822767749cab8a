"""Commands write over what this project wrote, and over nothing else unasked."""

import importlib
import json
import os
import re
import shlex
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from PIL import Image

from scripts import (
    ablation,
    benchmark,
    check_dataset,
    convert_checkpoint,
    demo,
    explain,
    export_hub,
    export_onnx,
    pack_dataset,
    predict,
)  # fmt: skip
from scripts import eval as eval_command
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT
from scripts.drawing.page import write_page
from scripts.drawing.png import write_png
from scripts.drawing.visualization import legend
from scripts.evaluation.results import write_results
from scripts.storage.outputs import bears_mark, check_output_file


THEIRS = "not for the likes of you\n"


def refused(answer, *said):
    code, _, errors = answer
    assert code == 2 and all(words in errors[-1] for words in said), errors
    return errors[-1]


def test_what_the_project_writes_it_may_write_over(tmp_path):
    write_results({"per_class": {str(number): {} for number in range(20_000)}}, tmp_path / "results.json")
    write_page(tmp_path / "page.html", "title", "<p>text</p>" * 20_000)
    write_png(Image.effect_noise((600, 600), 90), tmp_path / "image.png", overwrite=False)
    (tmp_path / "empty.json").touch()
    for file in tmp_path.iterdir():
        check_output_file("--output_file", file, overwrite=False)
    write_png(Image.new("L", (2, 2)), tmp_path / "image.png", overwrite=False)
    assert Image.open(tmp_path / "image.png").size == (2, 2)


def test_files_of_earlier_versions_are_the_projects_own():
    for file in ("results/faseg-mobilenetv2-camvid.json", "results/benchmark-cpu.json", "docs/demo.png"):
        assert bears_mark(Path(__file__).parents[3] / file), file


def test_what_is_no_file_of_the_project_is_refused(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text(THEIRS)
    (tmp_path / "link").symlink_to(file)
    for name in ("notes.json", "link"):
        with pytest.raises(UserError, match=rf"--json .*{name} is there, .*did not write it: .*--overwrite"):
            check_output_file("--json", tmp_path / name, overwrite=False)
        check_output_file("--json", tmp_path / name, overwrite=True)
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_output_file("--json", tmp_path, overwrite=True)
    with pytest.raises(UserError, match="File name too long"):
        check_output_file("--json", tmp_path / ("x" * 300), overwrite=False)
    for name in ("/dev/null", "/dev/stdout", tmp_path / "new" / "file"):
        check_output_file("--json", Path(name), overwrite=False)


@pytest.mark.parametrize("flags", [("--output_file", "FILE"), ("--report", "FILE.html")])
def test_eval_keeps_the_users_files(flags, tmp_path, command):
    """Before anything is loaded: the results of an hour are not lost for it."""
    name, file = flags[0], Path(str(tmp_path / flags[1]))
    file.write_text(THEIRS)
    model = ["--model_name_or_path", tmp_path / "no model", "--dataset_name", "none"]
    refused(command(eval_command, *model, name, file), f"{name} {file} is there", "--overwrite")
    assert file.read_text() == THEIRS
    refused(command(eval_command, *model, name, file, "--overwrite"), "no model")


def test_eval_writes_through_links_and_devices(shapes, shapes_model, tmp_path, command):
    target, link = tmp_path / "results.json", tmp_path / "link.json"
    link.symlink_to(target)
    flags = ["--model_name_or_path", shapes_model, "--dataset_name", shapes, "--max_eval_samples", 1]
    flags += ["--dataloader_num_workers", 0]
    for _ in range(2):
        assert command(eval_command, *flags, "--output_file", link)[0] == 0
    assert link.is_symlink() and json.loads(target.read_text())["images"] == 1
    assert command(eval_command, *flags, "--output_file", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_predict_keeps_the_users_files(shapes_model, tmp_path, command):
    Image.new("RGB", (60, 40)).save(tmp_path / "street.png")
    Image.new("L", (60, 40), 7).save(tmp_path / "street_labels.png")
    before = (tmp_path / "street_labels.png").read_bytes()
    flags = [tmp_path / "street.png", "--model_name_or_path", shapes_model, "--output_dir", tmp_path]
    refused(command(predict, *flags), "street_labels.png is there", "--overwrite")
    assert (tmp_path / "street_labels.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    for more in (["--overwrite"], []):  # and then it is the project's
        assert command(predict, *flags, *more)[0] == 0
        assert (tmp_path / "street_labels.png").read_bytes() != before


def test_predict_does_not_segment_its_own_images(shapes_model, tmp_path, command):
    """Beside the images they would be taken for more of them, and more at every run."""
    for name in ("street.png", "theirs_labels.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    flags = [tmp_path, "--model_name_or_path", shapes_model, "--output_dir", tmp_path]
    for number in range(2):
        code, _, errors = command(predict, *flags)
        left_out = "4 images that this project wrote are left out" in " ".join(errors)
        assert code == 0 and left_out == (number == 1), errors
        assert len(list(tmp_path.iterdir())) == 6
    for file in tmp_path.glob("*_overlay.png"):
        file.rename(file.with_name(f"only_{file.name}"))
        assert command(predict, file.with_name(f"only_{file.name}"), *flags[1:])[0] == 0  # if it is named, it is meant


@pytest.mark.parametrize("name", ["README.md", "id2label.json", "overlays"])
def test_predicting_a_data_set_keeps_the_users_files(name, shapes, shapes_model, tmp_path, command):
    (tmp_path / name).mkdir() if name == "overlays" else (tmp_path / name).write_text(THEIRS)
    flags = ["--model_name_or_path", shapes_model, "--dataset_name", shapes, "--split_name", "validation"]
    flags += ["--dataloader_num_workers", 0, "--output_dir", tmp_path]
    refused(command(predict, *flags), f"holds {name} of something else", "--overwrite")
    assert name == "overlays" or (tmp_path / name).read_text() == THEIRS
    for more in (["--overwrite"], []):
        assert command(predict, *flags, *more)[0] == 0


@pytest.mark.parametrize("name", ["explain.html", "street_prediction.png"])
def test_explain_keeps_the_users_files(name, shapes_model, tmp_path, command):
    Image.new("RGB", (60, 40)).save(tmp_path / "street.png")
    (tmp_path / name).write_text(THEIRS)
    flags = [tmp_path / "street.png", "--model_name_or_path", shapes_model, "--output_dir", tmp_path]
    refused(command(explain, *flags), f"{name} is there", "--overwrite")
    assert (tmp_path / name).read_text() == THEIRS


def test_other_commands_keep_the_users_files(tmp_path, command):
    for name in ("model.onnx", "notes"):
        (tmp_path / name).write_text(THEIRS)
    notes = tmp_path / "notes"
    model = ["--model_name_or_path", tmp_path]
    refused(command(export_onnx, *model, "--output_dir", tmp_path), "model.onnx is there", "--overwrite")
    for name in ("--json", "--report"):
        refused(command(check_dataset, "--dataset_name", tmp_path, name, notes), f"{name} {notes} is there")
    for name in ("--output_file", "--plot_file"):
        refused(command(benchmark, "--quick", name, notes), f"{name} {notes} is there")
    refused(command(demo, "--readme_image", notes), f"--readme_image {notes} is there")
    assert notes.read_text() == (tmp_path / "model.onnx").read_text() == THEIRS


def test_a_demo_replaces_nothing_but_a_demo(tmp_path, command):
    folder = tmp_path / "demo"
    (folder / "dataset").mkdir(parents=True)
    (folder / "novel.txt").write_text(THEIRS)
    (folder / "report.html").write_text(THEIRS)
    said = refused(command(demo, "--output_dir", folder), f"{folder} holds dataset, report.html of no demo")
    again = f"{shlex.quote(sys.executable)} demo.py --output_dir {shlex.quote(str(folder))} --overwrite"
    assert said.endswith(f"earlier version's demo: {again}"), "one step"
    assert (folder / "report.html").read_text() == THEIRS
    refused(command(demo, "--output_dir", folder / "novel.txt"), "is a file: name another folder")
    demo.clear_output(folder, overwrite=True)
    assert sorted(os.listdir(folder)) == [demo.OWN, "novel.txt"]
    (folder / "model").mkdir()
    demo.clear_output(folder, overwrite=False)  # of an earlier demo
    assert sorted(os.listdir(folder)) == [demo.OWN, "novel.txt"]


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (demo, "--train_samples 1", "--train_samples 1: give at least 2"),
        (demo, "--validation_samples 0", "--validation_samples 0: give at least 2"),
        (demo, "--max_train_steps 0", "--max_train_steps 0: give at least 1"),
        (demo, "--seed -1", "--seed -1: give at least 0"),
        (demo, "--output_dir LONG", "File name too long"),
        (eval_command, "--model_name_or_path LONG", "File name too long"),
        (explain, "x.png --model_name_or_path . --output_dir LONG", "File name too long"),
        (export_onnx, "--model_name_or_path . --output_dir LONG", "File name too long"),
        (convert_checkpoint, "--output_dir LONG", "File name too long"),
        (export_hub, "--model_name_or_path . --model_id LONG --output_dir OUT --dry_run", "no hub_cards/xxx"),
        (pack_dataset, "--output_dir LONG", "File name too long"),
        (
            ablation,
            "--train_recipe demo --dataset_name x --output_dir OUT --output_file .",
            "--output_file . is a folder: name a file",
        ),
    ],
)
def test_odd_flags_are_one_line(module, flags, message, tmp_path, command):
    words = flags.replace("LONG", "x" * 300).replace("OUT", str(tmp_path / "out")).split()
    refused(command(module, *words), message)
    assert not list(tmp_path.iterdir())


def test_a_classs_long_name_makes_no_image_wider():
    entries = [(0, "x" * 20_000), (1, "road")]
    assert legend(entries, 300).width < 3000


def test_a_long_name_is_written_as_it_is(tmp_path):
    file = tmp_path / ("n" * 250 + ".json")
    write_results({}, file)
    assert os.listdir(tmp_path) == [file.name]


def test_no_command_writes_into_the_current_folder_unasked():
    """What a command writes goes where its flags say; the two that have a folder of their own say outputs/."""
    written = re.compile(r"(output|report|json|csv|readme_image|init_card|figure|table)(_dir|_file|s)?$")
    found = {}
    for file in sorted((PROJECT_ROOT / "scripts").glob("*.py")):
        module = importlib.import_module(f"scripts.{file.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and is_dataclass(kind):
                values = {item.name: item.default for item in fields(kind) if written.match(item.name)}
                found |= {(file.stem, name): value for name, value in values.items()}
    assert {("eval", "report"), ("check_dataset", "json"), ("export_hub", "init_card")} <= found.keys()
    places = {key: value for key, value in found.items() if isinstance(value, str) and value}
    assert places == {("demo", "output_dir"): "outputs/demo", ("explain", "output_dir"): "outputs/explain"}
