"""From a row to a checked sample: what is skipped, what stops a run, and what the message says."""

import io
import zipfile

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data import samples
from scripts.data.arguments import DatasetArguments
from scripts.data.bounds import Bounds
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import (
    BadSample,
    BadSamples,
    RowFormat,
    check_labels,
    decode_image,
    decode_label,
    decode_sample,
)
from scripts.data.synthetic_scenes import encoded


@pytest.mark.parametrize(
    ("label", "reduce", "message"),
    [
        (150, False, r"label 150 in image s1 but 150 classes \(0\.\.149\): set --do_reduce_labels\?"),
        (151, True, r"label 151 in image s1 but 150 classes \(1\.\.150\)"),
        (200, False, r"label 200 in image s1.*--class_map with `ignore: \[200\]`"),
        (26001, False, "class .* 1000 . instance"),
        (128 + 256 * 64 + 65536 * 32, False, "colours coded as R . 256 G . 65536 B"),
    ],
)
def test_labels_outside_the_classes(label, reduce, message):
    with pytest.raises(UserError, match=message):
        check_labels(torch.tensor([[0, label]]), 150, reduce, "s1")


def test_labels_inside_the_classes():
    check_labels(torch.tensor([[0, 149, 255]]), 150, False, "s1")
    check_labels(torch.tensor([[0, 150, 255]]), 150, True, "s1")


def rows_with(tmp_path, **columns):
    """Parquet file of one row."""
    features = {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    row = {"image_id": "bad_one", **columns}
    data = datasets.Dataset.from_list([row], features=datasets.Features(features))
    data.to_parquet(tmp_path / "rows.parquet")
    return DatasetArguments(dataset_name=str(tmp_path / "rows.parquet"))


@pytest.fixture
def image():
    return Image.new("RGB", (8, 6))


@pytest.fixture
def good(image):
    return {"image": encoded(image, "JPEG"), "label": encoded(image.convert("L"), "PNG")}


@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("place", ["row", "disk", "archive", "server"])
def test_a_few_bytes_that_stand_for_gigabytes_are_not_decoded(place, column, good, tmp_path, monkeypatch):
    file = tmp_path / "huge.png"
    Image.new("1", (12000, 12000)).save(file)
    assert file.stat().st_size < 20000
    content = file.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "huge.png")
    fsspec.filesystem("memory").pipe("/huge.png", content)
    paths = {"disk": str(file), "archive": f"zip://huge.png::{tmp_path}/a.zip", "server": "memory://huge.png"}
    huge = {"bytes": content if place == "row" else None, "path": paths.get(place)}
    loaded, original = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image.size) or original(image))
    with pytest.raises(
        BadSample, match=r"cannot be read: 12000x12000 pixels are more than the 67108864 that are read"
    ):
        row = {**{name: {"path": None, **value} for name, value in good.items()}, column: huge}
        decode_sample(row, RowFormat(bounds=Bounds((tmp_path,), allow_urls=True)), 6, 0)
    assert (12000, 12000) not in loaded


def test_an_archive_that_unpacks_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MAX_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.png", encoded(Image.new("RGB", (8, 6)), "PNG")["bytes"])
        archive.writestr("huge.png", bytes(10**6))
    assert (tmp_path / "a.zip").stat().st_size < 5000
    bounds = Bounds((tmp_path,))
    path = f"zip://{{}}.png::{tmp_path}/a.zip"
    assert decode_image({"bytes": None, "path": path.format("small")}, "a", bounds).shape == (3, 6, 8)
    with pytest.raises(BadSample, match="cannot be read: it has more than the 5000 bytes that are read"):
        decode_image({"bytes": None, "path": path.format("huge")}, "a", bounds)


def decode(tmp_path, **columns):
    """The only sample of a parquet file of these columns."""
    data = LabelledDataset(rows_with(tmp_path, **columns), "train")
    return decode_sample(next(iter(data.stream)), data.row_format, 6, 0)


def test_a_good_sample(tmp_path, good):
    image, label, name = decode(tmp_path, **good)
    assert image.shape == (3, 6, 8) and image.dtype == torch.uint8
    assert label.shape == (6, 8) and label.dtype == torch.uint8
    assert name == "bad_one"


def broken(column, image, good):
    """A column that cannot be read, or a label map of another size than the image."""
    if column == "label of another size":
        return {"label": encoded(image.convert("L").resize((4, 4)), "PNG")}
    return {column: {"bytes": good[column]["bytes"][: {"image": 200, "label": 40}[column]]}}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("image", "image of sample bad_one: cannot be read"),
        ("label", "label map of sample bad_one: cannot be read"),
        ("label of another size", r"image \(6, 8\) but label map \(4, 4\)"),
    ],
)
def test_a_bad_sample_can_be_skipped(column, message, tmp_path, image, good):
    with pytest.raises(BadSample, match=message):
        decode(tmp_path, **good | broken(column, image, good))


COLOURS = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3))
BLACK = Image.new("RGB", (8, 6))


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (COLOURS, "PNG", "need one channel of class ids, not colours .give --mask_colors with"),
        (BLACK, "PNG", "not colours .its channels are equal"),
        (BLACK.convert("F"), "TIFF", "holds float32: need integers"),
        (BLACK.convert("I").point(lambda value: value - 3), "TIFF", "holds -3: ids start"),
        (BLACK.convert("L").point(lambda value: value + 7), "PNG", "label 7 in image bad_one"),
    ],
    ids=["colours", "grey", "float", "negative", "outside"],
)
def test_labels_that_cannot_be_meant_stop(label, kind, message, tmp_path, good):
    with pytest.raises(UserError, match=message) as error:
        decode(tmp_path, **good | {"label": encoded(label, kind)})
    assert not isinstance(error.value, BadSample) and "bad_one" in str(error.value)


def test_palette_maps_keep_their_ids(image):
    label = image.convert("P")
    label.putpixel((0, 0), 5)
    assert decode_label({"path": None, **encoded(label, "PNG")}, "x")[0, 0] == 5


def test_grey_values_between_the_ids_are_recognised():
    with pytest.raises(UserError, match="JPEG or a resize with interpolation"):
        check_labels(torch.arange(200).reshape(10, 20), 6, False, "s1")


def test_a_image_turned_by_exif_names_the_cause():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    label = {**encoded(Image.new("L", (12, 8)), "PNG"), "path": None}
    file = io.BytesIO()
    Image.new("RGB", (12, 8)).save(file, "JPEG", exif=exif)
    row = {"image": {"bytes": file.getvalue(), "path": None}, "label": label}
    with pytest.raises(BadSample, match=r"image \(12, 8\) but label map \(8, 12\): turned by its EXIF orientation\?"):
        decode_sample(row, RowFormat(), 6, 0)


def test_raw_ids_of_a_benchmark_are_named():
    with pytest.raises(UserError, match=r"label 33 in image s1 .*--label_ids raw"):
        check_labels(torch.tensor([[7, 33]]), 19, False, "s1")
    with pytest.raises(UserError, match=r"label 182 in image s1 .*--label_ids raw"):
        check_labels(torch.tensor([[1, 182]]), 171, True, "s1")


def test_ids_that_start_at_one_are_recognised():
    with pytest.raises(UserError, match="off by one"):
        check_labels(torch.tensor([[1, 2, 6]]), 6, False, "s1")


@pytest.mark.parametrize(
    ("limit", "examples", "allowed"), [(None, 1000, 10), (None, 50, 1), (0, 1000, 0), (3, None, 3), (None, None, 2)]
)
def test_bad_samples_stop_a_run_past_the_limit(limit, examples, allowed, capsys):
    bad = BadSamples(limit, examples)
    bad.add([], seen=250)
    for index in range(allowed):
        bad.add([f"image of sample {index}: cannot be read"] * 2, seen=2)
        bad.add([f"image of sample {index}: cannot be read"])  # again in the next epoch
    assert capsys.readouterr().err.count("skipped: image of sample") == allowed
    state = bad.state_dict()
    bad = BadSamples(limit, examples)
    bad.load_state_dict(state)
    with pytest.raises(UserError, match=f"{allowed + 1} bad samples, more than the {allowed} of .*: the last one"):
        bad.add(["the last one"])


def test_an_unknown_size_is_judged_after_a_hundred_samples():
    bad = BadSamples()
    bad.add(["a", "b", "c"], seen=99)
    with pytest.raises(UserError, match="3 bad samples, more than the 1"):
        bad.add([], seen=1)


def test_an_image_whose_server_gives_it_piece_by_piece_is_read_whole(monkeypatch):
    """Servers that tell no length give, at each read, what has arrived."""
    image = Image.effect_noise((32, 24), 50).convert("RGB")
    content = io.BytesIO(encoded(image, "PNG")["bytes"])

    class Slow(io.RawIOBase):
        def read(self, size=-1):
            return content.read(min(size, 100))

    monkeypatch.setattr(samples, "xopen", lambda *args, **kwargs: Slow())
    found = samples.with_bytes({"bytes": None, "path": "https://example.org/image.png"})
    assert np.array_equal(Image.open(io.BytesIO(found["bytes"])), image)
