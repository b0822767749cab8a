"""Recipes and flags: who wins, and what is refused."""

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import pytest
import torch
from transformers import SchedulerType

from scripts.benchmarking import startup
from scripts.cli.errors import UserError
from scripts.cli.parser import (
    PROJECT_ROOT,
    ReadPath,
    parse_arguments,
    parse_overrides,
    run_command,
    shipped_recipes,
)
from scripts.training.arguments import SCHEDULES, TrainArguments


@dataclass
class Arguments:
    """For the tests."""

    recipe: str | None = None
    steps: int = 1
    rate: float = 0.5
    flip: bool = True
    sizes: list[int] | None = None
    config_overrides: list[str] = field(default_factory=list, metadata={"action": "extend"})
    images: list[str] = field(default_factory=list)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: 7\nrate: 5e-4\nflip: false\nsizes: [4, 5]\nconfig_overrides: {a: 1, b: {c: [1, 2]}}\n")
    return str(file)


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(recipe):
    arguments = parse_arguments(Arguments, [recipe, "--steps", "9", "--config_overrides", "a=2"])
    assert (arguments.steps, arguments.rate, arguments.flip, arguments.sizes) == (9, 5e-4, False, [4, 5])
    assert parse_overrides(arguments.config_overrides) == {"a": 2, "b": {"c": [1, 2]}}


@pytest.mark.parametrize("place", ["before", "after", "flag"])
def test_a_recipe_may_stand_anywhere(recipe, place):
    argv = {"before": [recipe, "--rate", "1"], "after": ["--rate", "1", recipe], "flag": ["--recipe", recipe]}[place]
    arguments = parse_arguments(Arguments, argv)
    assert (arguments.steps, arguments.recipe) == (7, recipe)


def test_positional_lists():
    arguments = parse_arguments(Arguments, ["a.png", "--steps", "2", "b.png"], images="images")
    assert arguments.images == ["a.png", "b.png"]
    assert parse_arguments(Arguments, ["--images", "a.png", "b.png"], images="images").images == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz': did you mean 'steps'?"),
        ("steps: three", "invalid int value: 'three'"),
        ("- steps", "holds list"),
        ("steps: [1", "while parsing"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse_arguments(Arguments, [str(file)])
    assert message in str(error.value) and "bad.yaml" in str(error.value)


def test_missing_recipe_names_the_shipped_ones():
    with pytest.raises(UserError, match=r"recipe 'nowhere' not found.*faseg-mobilenetv2-camvid"):
        parse_arguments(Arguments, ["nowhere"])


def test_overrides_reach_into_fields():
    assert parse_overrides(["a.b.c=x", "a.b.d=1.5", "e=null"]) == {"a": {"b": {"c": "x", "d": 1.5}}, "e": None}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["a"], "config_overrides"), (["=1"], "config_overrides"), (["a=[1"], "config_overrides"),
     (["a=1", "a.b=2"], "plain value")],
)  # fmt: skip
def test_wrong_overrides(overrides, message):
    with pytest.raises(UserError, match=message):
        parse_overrides(overrides)


def test_help_is_one_line_per_flag_with_its_default_and_the_recipes(capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(TrainArguments, ["--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and max(map(len, out.splitlines())) <= 112
    assert out.startswith("usage: ") and "[RECIPE] [--flag value ...]\n" in out
    for line in (
        "--crop_height N Height of the training crops in pixels. [512]",
        "--streaming Stream instead",
        "--no_streaming The opposite of --streaming.",
        "--report_to TEXT ... Trackers that show the run",
        "by default 1% of the samples.",
    ):
        assert line in " ".join(out.split()), line
    assert all(name in out for name in shipped_recipes()) and len(shipped_recipes()) >= 7
    assert "--crop-height" not in out and "default:" not in out
    with pytest.raises(SystemExit):
        parse_arguments(Arguments, ["--help"], images="images and folders")
    assert "[IMAGES ...] [--flag value ...]\n" in capsys.readouterr().out


def test_user_errors_are_one_line_and_exit_code_2(capsys):
    def fail():
        raise UserError("two\n  lines")

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    assert left.value.code == 2
    assert capsys.readouterr().err.endswith("error: two lines\n")


def fault():
    raise ZeroDivisionError("of a bug,\nnot of a user " + "x" * 1000)


def test_a_fault_of_the_program_is_one_line_and_its_traceback_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FASEG_TRACEBACK")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        run_command(fault)
    (file,) = tmp_path.iterdir()
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 70
    assert "error: this is a fault of the program: ZeroDivisionError: of a bug, not of a user xxx" in line
    assert line.endswith(f": please report it with {file}") and len(line) < 600
    assert file.read_text().startswith("Traceback") and "in fault\n" in file.read_text()


def test_developers_see_a_fault_where_it_happens():
    with pytest.raises(ZeroDivisionError, match="of a bug"):
        run_command(fault)


def test_a_fault_whose_file_cannot_be_written_is_seen_too(monkeypatch, tmp_path):
    monkeypatch.delenv("FASEG_TRACEBACK")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match="none") as error:
        run_command(fault)
    assert isinstance(error.value.__context__, ZeroDivisionError)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to")])
def test_too_little_memory_is_no_fault_of_the_program(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    assert left.value.code == 2
    assert "error: not enough memory: take smaller images or batches" in capsys.readouterr().err


@pytest.mark.parametrize("length", [1, 10**6])  # in the buffer to the end, and more than it holds
def test_a_reader_that_leaves_is_no_fault(length):
    program = f"from scripts.cli.parser import run_command\nrun_command(lambda: print('x' * {length}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT_ROOT
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE
    process.stderr.close()


def test_exit_code_of_a_command():
    with pytest.raises(SystemExit) as left:
        run_command(lambda: 1)
    assert left.value.code == 1


# ---- paths


@dataclass
class Paths:
    """For the tests."""

    recipe: str | None = None
    dataset_name: str | None = field(default=None, metadata={"action": ReadPath})
    images: list[str] = field(default_factory=list, metadata={"action": ReadPath})
    output_dir: str | None = None


def test_paths_to_read_are_found_below_the_project_too(tmp_path, monkeypatch):
    """Where the working directory has none such; names of nothing, on the Hub for instance, stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    flags = ["--dataset_name", "docs", "--images", "README.md", "LICENSE", "user/name", "--output_dir", "docs"]
    arguments = parse_arguments(Paths, flags)
    assert arguments.dataset_name == str(PROJECT_ROOT / "docs") and arguments.output_dir == "docs"
    assert arguments.images == ["README.md", str(PROJECT_ROOT / "LICENSE"), "user/name"]
    assert parse_arguments(Paths, ["LICENSE"], images="images").images == [str(PROJECT_ROOT / "LICENSE")]
    (tmp_path / "recipe.yaml").write_text("dataset_name: docs\nimages: [LICENSE, docs]\n")
    arguments = parse_arguments(Paths, ["recipe.yaml"])
    assert arguments.dataset_name == str(PROJECT_ROOT / "docs")
    assert arguments.images == [str(PROJECT_ROOT / "LICENSE"), str(PROJECT_ROOT / "docs")]


# ---- start-up


def test_commands_import_nothing_heavy_before_their_flags_are_checked():
    """`scripts/benchmark.py --startup` measures what this keeps low."""
    names = [f"scripts.{name.removesuffix('.py')}" for name in startup.command_files()]
    assert "scripts.train" in names and len(names) >= 14
    heavy = ("torch", "transformers", "datasets", "huggingface_hub", "numpy", "PIL", "accelerate")
    program = (
        f"import importlib, json, sys\nfound = {{}}\nfor name in {names}:\n    importlib.import_module(name)\n"
        f"    found[name] = [library for library in {heavy} if library in sys.modules]\n    if found[name]: break\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT_ROOT, check=True
    )
    found = json.loads(done.stdout)
    assert list(found) == names and not any(found.values()), found


def test_startup_table_has_a_row_per_command(monkeypatch):
    monkeypatch.setattr(startup, "cpu_seconds", lambda name, flags: 0.25)
    table = startup.startup_table().splitlines()
    assert [line.split()[0] for line in table[1:]] == startup.command_files()
    assert all(line.split()[1:] == ["0.25", "0.25"] for line in table[1:])


def test_schedules_are_those_of_transformers():
    """Named apart from it, so that a wrong name is answered before its import."""
    assert set(SCHEDULES) == {"poly", "multistep", *(kind.value for kind in SchedulerType)} - {"reduce_lr_on_plateau"}
