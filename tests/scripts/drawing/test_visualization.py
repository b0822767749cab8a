"""Colours that differ for every reader, datasets' own palettes, overlays, contours and legends."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configuration import FASegConfig
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.drawing.visualization import (
    COLOURS,
    IGNORE_INDEX,
    below,
    class_colour,
    colour_map,
    contours,
    label_image,
    legend,
    model_palette,
    overlay,
    parse_palette,
    present_classes,
    with_legend,
)
from scripts.models.arguments import ModelArguments
from scripts.models.loading import build_config
from scripts.training.arguments import TrainArguments
from scripts.training.run import set_up


# ---- how far apart two colours are ----------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colours, vision):
    """CIELAB (D65) of `(N, 3)` sRGB colours as that vision sees them."""
    shares = np.asarray(colours) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1)
    x, y, z = np.moveaxis(np.cbrt(seen @ TO_XYZ.T / TO_XYZ.sum(1)), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(first, second):
    """Difference of two CIELAB colours, broadcast; about 2 is just seen side by side, black to white is 100."""
    (light1, a1, b1), (light2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    chroma1, chroma2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    hue1, hue2 = (np.degrees(np.arctan2(b, a * stretch)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (hue2 - hue1 + 180) % 360 - 180
    chroma, hue = (chroma1 + chroma2) / 2, np.radians((hue1 + turn / 2) % 360)
    weight = (
        1
        - 0.17 * np.cos(hue - np.radians(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )
    light = ((light1 + light2) / 2 - 50) ** 2
    lightness = (light2 - light1) / (1 + 0.015 * light / np.sqrt(20 + light))
    saturation = (chroma2 - chroma1) / (1 + 0.045 * chroma)
    tint = 2 * np.sqrt(chroma1 * chroma2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * weight)
    blue = 60 * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * np.sin(np.radians(blue))
    return np.sqrt(lightness**2 + saturation**2 + tint**2 + rotation * saturation * tint)


def least_difference(colours, vision):
    """Between any two of them."""
    seen = lab(colours, vision)
    return ciede2000(seen[:, None], seen)[np.triu_indices(len(colours), 1)].min()


def test_the_measure_of_colours_is_the_published_one():
    """Sharma, Wu, Dalal 2005, table 1: pairs 1, 4 and 17."""
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ]
    for first, second, expected in pairs:
        assert ciede2000(np.array(first, float), np.array(second, float)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("vision", VISIONS)
def test_the_first_dozen_classes_differ_for_every_reader(vision):
    colours = [class_colour(index) for index in range(12)]
    assert least_difference([*colours, class_colour(IGNORE_INDEX)], vision) > 15
    # As they lie over a grey street, too.
    laid_over = [tuple(0.55 * channel + 0.45 * 128 for channel in colour) for colour in colours]
    assert least_difference(laid_over, vision) > 7


def test_every_class_has_a_colour_of_its_own():
    colours = [class_colour(index) for index in range(255)]
    assert len(set(colours)) == 255 == len(COLOURS) // 3
    assert class_colour(IGNORE_INDEX) == (0, 0, 0) not in colours
    for vision in VISIONS:
        assert least_difference(colours[:20], vision) > 9
    assert class_colour(300) == class_colour(45)


# ---- palettes of datasets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"0": "#804080", "2": [70, 70, 70]},
        {0: (128, 64, 128), 2: "464646"},
        ["#804080", None, [70, 70, 70]],
    ],
)
def test_palettes_are_read_in_each_form(value):
    palette = parse_palette(value)
    assert palette == {0: (128, 64, 128), 2: (70, 70, 70)}
    assert class_colour(0, palette) == (128, 64, 128)
    assert class_colour(1, palette) == class_colour(1)
    assert model_palette(SimpleNamespace(palette=value)) == palette


@pytest.mark.parametrize("value", [{"0": "#80408"}, {"0": [1, 2]}, {"0": [1, 2, 256]}, {"road": "#804080"}, "#804080"])
def test_what_is_no_palette_is_refused(value):
    with pytest.raises(ValueError, match=r"colour|palette|road"):
        parse_palette(value)
    assert model_palette(SimpleNamespace(palette=value)) == {}


@pytest.fixture
def dataset_palette(shapes, tmp_path):
    """The palette of a data set in `tmp_path`, by its flags."""
    shutil.copytree(shapes, tmp_path, dirs_exist_ok=True)

    def read(*flags):
        arguments = parse_arguments(DatasetArguments, ["--dataset_name", str(tmp_path), *map(str, flags)])
        return LabelledDataset(arguments, "train").palette

    return read


def test_a_datasets_palette_reaches_the_model(dataset_palette, tiny_recipe, tmp_path):
    def trained_config():
        flags = ["--dataset_name", tmp_path, "--output_dir", tmp_path / "model", "--max_train_steps", 1]
        return set_up(parse_arguments(TrainArguments, [str(tiny_recipe), *map(str, flags)])).network.config

    (tmp_path / "palette.json").unlink()
    assert dataset_palette() is None
    assert not hasattr(trained_config(), "palette")
    (tmp_path / "palette.json").write_text(json.dumps({"0": [128, 64, 128]}))
    config = trained_config()
    config.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["palette"] == {"0": "#804080"}
    # A model trained on keeps its colours for the same classes, and for those alone.
    start = ModelArguments(model_name_or_path=str(tmp_path / "model"))
    for names, kept in (
        (config.id2label, {0: (128, 64, 128)}),
        ({0: "road", 1: "car"}, {}),
        (None, {0: (128, 64, 128)}),
    ):
        assert model_palette(build_config(start, names)) == kept


def test_cityscapes_models_have_its_colours():
    config = FASegConfig.from_pretrained("hub_cards/faseg-resnet50-cityscapes")
    palette = model_palette(config)
    assert palette.keys() == config.id2label.keys()
    assert palette[config.label2id["road"]] == (128, 64, 128) and palette[config.label2id["bicycle"]] == (119, 11, 32)


def test_a_palette_lies_beside_the_class_names(dataset_palette, tmp_path):
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "palette.json").write_text('["#010203"]')
    assert dataset_palette("--id2label", tmp_path / "names" / "id2label.json") == {"0": "#010203"}
    (tmp_path / "palette.json").write_text('{"0": "blue"}')
    with pytest.raises(UserError, match=r"palette\.json: 'blue' is no colour: write \"#rrggbb\""):
        dataset_palette()


# ---- images -------------------------------------------------------------------------------------------------------


LABELS = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 255, 255]])


def test_label_images_hold_ids_and_colours():
    image = label_image(LABELS, {1: (1, 2, 3)})
    assert np.array_equal(np.asarray(image), LABELS)
    assert image.convert("RGB").getpixel((4, 0)) == (1, 2, 3)
    assert image.convert("RGB").getpixel((4, 2)) == (0, 0, 0)


def test_contours_lie_on_both_sides_of_a_border():
    expected = [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert contours(LABELS).astype(int).tolist() == expected
    assert not contours(np.zeros((4, 4), int)).any()


def test_an_overlay_mixes_by_its_opacity_and_draws_contours():
    image = Image.new("RGB", (5, 3), (100, 100, 100))
    palette = {0: (200, 0, 0), 1: (0, 200, 0)}
    for opacity, inside in ((0, (100, 100, 100)), (0.5, (150, 50, 50)), (1, (200, 0, 0))):
        mixed = overlay(image, LABELS, opacity, palette)
        assert mixed.getpixel((0, 0)) == inside
        assert mixed.getpixel((2, 0)) == (200, 0, 0) and mixed.getpixel((3, 0)) == (0, 200, 0)
        assert mixed.getpixel((4, 2)) == (100, 100, 100)  # ignored
    plain = overlay(image, LABELS, 0.5, palette, with_contours=False)
    assert plain.getpixel((2, 0)) == (150, 50, 50)
    full = overlay(image, np.where(LABELS == 255, 0, LABELS), 1.0)
    assert np.array_equal(np.asarray(full), colour_map(np.where(LABELS == 255, 0, LABELS)))


def test_a_legend_names_what_is_there():
    names = {0: "sky", 1: "road"}
    assert present_classes(LABELS, names) == [(0, "sky"), (1, "road")]
    assert present_classes([LABELS, np.full((2, 2), 7)], names) == [(0, "sky"), (1, "road"), (7, "7")]
    image = Image.new("RGB", (200, 100))
    labels = np.zeros((100, 200), int)
    sheet = with_legend(image, labels, names, {0: (9, 8, 7)})
    assert sheet.width == 200 and sheet.height > 100
    colours = {colour for _, colour in sheet.crop((0, 100, 200, sheet.height)).getcolors(10_000)}
    assert {(9, 8, 7), (0, 0, 0), (255, 255, 255)} <= colours


def test_a_legend_is_as_large_as_its_image_needs():
    entries = [(index, f"class {index}") for index in range(40)]
    small, large = legend(entries, 300), legend(entries, 3000)
    assert small.width == 300 and small.height > 5 * 24
    assert large.width == 3000 and large.height > 50
    assert legend([(0, "a" * 200)], 50).width > 1000
    assert below(Image.new("RGB", (50, 50)), [(0, "a" * 200)]).width > 1000
