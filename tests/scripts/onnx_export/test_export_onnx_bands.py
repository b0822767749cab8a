"""ONNX files of models that read other images than RGB of 8 bits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from several_classes import with_several_classes
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from image_processing import FASegImageProcessor
from scripts.cli.parser import parse_arguments
from scripts.data.bands import ImageForm
from scripts.export_onnx import ExportArguments, export_onnx
from scripts.models.input_channels import set_num_channels
from scripts.models.loading import build_config, build_model, build_processor, save_model_folder
from scripts.onnx_export import checking, processing
from scripts.training.arguments import TrainArguments


EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_runtime.py"
SIZE = {"shortest_edge": 64, "longest_edge": 128}
FORMS = {
    "five bands of floats": ImageForm(5, (-20, 1000)),
    "one band of 16 bits": ImageForm(1, (0, 65535)),
    "RGB of 16 bits": ImageForm(3, (0, 65535)),
    "four bands of 8 bits": ImageForm(4),
}


def settings(form):
    means = [0.3 + index / 10 for index in range(form.num_bands)]
    limits = {} if form.intensity_range is None else {"intensity_range": list(form.intensity_range)}
    return {"size": SIZE, "image_mean": means, "image_std": [0.25] * form.num_bands} | limits


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_the_graph_prepares_images_as_the_processor_does(name, whole):
    """`whole`: an image whose numbers become whole ones, which the processor resizes as 8 bits."""
    form = FORMS[name]
    processor = FASegImageProcessor(**settings(form))
    image = checking.drawn_image(90, 70, 3, form)
    if whole and form.intensity_range is not None:
        low, high = form.intensity_range
        image = np.where(image < (low + high) / 2, low, high).astype(np.float32)
    like = helper.make_model(
        helper.make_graph([], "x", [], []), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    graph = processing.as_model(processing.prepare_graph(processor, form), like)
    onnx.checker.check_model(graph)
    kind = TensorProto.UINT8 if form.intensity_range is None else TensorProto.FLOAT
    assert graph.graph.input[0].type.tensor_type.elem_type == kind
    found, size, _ = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"image": image})
    expected = processor(images=[image], input_data_format="channels_last", return_tensors="pt")
    assert size.tolist() == list(expected["input_sizes"][0])
    difference = np.abs(found - expected["pixel_values"].numpy())
    one_step = 1.01 / 255 / 0.25
    if whole or form.intensity_range is None:  # rounded to 8 bits, here and there otherwise
        assert difference.max() <= one_step and (difference < 1e-5).mean() > 0.9
    else:
        assert difference.max() < 1e-4


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe, tmp_path_factory):
    """Folder of a model of five bands and a range."""
    arguments = parse_arguments(TrainArguments, [str(tiny_recipe)])
    torch.manual_seed(0)
    config = build_config(arguments, {index: f"class {index}" for index in range(6)})
    set_num_channels(config, 5)
    form, folder = FORMS["five bands of floats"], tmp_path_factory.mktemp("bands") / "five"
    means = {"image_mean": [0.45, 0.46, 0.47, 0.48, 0.49], "image_std": [0.22] * 5}
    processor = build_processor(arguments, config, num_labels=6, **settings(form) | means)
    save_model_folder(with_several_classes(build_model(arguments, config)), processor, folder)
    return folder


@pytest.mark.system
@pytest.mark.parametrize("flags", [[], ["--with_processing"]], ids=["network", "with processing"])
def test_files_of_five_bands_give_the_model_s_labels(flags, checkpoint, tmp_path, capsys):
    given = ["--model_name_or_path", checkpoint, "--output_dir", tmp_path, "--height", 64, "--width", 96]
    file = export_onnx(parse_arguments(ExportArguments, list(map(str, [*given, "--timing_runs", 1, *flags]))))
    printed = capsys.readouterr().out
    assert printed.count("% of labels equal") == 3 and "times as fast" in printed
    if flags:
        assert "float32 images of 5 bands of numbers from -20 to 1000" in printed
    image = checking.drawn_image(120, 90, 1, FORMS["five bands of floats"])
    np.save(tmp_path / "field.npy", image)
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "field.npy", str(file)],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "field_labels.png"))
    processor = AutoImageProcessor.from_pretrained(checkpoint, pad_size={"height": 64, "width": 96})
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint).eval()
    expected = checking.eager_labels(model, processor, image).numpy()
    assert labels.shape == expected.shape and len(np.unique(expected)) > 1
    assert (labels == expected).mean() > 0.98
    np.save(tmp_path / "other.npy", image[..., :3])
    refused = subprocess.run(
        [sys.executable, str(EXAMPLE), "other.npy", str(file)], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 1 and "the model reads 5 bands" in refused.stderr
