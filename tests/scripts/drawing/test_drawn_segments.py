"""Overlays of segments: shades of a class, numbers, legends."""

import colorsys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from scripts.drawing import segments as drawing
from scripts.drawing.segments import DrawnSegment, drawing_number, drawing_numbers, inner_middle, with_segments
from scripts.drawing.visualization import class_colour, overlay, segment_colours


def stripes(count, width=6, height=24):
    """Segments side by side, ids from 1."""
    return np.repeat(np.arange(1, count + 1, dtype=np.int32), width)[None].repeat(height, 0)


def test_a_class_with_one_segment_keeps_its_colour_and_others_get_shades():
    palette = {5: (200, 10, 10)}
    colours = segment_colours({1: 5, 2: 7, 3: 7, 4: 5, 9: 8}, palette)
    assert colours[9] == class_colour(8) and len(set(colours.values())) == 5
    alone = segment_colours({3: 5}, palette)
    assert alone == {3: (200, 10, 10)}
    hues = [colorsys.rgb_to_hls(*(channel / 255 for channel in colours[number]))[0] for number in (1, 4)]
    assert all(min(hue, 1 - hue) < 0.09 for hue in hues)  # both still red


@pytest.mark.parametrize("label", [0, 1, 8, 17])
def test_touching_instances_of_one_class_differ_in_the_picture(label):
    """Twenty in a row, on grey: each pair of neighbours by what the eye sees well, also after the colours are laid
    over the image."""
    ids = stripes(20)
    colours = segment_colours(dict.fromkeys(range(1, 21), label))
    drawn = np.asarray(overlay(Image.new("RGB", ids.shape[::-1], (120, 120, 120)), ids, palette=colours)).astype(int)
    middles = [drawn[12, 6 * number + 3] for number in range(20)]
    assert min(np.abs(first - second).sum() for first, second in pairwise(middles)) > 40


def test_ids_that_stand_for_ignored_pixels_in_label_maps_are_drawn():
    ids = np.array([[0, 1, 254, 255, 256, 300]], dtype=np.int32)
    assert drawing_numbers(ids).tolist() == [[255, 1, 254, 256, 257, 301]]
    assert [drawing_number(number) for number in (1, 254, 255, 300)] == [1, 254, 256, 301]
    ids = np.zeros((30, 30), np.int32)
    ids[5:25, 5:25] = 255
    image = Image.new("RGB", (30, 30), "white")
    drawn = np.asarray(with_segments(image, ids, [DrawnSegment(255, 1, 0.5, False)], {1: "cell"}))
    assert tuple(drawn[15, 15]) != (255, 255, 255) and tuple(drawn[2, 2]) == (255, 255, 255)


def test_the_legend_lists_numbers_classes_and_scores_up_to_a_length(monkeypatch):
    listed = []
    monkeypatch.setattr(
        drawing, "legend", lambda entries, width, palette: listed.append(entries) or Image.new("RGB", (9, 9))
    )
    ids, image = stripes(60), Image.new("RGB", (360, 24))
    segments = [DrawnSegment(number, 1, 0.5, number > 1) for number in range(1, 61)]
    with_segments(image, ids, segments, {1: "cell"})
    with_segments(image, ids * 0, [], {1: "cell"})
    texts = [text for _, text in listed[0]]
    assert texts[:2] == ["cell 0.50", "2 cell 0.50"] and texts[-1] == "and 12 more" and len(texts) == 49
    assert [text for _, text in listed[1]] == ["nothing found"]


def test_numbers_stand_inside_their_segments():
    mask = np.zeros((50, 80), bool)
    mask[10:40, 20:70] = True
    mask[10:40, 24:66] &= np.arange(24, 66) % 84 > 40  # the left part is a thin strip
    x, y = inner_middle(mask, 5)
    assert mask[y, x] and 40 < x < 70 and 20 < y < 30
    assert inner_middle(mask[:, 20:24], 5) is None
    large = np.zeros((1000, 1600), bool)
    large[100:900, 1000:1500] = True
    x, y = inner_middle(large, 5)
    assert large[y, x] and abs(x - 1250) < 40
