"""Segments in layers: their masks, and which of them lies on top."""

import pytest
import torch

from scripts.data.segments import Segments, segments_of_masks


@pytest.mark.parametrize("count", [0, 1, 12])
def test_masks_and_what_lies_on_top_are_those_of_the_masks_they_are_made_of(count):
    """The smaller on top; of two of one area the later."""
    masks = torch.zeros(count, 16, 20, dtype=torch.bool)
    generator = torch.Generator().manual_seed(count)
    for mask in masks:
        top, left = torch.randint(12, (2,), generator=generator).tolist()
        height, width = torch.randint(1, 9, (2,), generator=generator).tolist()
        mask[top : top + height, left : left + width] = True
    classes = torch.randint(5, (count,), generator=generator)
    found = segments_of_masks(masks, classes.tolist(), [False] * count, (16, 20))
    assert found.masks().equal(masks) and (count < 12 or len(found.layers) > 2)
    on_top, painted = torch.zeros(16, 20, dtype=torch.int64), torch.full((16, 20), 9, dtype=torch.uint8)
    for index in sorted(range(count), key=lambda index: -int(masks[index].sum())):
        on_top[masks[index]], painted[masks[index]] = index + 1, classes[index].to(torch.uint8)
    assert found.on_top().equal(on_top) and found.label_map(9).equal(painted)


def test_what_is_chosen_by_area_keeps_its_masks():
    layers = torch.zeros(2, 4, 4, dtype=torch.int32)
    layers[0, :2], layers[0, 3, 3], layers[1, 1:3, 1:3] = 1, 2, 3
    segments = Segments(layers, torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.bool))
    kept = segments.chosen(segments.areas() >= 4)
    assert kept.classes.tolist() == [0, 0] and kept.masks().equal(segments.masks()[[0, 2]])
