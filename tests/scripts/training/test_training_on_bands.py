"""Training on images of other bands than RGB and of more than 8 bits, and what uses the model afterwards."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from band_scenes import folders, save_npy, write_scenes
from PIL import Image
from safetensors.torch import load_file

from scripts import check_dataset, predict
from scripts import eval as eval_command
from scripts import train as train_command


@pytest.fixture
def train(tiny_recipe, command):
    """Trains on the folders of `data`, which gets the model; `(exit code, output, errors)`."""

    def go(data, steps, *flags):
        AcceleratorState._reset_state(True)
        crop = ["--crop_height", 64, "--crop_width", 64, "--max_train_steps", steps, "--output_dir", data / "model"]
        return command(train_command, tiny_recipe, *folders(data), *crop, *flags)

    yield go
    AcceleratorState._reset_state(True)


def save_deep(file, image):
    """A 16-bit PNG of one band, 257 times the 8 bits."""
    Image.fromarray(image[0].astype(np.uint16) * 257).save(f"{file}.png")


def save_grey(file, image):
    """The same in 8 bits."""
    Image.fromarray(image[0]).save(f"{file}.png")


def test_sixteen_bits_train_as_their_eight(train, tmp_path):
    weights = []
    for name, save, flags in (("plain", save_grey, []), ("deep", save_deep, ["--intensity_range", 0, 65535])):
        data = write_scenes(tmp_path / name, 1, 0, save, train=4, evaluated=1)
        assert train(data, 2, *flags)[0] == 0
        weights.append(load_file(data / "model" / "model.safetensors"))
    assert all((value == weights[1][key]).all() for key, value in weights[0].items())
    stored = [
        json.loads((tmp_path / name / "model/preprocessor_config.json").read_text()) for name in ("plain", "deep")
    ]
    assert "intensity_range" not in stored[0] and stored[1]["intensity_range"] == [0, 65535]


def test_the_numbers_are_measured_once_and_kept(train, tmp_path, command):
    def save(file, image):
        np.save(f"{file}.npy", image.astype(np.float32) / 100)

    data = write_scenes(tmp_path / "data", 5, 4, save, train=4, evaluated=2)
    flags = ["--num_channels", 5, "--intensity_range", "auto"]
    code, out, _ = train(data, 1, *flags)
    assert code == 0 and "--image_mean" in out and "hue and saturation" in out
    stored = json.loads((data / "model/preprocessor_config.json").read_text())
    low, high = stored["intensity_range"]
    assert 0 <= low < 1 < 1.8 < high < 2.56 and len(stored["image_mean"]) == len(stored["image_std"]) == 5
    told = f"--intensity_range {low:g} {high:g}"
    assert told in out and told in command(check_dataset, *folders(data), *flags)[1]

    model = ["--model_name_or_path", data / "model"]
    code, _, errors = command(
        eval_command, *model, *folders(data), "--output_file", tmp_path / "results.json", "--tta"
    )
    assert code is None or code == 0, errors
    code, _, errors = command(predict, data / "eval_images", *model, "--output_dir", tmp_path / "out")
    assert code in (None, 0), errors
    assert Image.open(tmp_path / "out/000_labels.png").size == (48, 48)
    code, _, errors = command(predict, data / "eval_masks", *model, "--output_dir", tmp_path / "other")
    assert code == 1 and "1 bands, the model reads 5" in "".join(errors)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the image has 5 bands, the model reads 3: train one by --num_channels 5"),
        (["--num_channels", 4], "the image has 5 bands, the model reads 4"),
        (["--num_channels", 5, "--image_mean", 0.5, "--image_std", 0.5], "--image_mean has 1 numbers but the model"),
        (["--image_mean", 0.5], "--image_mean and --image_std belong together"),
        (["--num_channels", 0], "--num_channels 0: give at least 1"),
    ],
)  # fmt: skip
def test_bands_that_do_not_fit_are_one_line(flags, message, train, tmp_path):
    data = write_scenes(tmp_path / "data", 5, 4, save_npy, train=3, evaluated=1)
    code, _, errors = train(data, 1, *flags)
    assert code == 2 and message in "".join(errors)


@pytest.mark.slow
@pytest.mark.parametrize("bands", [1, 5])
def test_the_band_that_tells_the_classes_is_worth_20_points(bands, train, tmp_path, command):
    """85.6 against about chance with five bands, after 80 steps."""
    scores = []
    for telling in (bands - 1, None):
        data = write_scenes(tmp_path / str(telling), bands, telling, save_npy)
        flags = ["--num_channels", bands, "--per_device_train_batch_size", 4]
        flags += ["--learning_rate", 3e-3, "--backbone_lr_multiplier", 1, "--scale_range", 1, 1.2, "--no_color_jitter"]
        assert train(data, 80, *flags)[0] == 0
        given = ["--model_name_or_path", data / "model", *folders(data), "--output_file", data / "results.json"]
        assert command(eval_command, *given, "--no_extended_metrics")[0] in (None, 0)
        scores.append(json.loads((data / "results.json").read_text())["mean_iou"])
    assert scores[0] >= scores[1] + 20
