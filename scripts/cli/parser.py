"""One dataclass of arguments per command, filled from flags and, under them, a YAML recipe."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import json
import logging
import os
import re
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml

from scripts.cli.errors import UserError, errors_explained, fault_message
from scripts.cli.threads import leave


if TYPE_CHECKING:
    from transformers import HfArgumentParser
else:
    # A help text or a wrong flag is answered in a moment: this one file of transformers needs nothing of the rest,
    # whose import takes seconds.
    _transformers = importlib.util.find_spec("transformers")
    _spec = importlib.util.spec_from_file_location(
        "hf_argparser", Path(_transformers.submodule_search_locations[0]) / "hf_argparser.py"
    )
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    HfArgumentParser = _module.HfArgumentParser


Arguments = TypeVar("Arguments")

STARTED_BY = os.getppid()  # asked before the libraries are imported, which takes seconds
PROJECT_ROOT = Path(__file__).resolve().parents[2]
RECIPES = PROJECT_ROOT / "scripts" / "recipes"
# Whether the project runs from its repository. Where it is installed, PROJECT_ROOT is Python's folder of packages: it
# holds the project's packages and `hub_cards`, beside what others installed.
IS_CHECKOUT = (PROJECT_ROOT / "pyproject.toml").is_file()
FAULT = 70  # exit code: EX_SOFTWARE of the system's sysexits.h


class FlagsHelp(argparse.HelpFormatter):
    """Help with one spelling per flag, the kind of its value, and its default where it has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=112)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0 or is_switch(action):
            return ", ".join(action.option_strings[:1]) or super()._format_action_invocation(action)
        value = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[call-overload]
        return f"{action.option_strings[0]} {value}{' ...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            return f"The opposite of --{action.dest}."
        default = action.default
        if default in (None, "", [], argparse.SUPPRESS) or default is False or not action.option_strings:
            return text
        return f"{text} [{' '.join(map(str, default)) if isinstance(default, list) else default}]"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def is_switch(action: argparse.Action) -> bool:
    """Whether a flag may stand without a value."""
    return action.nargs == "?" and isinstance(action.const, bool)


def shipped_recipes() -> list[str]:
    """Names of the recipes in `scripts/recipes`."""
    return sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))


class Unset(list):
    """Stands for the value of a flag that is not given; a flag that adds to a list makes a copy of it."""


class ReadRecipe(str):
    """Name of a recipe whose values the arguments beside it hold already."""


class OneLineParser(HfArgumentParser):
    """`HfArgumentParser` whose errors are one line without the usage text."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized arguments") else []
        near = [match[0] for option in unknown if (match := difflib.get_close_matches(option, known, n=1))]
        raise UserError(" ".join(message.split()) + (f": did you mean {', '.join(near)}?" if near else ""))


def project_path(name: str) -> str:
    """`name` as it stands if it exists, else the same path below the project, else `name` (a Hub id, perhaps).

    Of an installed project only `hub_cards` is looked into: other folders beside it are other packages.
    """
    below_project = PROJECT_ROOT / name
    own = IS_CHECKOUT or Path(name).parts[:1] == ("hub_cards",)
    try:
        return str(below_project) if own and not Path(name).exists() and below_project.exists() else name
    except OSError as error:  # such as a name longer than a file system takes
        raise UserError(f"{name}: {error.strerror}") from error


class ReadPath(argparse.Action):
    """The action of a flag that names what is read, one path or several: each is kept as its `project_path`.

    Given to a field of a dataclass: `path_flag("...")`, or `flag([], "...", action=ReadPath)` for several.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, list(map(project_path, values)) if self.nargs else project_path(values))


def program() -> list[str]:
    """The words that start this command: `faseg train`, or `python` and how the script was named."""
    name = sys.argv[0]
    if name.startswith("faseg "):  # set by scripts/__main__.py
        return name.split()
    as_module = getattr(sys.modules["__main__"], "__package__", None) == "scripts"
    return ["python", *(["-m", f"scripts.{Path(name).stem}"] if as_module else [name])]


def start_of(script: str) -> str:
    """How a user starts another command, such as `convert_checkpoint`: by `faseg` where the project is installed."""
    return f"python scripts/{script}.py" if IS_CHECKOUT else f"faseg {script.replace('_', '-')}"


def flag(default: Any, help_text: str, **settings: Any) -> Any:
    """A field of a dataclass that is a flag: its default, what `--help` says, and settings of `add_argument`."""
    metadata = {"help": help_text, **settings}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def path_flag(help_text: str) -> Any:
    """A flag for the path of what is read, None by default; see `ReadPath`."""
    return flag(None, help_text, action=ReadPath)


def read_recipe(name: str, fields: Sequence[str]) -> dict[str, Any]:
    """The mapping in recipe `name` (a YAML file, or the name of one in `scripts/recipes`).

    Raises:
        UserError: no such file, not a mapping, or a key that is none of `fields`.
    """
    candidates = [Path(name), RECIPES / name, RECIPES / f"{name}.yaml"]
    path = next(filter(os.path.isfile, candidates), None)  # unlike pathlib's, false for names that cannot be
    if path is None:
        near = difflib.get_close_matches(name, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a YAML file or one of {', '.join(shipped_recipes())}"
        raise UserError(f"recipe {name!r} not found: {hint}")
    with errors_explained(f"recipe {path}", yaml.YAMLError, UnicodeDecodeError, RecursionError):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} holds {type(recipe).__name__}: write `key: value` lines")
    for key in recipe:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see --help for the keys"
            raise UserError(f"recipe {path}: unknown key {key!r}: {hint}")
    return recipe


def recipe_flags(recipe: dict[str, Any]) -> list[str]:
    """`recipe` as command-line flags, so that argparse checks its types like those of flags."""
    flags: list[str] = []
    for key, value in recipe.items():
        if value is None:
            continue
        if isinstance(value, dict):
            values = [f"{name}={json.dumps(item)}" for name, item in value.items()]
        elif isinstance(value, list):
            values = [str(item) for item in value]
        else:
            values = [str(value)]
        # `--key=value` keeps a value that starts with a dash from being read as a flag.
        flags += [f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *values]
    return flags


def parse_arguments(
    arguments_class: type[Arguments], argv: Sequence[str] | None = None, **positional: str
) -> Arguments:
    """Fills `arguments_class` from a recipe and flags; flags win.

    Args:
        arguments_class: dataclass whose field `recipe`, if it has one, is also the optional first positional argument.
        argv: command line without the program's name; `sys.argv[1:]` by default.
        positional: name of a list field -> help text: filled from positional arguments, which are paths.
    Raises:
        UserError: unknown flag or recipe key, or a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = [field.name for field in dataclasses.fields(arguments_class) if field.init]  # type: ignore[arg-type]
    takes_recipe = "recipe" in fields and not positional
    first = "[RECIPE] " if takes_recipe else "".join(f"[{name.upper()} ...] " for name in positional)
    parser = OneLineParser(
        arguments_class,  # type: ignore[arg-type]
        prog=Path(sys.argv[0]).name,
        allow_abbrev=False,
        description=arguments_class.__doc__,
        usage=f"%(prog)s {first}[--flag value ...]",
        formatter_class=FlagsHelp,
    )
    for name, help_text in positional.items():
        parser.add_argument(f"positional_{name}", metavar=name.upper(), nargs="*", type=project_path, help=help_text)
    if takes_recipe:
        parser.add_argument("positional_recipe", metavar="RECIPE", nargs="?", help="Recipe; the same as --recipe.")
    namespace = parser.parse_intermixed_args(argv)
    given: set[str] = set()
    if hasattr(arguments_class, "given"):
        unset: list[Any] = Unset()
        only_given = parser.parse_intermixed_args(argv, argparse.Namespace(**dict.fromkeys(fields, unset)))
        given = {name for name in fields if getattr(only_given, name) is not unset}
    recipe_name = getattr(namespace, "positional_recipe", None) or getattr(namespace, "recipe", None)
    if recipe_name:
        recipe = read_recipe(recipe_name, [field for field in fields if field != "recipe"])
        given |= {name for name, value in recipe.items() if value is not None}
        flags = recipe_flags(recipe)
        with errors_explained(f"recipe {recipe_name}", UserError):
            below = parser.parse_intermixed_args(flags)
        namespace = parser.parse_intermixed_args(argv, below)
        namespace.recipe = ReadRecipe(recipe_name)
    for name in positional:
        setattr(namespace, name, getattr(namespace, f"positional_{name}") or getattr(namespace, name))
    arguments = arguments_class(**{field: getattr(namespace, field) for field in fields})
    if hasattr(arguments, "given"):
        arguments.given = frozenset(given)
    return arguments


def arguments_for(arguments_class: type[Arguments], recipe: str | None = None, **values: Any) -> Arguments:
    """Fills `arguments_class` from Python values, as the command line fills it from text; `values` win over `recipe`.

    Args:
        recipe: a YAML file, or the name of one in `scripts/recipes`.
        values: flag -> value, checked as on the command line: paths may be `Path`s, one item may stand for a list,
            `config_overrides` may be a mapping. None stands for "not given", also over a recipe's value.
    Raises:
        UserError: unknown flag or recipe, or a value of the wrong type.
    """
    fields = {each.name: each for each in dataclasses.fields(arguments_class) if each.init}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give fields of {arguments_class.__name__}"
            raise UserError(f"{arguments_class.__name__} has no {name}: {hint}")
        if value is None and fields[name].default is not None:
            raise UserError(f"{name}=None: give a value, or leave it out")
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    # What no flag can say: an empty list, and no value in place of a recipe's.
    unsaid = {name: value for name, value in given.items() if value is None or value == []}
    flags = recipe_flags({name: value for name, value in given.items() if name not in unsaid})
    arguments = parse_arguments(arguments_class, [*flags, *([f"--recipe={recipe}"] if recipe else [])])
    for name, value in unsaid.items():
        setattr(arguments, name, value)
    if hasattr(arguments, "given"):
        arguments.given = arguments.given - unsaid.keys() | {name for name, value in unsaid.items() if value == []}
    return arguments


def check_recipe_read(arguments: Any) -> None:
    """Refuses arguments that name a recipe without its values, as a dataclass that is built directly does.

    Raises:
        UserError: names the recipe and what reads it.
    """
    recipe = arguments.recipe
    if recipe and not isinstance(recipe, ReadRecipe):
        name = type(arguments).__name__
        raise UserError(f"{name}(recipe={recipe!r}) reads no recipe: use arguments_for({name}, {recipe!r}, ...)")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["a=1", "b.c=[1, 2]"]` -> `{"a": 1, "b": {"c": [1, 2]}}`; values are YAML, later ones win.

    Raises:
        UserError: an item without `=` or with a value that is not YAML.
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"--config_overrides {item!r}: write key=value")
        with errors_explained(f"--config_overrides {item!r}", yaml.YAMLError, RecursionError):
            value = yaml.safe_load(text)
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--config_overrides {item!r}: {parent!r} was given a plain value before")
        place[leaf] = value
    return result


def check_at_most(arguments: Any, maximum: float, *names: str) -> None:
    """Refuses values, or items of lists, above `maximum`; None is left to the default.

    Raises:
        UserError: names the flag and its value.
    """
    for name in names:
        value = getattr(arguments, name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(item <= maximum for item in items):
            raise UserError(f"--{name} {value}: give at most {maximum:g}")


def check_at_least(arguments: Any, minimum: float, *names: str) -> None:
    """Refuses values, or items of lists, below `minimum`; None is left to the default.

    Raises:
        UserError: names the flag and its value.
    """
    for name in names:
        value = getattr(arguments, name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(item >= minimum for item in items):
            raise UserError(f"--{name} {value}: give at least {minimum}")


def check_folder(flag: str, folder: Path) -> None:
    """Refuses a folder that cannot be made.

    Raises:
        UserError: it, or what is to hold it, is a file.
    """
    with errors_explained(f"{flag} {folder}", OSError):  # such as a name longer than a file system takes
        existing = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if existing is not None and not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing} is a file: name another folder")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and leaves with its exit code; user errors become one line and exit code 2.

    An error that nobody foresaw becomes one line too, and exit code 70, with its traceback in a file; where
    `FASEG_TRACEBACK` is set in the environment it passes through as it is.
    """
    # Both libraries report a bad checkpoint or file in lines of their own before the one that counts.
    for library, level in (("transformers", "error"), ("datasets", "critical")):
        os.environ[f"{library.upper()}_VERBOSITY"] = level  # for when it is imported
        logging.getLogger(library).setLevel(level.upper())  # where it is already
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():  # `eval.py ... | head`
            code = 128 + signal.SIGPIPE
        elif os.environ.get("FASEG_TRACEBACK") and user_message(error) is None:
            raise
        else:
            code = failure(error)
    leave(code)


def failure(error: Exception) -> int:
    """Says in one line what went wrong; returns the exit code."""
    message, code = user_message(error), 2
    if message is None:
        message, code = fault_message(error), FAULT
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return code


def reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more; then it goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it as it leaves
    return gone


def user_message(error: Exception) -> str | None:
    """What a user can put right, in one line; None where that is nothing."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return f"not enough memory: take smaller images or batches: {' '.join(str(error).split())}".rstrip(": ")
    if not isinstance(error, UserError):
        from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError

        if not isinstance(error, StrictDataclassError):
            return None
        if isinstance(error, StrictDataclassClassValidationError) and error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
    return " ".join(str(error).split())
