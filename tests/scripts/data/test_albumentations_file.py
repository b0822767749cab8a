"""Transforms of albumentations, where it is installed: reproducible, and refused where they would spoil label maps."""

import importlib.util
import pickle

import pytest
import torch
from torchvision import tv_tensors

from scripts.cli.errors import UserError
from scripts.data.albumentations_file import AlbumentationsFile
from scripts.data.augmentation import training_augmentation


def pair(dtype=torch.uint8):
    """An image of noise and a map of classes 1..6, so that a 0 in the map comes from elsewhere."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8, generator=generator)
    return tv_tensors.Image(image), tv_tensors.Mask(torch.randint(1, 7, (80, 90), generator=generator).to(dtype))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Writes transforms into a file; skips where there is no albumentations."""
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    library = pytest.importorskip("albumentations", minversion="2.0")

    def write(*transforms, name="transforms.json", **settings):
        made = [getattr(library, kind)(**values) for kind, values in transforms]
        data_format = "yaml" if name.endswith("yaml") else "json"
        library.save(library.Compose(made, **settings), tmp_path / name, data_format=data_format)
        return str(tmp_path / name)

    return write


def test_a_package_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"x\.json: not installed: pip install albumentations"):
        AlbumentationsFile("x.json")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("name", ["transforms.json", "transforms.yaml"])
def test_numbers_come_from_torchs_generator_alone(saved, dtype, name):
    file = saved(
        ("Rotate", {"limit": 30, "p": 1, "fill_mask": 255}), ("RandomBrightnessContrast", {"p": 0.7}),
        ("CoarseDropout", {"p": 0.5}), name=name, seed=3,
    )  # fmt: skip
    first = training_augmentation(64, 64, extra=AlbumentationsFile(file))
    other = training_augmentation(64, 64, extra=pickle.loads(pickle.dumps(AlbumentationsFile(file))))

    def sample(augmentation, seed):
        torch.manual_seed(seed)
        return augmentation(*pair(dtype))

    expected = [sample(first, seed) for seed in range(4)]
    for seed in (2, 0, 3, 1):
        found = sample(other, seed)
        assert all(torch.equal(a, b) for a, b in zip(found, expected[seed], strict=True))
    assert not torch.equal(expected[0][0], expected[1][0])
    ids = torch.cat([label.flatten() for _, label in expected]).unique()
    assert ids.tolist() == [1, 2, 3, 4, 5, 6, 255] and expected[0][1].dtype == dtype


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Rotate", {}, r"Rotate fills label maps with 0(\.0)?, which is a class: set its fill_mask to 255"),
        ("PixelDropout", {"mask_drop_value": 3}, "fills label maps with 3.*set its mask_drop_value to 255"),
        ("Affine", {"fill_mask": 255, "mask_interpolation": 1}, "mixes ids of label maps: set its mask_interpolation"),
    ],
)
def test_transforms_that_would_spoil_label_maps_are_refused(saved, kind, settings, message):
    with pytest.raises(UserError, match=message):
        AlbumentationsFile(saved((kind, settings)))


def test_fills_that_write_no_class_pass(saved):
    for kind, settings in (
        ("Rotate", {"fill_mask": 255}),
        ("Rotate", {"border_mode": 4}),
        ("RandomCrop", {"height": 8, "width": 8}),
        ("CoarseDropout", {}),
    ):
        AlbumentationsFile(saved((kind, settings)))
    AlbumentationsFile(saved(("Rotate", {})), unlabelled=(0, 255))  # --do_reduce_labels: 0 is no class


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Normalize", {}, "made an image of torch.float32"),
        ("LongestMaxSize", {"max_size": 300}, "more than the crop of 64x64"),
        ("RandomCrop", {"height": 500, "width": 500}, "CropSizeError"),
    ],
)
def test_results_that_cannot_be_trained_on_are_refused(saved, kind, settings, message):
    extra = AlbumentationsFile(saved((kind, settings | {"p": 1})))
    with pytest.raises(UserError, match=f"--albumentations .*{message}"):
        training_augmentation(64, 64, extra=extra)(*pair())


def test_files_that_hold_something_else(saved, tmp_path):
    saved()
    file = tmp_path / "other.json"
    for text, message in (
        ("[1]", "it holds no transforms"),
        ('{"transform": {"__class_fullname__": "os.system", "p": 1}}', "cannot read it: KeyError: 'os.system'"),
        ('{"transform": {"__class_fullname__": "HorizontalFlip", "p": 1}}', "it holds no A.Compose"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            AlbumentationsFile(str(file))
    with pytest.raises(UserError, match="no such file"):
        AlbumentationsFile(str(tmp_path / "none.json"))
