"""Images and label maps to model inputs: the resize rule, both backends, awkward images, label maps, errors."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import BACKENDS, random_image
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict

from image_processing import FASegImageProcessor, FASegImageProcessorPil
from image_processing.preprocessing import network_size


RESIZE_CASES = json.loads((Path(__file__).parent.parent / "golden" / "resize_shortest_edge.json").read_text())
SMALL = {"size": {"shortest_edge": 48, "longest_edge": 192}}


def assert_backends_agree(images, maps=None, **kwargs):
    """Floats within 0.1 and 5e-3 on average (8 bits rounded once or not), integers exactly; returns one of them."""
    first, second = (backend(**kwargs)(images, maps, return_tensors="pt") for backend in BACKENDS)
    assert first.keys() == second.keys()
    for key in first:
        for left, right in zip(first[key], second[key], strict=True):
            assert left.dtype == right.dtype and left.shape == right.shape, key
            if key == "pixel_values":
                difference = (left - right).abs()
                assert difference.max() < 0.1 and difference.mean() < 5e-3
            else:
                assert torch.equal(left, right), key
    return first


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RESIZE_CASES, ids=lambda case: f"{case['h']}x{case['w']}-{case['shortest']}")
def test_resize_rule_is_the_references(case):
    size = SizeDict(shortest_edge=case["shortest"], longest_edge=case["max_size"])
    assert network_size(case["h"], case["w"], size) == tuple(case["out"])


def test_copied_resize_cases_are_the_recorded_ones(shared):
    recorded = json.loads((shared / "golden" / "faseg" / "resize_shortest_edge.json").read_text())
    assert recorded == RESIZE_CASES


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 64), st.integers(1, 64))
def test_resized_images_respect_every_bound(height, width, pad_rows, pad_columns):
    size = SizeDict(shortest_edge=512, longest_edge=2048)
    new_height, new_width = network_size(height, width, size)
    assert 1 <= min(new_height, new_width) <= 512 and max(new_height, new_width) <= 2048
    assert min(new_height, new_width) == 512 or max(new_height, new_width) == 2048
    pad_size = SizeDict(height=32 * pad_rows, width=32 * pad_columns)
    fitted = network_size(height, width, size, pad_size)
    assert 1 <= fitted[0] <= pad_size.height and 1 <= fitted[1] <= pad_size.width
    if new_height <= pad_size.height and new_width <= pad_size.width:
        assert fitted == (new_height, new_width)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 64, "width": 96}, (64, 96)),
        ({"shortest_edge": 60}, (60, 180)),
        ({"longest_edge": 90}, (30, 90)),
        ({"max_height": 50, "max_width": 60}, (20, 60)),
        (40, (40, 120)),
    ],
)
def test_other_sizes(size, expected):
    inputs = FASegImageProcessor(size=size)(random_image(20, 60), return_tensors="pt")
    assert inputs.input_sizes.tolist() == [list(expected)]


# ---- images -----------------------------------------------------------------------------------------------------


def test_pixels_are_the_references():
    """Pillow's bilinear on 8 bits, then (x - mean) / std on 0..255, then zeros up to a multiple of 32."""
    image = random_image(50, 83)
    resized = np.asarray(image.resize((80, 48), PIL.Image.Resampling.BILINEAR), dtype=np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = torch.from_numpy(((resized - mean) / std).transpose(2, 0, 1)).float()
    for backend in BACKENDS:
        inputs = backend(**SMALL)(image, return_tensors="pt")
        assert inputs.pixel_values.shape == (1, 3, 64, 96)
        difference = (inputs.pixel_values[0, :, :48, :80] - expected).abs()
        # torchvision rounds one pixel in a hundred to the next of the 255 levels.
        assert difference.max() < (1e-5 if backend is FASegImageProcessorPil else 0.02) and difference.mean() < 5e-4
        assert not inputs.pixel_values[0, :, 48:].any() and not inputs.pixel_values[0, :, :, 80:].any()
        assert inputs.pixel_mask.sum() == 48 * 80 and inputs.pixel_mask[0, :48, :80].all()
        assert inputs.input_sizes.tolist() == [[48, 80]]


@pytest.mark.parametrize("resample", [0, "nearest", "nearest-exact", PIL.Image.Resampling.NEAREST])
@pytest.mark.parametrize("size", [(32, 64), (20, 64), (64, 640)])
def test_backends_take_the_same_nearest_pixels(resample, size):
    """Also where a pixel's centre falls on the border of two: column 22 of 45 on 28 of 56. As PIL does elsewhere."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    edges = {"shortest_edge": size[0], "longest_edge": size[1]}
    plain = {"do_normalize": False, "size": edges, "resample": resample}
    found = [backend(**plain)(image, return_tensors="pt") for backend in BACKENDS]
    torch.testing.assert_close(found[0]["pixel_values"], found[1]["pixel_values"], atol=1e-6, rtol=0)
    height, width = (int(found[0]["pixel_mask"][0].sum(axis).max()) for axis in (0, 1))
    values = (found[0]["pixel_values"][0, :, :height, :width].permute(1, 2, 0) * 255).round()
    expected = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.NEAREST)
    assert (values.numpy() == np.asarray(expected)).mean() > 0.95


def test_backends_agree_on_a_batch_of_sizes():
    images = [random_image(50, 83), random_image(100, 30), random_image(48, 48)]
    maps = [np.random.default_rng(1).integers(0, 5, image.size[::-1]) for image in images]
    inputs = assert_backends_agree(images, maps, **SMALL)
    assert inputs.pixel_values.shape == (3, 3, 160, 96)
    assert inputs.pixel_mask.flatten(1).sum(1).tolist() == [h * w for h, w in inputs.input_sizes.tolist()]
    assert all(masks.shape[1:] == (160, 96) for masks in inputs.mask_labels)


def test_photos(shared):
    """Every photo of the manifest, as opened and by path; by path they are upright."""
    folder = shared / "data" / "photos"
    for entry in json.loads((folder / "manifest.json").read_text()):
        with PIL.Image.open(folder / entry["file"]) as image:
            inputs = assert_backends_agree(image, **SMALL)
            upright = PIL.ImageOps.exif_transpose(image)
            assert torch.isfinite(inputs.pixel_values).all()
            width, height = image.size
            assert tuple(inputs.input_sizes[0].tolist()) == network_size(height, width, SizeDict(**SMALL["size"]))
            by_path = assert_backends_agree(str(folder / entry["file"]), **SMALL)
            expected = FASegImageProcessor(**SMALL)(upright.convert("RGB"), return_tensors="pt")
            assert torch.equal(by_path.pixel_values, expected.pixel_values)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1", "YCbCr"])
def test_modes_become_rgb(mode):
    image = random_image(40, 60, mode)
    inputs = assert_backends_agree(image, **SMALL)
    expected = FASegImageProcessor(**SMALL)(image.convert("RGB"), return_tensors="pt")
    assert torch.equal(inputs.pixel_values, expected.pixel_values)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (48, 48)), (23, 17, (65, 48)), (100, 1352, (14, 192)), (1, 3000, (1, 192)), (3, 4, (48, 64))],
)
def test_extreme_sizes(height, width, expected):
    image = random_image(height, width)
    inputs = assert_backends_agree(image, **SMALL)
    assert inputs.input_sizes.tolist() == [list(expected)]
    for form in (np.asarray(image), torch.from_numpy(np.array(image))):
        same = FASegImageProcessor(**SMALL)(form, input_data_format="channels_last", return_tensors="pt")
        assert torch.equal(same.pixel_values, inputs.pixel_values)
    if 3 not in (height, width):
        assert torch.equal(
            FASegImageProcessor(**SMALL)(np.asarray(image), return_tensors="pt").pixel_values, inputs.pixel_values
        )


def test_array_forms_are_the_same_image():
    array = np.asarray(random_image(40, 60))
    grey = np.asarray(random_image(40, 60, "L"))
    alpha = np.dstack([array, np.full((40, 60), 7, np.uint8)])
    for backend in BACKENDS:
        processor = backend(**SMALL)
        expected = processor(PIL.Image.fromarray(array), return_tensors="pt").pixel_values
        for form in (array, array.transpose(2, 0, 1), alpha, torch.from_numpy(array.copy()), array.astype(np.int64)):
            assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)
        expected = processor(PIL.Image.fromarray(grey), return_tensors="pt").pixel_values
        for form in (grey, grey[None], grey[..., None], [grey]):
            assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)
        batch = np.stack([array, array])
        assert processor(batch, return_tensors="pt").pixel_values.shape[0] == 2
        assert processor([batch, [array]], return_tensors="pt").pixel_values.shape[0] == 3


def test_exif_image_stays_as_stored_and_is_warned_about(tmp_path, monkeypatch):
    """Its label map and `image.size` are as stored; by path it is upright."""
    messages: list[str] = []
    monkeypatch.setattr("image_processing.preprocessing.logger.warning_once", messages.append)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    random_image(40, 60).save(tmp_path / "turned.png", exif=exif)
    with PIL.Image.open(tmp_path / "turned.png") as image:
        inputs = FASegImageProcessor(**SMALL)(image, np.zeros((40, 60), int), return_tensors="pt")
    assert inputs.input_sizes.tolist() == [[48, 72]]
    assert len(messages) == 1 and "EXIF orientation 6" in messages[0]
    upright = FASegImageProcessor(**SMALL)(tmp_path / "turned.png", return_tensors="pt")
    assert upright.input_sizes.tolist() == [[72, 48]]
    assert len(messages) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIL.Image.new("I;16", (40, 40)), "mode 'I;16', more than 8 bits"),
        (PIL.Image.new("F", (40, 40)), "mode 'F', more than 8 bits"),
        (np.full((40, 40, 3), 3000, np.uint16), "dtype uint16 holds 3000..3000: pass 8 bits"),
        (np.zeros((40, 40), bool), "dtype bool"),
        (np.zeros((40, 40, 5), np.uint8), r"shape \(40, 40, 5\): pass"),
        (np.zeros((0, 40, 3), np.uint8), r"shape \(0, 40, 3\): pass"),
        (np.zeros((7,), np.uint8), r"shape \(7,\): pass"),
    ],
)
def test_images_that_cannot_be_right_are_refused(backend, image, message):
    with pytest.raises(ValueError, match=message):
        backend()([image])


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_and_scales_are_checked(backend, monkeypatch):
    with pytest.raises(ValueError, match="image 0 has 1 channels but image_mean has 3: set do_convert_rgb=True"):
        backend(do_convert_rgb=False)(random_image(40, 40, "L"))
    messages: list[str] = []
    monkeypatch.setattr("image_processing.preprocessing.logger.warning_once", messages.append)
    backend(**SMALL)(np.random.rand(40, 40, 3).astype(np.float32))
    assert len(messages) == 1 and "do_rescale=False" in messages[0]
    backend(do_rescale=False, **SMALL)(np.random.rand(40, 40, 3).astype(np.float32))
    assert len(messages) == 1


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
NORMALISED = (PICTURE / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
IN_255 = {"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "kwargs", "message"),
    [
        (PICTURE / 255, {}, "looks already scaled to 0..1 .* pass do_rescale=False"),
        (PICTURE, {"do_rescale": False}, "reaches 255, where at most 1 is expected: pass do_rescale=True"),
        (PICTURE.astype(np.float32), {"do_rescale": False}, "reaches 255, where at most 1 .* do_rescale=True"),
        (NORMALISED, {}, "down to -2.118, as if normalised already: pass do_rescale=False and do_normalize=False"),
        (NORMALISED, {"do_rescale": False}, "as if normalised already"),
        (PICTURE / 127.5 - 1, {}, "as if normalised already"),
        (PICTURE * 257.0, {}, "reaches 257, where at most 1 is expected: scale it to 0..255 first"),
        (PICTURE, IN_255, None),  # a mean of 0..255, but scaled to 0..1
        (PICTURE, {}, None),
        (PICTURE, {"do_rescale": False, **IN_255}, None),
        (PICTURE * 1.01 - 1, {}, None),  # overshoot of an interpolation
        (PICTURE / 255, {"do_rescale": False}, None),
        (NORMALISED, {"do_rescale": False, "do_normalize": False}, None),
        (np.zeros((40, 60, 3)), {}, None),
    ],
)
def test_ranges_that_do_not_fit_the_settings_are_warned_about(backend, image, kwargs, message, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr("image_processing.preprocessing.logger.warning_once", messages.append)
    backend(**SMALL, **kwargs)(image, return_tensors="pt")
    assert len(messages) == (message is not None)
    if message:
        assert re.search(message, messages[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kwargs", [{}, {"do_rescale": False, "do_normalize": False}])
def test_numbers_that_are_not_finite_are_refused(backend, value, kwargs):
    image = PICTURE.astype(np.float32)
    image[3, 4, 1] = value
    with pytest.raises(ValueError, match=f"image 1 holds {value}: pass finite numbers"):
        backend(**SMALL, **kwargs)([PICTURE, image])


@pytest.mark.parametrize(
    "kwargs", [{}, {"do_rescale": False, "do_normalize": False}, {"do_normalize": False}, {"do_resize": False}]
)
@pytest.mark.parametrize(
    "image",
    [
        PICTURE,
        PICTURE.astype(np.int64),
        PICTURE + 0.7,
        (PICTURE + 0.7).astype(np.float16),
        torch.from_numpy(PICTURE).bfloat16(),
        torch.from_numpy(PICTURE).double(),
    ],
    ids=["uint8", "int64", "float64", "float16", "bfloat16", "double"],
)
def test_pixel_values_are_float32_whatever_comes(image, kwargs):
    """And the backends agree, also on floats, which Pillow's RGB would round to 8 bits."""
    first, second = (
        backend(**SMALL, **kwargs)(image, return_tensors="pt", input_data_format="channels_last").pixel_values
        for backend in BACKENDS
    )
    assert first.dtype == second.dtype == torch.float32
    # In units of 8 bits: uint8 may round to the next level, floats are not rounded.
    step = 1.0 if not kwargs.get("do_rescale", True) else 1 / 255
    step = step / 0.22 if kwargs.get("do_normalize", True) else step
    is_float = "float" in str(image.dtype)
    assert (first - second).abs().max() <= step * (1e-3 if is_float else 1.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_bands_stay_four_bands(backend):
    """Pillow would take the fourth for transparency, and weigh the colours by it."""
    image = np.zeros((64, 64, 4), np.uint8)
    image[...] = 100, 150, 200, 2
    kwargs = {"do_convert_rgb": False, "do_rescale": False, "do_normalize": False}
    for form in (image, PIL.Image.fromarray(image)):
        values = backend(**SMALL, **kwargs)([form], return_tensors="np")["pixel_values"]
        assert values[0, :, 16, 16].tolist() == [100, 150, 200, 2]
    with pytest.raises(ValueError, match="image 1 has 3 channels but image 0 has 4: set do_convert_rgb=True"):
        backend(**SMALL, **kwargs)([image, image[..., :3]])
    with pytest.raises(ValueError, match="mode 'P', indices of a palette: set do_convert_rgb=True"):
        backend(**SMALL, **kwargs)(PIL.Image.new("P", (8, 8)))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 1), (20, 30), (90, 100)])
def test_backends_resize_alike(size, resample):
    """Down to an edge of one pixel, on which torchvision fails for 8 bits; its Lanczos may be bicubic."""
    kwargs = {"size": {"height": size[0], "width": size[1]}, "resample": resample, "size_divisor": 0}
    rows, columns = np.mgrid[:40, :60]
    image = np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    first, second = (backend(**kwargs, do_normalize=False)(image, return_tensors="pt") for backend in BACKENDS)
    assert first.pixel_values.shape == second.pixel_values.shape == (1, 3, *size)
    difference = (first.pixel_values - second.pixel_values).abs() * 255
    if resample == 0:  # a centre exactly between two pixels may fall either way
        assert (difference > 0.5).float().mean() < 0.1
    else:
        assert difference.max() <= (5.01 if resample == 1 else 1.01)


# ---- padding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_fixed_pad_size_gives_one_size_to_all_images(backend):
    """What pipeline(batch_size=2) needs: an image that would be larger is resized to fit, its shape kept."""
    processor = backend(pad_size={"height": 64, "width": 96}, **SMALL)
    images = [random_image(40, 60), random_image(100, 40), random_image(40, 400), random_image(1, 1)]
    for image in images:
        assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 64, 96)
    inputs = processor(images, [np.zeros(i.size[::-1], int) for i in images], return_tensors="pt")
    assert inputs.input_sizes.tolist() == [[48, 72], [64, 26], [10, 96], [48, 48]]
    assert [tuple(m.shape) for m in inputs.mask_labels] == [(1, 64, 96)] * 4
    with pytest.raises(ValueError, match=r"\(100, 40\) does not fit pad_size \(64, 96\): set do_resize=True"):
        processor(images[1], do_resize=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_padding_and_resizing(backend):
    image = random_image(40, 60)
    inputs = backend(do_pad=False, do_resize=False)(image, np.zeros((40, 60), int), return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 40, 60) and inputs.pixel_mask.all()
    assert inputs.mask_labels[0].shape == (1, 40, 60)
    padded = backend(do_resize=False)(image, return_tensors="pt")
    assert padded.pixel_values.shape == (1, 3, 64, 64)
    assert torch.equal(padded.pixel_values[..., :40, :60], inputs.pixel_values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pad_size": {"height": 500, "width": 512}}, r"no multiple of size_divisor=32: use \(512, 512\)"),
        (
            {"pad_size": {"height": -32, "width": 32}},
            r"pad_size=.*-32.*: pass whole numbers of pixels, from 1 to 32768",
        ),
        ({"pad_size": {"height": 10**6, "width": 10**6}}, "from 1 to 32768"),
        ({"size_divisor": -1}, "size_divisor=-1: pass 0 for none, or a whole number"),
        ({"size_divisor": 10**7}, "size_divisor=10000000: pass 0 for none"),
        ({"do_reduce_labels": True, "ignore_index": None}, "set ignore_index=255"),
        ({"size": -3}, "size=-3: pass whole numbers of pixels, from 1 to 32768"),
        ({"size": 0}, "size=0: pass whole numbers"),
        ({"size": True}, "size=True: pass whole numbers"),
        ({"size": "512"}, "size=512: pass whole numbers"),
        ({"size": {"shortest_edge": -3}}, "size={'shortest_edge': -3}: pass whole numbers"),
        ({"size": {"height": 0, "width": 9}}, "size={'height': 0, 'width': 9}: pass whole numbers"),
        ({"size": {"shortest_edge": 10**9}}, "size={'shortest_edge': 1000000000}: pass whole numbers"),
        ({"size": {"shortest_edge": 64, "longest_edge": 0}}, "'longest_edge': 0}: pass whole numbers"),
        ({"size": {"shortest_edge": 5.5}}, "5.5}: pass whole numbers"),
        ({"size": {"shortest": 5}}, "'shortest' is unknown, pass shortest_edge and longest_edge"),
        ({"size": [4]}, r"size=\[4\]: pass \(height, width\)"),
        ({"size": (4, 5, 6)}, r"size=\(4, 5, 6\): pass \(height, width\)"),
        ({"resample": 99}, r"resample=99: choose one of 0 \(nearest\), 2 \(bilinear\)"),
        ({"data_format": "channels_last"}, "the models take channels first"),
        ({"rescale_factor": 0}, "rescale_factor=0: pass a positive number"),
        ({"rescale_factor": float("inf")}, "rescale_factor=inf: pass a positive number"),
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std=.*: pass finite numbers, one per channel and above 0"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean=.*: pass finite numbers"),
        ({"image_std": []}, r"image_std=.*: pass finite numbers, one per channel and above 0"),
        ({"image_std": [1.0, 1.0]}, r"image_std=\(1.0, 1.0\): pass as many numbers for both"),
        ({"do_resize": "no"}, "do_resize='no': pass True or False"),
        ({"num_labels": 0}, "num_labels=0: pass a whole number from 1 on"),
        ({"num_labels": "3"}, "num_labels='3': pass a whole number"),
        ({"ignore_index": 1.5}, "ignore_index=1.5: pass a whole number or None"),
        ({"num_labels": 300}, "ignore_index=255 is the id of a class, for num_labels=300: .* ignore_index=65535"),
        ({"num_labels": 255, "do_reduce_labels": True}, "ignore_index=255 is the id of a class"),
        ({"num_labels": 3, "ignore_index": 2}, "ignore_index=2 is the id of a class.* ignore_index=255"),
        ({"label_ids_to_fuse": [3], "num_labels": 3}, r"label_ids_to_fuse=\[3\]: num_labels=3 has classes 0..2"),
        ({"return_tensors": "tf"}, "return_tensors='tf': choose pt or np"),
        ({"label_ids_to_fuse": [-1]}, "class ids start at 0"),
        ({"label_ids_to_fuse": "ab"}, "pass a list of class ids"),
    ],
)
def test_settings_that_cannot_be_are_refused(backend, setting, message):
    """When the processor is made, and at a call."""
    with pytest.raises(ValueError, match=message) as error:
        backend(**setting)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message) as error:
        backend()(PICTURE, **setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"num_labels": 255}, {"num_labels": 2, "ignore_index": 0}, {"ignore_index": -1}])
def test_an_ignored_id_that_is_no_class_is_fine(setting):
    """0 is the background where it is ignored."""
    assert FASegImageProcessor(**setting).ignore_index == setting.get("ignore_index", 255)


def test_images_that_would_become_huge_are_refused():
    strip = np.zeros((1, 30000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"makes 512x15360000 pixels of an image of 1x30000: .* by longest_edge"):
        FASegImageProcessor(size={"shortest_edge": 512})(strip)
    with pytest.raises(ValueError, match=r"are padded to .* smaller size_divisor"):
        FASegImageProcessor(do_resize=False, size_divisor=30000)(strip)
    inputs = FASegImageProcessor(size={"shortest_edge": 48, "longest_edge": 10**9})(PICTURE, return_tensors="pt")
    assert inputs.input_sizes.tolist() == [[48, 72]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [[], [[]], None])
def test_no_image_is_refused(backend, images):
    with pytest.raises(ValueError, match="pass at least one"):
        backend()(images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_several_sizes_need_padding_to_be_a_batch(backend):
    images = [PICTURE, PICTURE[:20]]
    with pytest.raises(ValueError, match=r"sizes \[\(20, 60\), \(40, 60\)\] make no batch: set do_pad=True"):
        backend(do_resize=False, do_pad=False)(images, return_tensors="pt")
    assert len(backend(do_resize=False, do_pad=False)(images)["pixel_values"]) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "nearest"), [("reduce_labels", "do_reduce_labels"), ("ignore_value", "ignore_index"), ("sizes", "size")]
)
def test_unknown_settings_are_named_with_the_nearest(backend, name, nearest, tmp_path):
    """When the processor is made, at a call, in a saved file, and when one is loaded."""
    message = f"^{name} is no setting of the image processor: did you mean {nearest}"
    with pytest.raises(ValueError, match=message):
        backend(**{name: 1})
    with pytest.raises(ValueError, match=message):
        backend()(PICTURE, **{name: 1})
    backend().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoImageProcessor.from_pretrained(tmp_path, **{name: 1})
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: 1}))
    with pytest.raises(ValueError, match=message):
        backend.from_pretrained(tmp_path)


def test_what_loaders_pass_along_is_no_setting(tmp_path):
    """`pipeline` hands the model's arguments to the processor's loader too."""
    FASegImageProcessor().save_pretrained(tmp_path)
    passed = {"device_map": "cpu", "dtype": "float32", "attn_implementation": "sdpa", "low_cpu_mem_usage": True}
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, **passed), FASegImageProcessor)


def test_cropping_is_refused():
    with pytest.raises(ValueError, match="do_center_crop=True is not offered"):
        FASegImageProcessor()(random_image(8, 8), do_center_crop=True, crop_size={"height": 4, "width": 4})
