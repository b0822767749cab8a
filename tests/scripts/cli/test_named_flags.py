"""Every flag that a text of the commands names, in errors, findings, help and advice, is one that some command has."""

import ast
import dataclasses
import importlib
import re

import pytest

from scripts.cli.parser import PROJECT_ROOT


SCRIPTS = PROJECT_ROOT / "scripts"
FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*)")
STYLE = re.compile(r"var\(--([\w-]+)|(?<=[\"';{ ])--([\w-]+): ?(?=[#{\d]|light-dark)")  # custom properties of pages
OF_OTHERS = {
    "help", "flag", "name", "no_such_flag",  # of every command, and as examples
    "num_processes", "logdir", "porcelain", "show-toplevel", "untracked-files",  # accelerate's, TensorBoard's, git's
}  # fmt: skip


def modules_of_commands() -> list[str]:
    """The commands, and the modules deeper down that are one by `python -m`."""
    deeper = [file for file in SCRIPTS.glob("*/*.py") if "    run_command(main)" in file.read_text(encoding="utf-8")]
    files = [*SCRIPTS.glob("*.py"), *deeper]
    return [".".join(file.relative_to(PROJECT_ROOT).with_suffix("").parts) for file in files]


def flags_of_commands() -> set[str]:
    """The flags of all commands' dataclasses, and `no_...` of those that are on by themselves."""
    found = set()
    for name in modules_of_commands():
        module = importlib.import_module(name)
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__name__.endswith("Arguments"):
                for field in dataclasses.fields(value):
                    found |= {field.name, f"no_{field.name}"} if field.default is True else {field.name}
    return found


def flags_named(text: str) -> set[str]:
    """The flags in the strings of a program, f-strings and docstrings among them; those put together are left out."""
    styles = {name for names in STYLE.findall(text) for name in names}
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {name for name in FLAG.findall(node.value) if not name.endswith("_")}
    return found - styles


@pytest.fixture(scope="module")
def known() -> set[str]:
    return flags_of_commands() | OF_OTHERS


def test_the_flags_of_commands_are_found(known):
    assert {"crop_height", "label_encoding", "no_streaming", "with_processing", "tile", "min_area"} <= known
    assert not {"crop", "no_crop_height"} & known


def test_flags_are_found_in_texts():
    program = """print(f"{a} --crop 64: --no_{b} gives", "--mask_values 0=a", "--ground: #fff; color: var(--line)")"""
    assert flags_named(program) == {"crop", "mask_values"}


def test_every_flag_that_is_named_exists(known):
    files = sorted(SCRIPTS.rglob("*.py"))
    unknown = {file.name: flags_named(file.read_text(encoding="utf-8")) - known for file in files}
    assert len(files) > 100 and {name: flags for name, flags in unknown.items() if flags} == {}
