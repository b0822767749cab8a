"""FASeg started from a Mask2Former: which weights go where, what is new, and the commands that do it."""

import json

import pytest
import torch
from mask2former_models import write_mask2former
from tiny_models import TINY_RESNET
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import check_dataset, convert_checkpoint, train
from scripts.cli.errors import UserError
from scripts.models.arguments import ModelArguments
from scripts.models.input_channels import adapted, set_num_channels
from scripts.models.loading import build_config, build_model
from scripts.models.warm_start import WarmStart, layers_here


DECODER = "model.transformer_decoder."
# Layer of a Mask2Former of nine -> each layer that starts from it; 3, 7 and 11 are HRCA's, 12 is the last.
WENT_TO = {0: [0], 1: [1], 2: [2, 3], 3: [4], 4: [5], 5: [6, 7], 6: [8, 12], 7: [9], 8: [10, 11]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mask2Former of nine decoder layers, as released ones have."""
    return write_mask2former(tmp_path_factory.mktemp("model") / "tiny-semantic", TINY_RESNET, decoder_layers=10)


@pytest.fixture(scope="module")
def plain(folder):
    """The same without anything new."""
    named = ModelArguments(model_name_or_path=str(folder))
    return build_model(named, build_config(named)).eval()


def started(folder, *overrides, **settings):
    start = WarmStart(str(folder), ["high_resolution_reduction=4", *overrides], **settings)
    model, table = start.model(start.config())
    print(table)
    return model.eval()


@pytest.mark.parametrize(("there", "here"), [(9, 13), (10, 13), (3, 5), (6, 9), (1, 1), (2, 2)])
def test_it_keeps_every_layer_and_ends_on_the_coarsest_level(there, here):
    assert layers_here(there) == here


def test_every_tensor_is_its_own_or_new(folder, plain, capsys, caplog):
    with caplog.at_level("WARNING", "transformers"):
        model = started(folder)
    assert not [record for record in caplog.records if "MISSING" in record.getMessage()]  # the table says it
    theirs, ours = plain.state_dict(), model.state_dict()
    taken = set()
    for name, value in theirs.items():
        if name.startswith(f"{DECODER}layers."):
            number, rest = name.removeprefix(f"{DECODER}layers.").split(".", 1)
            places = [f"{DECODER}layers.{index}.{rest}" for index in WENT_TO[int(number)]]
        else:
            places = [name]
        for place in places:
            expected = value
            if place == f"{DECODER}level_embed.weight":
                expected = torch.cat((value, value[2:]))
            assert torch.equal(ours[place], expected), place
            taken.add(place)
    assert {name.split(".")[2] for name in ours.keys() - taken} == {"focus_queries"}
    printed = capsys.readouterr()
    assert f"warm start from {folder} (licence of its weights: unknown): 99.4 % of " in printed.out
    lines = [line.split() for line in printed.out.splitlines()]
    for there, places in WENT_TO.items():
        assert all(["decoder", "layer", str(place), "layer", str(there), "10,752"] in lines for place in places)
    assert ["focus", "queries", "(DFPQ)", "new", "2,112"] in lines


def test_sine_positions_leave_the_pixel_decoder_as_it_is(folder, plain):
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        results = [each.model(images, output_hidden_states=True) for each in (plain, started(folder))]
    first, second = (result.pixel_decoder_last_hidden_state for result in results)
    assert torch.allclose(first, second, atol=1e-5)


def test_positional_queries_begin_as_the_learned_ones_and_where_the_query_looked(folder):
    decoder = started(folder).model.transformer_decoder
    learned = decoder.queries_embedder.weight
    attention, positions = torch.rand(1, len(learned), 20).softmax(-1), torch.rand(1, 20, learned.shape[1]) * 2 - 1
    with torch.no_grad():
        found = decoder.focus_queries(attention, positions, learned)
    torch.testing.assert_close(found, attention @ positions + learned, atol=1e-5, rtol=0)
    assert decoder.focus_queries.fc1.weight.requires_grad


def test_classes_of_the_data_get_a_new_head(folder):
    start = WarmStart(str(folder), ["high_resolution_reduction=4"], "semantic")
    model, table = start.model(start.config({index: f"stuff {index}" for index in range(3)}))
    assert model.config.num_labels == 3 and model.class_predictor.weight.shape == (4, 32)
    assert ["classes", "new", "132"] in [line.split() for line in table.splitlines()]


def test_conditional_positions_are_new(folder, capsys):
    model = started(folder, "positional_encoding_type=conditional")
    assert model.config.positional_encoding_type == "conditional"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["position", "encodings", "new", "1,280"] in lines  # 4 levels x 32 channels x (9 + 1)
    assert any(line[:4] == ["finest", "level's", "projections", "new"] for line in lines)


def test_with_one_idea_alone(folder, plain, capsys):
    """Without HRCA each layer stays where it is; without both the model is what it was."""
    model = started(folder, "use_high_resolution_cross_attention=False", "decoder_layers=9")
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    same = started(
        folder, "use_high_resolution_cross_attention=False", "use_dynamic_positional_queries=False", "decoder_layers=9"
    )
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        first, second = (each(images) for each in (plain, same))
    assert torch.equal(first.masks_queries_logits, second.masks_queries_logits)
    assert "100.0 % of" in capsys.readouterr().out


@pytest.mark.parametrize(("sharing", "own"), [("shared", {3}), ("reused", set())])
def test_layers_that_share_weights_start_as_their_copies(folder, plain, sharing, own):
    model = started(folder, f"high_resolution_sharing={sharing}")
    theirs, ours = plain.state_dict(), model.state_dict()
    origins = {here: there for there, places in WENT_TO.items() for here in places}
    for index in {*range(13)} - {3, 7, 11} | own:
        name = f"{DECODER}layers.{{}}.fc1.weight"
        assert torch.equal(ours[name.format(index)], theirs[name.format(origins[index])])
    layers = {int(name.split(".")[3]) for name in ours if name.startswith(f"{DECODER}layers.")}
    assert layers == {*range(13)} - {3, 7, 11} | own


def test_the_converter_writes_what_can_be_trained_on(folder, tmp_path, command):
    code, out, _ = command(
        convert_checkpoint, "--mask2former", folder, "--warm_start", "--output_dir", tmp_path / "warm"
    )
    assert code == 0 and "warm start from" in out
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "warm")
    assert model.config.use_dynamic_positional_queries and model.config.decoder_layers == 13
    assert AutoImageProcessor.from_pretrained(tmp_path / "warm").size == {"shortest_edge": 96, "longest_edge": 256}


def test_what_has_the_ideas_already_is_refused(folder, tmp_path):
    started(folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--warm_start .*: it has DFPQ or HRCA already: train.py takes it as"):
        WarmStart(str(tmp_path), [])
    for nowhere in ("/nowhere/model", "no/where"):
        with pytest.raises(UserError, match=rf"--warm_start {nowhere}: no such file or folder, (and no|not in) "):
            WarmStart(nowhere, [])


TRAIN = [
    "--crop_height", 64, "--crop_width", 96, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 0,
    "--checkpointing_steps", 1, "--config_overrides", "high_resolution_reduction=4", "train_num_points=16",
]  # fmt: skip


def test_other_bands_start_from_the_first_convolution_of_rgb(folder, capsys):
    start = WarmStart(str(folder), ["high_resolution_reduction=4"])
    config = start.config()
    set_num_channels(config, 5)
    model, _ = start.model(config)
    name = "model.backbone.embedder.embedder.convolution.weight"
    rgb, _ = WarmStart(str(folder), ["high_resolution_reduction=4"]).model(start.config())
    expected = adapted(rgb.get_parameter(name).data, 5)
    assert model.get_parameter(name).shape[1] == 5 and torch.equal(model.get_parameter(name).data, expected)
    assert f"first convolution {name} adapted from 3 to 5 bands" in capsys.readouterr().out


def test_training_starts_from_it_and_goes_on(folder, shapes, tmp_path, command):
    flags = ["--warm_start", folder, "--dataset_name", shapes, *TRAIN]
    code, out, errors = command(train, *flags, "--output_dir", tmp_path / "run", "--max_train_steps", 2)
    assert code == 0 and "warm start from" in out and "without DFPQ" not in out, errors[-1]
    resumed = [*flags, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-1"]
    code, _, errors = command(train, *resumed, "--max_train_steps", 2)
    assert code == 0, errors
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.use_high_resolution_cross_attention and model.config.task == "semantic"
    names = {int(index): name for index, name in json.loads((shapes / "id2label.json").read_text()).items()}
    assert model.config.id2label == names


def test_a_plain_model_of_another_task_becomes_one_of_label_maps(folder, shapes, tmp_path, command):
    """Its configuration and its processor alike: the latter decides how masks become labels."""
    flags = ["--mask2former", folder, "--task", "panoptic", "--output_dir", tmp_path / "plain"]
    assert command(convert_checkpoint, *flags)[0] == 0
    run = ["--warm_start", tmp_path / "plain", "--dataset_name", shapes, "--output_dir", tmp_path / "run"]
    code, _, errors = command(train, *run, *TRAIN, "--max_train_steps", 1)
    assert code == 0, errors[-1]
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").task == "semantic"
    assert AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run").config.task == "semantic"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("num_queries=7", "missing or of another shape: model.transformer_decoder.queries_"),
        ("backbone_config.downsample_in_first_stage=true", "strides"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(wrong, message, folder, shapes, tmp_path, command):
    run = ["--warm_start", folder, "--dataset_name", shapes, "--output_dir", tmp_path / "run"]
    code, _, errors = command(train, *run, "--max_train_steps", 1, *TRAIN, wrong)
    assert code == 2 and errors[-1].startswith(f"train.py: error: --warm_start {folder}: "), errors[-1]
    assert message in errors[-1]
    code, _, errors = command(check_dataset, *run[:4], "--backbone_weights", "somewhere")
    assert code == 2 and "--warm_start and --backbone_weights both name where the model comes from" in errors[-1]


def test_the_check_weighs_what_would_be_trained(folder, shapes, command):
    code, out, errors = command(check_dataset, "--warm_start", folder, "--dataset_name", shapes, *TRAIN)
    assert code == 0, errors
    assert f"recipe: {folder}: steps of 2 crops of 64x96" in out


def test_one_checkpoint_at_a_time(tmp_path, command):
    flags = ["--warm_start", "somewhere", "--model_name_or_path", "elsewhere", "--output_dir", tmp_path / "run"]
    code, _, errors = command(train, *flags, "--dataset_name", "nowhere")
    assert code == 2
    assert errors == [
        "train.py: error: --warm_start and --model_name_or_path both name where the model comes from: give one"
    ]
    code, _, errors = command(
        convert_checkpoint, "--model_id", "faseg-resnet50-ade20k", "--warm_start", "--output_dir", tmp_path
    )
    assert code == 2 and "--warm_start is for --mask2former" in errors[-1]
