"""Label maps in colours: read by a table of colours, refused where a colour belongs to no class."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.mask_colours import read_mask_colours
from scripts.data.samples import decode_label, decode_sample


IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
COLOURS = np.array([(128, 64, 128), (0, 0, 142), (0, 0, 0)], dtype=np.uint8)  # road, car, of no class
WANTED = np.where(IDS == 2, 255, IDS)
NAMED = {"road": "#804080", "car": [0, 0, 142], "ignore": ["#000000"]}


@pytest.fixture
def arguments(tmp_path):
    """One image and its map in colours, in two folders."""
    for kind, pixels in (("images", np.zeros((6, 8, 3), np.uint8)), ("masks", COLOURS[IDS])):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "one.png")

    def given(**files):
        flags = {}
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
            flags[name] = str(tmp_path / f"{name}.json")
        flags.pop("palette", None)
        return DatasetArguments(train_images=str(tmp_path / "images"), train_masks=str(tmp_path / "masks"), **flags)

    return given


def read(arguments, num_labels=2):
    data = LabelledDataset(arguments, "train")
    _, label, _ = decode_sample(next(iter(data.stream)), data.row_format, num_labels, 0)
    return data, label.numpy()


def test_colours_become_ids(arguments):
    data, label = read(arguments(mask_colors=NAMED))
    assert (label == WANTED).all() and label.dtype == np.uint8
    assert data.id2label == {0: "road", 1: "car"}
    assert data.palette == {"0": "#804080", "1": "#00008e"}


def test_class_names_number_the_colours(arguments):
    data, label = read(arguments(mask_colors=NAMED, id2label={"0": "car", "1": "road"}))
    assert (label == np.array([1, 0, 255])[IDS]).all() and data.id2label == {0: "car", 1: "road"}


def test_colours_by_id(arguments, tmp_path):
    by_id = {"0": "#804080", "1": "#00008e", "ignore": "#000000"}
    _, label = read(arguments(mask_colors=by_id, id2label={"0": "a", "1": "b"}))
    assert (label == WANTED).all()
    (tmp_path / "id2label.json").unlink()
    with pytest.raises(UserError, match="has ids, so class names are needed: give --id2label"):
        assert LabelledDataset(arguments(mask_colors=by_id), "train").id2label


def test_the_palette_beside_the_data_is_taken(arguments):
    names = {"0": "road", "1": "car"}
    _, label = read(arguments(palette={"0": "#804080", "1": "#00008e", "255": "#000000"}, id2label=names))
    assert (label == WANTED).all()
    with pytest.raises(UserError, match=r"holds #000000 .* gives to no class: give --mask_colors with"):
        read(arguments(palette={"0": "#804080", "1": "#00008e"}, id2label=names))


def test_maps_of_ids_stay_ids_beside_a_palette(arguments, tmp_path):
    Image.fromarray(IDS).save(tmp_path / "masks" / "one.png")
    _, label = read(
        arguments(palette={"0": "#804080", "1": "#00008e", "2": "#000000"}, id2label={"0": "a", "1": "b"}), 3
    )
    assert (label == IDS).all()


def test_a_palette_png_is_in_colours_where_they_are_given(arguments, tmp_path):
    image = Image.fromarray(2 - IDS, mode="P")
    image.putpalette(COLOURS[::-1].tobytes())
    image.save(tmp_path / "masks" / "one.png")
    assert (read(arguments(mask_colors=NAMED))[1] == WANTED).all()


def test_class_map_merges_colours(arguments, tmp_path):
    given = arguments(mask_colors=NAMED)
    (tmp_path / "map.yaml").write_text("all: [road, car]\n")
    given.class_map = str(tmp_path / "map.yaml")
    data, label = read(given, 1)
    assert data.id2label == {0: "all"} and (label == np.where(IDS == 2, 255, 0)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"road": "#804080", "car": "#00008e"}, r"holds #000000 \(33 % of its pixels\), which .* gives to no class"),
        ({"road": "#804080", "car": "#804080"}, "#804080 is the colour of two classes"),
        ({"road": "red"}, "'red' is no colour: write"),
        ({"ignore": "#000000"}, "write the colour of each class"),
        ([], "write the colour of each class"),
        ({"999": "#000000"}, "class 999: label maps hold classes below 255"),
    ],
)
def test_what_cannot_be_is_refused(arguments, content, message):
    with pytest.raises(UserError, match=message):
        read(arguments(mask_colors=content))


def test_classes_of_two_files_have_to_agree(arguments):
    with pytest.raises(UserError, match="do not have the same classes: 'bus' is in one only"):
        read(arguments(mask_colors=NAMED, id2label={"0": "road", "1": "bus"}))


def test_blurred_and_transparent_maps_are_refused(arguments, tmp_path):
    given = arguments(mask_colors=NAMED)
    _, colours = read_mask_colours(given.mask_colors)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for pixels, message in (
        (noise, "many colours come from JPEG or from resizing with interpolation"),
        (np.dstack([COLOURS[IDS], np.full((6, 8), 9, np.uint8)]), "is transparent in 100.0 % of its pixels"),
    ):
        Image.fromarray(pixels).save(tmp_path / "odd.png")
        with pytest.raises(UserError, match=message):
            decode_label({"bytes": (tmp_path / "odd.png").read_bytes(), "path": None}, "odd", colours=colours)


def test_colours_without_a_table_name_the_flag(arguments):
    with pytest.raises(UserError, match=r"not colours \(give --mask_colors with the colour of each class"):
        read(arguments(id2label={"0": "road", "1": "car"}))
