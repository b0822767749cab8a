"""Image processors: both backends refuse alike, or give what the network needs, and the classes that the map has."""

import math

import numpy as np
import torch
from hostile import anything, tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import answered
from PIL import Image

from image_processing import FASegImageProcessor, FASegImageProcessorPil


BACKENDS = (FASegImageProcessor, FASegImageProcessorPil)
SIZES = st.sampled_from(
    [
        {"shortest_edge": 32, "longest_edge": 64}, {"shortest_edge": 1, "longest_edge": 1},
        {"height": 32, "width": 48},
        {"shortest_edge": 0, "longest_edge": 64}, {"shortest_edge": -3, "longest_edge": 64}, {"longest_edge": 40},
        {"shortest_edge": 10**9}, {"height": 0, "width": 0}, {"height": 32}, {"shortest_edge": 30.5}, {}, 48, -3,
        {"max_height": 40, "max_width": 50}, {"shortest_edge": math.nan},
    ]
)  # fmt: skip
SETTINGS = {
    "size": SIZES,
    "pad_size": st.sampled_from([None, {"height": 64, "width": 96}, {"height": 5, "width": 5}, {"height": -32}, 64]),
    "size_divisor": st.sampled_from([0, 1, 16, 32, -32, 1.5, None, "32"]),
    "ignore_index": st.sampled_from([255, 0, None, -1, 2, 300, "255", 1.5]),
    "num_labels": st.sampled_from([None, 1, 3, 255, 256, 300, 0, -1, "3"]),
    "do_reduce_labels": st.booleans(),
    "do_resize": st.booleans(),
    "do_rescale": st.booleans(),
    "do_normalize": st.booleans(),
    "do_pad": st.booleans(),
    "do_convert_rgb": st.booleans(),
    "rescale_factor": st.sampled_from([1 / 255, 0.0, 1.0, math.inf, math.nan, -1.0, "x"]),
    "image_mean": st.sampled_from([[0.5] * 3, 0.5, [0.5], [], [math.nan] * 3, None, [0.5] * 4]),
    "image_std": st.sampled_from([[0.5] * 3, 0.5, 0.0, [0.0] * 3, [], [math.inf] * 3, None]),
    "task": st.sampled_from(["semantic", "instance", "panoptic", "depth", None]),
    "resample": st.sampled_from([0, 2, 3, 99, None, "bilinear", "nearest", "nearest-exact"]),
    "label_ids_to_fuse": st.sampled_from([None, [0], [], [-1], 3]),
    "reduce_labels": st.just(True),
    "ignore_value": st.just(0),
}


@st.composite
def settings_of_a_processor(draw):
    names = draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=3, unique=True))
    return {name: draw(st.one_of(SETTINGS[name], SETTINGS[name], anything)) for name in names}


def image_of(kind, size, seed):
    """An image of some kind of `(height, width)`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return {
        "array": lambda: pixels,
        "float": lambda: pixels.astype(np.float32),
        "unit": lambda: pixels / 255.0,
        "normalised": lambda: (pixels / 255 - 0.45) / 0.225,
        "nan": lambda: np.where(pixels > 128, np.nan, pixels),
        "inf": lambda: np.where(pixels > 128, np.inf, pixels),
        "wide": lambda: pixels.astype(np.int32) * 300,
        "grey": lambda: pixels[..., 0],
        "four": lambda: np.concatenate([pixels, pixels[..., :1]], axis=-1),
        "PIL": lambda: Image.fromarray(pixels),
        "L": lambda: Image.fromarray(pixels).convert("L"),
        "P": lambda: Image.fromarray(pixels).convert("P"),
        "RGBA": lambda: Image.fromarray(pixels).convert("RGBA"),
        "I;16": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 200),
        "first": lambda: pixels.transpose(2, 0, 1),
        "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
        "half": lambda: torch.from_numpy(pixels).permute(2, 0, 1).half(),
        "bool": lambda: pixels > 128,
        "empty": lambda: pixels[:0],
        "path": lambda: "no such file.png",
        "none": lambda: None,
        "complex": lambda: pixels.astype(np.complex64),
        "object": lambda: np.full((4, 4), None),
        "list": lambda: [],
    }[kind]()


def map_of(kind, values, size, seed):
    """A label map of some kind that holds some of `values`."""
    ids = np.random.default_rng(seed).choice(values, size)
    return {
        "uint8": lambda: ids.astype(np.uint16 if ids.max() > 255 else np.uint8),
        "int32": lambda: ids.astype(np.int32),
        "float": lambda: ids.astype(np.float64),
        "halves": lambda: ids + 0.5,
        "PIL": lambda: Image.fromarray(ids.astype(np.int32)),
        "negative": lambda: ids.astype(np.int64) - 300,
        "turned": lambda: ids.astype(np.int32).T,
        "colours": lambda: np.dstack([ids.astype(np.int32)] * 3),
        "none": lambda: None,
    }[kind]()


IMAGES = ["array", "float", "unit", "normalised", "nan", "inf", "wide", "grey", "four", "PIL", "L", "P", "RGBA",
          "I;16",
          "first", "tensor", "half", "bool", "empty", "path", "none", "complex", "object", "list"]  # fmt: skip
MAPS = ["uint8", "int32", "float", "halves", "PIL", "negative", "turned", "colours", "none"]
VALUES = [[0], [0, 1, 2], [1, 2, 3], [0, 255], [255], [0, 299], [0, 65535]]
IMAGE_SIZES = [(40, 56), (1, 1), (33, 7), (3, 3), (4, 64), (64, 4), (1, 90)]


@tried(150)
@given(
    settings_of_a_processor(), st.sampled_from(IMAGES), st.sampled_from(MAPS), st.sampled_from(VALUES),
    st.sampled_from(IMAGE_SIZES), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_backends_refuse_alike_or_agree(settings, image_kind, map_kind, values, size, at_call, seed):
    image, label_map = image_of(image_kind, size, seed), map_of(map_kind, values, size, seed)
    found = []
    for backend in BACKENDS:

        def processed(backend=backend):
            made = backend(**({} if at_call else settings))
            return made(image, label_map, return_tensors="pt", **(settings if at_call else {}))

        found.append(answered(processed))
    (first, refusal), (second, other_refusal) = found
    assert (refusal is None) == (other_refusal is None), (refusal, other_refusal)
    if refusal is not None:
        return
    values = first["pixel_values"]
    assert values.dtype == second["pixel_values"].dtype == torch.float32
    assert values.isfinite().all() and second["pixel_values"].isfinite().all()
    assert values.shape == second["pixel_values"].shape and values.shape[-2:] == first["pixel_mask"].shape[-2:]
    assert first["pixel_mask"].equal(second["pixel_mask"])
    assert first["pixel_mask"].sum() == math.prod(map(int, first["input_sizes"][0]))
    scale = max(1.0, float(values.abs().max()))
    assert (values - second["pixel_values"]).abs().max() < 0.1 * scale
    if label_map is None:
        return
    ignored, reduced = settings.get("ignore_index", 255), settings.get("do_reduce_labels", False)
    here = {int(value) for value in np.unique(np.asarray(label_map))}
    expected = {value - 1 for value in here if value not in (0, ignored)} if reduced else here - {ignored}
    got = set(first["class_labels"][0].tolist())
    assert got == set(second["class_labels"][0].tolist())
    resized = settings.get("do_resize", True)
    assert got <= expected if resized else got == expected
    masks = first["mask_labels"][0]
    assert masks.shape[0] == len(got) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert masks.sum(0).max(initial=0) <= 1 if isinstance(masks, np.ndarray) else (masks.sum(0) <= 1).all()
