"""Two gloo processes under `accelerate launch` against one: gradients, variants, Trainer, prediction.

All runs of two processes are one start of two_processes.py, which takes its time; the tests read what it found.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from tiny_models import tiny_config
from tiny_trainers import MODELS, one_step
from two_processes import (
    COUNTS,
    IN_TWO_PROCESSES,
    VARIANTS,
    build_variant,
    gradients,
    variant_loss,
)

from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.modeling_faseg import FASegPreTrainedModel
from scripts import predict as predict_command


ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "accelerate"

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def two(model_folder, shapes, tmp_path_factory):
    """Folder with what two processes found, started by the shipped configuration."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml"]
    script = Path(__file__).with_name("two_processes.py")
    helpers = [ROOT / "tests" / f"modeling_{kind}" for kind in MODELS]
    paths = list(map(str, [ROOT, *helpers]))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, [*launch, script, folder, model_folder, shapes])),
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def found(folder, rank=0):
    return json.loads((folder / f"rank{rank}.json").read_text())


def furthest(one, other):
    """Largest difference of gradients, as a share of the largest gradient of the tensor or 1e-3 of the model's."""
    assert one.keys() == other.keys()
    floor = 1e-3 * max(value.abs().max() for value in one.values())
    return max(float((value - other[name]).abs().max() / max(value.abs().max(), floor)) for name, value in one.items())


def test_there_are_two_processes(two):
    assert found(two)["processes"] == found(two, 1)["processes"] == 2
    assert found(two)["type"] == "DistributedType.MULTI_CPU"


def test_gradients_equal_those_of_one_process(two):
    """Same global batch, shared points, as many targets in each process: only the order of sums differs."""
    one, loss = gradients(COUNTS["equal"])
    assert furthest(one, load_file(two / "equal.safetensors")) < 1e-4
    assert (found(two)["loss equal"] + found(two, 1)["loss equal"]) / 2 == pytest.approx(loss, rel=1e-5)


def test_classes_are_weighted_per_process(two):
    """As in the reference: with other numbers of targets the classes' part of the gradient differs, the masks' not.

    Cross-entropy is a weighted mean over the queries of a process. Its weights are 1 for a matched query and 0.1 for
    one without object, so a process with few targets divides by less.
    """
    one, loss = gradients(COUNTS["unequal"])
    assert furthest(one, load_file(two / "unequal.safetensors")) > 1e-2
    assert abs((found(two)["loss unequal"] + found(two, 1)["loss unequal"]) / 2 - loss) > 1e-3
    masks, _ = gradients(COUNTS["unequal"], class_weight=0.0)
    assert furthest(masks, load_file(two / "masks.safetensors")) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_used(variant):
    """What gets no gradient makes DDP stop at the second step; also without any target."""
    for counts in ([2, 1, 0, 0], [0, 0, 0, 0]):
        model = build_variant(**VARIANTS[variant])
        variant_loss(model, counts, slice(0, 4)).backward()
        unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not unused


@pytest.mark.parametrize("variant", IN_TWO_PROCESSES)
def test_two_processes_train(variant, two):
    """Two steps, in the first of which one process has no target; weights stay equal."""
    for rank in (0, 1):
        assert found(two, rank)["variants"][variant] is True


def test_trainer_in_two_processes(model_folder, two):
    ranks = [found(two, rank) for rank in (0, 1)]
    assert len(ranks[0]["losses"]) == 3 and ranks[0]["losses"] == ranks[1]["losses"]
    assert ranks[0]["eval_loss"] == ranks[1]["eval_loss"] > 0
    start = load_file(model_folder / "model.safetensors")
    trained = load_file(two / "trainer" / "model.safetensors")
    assert sum(not torch.equal(value, start[name]) for name, value in trained.items()) > len(start) // 2


@pytest.mark.parametrize("kind", MODELS)
def test_trainer_averages_over_processes(kind, two, tmp_path):
    """The same four images in one process, or two in each of two; a sum would be twice as much."""
    one = one_step(kind, tmp_path, batch=4)
    both = found(two)["one step"][kind]
    assert both["loss"] == pytest.approx(one["loss"], rel=0.1)
    assert both["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.2)


def test_sharded_model_trains_as_its_copies(two):
    """FSDP2 by the layers of `_no_split_modules` against DDP, from the same weights on the same batches."""
    for rank in (0, 1):
        result = found(two, rank)["sharded"]
        assert result["same names"] and result["difference"] < 1e-5 < 1e-2 < result["moved"]


def test_prediction_equals_that_of_one_process(model_folder, shapes, tmp_path, two, command):
    flags = ["--model_name_or_path", model_folder, "--dataset_name", shapes, "--split_name", "train"]
    flags += ["--rows_per_shard", 2, "--dataloader_num_workers", 0, "--output_dir", tmp_path / "one"]
    assert command(predict_command, *flags)[0] == 0

    def hashes(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data").iterdir()}

    assert len(hashes(two / "predictions")) == 4
    assert hashes(two / "predictions") == hashes(tmp_path / "one")
    readme = "README.md"
    assert (two / "predictions" / readme).read_text() == (tmp_path / "one" / readme).read_text()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_are_accelerate_s(file):
    """Read by Accelerate's loader, which refuses unknown keys, and by its launcher's checks."""
    config = load_config_from_file(str(file))
    assert config.num_processes == {"single_gpu": 1, "cpu": 2, "multi_node": 8}.get(file.stem, 4)
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    arguments.nondefault = set()
    checked, _, _ = _validate_launch_command(arguments)
    assert checked.mixed_precision == ("no" if file.stem == "cpu" else "bf16")
    assert checked.multi_gpu == (file.stem in ("multi_gpu", "multi_node", "cpu"))
    if file.stem == "fsdp2":
        assert checked.use_fsdp and checked.fsdp_version == 2
        assert checked.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"


def test_layers_that_fsdp_wraps_exist():
    kinds = {type(module).__name__ for module in FASegForUniversalSegmentation(tiny_config()).modules()}
    assert set(FASegPreTrainedModel._no_split_modules) <= kinds
