"""Exports of models that read other images than RGB of 8 bits: the card, samples, the load check, no demo."""

import re

import numpy as np
import pytest
import torch
from hub_exports import NAME, done, error_of, run_stranger, write_checkpoint
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts.data.bands import ImageForm
from scripts.sharing.clean_load import SIZE, generated_image


# Bands, processor, and a sample (H, W, C).
FORMS = {
    "five bands of floats": (5, {"intensity_range": [0, 1000]}, np.float32),
    "one band of 16 bits": (1, {"intensity_range": [100, 60000]}, np.uint16),
    "RGB of 16 bits": (3, {"intensity_range": [0, 65535]}, np.uint16),
    "four bands of 8 bits": (4, {}, np.uint8),
}


def numbers(bands):
    return {"image_mean": [0.1 + index / 10 for index in range(bands)], "image_std": [0.25] * bands}


def sample_of(bands, settings, kind):
    low, high = settings.get("intensity_range", (0, 255))
    return np.random.default_rng(2).uniform(low, high, (40, 56, bands)).astype(kind)


@pytest.fixture(scope="module", params=FORMS)
def exported(request, tiny_recipe, tmp_path_factory):
    """Bands, settings, a checkpoint of such a model, and a sample image beside it."""
    bands, settings, kind = FORMS[request.param]
    folder = tmp_path_factory.mktemp("bands") / "run"
    source = write_checkpoint(tiny_recipe, folder, bands, **numbers(bands), **settings)
    np.save(source / "field.npy", sample_of(bands, settings, kind))
    return bands, settings, source


def snippet_of(card):
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return snippet


def test_the_card_says_what_the_numbers_mean_and_how_to_load_them(exported, export, tmp_path, capsys):
    bands, settings, source = exported
    flags = ["--sample_images", source / "field.npy", "--space", "--repo_id", NAME]
    outcome = export("--dry_run", *flags, source=source)
    assert done(outcome) and "no demo written" in outcome[1]
    folder = tmp_path / "export"
    assert not folder.with_name("export-space").exists()
    sample = np.load(folder / "samples/1_input.npy")
    assert np.array_equal(sample, np.load(source / "field.npy"))
    with Image.open(folder / "samples/1.jpg") as sheet:
        assert sheet.width >= 2 * 56

    card = ModelCard.load(folder / "README.md")
    assert f"{bands} band" in card.text and "| 1 | 0.1 | 0.25 |" in card.text and f"| {bands} | " in card.text
    assert ("become 0 to 255" in card.text) == bool(settings)
    assert all(f"{limit}" in card.text for limit in settings.get("intensity_range", []))
    snippet = snippet_of(card).replace("from huggingface_hub import hf_hub_download\n", "").replace(NAME, str(folder))
    values = {"hf_hub_download": lambda name, file: f"{name}/{file}"}
    capsys.readouterr()
    exec(snippet, values)
    processor = AutoImageProcessor.from_pretrained(source)
    inputs = processor(images=[sample], input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        outputs = AutoModelForUniversalSegmentation.from_pretrained(source)(**inputs)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[sample.shape[:2]])
    assert torch.equal(values["labels"], labels)
    assert capsys.readouterr().out.splitlines()[0].split(" 0.")[0] == f"class {int(labels.min())}"


@pytest.mark.system
def test_a_stranger_loads_it(tiny_recipe, export, tmp_path):
    """The load check reads arrays of the model's form; the card's snippet runs where the project is not."""
    bands, settings, kind = FORMS["five bands of floats"]
    source = write_checkpoint(tiny_recipe, tmp_path / "run", bands, **numbers(bands), **settings)
    outcome = export("--dry_run", source=source, real_load=True)
    assert done(outcome) and "largest difference of logits 0" in outcome[1]
    np.save(tmp_path / "image.npy", sample_of(bands, settings, kind))
    snippet = snippet_of(ModelCard.load(tmp_path / "export/README.md")).replace("USER", str(tmp_path / "USER"))
    name = re.search(r'from_pretrained\("(.*?)"', snippet)[1]
    snippet = snippet.replace(name, str(tmp_path / "export")).replace("image.npy", str(tmp_path / "image.npy"))
    assert re.fullmatch(r"(class \d [\d.e-]+\n?)+", run_stranger(snippet, [], tmp_path))


def test_the_image_of_the_load_check_has_the_model_s_form():
    plain, deep = generated_image(ImageForm()), generated_image(ImageForm(5, (-2, 1000)))
    assert plain.shape == (*SIZE, 3) and plain.dtype == np.uint8
    assert deep.shape == (*SIZE, 5) and deep.dtype == np.float32
    assert -2 <= deep.min() < 100 and 900 < deep.max() <= 1000


def test_samples_that_do_not_fit_are_refused(tiny_recipe, export, tmp_path):
    source = write_checkpoint(tiny_recipe, tmp_path / "run", 5, **numbers(5), intensity_range=[0, 1000])
    np.save(tmp_path / "four.npy", np.zeros((20, 30, 4), np.float32))
    np.save(tmp_path / "map.npy", np.ones((20, 30, 5), np.float32))
    (tmp_path / "text.npy").write_text("x")
    for name, message in (
        ("four", "the image has 4 bands, the model reads 5"),
        ("map", "one channel of 1 values is a label map"),
        ("text", "text.npy"),
    ):
        found = error_of(export("--dry_run", "--sample_images", tmp_path / f"{name}.npy", source=source))
        assert message in found and not (tmp_path / "export").exists()
