"""Recipes and flags: who wins, and what is refused."""

from dataclasses import dataclass, field

import pytest

from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments, parse_overrides, run_command, shipped_recipes
from scripts.training.arguments import TrainArguments


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
        "--crop_height N Height of the training crops. [512]",
        "--streaming Stream instead",
        "--no_streaming The opposite of --streaming.",
        "--report_to TEXT ... Trackers",
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


def test_exit_code_of_a_command():
    with pytest.raises(SystemExit) as left:
        run_command(lambda: 1)
    assert left.value.code == 1
