"""Arguments of a command from Python values."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts.check_dataset import CheckArguments, check
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, arguments_for, parse_arguments, parse_overrides
from scripts.eval import EvaluateArguments, evaluate
from scripts.explain import ExplainArguments, explain
from scripts.predict import PredictArguments, predict
from scripts.train import TrainArguments, train


@dataclass
class Arguments:
    """For the tests."""

    recipe: str | None = None
    steps: int = 1
    rate: float | None = None
    flip: bool = True
    sizes: list[int] | None = None
    config_overrides: list[str] = field(default_factory=list, metadata={"action": "extend"})
    images: list[str] = field(default_factory=list)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: 7\nrate: 5e-4\nsizes: [4, 5]\nconfig_overrides: {a: 1}\n")
    return str(file)


def test_values_win_over_the_recipe_and_the_recipe_over_defaults(recipe):
    arguments = arguments_for(Arguments, recipe, steps=9, flip=False, config_overrides={"a": 2, "b": {"c": [1]}})
    assert (arguments.steps, arguments.rate, arguments.flip, arguments.sizes) == (9, 5e-4, False, [4, 5])
    assert parse_overrides(arguments.config_overrides) == {"a": 2, "b": {"c": [1]}}
    assert arguments.recipe == recipe


def test_values_are_those_of_python():
    arguments = arguments_for(Arguments, images=(Path("a b"), "c"), sizes=3, rate=1e-30)
    assert (arguments.images, arguments.sizes, arguments.rate) == (["a b", "c"], [3], 1e-30)
    assert arguments_for(Arguments, images="one.png").images == ["one.png"]


def test_none_and_an_empty_list_take_the_place_of_a_recipes_value(recipe):
    arguments = arguments_for(Arguments, recipe, rate=None, sizes=[])
    assert (arguments.rate, arguments.sizes, arguments.steps) == (None, [], 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 3}, "Arguments has no step: did you mean steps?"),
        ({"zzz": 3}, "Arguments has no zzz: give fields of Arguments"),
        ({"steps": "many"}, "argument --steps: invalid int value: 'many'"),
        ({"steps": 1.5}, "argument --steps: invalid int value: '1.5'"),
        ({"steps": None}, "steps=None: give a value, or leave it out"),
        ({"images": None}, "images=None: give a value, or leave it out"),
        ({"recipe": "no-such"}, "recipe 'no-such' not found"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(UserError) as refused:
        arguments_for(Arguments, **values)
    assert str(refused.value).startswith(message)


def test_a_shipped_recipe_is_as_on_the_command_line(tmp_path):
    arguments = arguments_for(TrainArguments, "demo", output_dir=tmp_path, max_train_steps=3)
    assert arguments == parse_arguments(
        TrainArguments, ["demo", "--output_dir", str(tmp_path), "--max_train_steps", "3"]
    )


@pytest.mark.parametrize(
    ("function", "arguments_class"),
    [
        (train, TrainArguments),
        (check, CheckArguments),
        (evaluate, EvaluateArguments),
        (predict, PredictArguments),
        (explain, ExplainArguments),
    ],
)
def test_a_recipe_that_was_not_read_is_refused(function, arguments_class, tmp_path):
    """A dataclass built directly keeps the recipe's name and none of its values."""
    with pytest.raises(UserError, match=rf"use arguments_for\({arguments_class.__name__}, 'demo', \.\.\.\)"):
        function(arguments_class(recipe="demo", output_dir=str(tmp_path)) if function is train else
                 arguments_class(recipe="demo"))  # fmt: skip


def test_the_documented_lines_train(tiny_recipe, shapes, tmp_path, monkeypatch):
    page = (PROJECT_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    program = page.split("## In Python\n")[1].split("```python\n")[1].split("```")[0]
    for old, new in {'"demo"': f'"{tiny_recipe}", max_train_steps=2', "path/to/dataset": str(shapes)}.items():
        assert old in program
        program = program.replace(old, new)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names["last"]["step"] == 2 and (tmp_path / "outputs" / "python" / "model.safetensors").is_file()


def test_what_was_given_is_known(tmp_path):
    """A training may decide what nobody gave by the data."""
    values = {"output_dir": tmp_path, "max_train_steps": 3, "scale_range": None}
    assert "scale_range" in parse_arguments(TrainArguments, ["demo"]).given
    arguments = arguments_for(TrainArguments, "demo", **values)
    assert {"output_dir", "max_train_steps", "learning_rate"} <= arguments.given
    assert not {"scale_range", "weights"} & arguments.given
    with pytest.raises(UserError, match="TrainArguments has no given"):
        arguments_for(TrainArguments, given=["seed"])
