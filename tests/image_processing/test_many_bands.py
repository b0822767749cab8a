"""Images of other bands than RGB and of more than 8 bits, in both backends: processed whole or refused."""

import numpy as np
import PIL.Image
import pytest
import torch
from image_cases import BACKENDS

from image_processing.intensities import scaled_intensities


FIVE = {"image_mean": [0.1, 0.2, 0.3, 0.4, 0.5], "image_std": [0.5] * 5, "do_resize": False, "size_divisor": 0}
PLAIN = {"do_resize": False, "size_divisor": 0}


def numbers(shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_bands_as_means_are_processed(backend):
    image = numbers((40, 50, 5))
    expected = (image / 255 - FIVE["image_mean"]) / 0.5
    for form in (image, image.transpose(2, 0, 1), torch.from_numpy(image)):
        pixels = backend(**FIVE)(form, return_tensors="pt").pixel_values[0]
        np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_band_stays_one(backend):
    processor = backend(image_mean=[0.5], image_std=[0.5], **PLAIN)
    grey = PIL.Image.fromarray(numbers((40, 50)))
    assert processor(grey, return_tensors="pt").pixel_values.shape == (1, 1, 40, 50)
    with pytest.raises(
        ValueError, match="image 0 has 3 channels but image_mean has 1: pass images of 1, or 3 numbers"
    ):
        processor(grey.convert("RGB"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (40, 50, 5), "5 channels, of which do_convert_rgb=True makes no RGB"),
        ({}, (40, 50, 2), "2 channels, of which do_convert_rgb=True makes no RGB"),
        ({"do_convert_rgb": False}, (40, 50, 5), "5 channels but image_mean has 3: pass images of 3, or 5 numbers"),
        (FIVE, (40, 50, 4), "4 channels but image_mean has 5"),
        (FIVE, (40, 50, 3), "3 channels but image_mean has 5"),
        ({"image_mean": 0.5, "image_std": [0.5]}, (40, 50, 3), "3 channels but image_std has 1"),
    ],
)  # fmt: skip
def test_nothing_is_dropped_or_repeated(backend, settings, shape, message):
    with pytest.raises(ValueError, match=message):
        backend(**settings)(numbers(shape), input_data_format="channels_last")


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_bits_are_as_their_eight(backend, tmp_path):
    image = numbers((40, 50))
    expected = backend()(image, return_tensors="pt").pixel_values
    deep = image.astype(np.uint16) * 257
    processor = backend(intensity_range=[0, 65535])
    processor.save_pretrained(tmp_path)
    again = backend.from_pretrained(tmp_path)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    for form in (deep, PIL.Image.fromarray(deep), torch.from_numpy(deep), tmp_path / "deep.png"):
        assert torch.equal(again(form, return_tensors="pt").pixel_values, expected)
    assert "intensity_range" not in backend().to_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_of_eight_bits_does_not_stand_for_one_of_sixteen(backend):
    with pytest.raises(ValueError, match=r"8 bits, but intensity_range is 0\.\.65535"):
        backend(intensity_range=[0, 65535])(PIL.Image.fromarray(numbers((40, 50, 3))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limits", [[0], [5, 5], [0, float("inf")], ["a", "b"], "auto"])
def test_a_range_that_cannot_be_is_refused(backend, limits):
    with pytest.raises(ValueError, match="intensity_range"):
        backend(intensity_range=limits)


def test_a_range_is_linear_and_clipped():
    found = scaled_intensities(np.array([-3.0, 0.0, 1.5, 3.0, 9.0]), 0, 3)
    np.testing.assert_array_equal(found, [0, 0, 127.5, 255, 255])
    assert found.dtype == np.float32
    same = numbers((3, 4, 5))
    assert scaled_intensities(same, 0, 255) is same
    with pytest.raises(ValueError, match="holds nan"):
        scaled_intensities(np.array([np.nan]), 0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_pillow_reads_in_part_is_refused(backend, tmp_path):
    page = PIL.Image.fromarray(numbers((40, 50)))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    (tmp_path / "deep.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(4 * 4 * 6))
    for name, message in (("pages.tif", "several pages"), ("deep.ppm", "3 bands of 16 bits")):
        with pytest.raises(ValueError, match=message):
            backend()(tmp_path / name)
        with PIL.Image.open(tmp_path / name) as opened, pytest.raises(ValueError, match=message):
            backend()(opened)
