"""`scripts/export_onnx.py` for SeMask-FPN, QLSeg, and FASeg on a SeMask backbone: files equal the models.

Tiny models here; `test_export_onnx_full_size.py` has the released architectures.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from configuration import FASegConfig, QLSegConfig, SeMaskConfig
from image_processing import FASegImageProcessor
from modeling_faseg import (
    FASegForUniversalSegmentation,
    QLSegForSemanticSegmentation,
    SeMaskForSemanticSegmentation,
)
from scripts import export_onnx as command_module
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.models.loading import save_model_folder
from scripts.onnx_export import checking, kinds, network
from scripts.onnx_export.decisions import FileDecisions, open_session
from watched import Watched


pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "onnx_runtime.py"
NAMES = {index: f"class {index}" for index in range(6)}
BACKBONE = {
    "model_type": "semask_swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "semantic_window_size": 3,
    "global_semantic_stages": [3],
}


def semask():
    return SeMaskForSemanticSegmentation(
        SeMaskConfig(backbone_config=dict(BACKBONE), decoder_hidden_size=16, id2label=NAMES)
    )


def faseg_on_semask():
    config = FASegConfig(
        backbone_config=dict(BACKBONE),
        feature_size=32,
        mask_feature_size=16,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=4,
        dim_feedforward=32,
        num_attention_heads=4,
        num_queries=6,
        high_resolution_reduction=4,
        id2label=NAMES,
    )
    return FASegForUniversalSegmentation(config)


def qlseg(init_std=0.3, **overrides):
    config = QLSegConfig(
        image_size=64,
        window_stride=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        out_indices=[0, 1],
        mlp_ratio=2,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_feedforward_dim=32,
        hidden_dim=16,
        decoder_attention_heads=2,
        decoder_stages=2,
        decoder_layers=1,
        init_std=init_std,
        id2label=NAMES,
        **overrides,
    )
    return QLSegForSemanticSegmentation(config)


MODELS = {"semask": semask, "faseg": faseg_on_semask, "qlseg": qlseg}


@torch.no_grad()
def with_several_classes(model):
    """A random model whose semantic attention counts and whose images show more than one class.

    What all places of a map have in common is taken out of those that make masks, and query c stands for class c.
    """
    hooks, states = [], []
    for name, module in model.named_modules():
        if name == "decoder.classifier":
            module.weight.normal_()
        if name == "decoder.classifier" or name.endswith(("mask_projection", "cross_attn.k_proj")):
            hooks.append(module.register_forward_hook(centre))
        if name == "class_predictor":
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0])))
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            parameter.fill_(0.5)
        elif "mask_embedder" in name and name.endswith("weight"):
            parameter.mul_(2)
    model(checking.drawn_images(1, 64, 64, seed=0))
    for hook in hooks:
        hook.remove()
    if states:
        model.class_predictor.weight.zero_()[: len(NAMES)] = 3 * torch.linalg.pinv(states[0]).T
        model.class_predictor.bias.zero_()[-1] = -10  # "no object"
    return model


def centre(module, inputs, output):
    """Moves the module's bias so that its output is 0 on average over places."""
    mean = output.mean((0, 2, 3) if output.ndim == 4 else (0, 1))
    module.bias.sub_(mean)
    return output - (mean[:, None, None] if output.ndim == 4 else mean)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders with random weights."""
    root = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = with_several_classes(build().eval())
        divisor = {"semask": 0, "faseg": 32, "qlseg": 16}[name]
        size = {"shortest_edge": 64, "longest_edge": 128}
        processor = FASegImageProcessor(size=size, size_divisor=divisor, num_labels=len(NAMES))
        save_model_folder(model, processor, root / name)
    return root


def export(folder, output_dir, *flags):
    flags = ["--model_name_or_path", folder, "--output_dir", output_dir, "--timing_runs", 0, *flags]
    return export_onnx(parse_arguments(ExportArguments, list(map(str, flags))))


@pytest.fixture(scope="module")
def semask_file(folders, tmp_path_factory):
    return export(folders / "semask", tmp_path_factory.mktemp("semask"), "--height", 64, "--width", 88)


@pytest.fixture(scope="module")
def qlseg_file(folders, tmp_path_factory):
    return export(folders / "qlseg", tmp_path_factory.mktemp("qlseg"))


def facts_of(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def check_equal(file, folder, shapes):
    model = MODELS[folder.name]().from_pretrained(folder).eval()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = kinds.kind_of(model.config).outputs
    for seed, shape in enumerate(shapes, 50):
        pixels = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            ours = model(pixel_values=torch.from_numpy(pixels))
        theirs = session.run([output.name for output in outputs], {"pixel_values": pixels})
        for output, found in zip(outputs, theirs, strict=True):
            np.testing.assert_allclose(found, ours[output.name].numpy(), atol=output.tolerance, rtol=0)


def check_example(file, folder, size, least, tmp_path, **settings):
    """The example's labels, made without torch, are those of processor and model."""
    image = Image.fromarray(checking.drawn_image(*size, seed=1))
    image.save(tmp_path / "street.png")
    program = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLE), "street.png", str(file)],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "street_labels.png"))
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **settings)
    model = MODELS[folder.name]().from_pretrained(folder).eval()
    expected = checking.eager_labels(model, processor, np.asarray(image)).numpy()
    assert labels.shape == size and len(np.unique(expected)) > 1
    assert (labels == expected).mean() > least
    assert "class" in done.stdout


def test_a_static_semask_file(semask_file, folders):
    check_equal(semask_file, folders / "semask", [(1, 3, 64, 88)] * 2)
    facts = facts_of(semask_file)
    assert facts["model_type"] == "semask" and json.loads(facts["thresholds"]) == {}
    assert json.loads(facts["processor"])["pad_size"] == {"height": 64, "width": 88}


def test_the_example_reads_a_semask_file(semask_file, folders, tmp_path):
    """Images of the file's shape, whose labels are those of the model with its own processor, and others, padded."""
    check_example(semask_file, folders / "semask", (128, 176), 0.999, tmp_path)
    check_example(semask_file, folders / "semask", (120, 90), 0.999, tmp_path, pad_size={"height": 64, "width": 88})


def test_a_qlseg_file_takes_windows(qlseg_file, folders):
    check_equal(qlseg_file, folders / "qlseg", [(1, 3, 64, 64), (3, 3, 64, 64)])
    facts = facts_of(qlseg_file)
    assert json.loads(facts["windows"]) == {"side": 64, "stride": 40} and "averaged" in facts["windows_rule"]
    assert json.loads(facts["sizes"]) == {"height": 64, "width": 64}
    assert json.loads(facts["thresholds"]) == {"attention_mask_threshold": 0.4}


@pytest.mark.parametrize(
    "size", [(120, 90), *(pytest.param(size, marks=pytest.mark.slow) for size in [(64, 64), (60, 200)])]
)
def test_the_example_reads_images_through_windows(size, qlseg_file, folders, tmp_path):
    """Several windows each way, one alone, and an image that is smaller than the window."""
    check_example(qlseg_file, folders / "qlseg", size, 0.999, tmp_path)


def test_qlseg_calibrated_on_images(folders, tmp_path, capsys):
    """Of whole images, by `use_windows=false`; one of windows is refused before it is traced."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(checking.drawn_image(64, 96, number)).save(tmp_path / "images" / f"{number}.png")
    flags = ["--calibration_images", tmp_path / "images", "--least_agreement", 0.2]
    with pytest.raises(UserError, match="takes windows of 64x64, not images: leave it out, or add --config_overrides"):
        export(folders / "qlseg", tmp_path / "out", *flags)
    flags += ["--config_overrides", "use_windows=false", "--height", 64, "--width", 96]
    export(folders / "qlseg", tmp_path / "out", *flags)
    assert "8 validation images: " in capsys.readouterr().out


def test_processing_around_semask(folders, tmp_path, monkeypatch, semask_file):
    graph = onnx.load(semask_file)
    monkeypatch.setattr(network, "export_network", lambda *_, **__: graph)
    flags = ["--height", 64, "--width", 88, "--with_processing"]
    file = export(folders / "semask", tmp_path / "out", *flags)
    assert [value.name for value in (*onnx.load(file).graph.input, *onnx.load(file).graph.output)] == [
        "image",
        "labels",
    ]
    check_example(file, folders / "semask", (150, 90), 0.98, tmp_path, pad_size={"height": 64, "width": 88})


@pytest.mark.slow
def test_decisions_of_qlseg_are_repeated(qlseg_file, folders, tmp_path, monkeypatch):
    """A probability between the thresholds of file and model: alone the model differs, repeating it does not."""
    model = MODELS["qlseg"]().from_pretrained(folders / "qlseg").eval()
    kind, pixels = kinds.kind_of(model.config), checking.drawn_images(1, 64, 64, 0)
    session = open_session(qlseg_file)
    found = checking.compare_network(kind, model, session, [(1, 64, 64)], 0, FileDecisions(qlseg_file, kind))[0]
    tokens = 16 * len(NAMES)
    assert found.within_tolerance and found.decisions == tokens and found.turned == 0, found
    watched = Watched()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(model.model.decoder, "decisions", watched)
        model(pixel_values=pixels)
    close = watched.probs[0].flatten().sort().values[tokens // 2].item()
    for apart, within in ((1e-6, True), (0.05, False)):
        graph = onnx.load(qlseg_file)
        for node in graph.graph.node:
            if node.op_type == "Less":
                (threshold,) = (entry for entry in graph.graph.initializer if entry.name == node.input[1])
        threshold.CopyFrom(onnx.numpy_helper.from_array(np.array(close + apart, np.float32), threshold.name))
        file = tmp_path / "changed.onnx"
        onnx.save(graph, file)
        monkeypatch.setattr(model.model.decoder, "threshold", close - apart)
        monkeypatch.setattr(model.config, "attention_mask_threshold", close - apart)
        decisions = FileDecisions(file, kind)
        found = checking.compare_network(kind, model, open_session(file), [(1, 64, 64)], 0, decisions)[0]
        assert found.turned > 0 and found.within_tolerance == within, found


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "qlseg",
            "--height 96 --width 64",
            "the model reads windows of 64 x 64: leave both out, or read images whole",
        ),
        (
            "qlseg",
            "--height 80 --width 72 --config_overrides use_windows=false",
            "--width 72: give a multiple of 16, 64 for instance",
        ),
        ("semask", "--height 62 --width 64", "--height 62: give a multiple of 4, 64 for instance"),
        ("qlseg", "--with_processing", "a QLSeg file takes windows, not images: leave it out"),
        ("semask", "--with_processing --height 64", "--height and --width belong together"),
    ],
)
def test_errors_are_one_line(name, flags, message, folders, tmp_path, command):
    flags = ["--model_name_or_path", folders / name, "--output_dir", tmp_path / "out", *flags.split()]
    code, _, errors = command(command_module, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_other_types_are_refused():
    config = type("Config", (), {"model_type": "swin"})()
    with pytest.raises(UserError, match="this is swin, ONNX files are made of faseg, semask, qlseg"):
        kinds.kind_of(config, "outputs/model")


# ---- what takes longer ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "least"), [("semask", 64), ("faseg", 96)])
def test_dynamic_files_with_a_semask_backbone(name, least, folders, tmp_path):
    file = export(folders / name, tmp_path / "out")
    check_equal(file, folders / name, [(1, 3, least, least), (1, 3, least, 160), (3, 3, 192, 128), (1, 3, 416, 96)])
    sizes = json.loads(facts_of(file)["sizes"])
    assert sizes == {"height": least, "width": least, "multiple_of": 32}
    if name == "semask":  # of FASeg's by test_export_onnx.py
        check_example(file, folders / name, (120, 90), 0.999, tmp_path, size_divisor=32)


@pytest.mark.slow
def test_qlseg_without_windows_takes_rectangles(tmp_path):
    """With smaller random weights than elsewhere: of those the model's own float32 is 2e-4 from float64 on smooth
    images of five by three patches."""
    folder = tmp_path / "qlseg"
    torch.manual_seed(0)
    processor = FASegImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=16, num_labels=len(NAMES)
    )
    save_model_folder(with_several_classes(qlseg(init_std=0.2, use_windows=False).eval()), processor, folder)
    file = export(folder, tmp_path / "out")
    check_equal(file, folder, [(1, 3, 80, 48), (2, 3, 48, 112), (1, 3, 160, 96)])
    assert json.loads(facts_of(file)["sizes"]) == {"height": 48, "width": 48, "multiple_of": 16}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semask", "qlseg"])
@pytest.mark.parametrize("flags", [["--precision", "fp16"], ["--int8"]], ids=["fp16", "int8"])
def test_smaller_weights_keep_the_labels(name, flags, folders, tmp_path, capsys):
    # Few, random and narrow: rounding shows more than in a trained model.
    export(folders / name, tmp_path / "out", "--height", 64, "--width", 64, "--least_agreement", 0.6, *flags)
    assert capsys.readouterr().out.count("% of labels equal") == 3
