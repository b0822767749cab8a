"""Augmentation: joint over image and map, reproducible, the reference's numbers."""

import colorsys
import json

import pytest
import torch
from torchvision import tv_tensors

from scripts.data.augmentation import (
    IMAGE_FILL,
    LABEL_FILL,
    PadTo,
    RandomColour,
    RandomCrop,
    reference_sizes,
    scale_saturation,
    shortest_edge_size,
    training_augmentation,
)


def pair(height=60, width=90):
    """An image whose red channel is its own label map, so that the two can be compared after augmentation."""
    label = torch.arange(height * width).reshape(height, width) // 997 * 20
    image = torch.stack([label, 255 - label, label]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(label.to(torch.uint8))


def test_sizes_of_the_reference():
    assert reference_sizes(512) == [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]


def test_resize_rule(pytestconfig):
    cases = json.loads((pytestconfig.rootpath / "tests" / "golden" / "resize_shortest_edge.json").read_text())
    assert len(cases) > 5
    for case in cases:
        found = shortest_edge_size(case["h"], case["w"], case["shortest"], case["max_size"])
        assert found == tuple(case["out"]), case


@pytest.mark.parametrize("settings", [{"scale_range": [0.5, 2.0]}, {"shortest_edges": [40, 80], "longest_edge": 100}])
def test_image_and_map_stay_together(settings):
    augmentation = training_augmentation(48, 64, colour_jitter=False, **settings)
    agreements, sizes = [], set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, label = augmentation(*pair())
        assert image.shape == (3, 48, 64) and label.shape == (48, 64)
        inside = label != LABEL_FILL
        assert torch.all(image[:, ~inside] == IMAGE_FILL)
        # Bilinear and nearest differ at the borders between labels.
        agreements.append(((image[0].int() - label.int()).abs() <= 12)[inside].float().mean())
        sizes.add(int(inside.sum()))
    assert min(agreements) > 0.85
    assert len(sizes) > 1


def test_same_seed_same_sample():
    augmentation = training_augmentation(48, 64)

    def sample(seed):
        torch.manual_seed(seed)
        return augmentation(*pair())

    first, again, other = sample(3), sample(3), sample(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_crop_reaches_every_corner_and_never_leaves_the_image():
    label = torch.arange(12).reshape(3, 4).to(torch.uint8)
    tops = {int(RandomCrop(2, 2)(tv_tensors.Mask(label))[0, 0]) for _ in range(200)}
    assert tops == {0, 1, 2, 4, 5, 6}
    assert RandomCrop(9, 2)(tv_tensors.Mask(label)).shape == (3, 2)


def test_padding_is_at_the_right_and_bottom():
    image, label = PadTo(5, 6)(
        tv_tensors.Image(torch.zeros(3, 3, 4, dtype=torch.uint8)), tv_tensors.Mask(torch.zeros(3, 4))
    )
    assert image.shape == (3, 5, 6) and image[:, :3, :4].sum() == 0 and (image[:, 3:] == IMAGE_FILL).all()
    assert label[:3, :4].sum() == 0 and (label[:, 4:] == LABEL_FILL).all()


def test_saturation_is_that_of_hsv():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    found = scale_saturation(image, 1.4)
    for row in range(4):
        for column in range(4):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
            expected = colorsys.hsv_to_rgb(hue, min(1.0, 1.4 * saturation), value)
            assert (found[:, row, column] / 255).tolist() == pytest.approx(expected, abs=0.003)
    assert torch.equal(scale_saturation(image, 1.0), image)


def test_colour_changes_the_image_only():
    image, label = pair()
    changed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        coloured, same = RandomColour()(image, label)
        assert torch.equal(same, label) and coloured.dtype == torch.uint8
        changed += not torch.equal(coloured, image)
    assert 3 <= changed <= 8
