"""`export_onnx.py --calibration_images`: 8 bits that compute, what stays exact, and what is said of the labels."""

import numpy as np
import onnx
import pytest
from PIL import Image
from several_classes import with_several_classes
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import export_onnx as command_module
from scripts.cli.errors import UserError
from scripts.models.loading import save_model_folder
from scripts.onnx_export import calibration, checking


pytestmark = pytest.mark.system
STATIC = ["--height", 64, "--width", 96, "--timing_runs", 0]


@pytest.fixture
def checkpoint(model_folder, tmp_path):
    model = with_several_classes(AutoModelForUniversalSegmentation.from_pretrained(model_folder))
    save_model_folder(model, AutoImageProcessor.from_pretrained(model_folder), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def images(checkpoint, tmp_path):
    """Eight images in `images`, with the model's own labels as label maps in `masks`."""
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint).eval()
    pad = {"height": 64, "width": 96}
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", pad_size=pad)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(8):
        image = checking.drawn_image(60, 90, number)
        labels = checking.eager_labels(model, processor, image).numpy().astype(np.uint8)
        labels[:5] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path / "images"


def test_a_calibrated_file(checkpoint, images, tmp_path, command):
    flags = ["--model_name_or_path", checkpoint, "--output_dir", tmp_path / "out", *STATIC, "--deformable", "gather"]
    flags += ["--calibration_images", images, "--validation_images", images, "--validation_masks"]
    exact = ["pixel_decoder", "transformer_decoder"]  # in random weights a step of 8 bits grows from layer to layer
    flags += [images.parent / "masks", "--float_modules", *exact]
    code, printed, errors = command(command_module, *flags, "--least_agreement", 0.5)
    assert code == 0, errors
    assert "8 validation images: " in printed and "% of labels equal, mIoU 100.00 of the model, " in printed
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    eight = [node for node in products if makers.get(node.input[1], node).op_type == "DequantizeLinear"]
    assert len(eight) > 10
    for node in eight:
        scopes = next(entry.value for entry in node.metadata_props if entry.key == calibration.SCOPES)
        assert not any(name in scopes for name in (*calibration.EXACT, *exact)) and "backbone" in scopes
    code, _, errors = command(command_module, *flags, "no_such", "--overwrite")
    assert code == 2 and "--float_modules no_such: the model has no such module" in errors[-1]
    code, _, errors = command(command_module, *flags, "--overwrite", "--least_agreement", 1.01)
    assert code == 2 and "% of labels are equal, --least_agreement asks for 101 %. Nothing was written" in errors[-1]


def test_label_maps_are_read_as_the_model_learnt_them(tmp_path):
    Image.fromarray(np.array([[0, 1], [3, 255]], np.uint8)).save(tmp_path / "a.png")
    found = calibration.read_label_map(tmp_path / "a.png", (2, 2), 3, do_reduce_labels=True)
    assert found.tolist() == [[255, 0], [2, 255]]
    with pytest.raises(UserError, match=r"is no map of class ids 0\.\.2 and 255"):
        calibration.read_label_map(tmp_path / "a.png", (2, 2), 3, do_reduce_labels=False)
    with pytest.raises(UserError, match=r"has shape \(2, 2\), its image \(2, 3\)"):
        calibration.read_label_map(tmp_path / "a.png", (2, 3), 4, do_reduce_labels=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--float_modules", "backbone"], "--float_modules is for files made with --calibration_images"),
        (["--validation_images", "."], "--validation_images is for files made with --calibration_images"),
        (["--calibration_images", ".", "--int8"], "--calibration_images and --int8: leave one of them out"),
        (["--calibration_images", ".", "--validation_masks", "."], "--validation_masks is for --validation_images"),
    ],
)
def test_flags_that_do_not_belong_together(flags, message, model_folder, tmp_path, command):
    flags = ["--model_name_or_path", model_folder, "--output_dir", tmp_path / "out", *flags]
    code, _, errors = command(command_module, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]


def test_a_label_map_of_other_classes_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(calibration.UserError, match=r"a.png is no map of class ids 0..5 and 255"):
        calibration.read_label_map(tmp_path / "a.png", (4, 4), 6, do_reduce_labels=False)
    with pytest.raises(calibration.UserError, match=r"no label map .*b.png"):
        calibration.read_label_map(tmp_path / "b.png", (4, 4), 6, do_reduce_labels=False)
