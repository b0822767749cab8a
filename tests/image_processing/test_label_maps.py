"""Label maps and instance maps: targets of training, and what is refused."""

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import BACKENDS, random_image
from torch.nn import functional as F

from image_processing import FASegImageProcessor, FASegImageProcessorPil
from image_processing.label_maps import resize_label_map


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 80), st.integers(1, 80))
def test_label_map_resize_is_centred(height, width, new_height, new_width):
    label_map = np.arange(height * width).reshape(height, width)
    expected = F.interpolate(
        torch.from_numpy(label_map)[None, None].double(), (new_height, new_width), mode="nearest-exact"
    )
    resized = resize_label_map(label_map, (new_height, new_width))
    # torch rounds the ratio to single precision: a centre exactly between two pixels may fall either way there.
    assert resized.shape == (new_height, new_width)
    assert (resized == expected[0, 0].long().numpy()).mean() > 0.8
    if new_height % height == 0 and new_width % width == 0:
        repeated = label_map.repeat(new_height // height, 0).repeat(new_width // width, 1)
        assert (resized == repeated).all()


LABEL_MAP = np.array([[0, 1, 1, 255], [2, 2, 0, 0], [2, 2, 0, 0], [255, 2, 0, 0]])
AS_IS = {"do_resize": False}


def targets(label_map, mapping=None, **kwargs):
    """Masks and classes from both backends, which must be equal; the image is as large as the map."""
    shape = np.asarray(label_map).shape[:2]
    image = random_image(*shape)
    results = [backend(**AS_IS, **kwargs)(image, [label_map], mapping, return_tensors="pt") for backend in BACKENDS]
    assert torch.equal(results[0].mask_labels[0], results[1].mask_labels[0])
    assert torch.equal(results[0].class_labels[0], results[1].class_labels[0])
    masks = results[0].mask_labels[0]
    assert masks.dtype == torch.float32 and results[0].class_labels[0].dtype == torch.int64
    assert not masks[:, shape[0] :].any() and not masks[:, :, shape[1] :].any()
    return masks[:, : shape[0], : shape[1]], results[0].class_labels[0].tolist()


@pytest.mark.parametrize(
    "form",
    [
        LABEL_MAP,
        LABEL_MAP.astype(np.uint8),
        LABEL_MAP.astype(np.float32),
        LABEL_MAP[None],
        LABEL_MAP[..., None],
        torch.from_numpy(LABEL_MAP),
        PIL.Image.fromarray(LABEL_MAP.astype(np.uint8)),
        PIL.Image.fromarray(LABEL_MAP.astype(np.int32)),
    ],
)
def test_semantic_map(form):
    image = random_image(4, 4)
    for backend in BACKENDS:
        for maps in (form, [form]):
            inputs = backend(**AS_IS)(image, maps, return_tensors="pt")
            assert inputs.class_labels[0].tolist() == [0, 1, 2]
            for mask, label in zip(inputs.mask_labels[0], (0, 1, 2), strict=True):
                assert np.array_equal(mask[:4, :4].numpy() == 1, LABEL_MAP == label)
                assert mask.sum() == (LABEL_MAP == label).sum()


def test_palette_map_holds_indices_not_colours(tmp_path):
    image = PIL.Image.fromarray(LABEL_MAP.astype(np.uint8)).convert("P")
    image.putpalette([7, 9, 200] * 256)
    image.save(tmp_path / "map.png")
    with PIL.Image.open(tmp_path / "map.png") as opened:
        assert opened.mode == "P"
        assert targets(opened_map := opened.copy())[1] == [0, 1, 2]
    by_path = FASegImageProcessor(**AS_IS)(random_image(4, 4), str(tmp_path / "map.png"), return_tensors="pt")
    assert by_path.class_labels[0].tolist() == [0, 1, 2]
    assert np.array_equal(np.asarray(opened_map), LABEL_MAP)


def test_reduced_labels():
    """0 is unlabelled, the others go down by one, and 255 stays unlabelled (HF makes it class 254)."""
    masks, classes = targets(LABEL_MAP, do_reduce_labels=True, num_labels=2)
    assert classes == [0, 1]
    assert np.array_equal(masks[0].numpy() == 1, LABEL_MAP == 1)
    assert np.array_equal(masks[1].numpy() == 1, LABEL_MAP == 2)


def test_ade20k_maps(shared):
    """The three official validation maps: raw 0..150, reduced they are classes 0..149."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(shared / "data/ade20k_mini/data/*.parquet"), split="train")
    processor = FASegImageProcessorPil(do_reduce_labels=True, num_labels=150)
    for row in rows:
        raw = np.asarray(row["label"])
        inputs = processor(row["image"], row["label"], return_tensors="pt")
        present = set(np.unique(raw).tolist()) - {0}
        assert set(inputs.class_labels[0].tolist()) <= {k - 1 for k in present}
        height, width = inputs.input_sizes[0].tolist()
        covered = inputs.mask_labels[0].sum() / (height * width)
        assert abs(covered - (raw != 0).mean()) < 0.01


@pytest.mark.parametrize("do_reduce_labels", [False, True])
def test_unlabelled_image_has_no_targets(do_reduce_labels):
    masks, classes = targets(np.full((4, 6), 255), do_reduce_labels=do_reduce_labels)
    assert masks.shape == (0, 4, 6) and classes == []


def test_instance_map():
    """Two instances of one class are two masks; 255 is an instance like any other where the mapping names it."""
    masks, classes = targets(LABEL_MAP, {0: 7, 1: 3, 2: 3, 255: 0}, num_labels=8)
    assert classes == [7, 3, 3, 0]
    assert np.array_equal(masks[3].numpy() == 1, LABEL_MAP == 255)
    masks, classes = targets(LABEL_MAP, {0: 7, 1: 3, 2: 3})
    assert classes == [7, 3, 3]
    masks, classes = targets(LABEL_MAP * 1000, {1000: 4, 2000: 5}, do_reduce_labels=True, ignore_index=255000)
    assert classes == [3, 4]


def test_one_mapping_per_image():
    images = [random_image(4, 4)] * 2
    maps = np.stack([LABEL_MAP, LABEL_MAP])
    mappings = [{0: 0, 1: 1, 2: 1}, {0: 2, 1: 2, 2: 0}]
    inputs = FASegImageProcessor(**AS_IS)(images, maps, mappings, return_tensors="pt")
    assert [c.tolist() for c in inputs.class_labels] == [[0, 1, 1], [2, 2, 0]]
    with pytest.raises(ValueError, match="has 1 entries for 2 images"):
        FASegImageProcessor(**AS_IS)(images, maps, mappings[:1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("label_map", "kwargs", "message"),
    [
        (np.zeros((4, 5), int), {}, r"map 0 has size \(4, 5\) but its image has \(4, 4\)"),
        (
            np.full((4, 4), 3),
            {"num_labels": 3},
            r"label 3 in segmentation map 0 but 3 classes \(0..2.*do_reduce_labels",
        ),
        (np.full((4, 4), 9), {"num_labels": 3}, r"label 9 in segmentation map 0 but 3 classes .* id2label"),
        (
            np.full((4, 4), 5),
            {"num_labels": 3, "do_reduce_labels": True},
            r"label 5 in segmentation map 0 but 3 classes \(1..3",
        ),
        (np.full((4, 4), -1), {}, "label -1 in segmentation map 0 is negative"),
        (np.full((4, 4), 0.5), {}, "map 0 holds 0.5: pass whole numbers"),
        (np.full((4, 4), np.nan), {}, "map 0 holds nan: pass whole numbers"),
        (np.zeros((4, 4, 3), np.uint8), {}, r"R \+ 256 \* G"),
        (PIL.Image.new("RGB", (4, 4)), {}, r"shape \(4, 4, 3\): pass one id per pixel"),
        (np.full((4, 4), "a"), {}, "pass integers"),
    ],
)
def test_maps_that_cannot_be_right_are_refused(backend, label_map, kwargs, message):
    with pytest.raises(ValueError, match=message):
        backend(**AS_IS, **kwargs)(random_image(4, 4), [label_map])


def test_more_classes_than_the_saved_processor_has():
    """The advice names the setting that keeps class 0; taken, it gives all classes."""
    image, label_map = random_image(4, 4), np.arange(4).repeat(4).reshape(4, 4)
    with pytest.raises(ValueError, match=r"label 3 .* 3 classes .*: set num_labels=4 .* if 0 is no class"):
        FASegImageProcessor(num_labels=3, **AS_IS)(image, label_map)
    assert targets(label_map, num_labels=4)[1] == [0, 1, 2, 3]


def test_instance_errors():
    processor = FASegImageProcessor(num_labels=3, **AS_IS)
    image = random_image(4, 4)
    with pytest.raises(ValueError, match="id 2 of segmentation map 0 is not in instance_id_to_semantic_id"):
        processor(image, LABEL_MAP, {0: 0, 1: 1})
    with pytest.raises(ValueError, match=r"label 3 in segmentation map 0 \(id 2\) but 3 classes"):
        processor(image, LABEL_MAP, {0: 0, 1: 1, 2: 3})
    with pytest.raises(ValueError, match="2 segmentation maps for 1 images"):
        processor(image, [LABEL_MAP, LABEL_MAP])


@pytest.mark.parametrize("backend", BACKENDS)
def test_result_types(backend):
    processor = backend(**AS_IS)
    own = torch.Tensor if backend is FASegImageProcessor else np.ndarray
    for return_tensors, expected in (("pt", torch.Tensor), ("np", np.ndarray), (None, own)):
        inputs = processor([random_image(4, 4)], [LABEL_MAP], return_tensors=return_tensors)
        for key in ("pixel_values", "pixel_mask", "mask_labels", "class_labels"):
            assert isinstance(inputs[key][0], expected), (key, return_tensors)
