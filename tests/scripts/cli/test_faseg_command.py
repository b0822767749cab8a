"""The `faseg` command: its verbs, its help, and what is recorded of a command that was started by it."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from scripts import __main__ as faseg
from scripts.benchmarking.startup import command_files
from scripts.cli import parser
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, program, project_path
from scripts.evaluation import results
from scripts.training.stopping import command_to_go_on


@pytest.fixture
def called(monkeypatch, capsys):
    """Runs `faseg` on words: `(exit code, standard output, standard error)`."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/faseg", *words])
        try:
            code = faseg.main()
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_every_command_has_a_verb():
    assert sorted(f"{script}.py" for script in faseg.VERBS.values()) == command_files()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs_with_their_purpose(called, words):
    code, out, _ = called(*words)
    lines = out.splitlines()[-len(faseg.VERBS) :]
    assert code == 0 and [line.split()[0] for line in lines] == list(faseg.VERBS)
    assert all(line.endswith(".") and 40 < len(line) <= 160 for line in lines)
    assert len({line.split(maxsplit=1)[1] for line in lines}) == len(lines)


def test_the_list_of_verbs_needs_no_library():
    program_text = "import sys; sys.argv = ['faseg']; from scripts.__main__ import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program_text], cwd=PROJECT_ROOT, capture_output=True, text=True)
    imported = done.stdout.splitlines()[-1].split()
    assert "scripts.__main__" in imported
    assert not {"torch", "transformers", "numpy", "yaml", "scripts.cli.parser"} & set(imported)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "faseg: error: no verb 'trian': did you mean train?\n"),
        (["exporthub"], "faseg: error: no verb 'exporthub': did you mean export-hub?\n"),
        (["--version"], f"faseg: error: no verb '--version': give one of {', '.join(faseg.VERBS)}\n"),
    ],
)
def test_an_unknown_verb_is_one_line(called, words, said):
    assert called(*words) == (2, "", said)


@pytest.mark.parametrize("verb", ["check", "check-dataset", "check_dataset"])
def test_a_verb_may_be_the_scripts_name(called, verb):
    code, _, errors = called(verb)
    assert code == 2 and errors.startswith("faseg check: error: no dataset: give --dataset_name")


def test_a_verb_is_the_programs_name_in_help_and_errors(called):
    code, out, _ = called("export-hub", "--help")
    assert code == 0 and out.startswith("usage: faseg export-hub [--flag value ...]")
    code, _, errors = called("train", "--max_train_step", "1")
    assert code == 2
    assert errors == "faseg train: error: unrecognized arguments: --max_train_step: did you mean --max_train_steps?\n"


def test_a_command_can_be_started_again_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["faseg train", "demo", "--output_dir", "a b"])
    assert results.command_line() == "faseg train demo --output_dir 'a b'"
    assert command_to_go_on(1) == "faseg train demo --output_dir 'a b' --resume_from_checkpoint latest"
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    assert program() == ["python", "scripts/train.py"]
    monkeypatch.setattr(sys.modules["__main__"], "__package__", "scripts")
    assert program() == ["python", "-m", "scripts.train"]


def test_the_command_line_of_somebody_elses_program_is_not_recorded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/ipykernel_launcher.py", "-f", "/home/somebody/kernel.json"])
    assert results.command_line() == "# called from Python"


# ---- where the project is installed ----


def test_advice_names_a_command_that_is_there(monkeypatch, called):
    assert parser.start_of("convert_checkpoint") == "python scripts/convert_checkpoint.py"
    monkeypatch.setattr(parser, "IS_CHECKOUT", False)
    verb, *flags = parser.start_of("convert_checkpoint").split()[1:]
    assert called(verb, *flags, "--help")[0] == 0


def test_only_the_projects_own_files_are_found_beside_installed_packages(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert project_path("tests") == str(PROJECT_ROOT / "tests")
    monkeypatch.setattr(parser, "IS_CHECKOUT", False)
    assert project_path("tests") == "tests"  # as "timm" is a package, and on the Hub somebody's name
    assert project_path("hub_cards/template.md") == str(PROJECT_ROOT / "hub_cards" / "template.md")
    (tmp_path / "hub_cards").mkdir()
    (tmp_path / "hub_cards" / "template.md").touch()
    assert project_path("hub_cards/template.md") == "hub_cards/template.md"


def test_the_commit_is_never_that_of_another_repository(monkeypatch, tmp_path):
    own = results.project_commit()
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    author = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as a hook of that repository has it
    assert results.project_commit() == own


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}, "12ab"),
        ({"url": "file:///x", "dir_info": {}}, None),
        (None, None),
    ],
)
def test_an_installed_project_knows_the_commit_it_came_from(monkeypatch, tmp_path, origin, expected):
    folder = tmp_path / "faseg_transformers-1.dist-info"
    folder.mkdir()
    if origin:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(results, "IS_CHECKOUT", False)
    monkeypatch.setattr(results, "distribution", lambda name: metadata.Distribution.at(folder))
    assert results.project_commit() == (expected and {"commit": expected, "dirty": False})


def test_without_a_checkout_its_pages_and_results_are_not_written(monkeypatch, command):
    from scripts import benchmark, tables

    for module, named in ((tables, "README.md"), (benchmark, "give --output_file and --plot_file")):
        monkeypatch.setattr(module, "IS_CHECKOUT", False)
        code, _, errors = command(module)
        assert code == 2 and named in errors[-1] and "checkout" in errors[-1]


def test_no_checkout_is_no_fault_where_files_are_named(monkeypatch, tmp_path):
    from scripts import benchmark

    monkeypatch.setattr(benchmark, "IS_CHECKOUT", False)
    files = {"output_file": str(tmp_path / "a.json"), "plot_file": str(tmp_path / "a.png")}
    arguments = benchmark.BenchmarkArguments(device="cpu", **files)
    benchmark.check_arguments(arguments)
    assert arguments.output_file == files["output_file"]
    with pytest.raises(UserError):
        benchmark.check_arguments(benchmark.BenchmarkArguments(device="cpu", output_file=files["output_file"]))
