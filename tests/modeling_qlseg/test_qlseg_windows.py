"""Images of any size through windows, and rectangular grids."""

import pytest
import torch
from PIL import Image
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch

from host_waits import host_waits
from image_processing import FASegImageProcessor
from modeling_faseg.windows_qlseg import class_scores, window_starts
from scripts.inference.predictors import SingleScale, window_scores
from scripts.inference.sliding_window import Windows


@pytest.fixture(scope="module")
def model():
    return tiny_qlseg()


def image(height, width, seed=0):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def scores_of_window(model, window):
    outputs = model(window)
    return class_scores(outputs.class_queries_logits, outputs.masks_queries_logits, (64, 64))


@torch.no_grad()
def test_mean_over_windows(model):
    pixels = image(70, 130)
    total, count = torch.zeros(1, 3, 70, 130), torch.zeros(70, 130)
    for top in (0, 6):  # the last window is shifted back to the border
        for left in (0, 40, 66):
            total[..., top : top + 64, left : left + 64] += scores_of_window(
                model, pixels[..., top : top + 64, left : left + 64]
            )
            count[top : top + 64, left : left + 64] += 1
    outputs = model(pixels)
    torch.testing.assert_close(outputs.semantic_scores, total / count, atol=1e-5, rtol=1e-5)
    assert outputs.class_queries_logits is None and outputs.masks_queries_logits is None


@torch.no_grad()
def test_a_single_pixel_larger_than_the_window(model):
    pixels = image(64, 65)
    left, right = (scores_of_window(model, pixels[..., start : start + 64])[0] for start in (0, 1))
    scores = model(pixels).semantic_scores[0]
    torch.testing.assert_close(scores[..., 0], left[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[..., 64], right[..., 63], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[..., 1:64], (left[..., 1:] + right[..., :63]) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(40, 50), (1, 64), (33, 100)])
@torch.no_grad()
def test_smaller_than_the_window(model, size):
    """Zeros, the mean colour, fill the window; scores are those of the image's part."""
    pixels = image(*size)
    padded = torch.zeros(1, 3, max(size[0], 64), max(size[1], 64))
    padded[..., : size[0], : size[1]] = pixels
    scores = model(pixels).semantic_scores
    assert scores.shape == (1, 3, *size)
    expected = model(padded).semantic_scores[..., : size[0], : size[1]]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_of_mixed_sizes(model):
    """Each image gets the scores that it gets alone, whatever its neighbours' padding holds."""
    sizes = [(64, 64), (40, 96), (65, 81), (90, 30)]
    pixels, mask = torch.full((4, 3, 96, 96), 7.0), torch.zeros(4, 96, 96, dtype=torch.long)
    for index, (height, width) in enumerate(sizes):
        pixels[index, :, :height, :width] = image(height, width, index)[0]
        mask[index, :height, :width] = 1
    scores = model(pixels, pixel_mask=mask).semantic_scores
    for index, (height, width) in enumerate(sizes):
        alone = model(image(height, width, index)).semantic_scores[0]
        torch.testing.assert_close(scores[index, :, :height, :width], alone, atol=1e-5, rtol=1e-5)
        assert not scores[index, :, height:].any() and not scores[index, :, :, width:].any()


@torch.no_grad()
def test_commands_windows_are_the_models(model):
    """`scripts/eval.py --sliding_window` cuts images, the model cuts tensors: the same windows."""
    processor = FASegImageProcessor(size={"shortest_edge": 70}, size_divisor=16)
    image = Image.effect_noise((100, 70), 80).convert("RGB")
    cut = window_scores(model, processor, image, (70, 100), Windows(64, 40), "cpu").stacked()
    inputs = processor([image], return_tensors="pt", do_resize=False)
    own = model(inputs["pixel_values"], pixel_mask=inputs["pixel_mask"]).semantic_scores[0, :, :70, :100]
    torch.testing.assert_close(cut, own, atol=1e-5, rtol=1e-5)
    by_windows = SingleScale(model, processor, "cpu", Windows(64, 40))(image)
    assert (SingleScale(model, processor, "cpu")(image) == by_windows).mean() > 0.999


def test_window_starts():
    assert window_starts(64, 64, 40) == [0]
    assert window_starts(65, 64, 40) == [0, 1]
    assert window_starts(30, 64, 40) == [0]
    assert window_starts(683, 512, 341) == [0, 171]


@torch.no_grad()
def test_rectangular_grid():
    """Read whole, an image has a grid of its own; what holds for squares holds there."""
    model = tiny_qlseg(use_windows=False)
    pixels = image(48, 112)
    outputs = model(pixels)
    assert outputs.masks_queries_logits.shape == (1, 3, 3, 7) and outputs.semantic_scores.shape == (1, 3, 48, 112)
    assert torch.isfinite(outputs.semantic_scores).all()
    # A transposed image gives transposed positions of the same number; a batch changes nothing.
    twice = model(pixels.expand(2, -1, -1, -1))
    torch.testing.assert_close(twice.semantic_scores[1], outputs.semantic_scores[0], atol=1e-5, rtol=1e-5)
    square = image(64, 64)
    torch.testing.assert_close(model(square).semantic_scores, tiny_qlseg()(square).semantic_scores)
    with pytest.raises(ValueError, match="are 48x100, need multiples of 16"):
        model(image(48, 100))


def test_rectangular_crops_train():
    model = tiny_qlseg().train()
    outputs = model(**tiny_qlseg_batch((48, 80)))
    outputs.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert outputs.semantic_scores is None


@pytest.mark.parametrize(("size", "waits_for"), [((70, 130), ["tolist"]), ((64, 64), [])], ids=str)
@torch.no_grad()
def test_a_forward_waits_for_the_sizes_of_padded_images_alone(model, size, waits_for):
    mask = torch.ones(2, *size, dtype=torch.long)
    mask[1, 50:] = 0
    with host_waits() as waits:
        model(torch.randn(2, 3, *size), pixel_mask=mask)
        assert waits.found == waits_for
        model(torch.randn(2, 3, *size))
    assert waits.found == waits_for and waits.transfers == []
