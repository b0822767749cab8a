"""The inline metadata of `scripts/train.py`, which `uv run scripts/train.py` installs from."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.cli.parser import PROJECT_ROOT


# As PEP 723 defines it.
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def metadata(text):
    blocks = [match for match in BLOCK.finditer(text) if match["type"] == "script"]
    assert len(blocks) == 1, "one block of the type `script`"
    lines = blocks[0]["content"].splitlines(keepends=True)
    return tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))


def with_headers():
    return sorted(path.name for path in (PROJECT_ROOT / "scripts").glob("*.py") if "# /// script" in path.read_text())


def problems(header, folder, project):
    """What would make the header install something else than the project's own environment."""
    known = {canonicalize_name((found := Requirement(text)).name): found.specifier for text in project["dependencies"]}
    found = []
    for text in header["dependencies"]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            source = header.get("tool", {}).get("uv", {}).get("sources", {}).get(requirement.name, {})
            if (folder / source.get("path", "nowhere")).resolve() != PROJECT_ROOT:
                found.append(f"{name} would not come from this project")
        elif name not in known:
            found.append(f"{name} is no dependency of the project")
        elif requirement.specifier != known[name]:
            found.append(f"{name}{requirement.specifier}, but the project says {known[name]}")
    if header["requires-python"] != project["requires-python"]:
        found.append(f"Python {header['requires-python']}")
    own = canonicalize_name(project["name"])
    named = {canonicalize_name(Requirement(text).name) for text in header["dependencies"]}
    return found + ([] if own in named else [f"lacks {name}" for name in known.keys() - named])


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]


def test_train_has_a_header():
    assert "train.py" in with_headers()


@pytest.mark.parametrize("name", with_headers())
def test_headers_install_what_the_project_needs(name, project):
    file = PROJECT_ROOT / "scripts" / name
    assert problems(metadata(file.read_text()), file.parent, project) == []


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"dependencies": ["torch>=1.0"]}, "torch>=1.0, but the project says >="),
        ({"dependencies": ["nonesuch"]}, "nonesuch is no dependency"),
        ({"dependencies": ["faseg-transformers"]}, "would not come from this project"),
        ({"dependencies": []}, "lacks torch"),
        ({"dependencies": [], "requires-python": ">=3.8"}, "Python >=3.8"),
    ],
)
def test_wrong_headers_are_noticed(project, header, problem):
    header = {"requires-python": project["requires-python"], **header}
    assert any(problem in line for line in problems(header, PROJECT_ROOT / "scripts", project))


def test_invalid_toml_is_noticed():
    with pytest.raises(tomllib.TOMLDecodeError):
        metadata('# /// script\n# dependencies = [\n#   "evaluate""\n# ]\n# ///\n')
