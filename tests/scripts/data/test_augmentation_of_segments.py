"""Augmentation of segments: each mask goes the way it would go alone, also where segments overlap."""

import pytest
import torch
from torchvision import tv_tensors

from scripts.cli.errors import UserError
from scripts.data.augmentation import IMAGE_FILL, LargeScaleJitter, training_augmentation
from scripts.data.segments import Segments, segments_of_masks


def overlapping(height=60, width=90):
    """An image and four segments of it, of which the second lies over the first and the fourth over both."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = [
        (row - 20) ** 2 + (column - 30) ** 2 < 300,
        (row - 30) ** 2 + (column - 40) ** 2 < 200,
        (row > 45) & (column > 60),
        (row > 10) & (row < 40) & (column > 20) & (column < 50),
    ]
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    found = segments_of_masks([mask.numpy() for mask in masks], [0, 1, 0, 2], [False] * 4, (height, width))
    assert len(found.layers) == 3
    return tv_tensors.Image(image), found


@pytest.mark.parametrize(
    "settings",
    [
        {"large_scale_jitter": [0.1, 2.0]},
        {"scale_range": [0.5, 2.0], "rotation": 40, "vertical_flip": 0.5},
        {"shortest_edges": [30, 90], "blur": 0.5},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_each_mask_goes_the_way_it_goes_alone(settings):
    image, segments = overlapping()
    augmentation = training_augmentation(48, 64, unlabelled=(0,), **settings)
    sizes = set()
    for seed in range(8):
        torch.manual_seed(seed)
        whole, layers = augmentation(image, tv_tensors.Mask(segments.layers))
        cut = Segments(layers.as_subclass(torch.Tensor), segments.classes, segments.crowd)
        assert layers.dtype == torch.int32 and layers.shape == (3, 48, 64)
        for mask, expected in zip(cut.masks(), segments.masks(), strict=True):
            torch.manual_seed(seed)
            same, alone = augmentation(image, tv_tensors.Mask(expected.to(torch.uint8)))
            assert same.equal(whole) and mask.equal(alone.as_subclass(torch.Tensor).bool())
        sizes.add(int(cut.areas().sum()))
    assert len(sizes) > 1


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (10, 10), (300, 200)])
def test_large_scale_jitter_fits_the_image_into_the_crop_times_a_factor(height, width):
    """From a tenth to twice the size at which the longer side, relative to the crop's, just fits."""
    jitter, image = LargeScaleJitter(128, 160, 0.1, 2.0), torch.zeros(3, height, width)
    factors = []
    for seed in range(200):
        torch.manual_seed(seed)
        rows, columns = jitter.make_params([image])["size"]
        assert abs(rows / columns - height / width) < 0.6 * (1 / columns + rows / columns**2)  # by rounding alone
        factors.append(max(rows / 128, columns / 160))
    assert 0.09 < min(factors) < 0.2 and 1.9 < max(factors) < 2.01
    assert abs(sum(factors) / len(factors) - 1.05) < 0.1  # uniform, not of its logarithm


def test_what_the_image_leaves_of_the_crop_is_grey_and_no_segment():
    image, segments = overlapping()
    augmentation = training_augmentation(
        128, 128, unlabelled=(0,), colour_jitter=False, horizontal_flip=0, large_scale_jitter=[0.5, 0.5]
    )
    whole, layers = augmentation(image, tv_tensors.Mask(segments.layers))
    assert whole.shape == (3, 128, 128)
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[:43, :64] = False  # 60 x 90, so that the longer side has half of the crop
    assert (whole[:, outside] == IMAGE_FILL).all() and not layers[:, outside].any() and layers[:, ~outside].any()


def test_a_function_of_ones_own_gets_the_layers_and_may_not_drop_one():
    image, segments = overlapping()
    seen = []

    def turned(pixels, masks):
        seen.append(masks.shape)
        return pixels.flip(-1), masks.flip(-1)

    augmentation = training_augmentation(48, 64, unlabelled=(0,), extra=turned)
    _, layers = augmentation(image, tv_tensors.Mask(segments.layers))
    assert layers.shape == (3, 48, 64) and seen[0][0] == 3
    augmentation = training_augmentation(48, 64, unlabelled=(0,), extra=lambda pixels, masks: (pixels, masks[0]))
    with pytest.raises(UserError, match=r"it made a label map of torch\.int32 and shape"):
        augmentation(image, tv_tensors.Mask(segments.layers))


def test_transforms_of_albumentations_take_each_layer_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    library = pytest.importorskip("albumentations", minversion="2.0")
    from scripts.data.albumentations_file import AlbumentationsFile

    library.save(library.Compose([library.Rotate(40, p=1, fill_mask=0)]), tmp_path / "turned.json")
    extra = AlbumentationsFile(str(tmp_path / "turned.json"), (0,))
    image, segments = overlapping()
    torch.manual_seed(1)
    _, layers = extra(image, tv_tensors.Mask(segments.layers))
    assert layers.dtype == torch.int32 and layers.shape == segments.layers.shape
    assert not layers.equal(segments.layers)
    for layer, before in zip(layers, segments.layers, strict=True):
        torch.manual_seed(1)
        _, alone = extra(image, tv_tensors.Mask(before))
        assert alone.as_subclass(torch.Tensor).equal(layer.as_subclass(torch.Tensor))
