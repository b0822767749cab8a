"""`train.py` takes two steps on every backbone; in two processes on those with parameters that no map reads."""

import json
import math

import pytest
import yaml
from backbone_cases import PYRAMID, PYRAMID_CASES, REFUSED, TIMM, TRANSFORMERS, fields_of
from tiny_folder import TINY_MODEL
from tiny_models import tiny_model
from training_processes import train_in_processes

from modeling_faseg import FASegForUniversalSegmentation
from scripts import train
from scripts.cli.parser import parse_arguments
from scripts.training.arguments import TrainArguments


WORKING = [*(case for case in (*TRANSFORMERS, *TIMM) if case not in REFUSED), *PYRAMID_CASES]
# Several processes would wait for the gradients of what no map reads, unless it is frozen.
UNREAD = ["bit", "focalnet", "maskformer-swin", "pp_lcnet_v3"]
UNREAD += [
    f"{kind}{PYRAMID}"
    for kind in ("dinov2", "dinov2_with_registers", "dinov3_vit", "pixio", "tipsv2", "tipsv2_vision_model")
]
UNREAD += [f"uvdoc_backbone{PYRAMID}"]
FLAGS = ["--max_train_steps", 2]


def recipe_on(case, folder):
    """The tiny recipe on another backbone."""
    recipe = yaml.safe_load(TINY_MODEL)
    recipe["config_overrides"] |= fields_of(case)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def check_trained(case, folder):
    """Two steps with a finite loss, and a model that loads with the same parameters frozen."""
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    model, new = FASegForUniversalSegmentation.from_pretrained(folder), tiny_model(**fields_of(case))
    assert model.model.backbone.unread_parameters == new.model.backbone.unread_parameters
    assert bool(model.model.backbone.unread_parameters) == (case in UNREAD)


@pytest.mark.slow
@pytest.mark.parametrize("case", WORKING)
def test_two_steps(case, shapes, tmp_path, command):
    given = [recipe_on(case, tmp_path), "--dataset_name", shapes, "--output_dir", tmp_path / "run", *FLAGS]
    code, out, errors = command(train, *given)
    assert code == 0, (out[-500:], errors[-3:])
    check_trained(case, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("case", UNREAD)
def test_two_steps_in_two_processes(case, shapes, tmp_path):
    given = [recipe_on(case, tmp_path), "--dataset_name", shapes, "--output_dir", tmp_path / "run", *FLAGS]
    codes, errors = train_in_processes(parse_arguments(TrainArguments, [str(flag) for flag in given]), world=2)
    assert codes == [0, 0], errors
    check_trained(case, tmp_path / "run")
