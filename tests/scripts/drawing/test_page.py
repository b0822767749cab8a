"""Parts of the HTML pages: overlays in layers, which a reader takes off without a script."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from scripts.drawing.page import overlay_figure, with_overlay_choices
from scripts.drawing.visualization import IGNORE_INDEX, contours, overlay


NAMES = {0: "road", 2: "<kerb>", 7: "sky"}
LABELS = np.array([[0] * 6 + [2] * 6] * 4 + [[2] * 3 + [IGNORE_INDEX] * 4 + [7] * 5] * 4)
LAYER = re.compile(r'<span class="([\w -]+)" style="background-image:url\(data:image/png;base64,(.*?)\)"></span>')


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))


def layers(page):
    """Kind of each layer, and its pixels as RGBA."""
    return [
        (kind, Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")) for kind, data in LAYER.findall(page)
    ]


def test_all_layers_together_are_the_overlay(image):
    stacked = image.convert("RGBA")
    for _, layer in layers(overlay_figure(image, LABELS, "street")):
        stacked.alpha_composite(layer)
    expected = np.asarray(overlay(image, LABELS), dtype=int)
    assert np.abs(np.asarray(stacked.convert("RGB"), dtype=int) - expected).max() <= 2


def test_each_class_is_tinted_apart_and_outlines_have_layers_of_their_own(image):
    found = layers(overlay_figure(image, LABELS, "street"))
    assert [kind for kind, _ in found] == [word for index in NAMES for word in (f"tint class-{index}", "contour")]
    edges = contours(LABELS)
    for (_, tint), (_, line), index in zip(found[::2], found[1::2], NAMES, strict=True):
        assert np.array_equal(np.asarray(tint)[..., 3] > 0, (LABELS == index) & ~edges)
        assert np.array_equal(np.asarray(line)[..., 3] == 255, (LABELS == index) & edges)


def test_a_page_offers_contours_only_and_each_class_to_be_left_untinted(image):
    page = with_overlay_choices(overlay_figure(image, LABELS, "street"), NAMES)
    assert re.findall(r'<option value="(\d*)">(.*?)</option>', page) == [
        ("", "none"), ("0", "road"), ("2", "&lt;kerb&gt;"), ("7", "sky"),
    ]  # fmt: skip
    assert 'id="contours-only"' in page and "<script" not in page
    for index in NAMES:
        assert f'body:has(#untinted option[value="{index}"]:checked) .class-{index} {{ display: none; }}' in page


def test_a_page_without_overlays_offers_nothing():
    assert with_overlay_choices("<p>nothing</p>", NAMES) == "<p>nothing</p>"
