"""Weights of classes, crops around rare ones, and more augmentation, as train.py does them."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torchvision import tv_tensors
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import check_dataset as check_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.class_counts import balanced_weights, count_class_pixels, shares_of
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import decode_sample
from scripts.train import TrainArguments
from scripts.training import run
from scripts.training.arguments import check_values
from scripts.training.checkpointing import SETTINGS
from scripts.training.class_weights import in_words, weights_of


NAMES = {0: "road", 1: "car", 2: "pole"}
ALL = [
    "--class_weights", "auto", "--rare_class_crops", 0.5, "--rotation", 10, "--blur", 0.5, "--vertical_flip", 0.5,
    "--horizontal_flip", 0.25,
]  # fmt: skip


def shares(folder):
    return shares_of(count_class_pixels(LabelledDataset(TrainArguments(dataset_name=str(folder)), "train"), 6))


def test_resuming_with_all_of_it_equals_the_run_never_stopped(start, shapes, tmp_path):
    flags = ["--max_train_steps", 4, "--checkpointing_steps", 2, *ALL]
    code, out, errors = start(*flags)
    assert code == 0, errors
    expected = balanced_weights(shares(shapes))
    assert "\nclass weights " in out and f"  {in_words(expected, read_names(tmp_path / 'run'))}\n" in out
    whole = load_file(tmp_path / "run" / "model.safetensors")
    assert AutoConfig.from_pretrained(tmp_path / "run").class_weights == expected
    assert whole["criterion.empty_weight"].tolist() == pytest.approx([*expected, 0.1])
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert json.loads((checkpoint / SETTINGS).read_text())["shares of the classes"] == shares(shapes)

    resume = ["--resume_from_checkpoint", checkpoint, "--output_dir", tmp_path / "resumed", "--dataloader_num_workers"]
    code, out, errors = start(*flags, *resume, 1)
    assert code == 0 and "resumed from" in out, errors
    again = load_file(tmp_path / "resumed" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    for changed, message in (
        (["--rotation", 20], "--rotation 10.0, not 20"),
        (["--blur", 0], "--blur 0.5, not 0"),
        (["--vertical_flip", 0], "--vertical_flip 0.5, not 0"),
        (["--horizontal_flip", 0.5], "--horizontal_flip 0.25, not 0.5"),
        (["--rare_class_crops", 1], "--rare_class_crops 0.5, not 1"),
        (["--class_weights", "car=2"], "model: class_weights ["),
    ):
        code, _, errors = start(*flags, *resume, 1, *changed)
        assert code == 2 and len(errors) == 1 and message in errors[0], (changed, errors)


def read_names(folder):
    return AutoConfig.from_pretrained(folder).id2label


@pytest.fixture
def prepared(tiny_recipe, shapes, tmp_path):
    """What a run would train with: `set_up` of these flags."""
    runs = []

    def set_up(*flags):
        AcceleratorState._reset_state(True)
        given = [tiny_recipe, "--dataset_name", shapes, "--output_dir", tmp_path / "run", "--max_train_steps", 1]
        runs.append(run.set_up(parse_arguments(TrainArguments, [str(flag) for flag in (*given, *flags)])))
        runs[-1].lock.release()
        return runs[-1]

    yield set_up
    AcceleratorState._reset_state(True)


def test_crops_of_training_hold_more_of_the_rarest_class(prepared, shapes):
    rarest = min(range(6), key=shares(shapes).__getitem__)
    data = LabelledDataset(TrainArguments(dataset_name=str(shapes)), "train")
    samples = [decode_sample(row, data.row_format, 6, 0)[:2] for row in data.stream]
    image, label = max(samples, key=lambda sample: (sample[1] == rarest).sum())
    found = []
    for share in (0, 1):
        augmentation = prepared("--rare_class_crops", share, "--scale_range", 1, 1, "--no_color_jitter").augmentation
        torch.manual_seed(0)
        crops = [augmentation(tv_tensors.Image(image), tv_tensors.Mask(label))[1] for _ in range(50)]
        found.append(float(torch.stack(crops).eq(rarest).float().mean()))
    assert found[1] > 1.3 * found[0], found
    assert augmentation.transforms[1].id_weights.tolist() == pytest.approx([1 / share for share in shares(shapes)])


def test_counts_of_check_dataset_stand_in_for_the_look(prepared, shapes, tmp_path, command, monkeypatch):
    file = tmp_path / "check.json"
    assert command(check_command, "--dataset_name", shapes, "--json", file)[0] == 0
    expected = balanced_weights(shares(shapes))
    monkeypatch.setattr("scripts.training.class_weights.count_class_pixels", None)
    started = prepared("--class_weights", "auto", "--class_counts", file)
    assert started.network.config.class_weights == started.settings["model: class_weights"] == expected


def test_weights_of_a_checkpoint_are_replaced_and_those_of_other_classes_left_out(
    prepared, shapes, random_model, tmp_path, capsys
):
    """A checkpoint holds its weights of classes as a tensor, too."""
    names = LabelledDataset(TrainArguments(dataset_name=str(shapes)), "train").id2label
    first = [0.5, 3.0, 1.0, 1.0, 1.0, 1.0]
    model = AutoModelForUniversalSegmentation.from_pretrained(random_model(6), class_weights=first)
    model.config.id2label = names
    model.save_pretrained(tmp_path / "weighted")
    AutoImageProcessor.from_pretrained(random_model(6)).save_pretrained(tmp_path / "weighted")
    again = ["--model_name_or_path", tmp_path / "weighted"]
    for flags, expected in (
        ([], first),
        (["--class_weights", f"{names[5]}=2"], [1, 1, 1, 1, 1, 2]),
        (["--config_overrides", "class_weights=null"], [1] * 6),
    ):
        started = prepared(*again, *flags)
        assert started.network.criterion.empty_weight[:6].tolist() == expected
    capsys.readouterr()
    mapped = tmp_path / "classes.yaml"
    mapped.write_text(json.dumps({"two": [names[0], names[1]], "rest": [names[index] for index in range(2, 6)]}))
    assert prepared(*again, "--class_map", mapped).network.config.class_weights is None
    assert "class_weights of the configuration are of other classes and are left out" in capsys.readouterr().out


def test_a_class_that_there_is_not_is_named_with_the_closest(start):
    code, _, errors = start("--max_train_steps", 1, "--class_weights", "raod=2")
    assert code == 2 and "--class_weights: no class is called 'raod': " in errors[-1], errors


def test_named_weights_by_id():
    assert weights_of(["pole=5", "car=0.5"], NAMES, None) == [1.0, 0.5, 5.0]
    with pytest.raises(UserError, match="no class is called 'cra': did you mean 'car'"):
        weights_of(["cra=2"], NAMES, None)
    with pytest.raises(UserError, match="all classes weigh 0"):
        weights_of(["road=0", "car=0", "pole=0"], NAMES, None)
    many = {index: f"c{index}" for index in range(20)}
    assert in_words([float(index) for index in range(20)], many).startswith("c19 19, c18 18, ")
    assert in_words([1.0] * 20, many).count(",") == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weights": ["auto", "car=2"]}, "--class_weights auto: give auto alone, or NAME=W"),
        ({"class_weights": ["car"]}, "--class_weights car: give auto alone, or NAME=W"),
        ({"class_weights": ["car=x"]}, "'x' is no weight"),
        ({"class_weights": ["car=-1"]}, "'-1' is no weight"),
        ({"class_weights": ["car=nan"]}, "'nan' is no weight"),
        ({"class_weights": ["car=1", "car=2"]}, "'car' has a weight already"),
        ({"class_weights": ["auto"], "config_overrides": ["class_weights=[1]"]}, "are the same setting: give one"),
        ({"class_counts": "x.json"}, "--class_counts: read for --class_weights auto and --rare_class_crops"),
        ({"rare_class_crops": 1.5}, "--rare_class_crops 1.5: give at most 1"),
        ({"rare_class_crops": -1.0}, "--rare_class_crops -1.0: give at least 0"),
        ({"horizontal_flip": 2.0}, "--horizontal_flip 2.0: give at most 1"),
        ({"vertical_flip": -0.1}, "--vertical_flip -0.1: give at least 0"),
        ({"blur": float("nan")}, "--blur nan: give at least 0"),
        ({"rotation": 181.0}, "--rotation 181.0: give at most 180"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(UserError) as refused:
        check_values(TrainArguments(max_train_steps=1, **values))
    assert message in str(refused.value)
