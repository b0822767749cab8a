"""Augmentation: joint over image and map, reproducible, the reference's numbers."""

import colorsys
import json

import pytest
import torch
from torchvision import tv_tensors

from scripts.cli.errors import UserError
from scripts.data.augmentation import (
    IMAGE_FILL,
    LABEL_FILL,
    PadTo,
    RandomBlur,
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


# ------------------------------------------------------------------------------------ what the reference has not


def two_classes(height=64, width=64):
    """A map of class 0 with a square of class 1 at the bottom and a line of class 2 above it, a tenth ignored."""
    label = torch.zeros(height, width, dtype=torch.uint8)
    label[-8:, -8:] = 1
    label[-10, -8:] = 2
    label[:, :6] = LABEL_FILL
    return tv_tensors.Image(label.repeat(3, 1, 1)), tv_tensors.Mask(label)


def share_of(identity, crops=60, **settings):
    """Share of the pixels of random crops that have this id."""
    torch.manual_seed(0)
    found = [RandomCrop(16, 16, **settings)(*two_classes())[1] for _ in range(crops)]
    assert all(crop.shape == (16, 16) for crop in found)
    return float(torch.stack(found).eq(identity).float().mean())


def test_crops_around_rare_classes_hold_more_of_them():
    plain = share_of(1), share_of(2)
    uniform = share_of(1, rare_class_share=1.0), share_of(2, rare_class_share=1.0)
    assert uniform[0] > 4 * plain[0] and uniform[1] > 4 * plain[1]
    half = share_of(1, rare_class_share=0.5)
    assert plain[0] < half < uniform[0]
    by_share = share_of(1, rare_class_share=1.0, id_shares=[0.97, 0.02, 0.01])
    assert by_share > uniform[0]
    # The rarer of two classes is drawn more often: nearly always, where it has 1 in 1000 of the other's pixels.
    torch.manual_seed(0)
    crop = RandomCrop(1, 1, rare_class_share=1.0, id_shares=[0.5, 0.5, 0.0005])
    drawn = [int(crop(*two_classes())[1]) for _ in range(50)]
    assert drawn.count(2) > 40 and LABEL_FILL not in drawn


def test_a_rare_pixel_is_in_the_middle_of_its_crop():
    label = torch.zeros(40, 50, dtype=torch.uint8)
    label[20, 30] = 1
    crop = RandomCrop(8, 10, rare_class_share=1.0, id_shares=[1 - 1e-9, 1e-9])
    torch.manual_seed(0)
    found = [crop(tv_tensors.Image(label.repeat(3, 1, 1)), tv_tensors.Mask(label))[1] for _ in range(20)]
    assert sum(int(each[4, 5]) for each in found) >= 19
    nothing = torch.full((40, 50), LABEL_FILL, dtype=torch.uint8)
    assert crop(tv_tensors.Image(nothing.repeat(3, 1, 1)), tv_tensors.Mask(nothing))[1].shape == (8, 10)


def test_turned_corners_are_grey_and_ignored_and_ids_stay_ids():
    augmentation = training_augmentation(
        60, 90, scale_range=(1, 1), colour_jitter=False, horizontal_flip=0.0, rotation=45, unlabelled=(0, LABEL_FILL)
    )
    torch.manual_seed(1)
    image, label = augmentation(*pair())
    assert label[0, 0] == LABEL_FILL and (image[:, 0, 0] == IMAGE_FILL).all()
    assert 0.02 < (label == LABEL_FILL).float().mean() < 0.6
    assert set(label.unique().tolist()) <= {*pair()[1].unique().tolist(), LABEL_FILL}
    inside = label != LABEL_FILL
    assert ((image[0].int() - label.int()).abs() <= 12)[inside].float().mean() > 0.8


def test_flips_have_the_probability_asked_for():
    def made(**settings):
        settings = {"scale_range": (1, 1), "colour_jitter": False, **settings}
        return training_augmentation(60, 90, **settings)(*pair())

    image, label = pair()
    for flips, dims in (({"vertical_flip": 1.0}, [-2]), ({"horizontal_flip": 1.0}, [-1]), ({}, [])):
        found = made(**{"horizontal_flip": 0.0, **flips})
        assert torch.equal(found[0], image.flip(dims)) and torch.equal(found[1], label.flip(dims))


def test_blur_changes_the_image_alone_as_often_as_asked():
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    label = pair()[1]
    for p, expected in ((1.0, range(20, 25)), (0.5, range(6, 19)), (0.0, range(1))):
        settings = {"scale_range": (1, 1), "colour_jitter": False, "horizontal_flip": 0.0, "blur": p}
        found = [training_augmentation(60, 90, **settings)(tv_tensors.Image(image), label) for _ in range(24)]
        # A sigma of a tenth of a pixel changes nothing.
        blurred = [each for each, _ in found if each.float().std() < 0.98 * image.float().std()]
        assert len(blurred) in expected and all(torch.equal(each, label) for _, each in found)
    small = tv_tensors.Image(torch.zeros(3, 2, 3, dtype=torch.uint8))
    assert RandomBlur(1.0)(small).shape == (3, 2, 3)


def test_own_transforms_see_the_crop_and_are_checked():
    seen = []

    def own(image, label):
        seen.append(tuple(image.shape))
        return 255 - image, label

    augmentation = training_augmentation(32, 48, scale_range=(1, 1), colour_jitter=False, extra=own)
    image, label = augmentation(*pair())
    assert seen == [(3, 32, 48)] and isinstance(label, tv_tensors.Mask)
    assert torch.equal(255 - image[0], label)
    for wrong, message in (
        (lambda image, label: (image / 255, label), "an image of torch.float32"),
        (lambda image, label: (image, label[1:]), "a label map of torch.uint8 and shape \\(31, 48\\)"),
        (lambda image, label: (image.repeat(1, 2, 1), label.repeat(2, 1)), "64x48, more than the crop of 32x48"),
    ):
        with pytest.raises(UserError, match=message):
            training_augmentation(32, 48, scale_range=(1, 1), extra=wrong)(*pair())
