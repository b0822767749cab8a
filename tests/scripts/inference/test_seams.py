"""Whether the borders of tiles show in the label maps of a trained model."""

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

import modeling_faseg  # noqa: F401 - registers the model
from scripts import train as train_command
from scripts.data.synthetic_scenes import draw_sample, write_dataset
from scripts.inference.predictors import SingleScale
from scripts.inference.sliding_window import Tiles


@pytest.mark.slow
def test_labels_are_as_good_near_the_borders_of_tiles_as_elsewhere(command, tmp_path, capsys):
    """A trained model, on scenes larger than its crops: how many labels are those of the whole image, in percent."""
    shapes, folder = tmp_path / "scenes", tmp_path / "model"
    write_dataset(shapes, {"train": 64, "validation": 8})
    code, _, errors = command(
        train_command, "demo", "--dataset_name", shapes, "--output_dir", folder, "--max_train_steps", 150
    )
    assert code == 0, errors[-3:]
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, do_resize=False)
    tiles, near_pixels = Tiles(128, 128, (32, 32)), 16
    equal, near = [], []
    for seed in range(4):
        image, _ = draw_sample(np.random.default_rng(seed), (256, 320))
        equal.append(SingleScale(model, processor, "cpu", tiles)(image) == SingleScale(model, processor, "cpu")(image))
        beside = [np.zeros(side, bool) for side in (256, 320)]
        for places, spans in zip(beside, tiles.grid(256, 320), strict=True):
            for border in {place for span in spans for place in (span.start, span.stop)} - {0, len(places)}:
                places[max(0, border - near_pixels) : border + near_pixels] = True
        near.append(beside[0][:, None] | beside[1][None])
    same, close = np.stack(equal), np.stack(near)
    with capsys.disabled():
        print(f"\nlabels of the whole image: {same[~close].mean():.1%} inside, {same[close].mean():.1%} near borders")
    assert same[close].mean() > same[~close].mean() - 0.03 and same.mean() > 0.8
