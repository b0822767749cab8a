"""Files of many bands and of more than 8 bits, read whole or refused in a line."""

import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from band_scenes import save_npy, write_scenes
from PIL import Image

from scripts import pack_dataset
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments, parse_range
from scripts.data.augmentation import training_augmentation
from scripts.data.bands import BandImage, ImageForm, for_eyes
from scripts.data.bounds import NO_FILES
from scripts.data.image_files import bands_first, bands_of_file
from scripts.data.images import read_image
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_image, decode_sample


def numbers(shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def undecoded(file):
    return {"bytes": file.read_bytes(), "path": file.name}


def write_deep_png(file, pixels):
    """RGB of 16 bits, which Pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_npy_of_five_bands_in_both_orders(axes, tmp_path):
    image = numbers((20, 30, 5))
    np.save(tmp_path / "a.npy", image.transpose(axes))
    found = decode_image(undecoded(tmp_path / "a.npy"), "a", NO_FILES, ImageForm(5))
    assert torch.equal(found, torch.from_numpy(image).permute(2, 0, 1))
    shown = read_image(tmp_path / "a.npy", ImageForm(5))
    assert isinstance(shown, BandImage) and (shown.width, shown.height) == (30, 20)
    assert for_eyes(shown).mode == "RGB"


@pytest.mark.parametrize("shape", [(20, 30, 40), (5, 30, 5), (2, 3, 4, 5), (0, 3, 3)])
def test_an_array_whose_bands_cannot_be_told_is_refused(shape):
    with pytest.raises(ValueError, match="its array has shape"):
        bands_first(np.zeros(shape))


def test_an_array_of_objects_or_of_a_terabyte_is_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "t.npy").write_bytes(
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", 80)
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (300000, 400000)}".ljust(79)
        + b"\n"
    )  # fmt: skip
    for name in ("o", "t"):
        with pytest.raises(BadSample, match="its array"):
            decode_image(undecoded(tmp_path / f"{name}.npy"), name, NO_FILES, ImageForm(1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_need_a_range(dtype, tmp_path):
    image = numbers((20, 30), 3000, dtype)
    Image.fromarray(image).save(tmp_path / "a.tif")
    with pytest.raises(BadSample, match=r"more than 8 bits.*--intensity_range \d+ 29\d\d, or --intensity_range auto"):
        decode_image(undecoded(tmp_path / "a.tif"), "a")
    grey = decode_image(undecoded(tmp_path / "a.tif"), "a", NO_FILES, ImageForm(1, (0, 3000)))
    np.testing.assert_allclose(grey[0], image * (255 / 3000), rtol=1e-5)
    colours = decode_image(undecoded(tmp_path / "a.tif"), "a", NO_FILES, ImageForm(3, (0, 3000)))
    assert torch.equal(colours, grey.expand(3, -1, -1))


def test_colours_of_sixteen_bits_keep_them(tmp_path):
    image = numbers((20, 30, 3), 65536, np.uint16)
    write_deep_png(tmp_path / "a.png", image)
    with pytest.raises(BadSample, match="holds uint16"):  # Pillow would read the upper 8 bits
        decode_image(undecoded(tmp_path / "a.png"), "a")
    found = decode_image(undecoded(tmp_path / "a.png"), "a", NO_FILES, ImageForm(3, (0, 65535)))
    np.testing.assert_allclose(found.permute(1, 2, 0), image * (255 / 65535), rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "bands", "message"),
    [("RGB", 1, "3 bands, the model reads 1"), ("L", 5, "1 bands, the .* 5: .*--num_channels 1"), ("P", 1, "mode P")],
)  # fmt: skip
def test_other_bands_than_the_models_are_refused(mode, bands, message, tmp_path):
    Image.fromarray(numbers((20, 30, 3))).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(BadSample, match=message):
        decode_image(undecoded(tmp_path / "a.png"), "a", NO_FILES, ImageForm(bands))


@pytest.mark.parametrize(("bands", "kept"), [(3, 3), (4, 4)])
def test_a_fourth_band_is_dropped_where_it_is_transparency_and_not_asked_for(bands, kept):
    image = Image.fromarray(numbers((20, 30, 4)))
    np.testing.assert_array_equal(ImageForm(bands).pixels(image), np.asarray(image).transpose(2, 0, 1)[:kept])


@pytest.mark.parametrize("layout", ["samples", "planes", "pages", "deflate"])
def test_tiffs_of_five_bands(layout, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image, file = numbers((5, 20, 30), 3000, np.uint16), tmp_path / "a.tif"
    if layout == "planes":
        tifffile.imwrite(file, image, photometric="minisblack", planarconfig="separate")
    elif layout == "pages":
        Image.fromarray(image[0]).save(file, save_all=True, append_images=list(map(Image.fromarray, image[1:])))
    else:
        tifffile.imwrite(file, image.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig",
                         compression="zlib" if layout == "deflate" else None)  # fmt: skip
    bands, has_alpha = bands_of_file(undecoded(file))
    np.testing.assert_array_equal(bands, image)
    assert not has_alpha
    with pytest.raises(BadSample, match="5 bands, the model reads 3"):
        decode_image(undecoded(file), "a")


def test_a_tiff_of_many_bands_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    for name in ("tifffile", "rasterio"):
        monkeypatch.setitem(sys.modules, name, None)
    page = Image.fromarray(numbers((20, 30)))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(BadSample, match="several pages: pip install tifffile"):
        decode_image(undecoded(tmp_path / "a.tif"), "a")


def test_a_tiff_is_read_by_rasterio_alone(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    image = numbers((5, 20, 30), 3000, np.uint16)
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 30, 20, 5, dtype="uint16", compress="lzw") as file:
        file.write(image)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(bands_of_file(undecoded(tmp_path / "a.tif"))[0], image)


def test_prediction_treats_bands_as_pillow_treats_colours():
    colours = Image.fromarray(numbers((20, 30, 3)))
    bands = BandImage(torch.from_numpy(np.array(colours)).permute(2, 0, 1))
    for change in (
        lambda image: image.resize((13, 17), Image.Resampling.BILINEAR),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.crop((3, 4, 20, 15)),
    ):
        np.testing.assert_array_equal(change(bands).pixels.permute(1, 2, 0), np.asarray(change(colours)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_takes_any_bands(dtype):
    from torchvision import tv_tensors

    augmentation = training_augmentation(32, 32)
    for seed in range(8):
        torch.manual_seed(seed)
        image, label = augmentation(
            tv_tensors.Image((torch.rand(5, 40, 50) * 255).to(dtype)),
            tv_tensors.Mask(torch.zeros(40, 50, dtype=torch.uint8)),
        )  # fmt: skip
        assert image.shape == (5, 32, 32) and image.dtype == dtype and label.shape == (32, 32)
        assert 0 <= image.min() and image.max() <= 255


@pytest.mark.parametrize("given", [["5"], ["5", "5"], ["a", "b"], ["0", "inf"], ["nan", "1"], ["auto", "1"]])
def test_a_range_that_cannot_be_is_one_line(given):
    with pytest.raises(UserError, match=r"--intensity_range .*: give auto, or two numbers"):
        parse_range(given)


def test_packed_arrays_keep_their_bytes(tmp_path, command):
    data = write_scenes(tmp_path / "data", 5, 4, save_npy, train=4, evaluated=1)
    pairs = ["--train_images", data / "train_images", "--train_masks", data / "train_masks"]
    assert command(pack_dataset, *pairs, "--output_dir", tmp_path / "packed")[0] in (None, 0)
    packed = LabelledDataset(DatasetArguments(str(tmp_path / "packed")), "train")
    packed.image_form = ImageForm(5)
    rows = {row["image_id"]: decode_sample(row, packed.row_format, 3, 0)[0] for row in packed.stream}
    assert len(rows) == 4
    for name, image in rows.items():
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.load(data / f"train_images/{name}.npy"))
