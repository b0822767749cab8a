"""`scripts/export_onnx.py`: onnxruntime equals the model, the file says what it is, failures leave nothing behind.

Tiny models here; `test_export_onnx_full_size.py` has the released architectures.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import rewriter
from PIL import Image
from safetensors.torch import load_file, save_file
from several_classes import with_several_classes
from timm.layers.padding import get_same_padding
from tiny_folder import write_model_folder
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation
from transformers.models.swin.modeling_swin import SwinLayer

from image_processing import FASegImageProcessor, FASegImageProcessorPil
from scripts import export_onnx as command_module
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.bands import PLAIN
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.models.loading import save_model_folder
from scripts.onnx_export import checking, kinds, network, processing
from scripts.onnx_export.decisions import FileDecisions, open_session
from watched import Watched


pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]
STATIC = ["--height", 64, "--width", 96]
PROGRAM = """
import sys
sys.modules["torch"] = None  # any import of it fails
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__"})
"""


def export(folder, output_dir, *flags):
    flags = ["--model_name_or_path", folder, "--output_dir", output_dir, "--timing_runs", 0, *flags]
    return export_onnx(parse_arguments(ExportArguments, list(map(str, flags))))


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe, tmp_path_factory):
    """Folder of a tiny model that finds several classes."""
    folder = write_model_folder(tiny_recipe, tmp_path_factory.mktemp("checkpoint") / "tiny")
    model = with_several_classes(AutoModelForUniversalSegmentation.from_pretrained(folder))
    save_model_folder(model, AutoImageProcessor.from_pretrained(folder), folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A tiny model\n")
    return folder


@pytest.fixture(scope="module")
def traced(checkpoint):
    """A static graph of 64 x 96, the model it was made of, and that model's state before."""
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    before["attention"] = model.config._attn_implementation
    return network.export_network(model, kinds.kind_of(model.config), (64, 96)), model, before


@pytest.fixture
def traced_once(traced, monkeypatch):
    """The command uses the graph that is there: tracing takes seconds."""
    text = traced[0].SerializeToString()
    monkeypatch.setattr(network, "export_network", lambda *_, **__: onnx.ModelProto.FromString(text))


@pytest.fixture(scope="module")
def dynamic_file(checkpoint, tmp_path_factory):
    return export(checkpoint, tmp_path_factory.mktemp("dynamic"))


def logits(model, pixels):
    with torch.no_grad():
        outputs = model(pixel_values=torch.from_numpy(pixels))
    return outputs.class_queries_logits.numpy(), outputs.masks_queries_logits.numpy()


def a_image(height, width, seed=0):
    return Image.fromarray(checking.drawn_image(height, width, seed))


def eager_labels(folder, image, **settings):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **settings)
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    return checking.eager_labels(model, processor, np.asarray(image)).numpy()


def run_example(file, image, folder):
    """Label map and printed text of the example, in a process that cannot import torch."""
    image.save(folder / "street.png")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "examples" / "onnx_runtime.py"), "street.png", str(file)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "street_labels.png")), done.stdout


def test_static_file_equals_the_model_and_says_what_it_is(checkpoint, traced_once, tmp_path, capsys):
    file = export(checkpoint, tmp_path / "out", *STATIC, "--timing_runs", 1)
    printed = capsys.readouterr().out
    assert printed.count("% of labels equal") == 3 and "speed on 1 x 64 x 96: onnxruntime" in printed
    check_equal(file, checkpoint, [(1, 3, 64, 96)] * 2)
    graph = onnx.load(file)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(facts["id2label"]) == {str(index): f"class {index}" for index in range(6)}
    assert json.loads(facts["sizes"]) == {"height": 64, "width": 96, "batch": 1}
    settings = json.loads(facts["processor"])
    assert settings["size"] == {"shortest_edge": 64, "longest_edge": 128} and settings["size_divisor"] == 32
    assert settings["pad_size"] == {"height": 64, "width": 96}
    assert facts["license"] == "cc-by-nc-4.0" and facts["model_id"] == checkpoint.name
    assert (facts["task"], facts["precision"], facts["with_processing"]) == ("semantic", "fp32", "false")
    assert json.loads(facts["thresholds"])["attention_mask_threshold"] == 0.15
    assert json.loads(facts["opset"])["onnx"] == graph.opset_import[0].version
    assert facts["torch_version"] == torch.__version__ and facts["transformers_version"]
    assert str(checkpoint.parent) not in str(facts)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"positional_encoding_type": "learned"},
        pytest.param({"task": "panoptic", "stuff_ids": [0, 1]}, marks=pytest.mark.slow),
    ],
    ids=["as it is", "learned positions", "panoptic"],
)
def test_a_gathering_file_holds_no_grid_sample_and_equals_the_model(overrides, checkpoint, tmp_path, capsys):
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint)
    config = type(model.config)(**{**model.config.to_dict(), **overrides})
    again = AutoModelForUniversalSegmentation.from_config(config)
    again.load_state_dict(model.state_dict(), strict="positional_encoding_type" not in overrides)
    save_model_folder(with_several_classes(again), AutoImageProcessor.from_pretrained(checkpoint), tmp_path / "model")
    file = export(tmp_path / "model", tmp_path / "out", *STATIC, "--deformable", "gather")
    printed = capsys.readouterr().out
    assert "no GridSample node among the" in printed and printed.count("mask logits within") == 3
    assert "GridSample" not in {node.op_type for node in onnx.load(file).graph.node}
    check_equal(file, tmp_path / "model", [(1, 3, 64, 96)] * 2)
    facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert facts["deformable"] == "gather"


def check_equal(file, checkpoint, shapes):
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint).eval()
    session = onnxruntime.InferenceSession(file)
    for seed, shape in enumerate(shapes, 50):
        pixels = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        theirs = session.run(None, {"pixel_values": pixels})
        for one, other, tolerance in zip(logits(model, pixels), theirs, (1e-4, 1e-3), strict=True):
            np.testing.assert_allclose(other, one, atol=tolerance, rtol=0)


def check_example(file, folder, size, least, checkpoint, **settings):
    """The example's labels are those of processor and model, its text names the classes."""
    image = a_image(*size, seed=1)
    labels, printed = run_example(file, image, folder)
    expected = eager_labels(checkpoint, image, **settings)
    assert labels.shape == size and len(np.unique(expected)) > 1
    assert (labels == expected).mean() > least
    shares = dict(re.findall(r"(class \d): ([\d.]+) %", printed))
    found = {f"class {label}": 100 * (labels == label).mean() for label in np.unique(labels)}
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(found, abs=0.06)


@pytest.mark.parametrize("size", [(120, 90), (30, 70)])
def test_example_without_torch_gives_the_labels_of_processor_and_model(size, checkpoint, traced_once, tmp_path):
    file = export(checkpoint, tmp_path / "out", *STATIC)
    # Equal but where two classes tie to float noise.
    check_example(file, tmp_path, size, 0.999, checkpoint, pad_size={"height": 64, "width": 96})


def test_processing_in_the_graph(checkpoint, traced_once, tmp_path, capsys):
    file = export(checkpoint, tmp_path / "out", *STATIC, "--with_processing", "--timing_runs", 1)
    printed = capsys.readouterr().out
    assert printed.count("mask logits within") == 3 and "speed on an image of 64 x 85, processing included:" in printed
    graph = onnx.load(file).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "labels"]
    # The resize rounds otherwise here and there.
    check_example(file, tmp_path, (150, 90), 0.98, checkpoint, pad_size={"height": 64, "width": 96})


def test_post_processing_graph_equals_the_processor(traced):
    classes, masks = torch.randn(1, 5, 7), 4 * torch.randn(1, 5, 16, 24)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    processor = FASegImageProcessor()
    sizes = {"network_size": [60, 90], "image_size": [33, 120]}
    expected = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[sizes["image_size"]], input_sizes=[sizes["network_size"]]
    )[0]
    graph = processing.as_model(processing.finish_graph([kinds.CLASSES, kinds.MASKS], 6), traced[0])
    inputs = {kinds.CLASSES: classes.numpy(), kinds.MASKS: masks.numpy()}
    inputs |= {name: np.array(size) for name, size in sizes.items()}
    labels = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, inputs)[0]
    assert labels.dtype == np.uint8 and (labels == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 64, "longest_edge": 100}},
        {"size": {"height": 64, "width": 96}, "do_normalize": False},
        {"pad_size": {"height": 64, "width": 96}},
        {"do_resize": False},
    ],
)
def test_preparing_graph_equals_the_processor(settings, traced):
    processor = FASegImageProcessorPil(**settings)
    graph = processing.as_model(processing.prepare_graph(processor, PLAIN), traced[0])
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in [(75, 130), (90, 90), (300, 41)]:
        image = checking.drawn_image(*size, seed=0)
        pixels, network_size, image_size = session.run(None, {"image": image})
        expected = processor(image, return_tensors="np", input_data_format="channels_last")
        assert tuple(network_size) == tuple(expected["input_sizes"][0]) and tuple(image_size) == size
        # In 8-bit steps. Releases of Pillow round differently between their two passes, but not to one side.
        scale = np.array(processor.image_std if processor.do_normalize else [1.0])[:, None, None] * 255
        steps = (pixels - expected["pixel_values"]) * scale
        assert np.abs(steps).max() < 1.01 and abs(steps.mean()) < 0.02


def test_int8_keeps_the_labels(checkpoint, traced_once, tmp_path, capsys):
    # Few, random and narrow: rounding shows more than in a trained model.
    file = export(checkpoint, tmp_path / "out", *STATIC, "--int8", "--least_agreement", 0.6)
    assert "% of labels equal" in capsys.readouterr().out
    assert "MatMulNBits" in {node.op_type for node in onnx.load(file).graph.node}
    with pytest.raises(UserError, match="--least_agreement asks for 101 %"):
        export(checkpoint, tmp_path / "none", *STATIC, "--int8", "--least_agreement", 1.01)
    assert not (tmp_path / "none").exists()


def test_export_leaves_the_model_as_it_was(traced):
    _, model, before = traced
    assert model.training and model.config._attn_implementation == before["attention"]
    assert SwinLayer.forward is not network.swin_layer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_slow_rewrite_rule_is_left_out():
    """Should onnxscript rename it, exports would still work but take several times as long."""
    assert len(network.quick_rules()) == len(getattr(rewriter, network.RULES)) - 1


def test_a_file_that_differs_from_the_model_is_not_left(checkpoint, traced_once, tmp_path, monkeypatch):
    real = network.export_network

    def wrong(*arguments, **settings):
        graph = real(*arguments, **settings)
        bias = next(entry for entry in graph.graph.initializer if entry.name.endswith("class_predictor.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
        return graph

    monkeypatch.setattr(network, "export_network", wrong)
    (tmp_path / "model.onnx").write_bytes(b"an older file")
    with pytest.raises(UserError, match="the file differs from the model"):
        export(checkpoint, tmp_path, *STATIC, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"an older file"


def test_weights_that_are_no_numbers_are_refused(checkpoint, tmp_path, command):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in checkpoint.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    weights["class_predictor.bias"][2] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    flags = ["--model_name_or_path", folder, "--output_dir", tmp_path / "out"]
    code, _, errors = command(command_module, *flags)
    assert (
        code == 2
        and ": class_predictor.bias holds values that are NaN or infinite: the checkpoint is damaged" in errors[-1]
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def decisions(traced, tmp_path):
    onnx.save(traced[0], tmp_path / "model.onnx")
    return FileDecisions(tmp_path / "model.onnx", kinds.kind_of(traced[1].config))


def compared(graph, model, folder):
    """The command's comparison of a graph, which is written to `folder`."""
    file = folder / "compared.onnx"
    onnx.save(graph, file)
    kind = kinds.kind_of(model.config)
    session, decisions = open_session(file), FileDecisions(file, kind)
    return checking.compare_network(kind, model.eval(), session, [(1, 64, 96)], 0, decisions)[0]


def replace(graph, old, new):
    """Changes the constants for which `old(name, value)` holds; there is one."""
    (constant,) = (entry for entry in graph.initializer if old(entry.name, onnx.numpy_helper.to_array(entry)))
    value = new(onnx.numpy_helper.to_array(constant).copy())
    constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))


def one_percent_more(name):
    """Of the largest weight of the tensor whose name ends in `name`."""

    def largest_entry(value):
        value.flat[np.abs(value).argmax()] *= 1.01
        return value

    return lambda graph: replace(graph, lambda entry, _: entry.endswith(name), largest_entry)


def another_threshold(graph, value=0.16):
    threshold = np.float32(0.15)
    replace(graph, lambda _, entry: entry.size == 1 and entry == threshold, lambda entry: np.full_like(entry, value))


def the_worst_windows(graph):
    (node,) = (node for node in graph.node if node.op_type == "TopK")
    next(entry for entry in node.attribute if entry.name == "largest").i = 0


def an_inverted_mask(graph):
    [node for node in graph.node if node.op_type == "Less"][2].op_type = "GreaterOrEqual"


@pytest.mark.parametrize(
    ("change", "decides_otherwise"),
    [
        (one_percent_more("backbone.embedder.embedder.convolution.weight"), False),
        (one_percent_more("class_predictor.bias"), False),
        (another_threshold, True),
        (the_worst_windows, True),
        (an_inverted_mask, True),
    ],
    ids=["backbone", "head", "threshold", "windows", "mask"],
)
def test_a_slightly_wrong_graph_is_out_of_tolerance(change, decides_otherwise, traced, tmp_path):
    graph, model, _ = traced
    found = compared(graph, model, tmp_path)
    assert found.within_tolerance and found.decisions > 500 and found.turned == 0, found
    changed = onnx.ModelProto.FromString(graph.SerializeToString())
    change(changed.graph)
    found = compared(changed, model, tmp_path)
    assert not found.within_tolerance
    assert (found.farthest > kinds.MASK_TOLERANCE) == decides_otherwise, found


def test_a_decision_on_its_threshold_may_be_turned(traced, tmp_path, monkeypatch):
    """A mask probability between the thresholds of file and model: the model repeats what the file decided."""
    graph, model, _ = traced
    pixels = checking.drawn_images(1, 64, 96, 0)
    watched = Watched()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(model.model.transformer_decoder, "decisions", watched)
        model.eval()(pixel_values=pixels)
    probs = watched.probs[0]
    close = float(probs.flatten().sort().values[probs.numel() // 2])
    changed = onnx.ModelProto.FromString(graph.SerializeToString())
    another_threshold(changed.graph, close + 1e-5)
    monkeypatch.setattr(model.config, "attention_mask_threshold", close - 1e-5)
    found = compared(changed, model, tmp_path)
    assert found.within_tolerance and found.turned > 0 and 0 < found.farthest < 1e-3, found
    with torch.no_grad():
        alone = model(pixel_values=pixels).class_queries_logits
    theirs = open_session(tmp_path / "compared.onnx").run([kinds.CLASSES], {network.INPUT: pixels.numpy()})
    assert np.abs(alone.numpy() - theirs[0]).max() > kinds.CLASS_TOLERANCE


@pytest.mark.parametrize(("score", "within"), [(0.30001, True), (0.31, False)])
def test_windows_of_nearly_equal_score_may_be_exchanged(score, within, decisions):
    attention = torch.tensor([[[0.1, 0.3, score, 0.29]]])
    decisions.left, decisions.turned, decisions.farthest = [torch.tensor([[1]])], 0, 0.0
    assert decisions.windows(attention.sum(1), torch.tensor([[2]])).tolist() == [[1]]
    assert decisions.turned == 1 and (decisions.farthest < kinds.MASK_TOLERANCE) == within


def test_windows_that_nobody_looked_at_are_a_tie(decisions):
    attention = torch.tensor([[[0.7, 0.3, 0.0, 0.0]]])
    decisions.left, decisions.turned, decisions.farthest = [torch.tensor([[0, 1, 3]])], 0, 0.0
    decisions.windows(attention.sum(1), torch.tensor([[0, 1, 2]]))
    assert decisions.turned == 1 and decisions.farthest == 0
    decisions.left = [torch.tensor([[0, 2, 3]])]
    decisions.windows(attention.sum(1), torch.tensor([[0, 1, 2]]))
    assert decisions.farthest == math.inf


def test_no_windows_are_no_decision(decisions):
    decisions.left, decisions.turned, decisions.farthest = [], 0, 0.0
    none = torch.zeros(1, 0, dtype=torch.int64)
    assert decisions.windows(torch.rand(1, 4), none) is none and decisions.farthest == 0


@pytest.mark.parametrize(
    "change",
    [lambda left: left[1:], lambda left: [*left, left[0]], lambda left: [*left[:-1], left[-1][:, 1:]]],
    ids=["fewer", "more", "of another shape"],
)
def test_decisions_of_another_number_or_shape_are_out_of_tolerance(change, traced, decisions):
    pixels = checking.drawn_images(1, 64, 96, 0)
    decisions.read({network.INPUT: pixels.numpy()})
    decisions.left = change(decisions.left)
    with decisions.repeated_by(traced[1]), torch.no_grad():
        traced[1].eval()(pixel_values=pixels)
    assert decisions.farthest == math.inf


def test_label_agreement():
    scores = torch.tensor([[[[0.5, 0.5, 0.9]], [[0.4, 0.4996, 0.1]]]])
    assert checking.label_agreement(scores, torch.tensor([[[0, 1, 1]]])) == (pytest.approx(1 / 3), 1)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_same_padding_equals_timm(stride):
    for size in range(1, 40):
        for kernel_size, dilation in [(1, 1), (3, 1), (3, 2), (7, 1)]:
            expected = get_same_padding(size, kernel_size, stride, dilation)
            assert network.same_padding(size, kernel_size, stride, dilation) == expected
            if size % stride == 0:  # what a size known only at run time gets
                assert network.same_padding(stride, kernel_size, stride, dilation) == expected


@pytest.mark.parametrize("shift", [0, 2])
def test_swin_layer_equals_transformers(shift):
    config = AutoConfig.for_model("swin", embed_dim=16, window_size=4, num_heads=[2], depths=[1])
    config._attn_implementation = "eager"
    layer = SwinLayer(config, 16, (16, 16), 2, shift_size=shift).eval()
    torch.nn.init.normal_(layer.attention.relative_position_bias.relative_position_bias_table)
    for height, width in [(8, 12), (9, 6), (3, 5)]:
        states = torch.randn(2, height * width, 16)
        with torch.no_grad():
            expected = layer(states, (height, width), always_partition=True)[0]
            found = network.swin_layer(layer, states, (height, width), always_partition=True)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--height 64", "--height and --width belong together"),
        ("--height 100 --width 64", "--height 100: give a multiple of 32, 96 for instance"),
        ("--height 0 --width 64", "--height 0: give a multiple of 32, 32 for instance"),
        ("--precision bf16", "--precision bf16: choose one of fp32, fp16"),
        ("--precision fp16 --int8", "leave one of them out"),
        ("--deformable plugin", "--deformable plugin: choose one of grid_sample, gather"),
        ("--timing_runs -1", "--timing_runs -1: give at least 0"),
        ("--output_dir CHECKPOINT/config.json", "is a file: name another folder"),
    ],
)
def test_errors_are_one_line(flags, message, checkpoint, tmp_path, command):
    flags = flags.replace("CHECKPOINT", str(checkpoint)).split()
    flags = ["--model_name_or_path", checkpoint, "--output_dir", tmp_path / "out", *flags]
    code, _, errors = command(command_module, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_images_below_the_least_size_are_refused(checkpoint, tmp_path):
    """Where the processor makes them, a dynamic graph with processing could not take them."""
    small = tmp_path / "small"
    small.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            (small / file.name).write_bytes(file.read_bytes())
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    settings["size"] = {"shortest_edge": 32, "longest_edge": 64}
    (small / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"images of 32, the dynamic graph takes 64 .*--height and --width"):
        export(small, tmp_path / "out", "--with_processing")


# ---- what takes longer ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dynamic_file_equals_the_model_at_sizes_it_was_not_made_with(dynamic_file, checkpoint):
    check_equal(dynamic_file, checkpoint, [(1, 3, 64, 64), (1, 3, 64, 160), (3, 3, 192, 128)])
    graph = onnx.load(dynamic_file)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(facts["sizes"]) == {"height": 64, "width": 64, "multiple_of": 32}
    named = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert named == ["batch", 3, "height", "width"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(120, 90), (48, 64)])
def test_example_reads_a_dynamic_file(size, dynamic_file, checkpoint, tmp_path):
    check_example(dynamic_file, tmp_path, size, 0.999, checkpoint)


@pytest.mark.slow
def test_example_refuses_images_below_the_least_size(dynamic_file, tmp_path):
    image = a_image(300, 60)  # the longest edge bounds it: 128 x 26
    with pytest.raises(AssertionError, match="becomes 32x128, this file takes 64x64 on"):
        run_example(dynamic_file, image, tmp_path)


@pytest.mark.slow
def test_a_dynamic_gathering_file_equals_the_model_at_other_sizes(checkpoint, tmp_path):
    file = export(checkpoint, tmp_path / "out", "--deformable", "gather")
    assert "GridSample" not in {node.op_type for node in onnx.load(file).graph.node}
    check_equal(file, checkpoint, [(1, 3, 64, 64), (1, 3, 64, 160), (3, 3, 192, 128)])


@pytest.mark.slow
def test_fp16_keeps_the_labels(checkpoint, tmp_path, capsys):
    file = export(checkpoint, tmp_path / "out", *STATIC, "--precision", "fp16")
    assert "% of labels equal" in capsys.readouterr().out
    kinds = [constant.data_type for constant in onnx.load(file).graph.initializer]
    assert onnx.TensorProto.FLOAT16 in kinds
