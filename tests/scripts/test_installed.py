"""The project as pip installs it: everything is in the wheel, and the commands run from any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from scripts.cli.parser import PROJECT_ROOT


PACKAGES = ("configuration", "image_processing", "modeling_faseg", "scripts", "hub_cards")
NOTEBOOK = PROJECT_ROOT / "examples" / "two_folders_to_shared_model.ipynb"

pytestmark = pytest.mark.system


def python(*words, cwd, **environment):
    """Runs Python in a folder, without the checkout on its path; returns its standard output."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a source distribution of a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(PROJECT_ROOT / name, source / name)
    backend = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    python(sys.executable, "-c", backend, folder, cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    python(
        sys.executable, "-m", "pip", "wheel", archive, "--no-deps", "--no-build-isolation", "--wheel-dir", folder,
        cwd=folder,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of the programs of a new environment with the wheel; the other packages are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    python(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    programs = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    python(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    place = python(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # In a folder that a .pth file names no .pth file is read: an editable installation of the project stays out.
    (Path(place.strip()) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder that was empty before the commands ran in it."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(installed, shapes, work):
    """A model trained by a shipped recipe for one step."""
    flags = ["--dataset_name", shapes, "--max_train_steps", 1, "--per_device_train_batch_size", 2]
    python(
        installed / "faseg", "train", "demo", *flags, "--dataloader_num_workers", 0, "--output_dir", "model", cwd=work
    )
    return work / "model"


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    wanted = {
        file.relative_to(PROJECT_ROOT).as_posix()
        for name in PACKAGES
        for file in (PROJECT_ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == wanted


def test_the_project_comes_from_the_wheel(installed, work):
    printed = python(
        installed / "python", "-c", "import scripts, hub_cards; print(scripts.__file__, *hub_cards.__path__)", cwd=work
    )
    assert all(place.startswith(str(installed.parent)) for place in printed.split())
    assert "export-hub" in python(installed / "faseg", cwd=work)


def test_a_shipped_recipe_trains_and_its_model_predicts(installed, trained, work):
    Image.new("RGB", (96, 64), "teal").save(work / "street.png")
    flags = ["--model_name_or_path", "model", "--output_dir", "labels"]
    python(installed / "faseg", "predict", "street.png", *flags, cwd=work)
    assert (work / "labels" / "street_labels.png").is_file()
    assert {path.name for path in work.iterdir()} <= {"hub", "labels", "model", "street.png"}


def test_a_model_becomes_a_folder_for_the_hub(installed, trained, work):
    export = [installed / "faseg", "export-hub", "--model_name_or_path", "model"]
    python(*export, "--init_card", "card.yaml", cwd=work)
    card = (work / "card.yaml").read_text().replace("license: FILL IN", "license: cc-by-nc-4.0")
    (work / "card.yaml").write_text(card.replace("FILL IN", "https://example.com"))
    flags = ["--model_id", "my-shapes", "--card", "card.yaml", "--output_dir", "hub", "--dry_run"]
    printed = python(*export, *flags, cwd=work)
    assert "loads without this project" in printed
    assert (work / "hub" / "LICENSE-CODE").read_text() == (PROJECT_ROOT / "LICENSE").read_text()
    assert (work / "hub" / "README.md").is_file()


def test_a_recipes_configuration_is_found_in_the_installation(installed, work):
    program = (
        "from scripts.cli.parser import parse_arguments; from scripts.training.arguments import TrainArguments;"
        "print(parse_arguments(TrainArguments, ['faseg-resnet50-ade20k']).config_name)"
    )
    place = Path(python(installed / "python", "-c", program, cwd=work).strip())
    assert place.is_relative_to(installed.parent) and (place / "config.json").is_file()


@pytest.mark.slow
def test_accelerate_launches_the_installed_module(installed, work, shapes):
    start = ["-m", "accelerate.commands.launch", "--config_file", PROJECT_ROOT / "configs" / "accelerate" / "cpu.yaml"]
    flags = ["--dataset_name", shapes, "--max_train_steps", 1, "--total_train_batch_size", 2, "--output_dir", "two"]
    printed = python(
        installed / "python", *start, "-m", "scripts.train", "demo", *flags, cwd=work, ACCELERATE_USE_CPU="true"
    )
    assert " x 2 processes" in printed and (work / "two" / "model.safetensors").is_file()


@pytest.mark.timeout(600)  # it imports PyTorch twice and trains: minutes on a machine that is busy
def test_the_notebook_runs(installed, tmp_path):
    """Its code cells in one process of an environment that has the wheel and not the checkout."""
    python(installed / "python", PROJECT_ROOT / "tests" / "notebook_cells.py", NOTEBOOK, cwd=tmp_path)
    made = tmp_path / "outputs" / "notebook"
    assert {"README.md", "model.safetensors", "LICENSE"} <= set(os.listdir(made / "hub"))
    assert (made / "predictions" / "00_labels.png").is_file()
    assert os.listdir(tmp_path) == ["outputs"]
