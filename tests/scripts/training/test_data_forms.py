"""The same images and classes in the forms that people have them in train and predict alike, bit for bit.

On CamVid where it is there, else on generated scenes.
"""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from scripts import predict as predict_command
from scripts import train as train_command
from scripts.drawing.visualization import COLOURS


SHARED = Path(os.environ.get("FASEG_SHARED", Path(__file__).parents[4] / "shared"))
CAMVID = SHARED / "data" / "camvid"
pytestmark = pytest.mark.system
FLAGS = ["--max_train_steps", 2, "--max_grad_norm", 1]


@pytest.fixture(scope="module")
def rows(tmp_path_factory, shapes):
    """`(image, label map)` of four samples, and the names of their classes."""
    place = CAMVID if CAMVID.is_dir() else shapes
    data = datasets.load_dataset(str(place), split="train", streaming=True).take(4)
    names = json.loads((place / "id2label.json").read_text())
    return [(row["image"].convert("RGB"), np.asarray(row["label"])) for row in data], names


def write(folder, rows, as_mask, stem="{:03}.png", mask_stem="{:03}.png", images="images", masks="masks"):
    for number, (image, label) in enumerate(rows):
        for kind, name, picture in ((images, stem, image), (masks, mask_stem, as_mask(label))):
            file = folder / kind / name.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)


def flags_of(folder, images="images", masks="masks"):
    return ["--train_images", folder / images, "--train_masks", folder / masks]


def colour_table(ids):
    """`(256, 3)` colours, those of the project; 255 is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(ids)] = np.frombuffer(COLOURS, np.uint8).reshape(-1, 3)[: len(ids)]
    return table


def written(form, rows, names, folder):
    """Writes the data in a form; returns the flags that read it."""
    (folder / "id2label.json").write_text(json.dumps(names))
    table = colour_table(names)
    hexes = {index: "#{:02x}{:02x}{:02x}".format(*table[int(index)]) for index in names}
    if form in ("plain", "binary"):
        write(folder, rows, Image.fromarray)
    elif form == "sixteen bits":
        write(folder, rows, lambda label: Image.fromarray(label.astype(np.uint16)))
    elif form == "values of 16 bits":
        (folder / "id2label.json").unlink()
        write(
            folder,
            rows,
            lambda label: Image.fromarray(np.where(label == 255, 9, label.astype(int) * 257 + 1000).astype(np.uint16)),
        )
        values = [f"{int(index) * 257 + 1000}={name}" for index, name in names.items()]
        return [*flags_of(folder), "--mask_values", *values, "9=ignore"]
    elif form == "zero and 255":
        (folder / "id2label.json").unlink()
        write(folder, rows, lambda label: Image.fromarray((label * 255).astype(np.uint8)))
        return [*flags_of(folder), "--mask_values", *(f"{255 * int(index)}={name}" for index, name in names.items())]
    elif form == "a suffix":
        write(folder, rows, Image.fromarray, mask_stem="{:03}_mask.png", images="all", masks="all")
        return ["--dataset_name", folder / "all", "--id2label", folder / "id2label.json"]
    elif form == "nested folders":
        write(folder, rows, Image.fromarray, stem="town/{:03}.png", mask_stem="town/{:03}.png")
    elif form == "folders of a split":
        write(folder, rows, Image.fromarray, images="own/train/images", masks="own/train/masks")
        return ["--dataset_name", folder / "own", "--id2label", folder / "id2label.json"]
    elif form == "palette of indices":

        def indexed(label):
            image = Image.fromarray(label, mode="P")
            image.putpalette(table.tobytes())
            return image

        write(folder, rows, indexed)
    elif form == "colours beside the data":
        write(folder, rows, lambda label: Image.fromarray(table[label]))
        (folder / "palette.json").write_text(json.dumps(hexes | {"255": "#000000"}))
    elif form == "colours by a flag":
        (folder / "id2label.json").unlink()
        write(folder, rows, lambda label: Image.fromarray(table[label]))
        colours = {names[index]: colour for index, colour in hexes.items()} | {"ignore": "#000000"}
        (folder / "colours.json").write_text(json.dumps(colours))
        return [*flags_of(folder), "--mask_colors", folder / "colours.json"]
    return flags_of(folder)


@pytest.fixture(scope="module")
def result(rows, tiny_recipe, tmp_path_factory):
    """Trains two steps on a form of the data and predicts an image: weights and label map."""
    known = {}

    def of(form, command, binary=False):
        if (form, binary) in known:
            return known[form, binary]
        samples, names = rows
        if binary:
            samples = [
                (image, (label == label.max(initial=0, where=label < 255)).astype(np.uint8))
                for image, label in samples
            ]
            names = {"0": "other", "1": "road"}
        folder = tmp_path_factory.mktemp("form")
        data = written(form, samples, names, folder)
        AcceleratorState._reset_state(True)
        output = ["--output_dir", folder / "run", "--allow_absent_classes"]
        code, _, errors = command(train_command, tiny_recipe, *FLAGS, *data, *output)
        assert code == 0, errors
        samples[0][0].save(folder / "one.png")
        model = ["--model_name_or_path", folder / "run", "--output_dir", folder / "labels"]
        code, _, errors = command(predict_command, folder / "one.png", *model)
        assert code == 0, errors
        weights = safetensors.torch.load_file(folder / "run" / "model.safetensors")
        known[form, binary] = weights, np.asarray(Image.open(folder / "labels" / "one_labels.png"))
        AcceleratorState._reset_state(True)
        return known[form, binary]

    return of


@pytest.mark.parametrize(
    "form",
    [
        "sixteen bits",
        "values of 16 bits",
        "palette of indices",
        "colours beside the data",
        "colours by a flag",
        "a suffix",
        "nested folders",
        "folders of a split",
    ],
)
def test_a_form_changes_nothing(form, result, command):
    check_equal(result(form, command), result("plain", command))


def test_zero_and_255_are_as_zero_and_one(result, command):
    check_equal(result("zero and 255", command, binary=True), result("binary", command, binary=True))


def check_equal(found, wanted):
    assert found[0].keys() == wanted[0].keys()
    assert all(torch.equal(found[0][name], value) for name, value in wanted[0].items())
    assert (found[1] == wanted[1]).all() and len(np.unique(wanted[1])) > 0
