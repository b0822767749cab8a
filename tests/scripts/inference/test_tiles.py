"""Images read in overlapping pieces: a tile's own labels, no seams, and memory that does not grow with the height."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from random_splits import random_pixels
from tiny_qlseg import tiny_qlseg
from tiny_semask import tiny_model as tiny_semask
from torch.nn import functional as F

from image_processing import FASegImageProcessor, semantic_labels
from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.windows_qlseg import window_starts
from scripts.inference.predictors import (
    BlendedScores,
    MultiScale,
    SingleScale,
    image_scores,
    piece_scores,
    processed_inputs,
    window_scores,
)
from scripts.inference.sliding_window import Tiles, Windows
from scripts.inference.tiles import spans


class Pixelwise(torch.nn.Module):
    """A model whose class scores follow from each pixel alone: from the colour of its 4 x 4 block."""

    def __init__(self, num_labels=5):
        super().__init__()
        self.config = SimpleNamespace(num_labels=num_labels, model_type="faseg")
        self.mix = torch.nn.Conv2d(3, num_labels, 4, stride=4)

    def forward(self, pixel_values, pixel_mask):
        return SimpleNamespace(logits=self.mix(pixel_values))


class Constant(Pixelwise):
    """Another score for each class, the same everywhere."""

    def forward(self, pixel_values, pixel_mask):
        logits = torch.linspace(0.1, 0.9, self.config.num_labels)
        return SimpleNamespace(
            logits=logits[None, :, None, None].expand(1, -1, *[s // 4 for s in pixel_values.shape[2:]])
        )


@pytest.fixture
def processor():
    return FASegImageProcessor(do_resize=False)


def noise(height, width):
    return Image.fromarray(random_pixels(np.random.default_rng(0), height, width))


# ---- where the pieces lie


@pytest.mark.parametrize("length", [20, 64, 65, 100, 171])
@pytest.mark.parametrize(("side", "stride"), [(64, 48), (64, 40), (32, 8), (64, 64)])
@pytest.mark.parametrize("falling", [False, True])
def test_pieces_cover_every_pixel_with_a_weight_of_one(length, side, stride, falling):
    found = spans(length, side, stride, falling)
    assert [span.start for span in found] == window_starts(length, side, stride)
    assert {span.stop - span.start for span in found} == {min(side, length)}
    total = torch.zeros(length)
    for span in found:
        assert (span.weights > 0).all()
        total[span.start : span.stop] += span.weights
    torch.testing.assert_close(total, torch.ones(length))


def test_a_tile_fades_out_towards_its_border():
    first, second = spans(112, 64, 48, falling=True)
    assert torch.equal(first.weights[:48], torch.ones(48)) and torch.equal(second.weights[16:], torch.ones(48))
    steps = first.weights[48:].diff()
    assert (steps < 0).all() and torch.allclose(steps, torch.full((15,), -1 / 16)) and first.weights[-1] < 0.05


# ---- scores


@pytest.mark.parametrize("size", [(150, 210), (64, 400), (40, 30), (65, 64)])
def test_no_seams_in_scores_that_do_not_depend_on_the_place(processor, size):
    image = noise(*size)
    tiles = Tiles(64, 96, (16, 32))
    blended = window_scores(Constant(), processor, image, size, tiles, "cpu").stacked()
    whole = image_scores(Constant(), processor, processed_inputs(processor, image, "cpu"), size).stacked()
    torch.testing.assert_close(blended, whole, atol=1e-6, rtol=0)


def test_a_pixelwise_model_finds_the_same_in_tiles_as_in_the_whole(processor):
    """Away from tiles' borders, over which the resize of logits to pixels cannot look."""
    image, size, model = noise(160, 240), (160, 240), Pixelwise()
    with torch.no_grad():
        blended = window_scores(model, processor, image, size, Tiles(64, 64, (32, 32)), "cpu").stacked()
        whole = image_scores(model, processor, processed_inputs(processor, image, "cpu"), size).stacked()
    difference = (blended - whole).abs().amax(0)
    near = torch.zeros(size, dtype=torch.bool)
    for span in spans(160, 64, 32, True):
        near[max(span.start - 4, 0) : span.start + 4] = near[span.stop - 4 : span.stop + 4] = True
    for span in spans(240, 64, 32, True):
        near[:, max(span.start - 4, 0) : span.start + 4] = near[:, span.stop - 4 : span.stop + 4] = True
    assert difference[~near].max() < 1e-6
    # At a border a tile counts next to nothing: there is no step between it and its neighbours.
    inside = difference[8:-8, 8:-8]
    assert inside.max() < 0.1 * (whole.amax() - whole.amin())


@pytest.mark.parametrize("name", ["faseg", "semask", "qlseg"])
def test_labels_away_from_overlaps_are_the_tiles_own(name, shapes_model):
    model, divisor = {"semask": (tiny_semask, 0), "qlseg": (tiny_qlseg, 16), "faseg": (None, 32)}[name]
    model = model() if model else FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor(do_resize=False, size_divisor=divisor)
    image = noise(112, 160)
    found = SingleScale(model, processor, "cpu", Tiles(64, 64, (16, 16)))(image)
    assert found.shape == (112, 160)
    for top, left in ((0, 0), (48, 0), (48, 96), (0, 48)):
        own = SingleScale(model, processor, "cpu")(image.crop((left, top, left + 64, top + 64)))
        rows = slice(0, 48) if top == 0 else slice(16, 64)
        columns = slice(0, 48) if left == 0 else slice(16, 48) if left == 48 else slice(16, 64)
        inside = found[top : top + 64, left : left + 64][rows, columns]
        same = inside == own[rows, columns]
        assert same.mean() > 0.999, (top, left)  # but for scores that are equal to the last digit


def test_an_image_smaller_than_a_tile_is_read_whole(shapes_model):
    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor.from_pretrained(shapes_model, do_resize=False)
    read = []
    image = noise(40, 50)
    segment = SingleScale(model, processor, "cpu", Tiles(64, 64, (16, 16)), lambda *counts: read.append(counts))
    assert (segment(image) == SingleScale(model, processor, "cpu")(image)).mean() > 0.999
    assert read == [(1, 1)]


def test_a_qlseg_s_window_keeps_its_masks_alone():
    model, processor = tiny_qlseg(), FASegImageProcessor(do_resize=False, size_divisor=16)
    inputs = processed_inputs(processor, noise(64, 64), "cpu")
    piece = piece_scores(model, processor, inputs)
    assert piece.maps.shape == (4, 4, 3)
    torch.testing.assert_close(piece.stacked(), model(**inputs).semantic_scores[0], atol=1e-5, rtol=1e-5)


# ---- sliding windows of eval.py, against whole maps of scores


def plain_mean(model, processor, image, windows):
    """The mean of windows as it was made before, of whole maps `(K, H, W)`."""
    total, count = (
        torch.zeros(model.config.num_labels, image.height, image.width),
        torch.zeros(image.height, image.width),
    )
    for top in window_starts(image.height, windows.crop, windows.stride):
        for left in window_starts(image.width, windows.crop, windows.stride):
            bottom, right = min(top + windows.crop, image.height), min(left + windows.crop, image.width)
            inputs = processed_inputs(processor, image.crop((left, top, right, bottom)), "cpu", do_resize=False)
            total[:, top:bottom, left:right] += image_scores(
                model, processor, inputs, (bottom - top, right - left)
            ).stacked()
            count[top:bottom, left:right] += 1
    return total / count


def assert_labels(labels, scores):
    """Equal where the two best scores are further apart than float noise; and that is nearly everywhere."""
    best, second = scores.topk(2, dim=0).values
    clear = best - second > 4e-5
    assert clear.float().mean() > 0.97
    assert labels[clear].equal(scores.argmax(0)[clear])


@pytest.mark.parametrize(("size", "strip_bytes"), [((100, 90), 1), ((64, 64), 24 * 2**20), ((130, 66), 24 * 2**20)])
def test_windows_a_few_rows_at_a_time_are_the_whole_maps(shapes_model, size, strip_bytes, monkeypatch):
    """To float noise, and with the same labels; resized as well, and averaged over sizes."""
    monkeypatch.setitem(semantic_labels.STRIP_BYTES, "cpu", strip_bytes)
    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    with torch.no_grad():  # milder masks, for else the scores of all classes may be zero
        for name, value in model.named_parameters():
            if "mask_embedder" in name and name.endswith("weight"):
                value.div_(6)
    processor = FASegImageProcessor.from_pretrained(shapes_model)
    image, windows, target = noise(*size), Windows(64, 40), (110, 93)
    expected = plain_mean(model, processor, image, windows)
    found = window_scores(model, processor, image, size, windows, "cpu")
    torch.testing.assert_close(found.stacked(), expected, atol=2e-6, rtol=2e-6)
    assert_labels(found.labels(), expected)
    resized = F.interpolate(expected[None], size=target, mode="bilinear", align_corners=False)[0]
    found = window_scores(model, processor, image, target, windows, "cpu")
    torch.testing.assert_close(found.stacked(), resized, atol=2e-5, rtol=2e-5)
    assert_labels(found.labels(), resized)
    several = MultiScale(model, processor, "cpu", None, [(64, None)], windows).scores(image)
    assert several.size == size and torch.equal(several.labels(), several.stacked().argmax(0))


# ---- memory


class Watched(Pixelwise):
    """Many classes at little cost."""

    def forward(self, pixel_values, pixel_mask):
        height, width = pixel_values.shape[-2:]
        return SimpleNamespace(logits=torch.zeros(1, self.config.num_labels, height // 4, width // 4))


def kept_and_largest(height, monkeypatch):
    """Most pixels of tiles that are kept at a time, and the bytes of the largest strip of scores."""
    kept, largest = 0, 0
    scores = BlendedScores(
        Watched(40),
        FASegImageProcessor(do_resize=False),
        Image.new("RGB", (160, height)),
        Tiles(64, 64, (16, 16)),
        "cpu",
    )
    blended = scores.blended
    for block in scores:
        kept = max(kept, sum(len(pieces) * 64 * 64 for _, pieces in blended._open))
        largest = max(largest, block.numel() * block.element_size())
    return kept, largest


def test_what_rows_above_follow_from_is_freed():
    """Those below stay as they are, bit for bit."""
    torch.manual_seed(0)
    masks, classes = torch.randn(7, 16, 24), torch.randn(7, 5)
    whole, cut = (semantic_labels.ImageScores(masks, (64, 96), class_logits=classes) for _ in range(2))
    for above in (0, 20, 41):
        cut.forget(above)
        assert torch.equal(cut.rows(max(above, 1), 64), whole.rows(max(above, 1), 64))
    assert cut.maps.shape[0] == 16 - 9 and cut.maps.untyped_storage().nbytes() == cut.maps.nbytes


def test_memory_does_not_grow_with_the_height(monkeypatch):
    monkeypatch.setitem(semantic_labels.STRIP_BYTES, "cpu", 2**18)
    short, tall = (kept_and_largest(height, monkeypatch) for height in (208, 2032))
    assert short == tall
    kept, largest = tall
    assert kept == 2 * 3 * 64 * 64  # two rows of three tiles, where they overlap
    assert largest <= 4 * 40 * 160 * 10  # of the 51 MB that all scores take
