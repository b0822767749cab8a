"""Run-length encodings: by hand, and COCO's beside pycocotools'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_processing.run_lengths import coco_run_lengths, compressed, run_lengths


def boxed(mask):
    """A mask as the arguments of `coco_run_lengths`, in its bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return mask[:0, :0], 0, 0, mask.shape
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0]), mask.shape


@st.composite
def masks(draw):
    """Empty, full, noise, and runs that go on over columns."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    return generator.random((height, width)) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))


def test_transformers_form_counts_from_one():
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]], dtype=bool)) == [2, 3, 6, 1]
    assert run_lengths(np.zeros((3, 3), dtype=bool)) == []


@pytest.mark.parametrize(
    ("mask", "counts", "text"),
    [
        ([[0, 1, 1], [1, 0, 1]], [1, 2, 1, 2], "1210"),
        ([[1, 0], [0, 0]], [0, 1, 3], "013"),
        ([[0, 0], [0, 0]], [4], "4"),
        ([[1, 1], [1, 1]], [0, 4], "04"),
    ],
)
def test_coco_form_runs_down_columns(mask, counts, text):
    """The fourth number of a text is the difference to the second."""
    found = coco_run_lengths(*boxed(np.array(mask, dtype=bool)))
    assert found == {"size": [2, len(mask[0])], "counts": counts}
    assert compressed(found) == {"size": [2, len(mask[0])], "counts": text}


@settings(max_examples=60, deadline=None)
@given(masks())
def test_counts_make_the_mask_again(mask):
    counts = coco_run_lengths(*boxed(mask))["counts"]
    assert min(counts[1:], default=1) > 0
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2, counts).reshape(mask.T.shape).T, mask)


@settings(max_examples=100, deadline=None)
@given(masks())
def test_equal_to_pycocotools(mask):
    coco = pytest.importorskip("pycocotools.mask")
    found = coco_run_lengths(*boxed(mask))
    expected = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert coco.frPyObjects(found, *mask.shape) == expected
    assert compressed(found) == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert coco.area(compressed(found)) == mask.sum()
    assert np.array_equal(coco.decode(compressed(found)), mask)


def test_long_runs_are_equal_to_pycocotools():
    """Of images of many pixels, numbers take several characters; differences of both signs."""
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((1500, 2000), dtype=bool)
    mask[3:1400, 7:1900:3], mask[700, 5], mask[:, 50] = True, True, True
    expected = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert compressed(coco_run_lengths(*boxed(mask)))["counts"] == expected["counts"].decode()
