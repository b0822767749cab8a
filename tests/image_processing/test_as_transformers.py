"""Instances and panoptic segments beside transformers' `Mask2FormerImageProcessor`: equal where masks of 384 x 384
make the rules equal, and each difference that remains, with both results."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Mask2FormerImageProcessor

from image_processing import FASegImageProcessor


SIDE = 384  # to which transformers resizes all masks; four times that of the logits


def random_output(seed, queries=20, classes=6, confidence=5.0, shift=3):
    """Blobs of two images; the last query is a weak mask that covers each image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 9 * torch.randn(2, queries, 7, 7, generator=generator) - shift
    masks = torch.nn.functional.interpolate(coarse, (SIDE // 4, SIDE // 4), mode="bicubic")
    masks[:, -1] = 0.5
    class_logits = torch.randn(2, queries, classes + 1, generator=generator)
    return SimpleNamespace(class_queries_logits=confidence * class_logits, masks_queries_logits=masks)


def both(model_output, method, **settings):
    """Results of ours and of transformers' method of this name."""
    ours = FASegImageProcessor(task=method, size={"height": SIDE, "width": SIDE})
    name = f"post_process_{method}_segmentation"
    given = {key: value for key, value in settings.items() if key != "max_detections"}
    expected = getattr(Mask2FormerImageProcessor(), name)(model_output, **given)
    return getattr(ours, name)(model_output, **settings), expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target_size", [None, (SIDE, SIDE)])
def test_instances_are_the_same_set(seed, target_size):
    """Classes, scores and masks, bit by bit; scores to the float noise of sums over 147,456 pixels."""
    sizes = None if target_size is None else [target_size] * 2
    found, expected = both(
        random_output(seed, queries=20),
        "instance",
        threshold=0.3,
        target_sizes=sizes,
        return_binary_maps=True,
        max_detections=20,
    )
    for image, theirs in zip(found, expected, strict=True):
        scores = [segment["score"] for segment in theirs["segments_info"]]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        assert len(order) > 3
        assert [s["label_id"] for s in image["segments_info"]] == [
            theirs["segments_info"][index]["label_id"] for index in order
        ]
        assert [s["score"] for s in image["segments_info"]] == pytest.approx(sorted(scores, reverse=True), abs=2e-6)
        assert torch.equal(image["segmentation"], theirs["segmentation"][order].bool())
        assert not any(s["was_fused"] for s in [*image["segments_info"], *theirs["segments_info"]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fused", [[], [1, 4]])
def test_panoptic_maps_are_the_same(seed, fused):
    """Map, ids and segments of sure queries, whose masks count in full and cover the image; at most one segment of
    each fused class."""
    model_output = random_output(seed, shift=13)
    classes = torch.arange(20) % 7
    classes[classes == 4] = 3
    classes[(classes == 1) & (torch.arange(20) != 1)] = 2
    classes[-1] = 4
    model_output.class_queries_logits = 60.0 * torch.nn.functional.one_hot(classes, 7).float().expand(2, -1, -1)
    found, expected = both(
        model_output, "panoptic", overlap_mask_area_threshold=0.3, label_ids_to_fuse=set(fused), threshold=0.8
    )
    for image, theirs in zip(found, expected, strict=True):
        assert len(image["segments_info"]) > 3 and len({s["label_id"] for s in image["segments_info"]}) > 2
        assert image["segments_info"] == theirs["segments_info"]
        assert torch.equal(image["segmentation"], theirs["segmentation"])
        assert image["segmentation"].dtype == theirs["segmentation"].dtype == torch.int32


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_maps_of_any_scores_are_the_same_without_thresholds(seed):
    """Where every pixel counts for the areas, of queries as sure as they may be."""
    settings = {"mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0, "threshold": 0.2}
    found, expected = both(random_output(seed, confidence=1.0), "panoptic", label_ids_to_fuse=set(), **settings)
    for image, theirs in zip(found, expected, strict=True):
        assert len(image["segments_info"]) > 3
        assert image["segments_info"] == theirs["segments_info"]
        assert torch.equal(image["segmentation"], theirs["segmentation"])


# ---- what differs ----


def columns_output(*queries):
    """Queries `(class of 0..2, probability, first column, last column + 1, logit inside)` on an image of four columns
    of 24 logits each; outside of their columns logits are -30."""
    masks = torch.full((1, len(queries), 96, 96), -30.0)
    probs = torch.full((1, len(queries), 4), 1e-9)
    for index, (label, probability, first, last, inside) in enumerate(queries):
        masks[0, index, :, 24 * first : 24 * last] = inside
        probs[0, index, label], probs[0, index, 3] = probability, 1 - probability + 1e-9
    return SimpleNamespace(class_queries_logits=probs.log(), masks_queries_logits=masks)


def columns(segmentation):
    """The values in the middle of the four columns."""
    return segmentation[SIDE // 2, SIDE // 8 :: SIDE // 4].tolist()


def test_pixels_that_a_mask_wins_without_holding_them_are_void():
    found, expected = both(columns_output((0, 1.0, 0, 2, 9.0)), "panoptic", overlap_mask_area_threshold=0.4)
    assert columns(found[0]["segmentation"]) == [1, 1, 0, 0]
    assert columns(expected[0]["segmentation"]) == [1, 1, 1, 1]


def test_areas_are_those_of_masks_whatever_the_class_scores():
    """A query of 0.6 whose mask has 0.7: transformers' area of it is empty, for 0.42 is below 0.5."""
    found, expected = both(columns_output((0, 0.6, 0, 4, 0.85)), "panoptic", threshold=0.5)
    assert columns(found[0]["segmentation"]) == [1, 1, 1, 1] and found[0]["segments_info"][0]["label_id"] == 0
    assert expected[0]["segments_info"] == [] and not expected[0]["segmentation"].any()


def test_a_share_of_the_threshold_itself_is_enough():
    """The first query wins half of its mask."""
    queries = columns_output((0, 0.9, 0, 4, 9.0), (1, 1.0, 0, 2, 30.0))
    found, expected = both(queries, "panoptic", overlap_mask_area_threshold=0.5)
    assert [s["label_id"] for s in found[0]["segments_info"]] == [0, 1]
    assert 2 * (found[0]["segmentation"] == 1).sum() == SIDE * SIDE
    assert [s["label_id"] for s in expected[0]["segments_info"]] == [1]


def test_a_fused_segment_is_listed_once_and_ids_are_unique():
    queries = columns_output((0, 1.0, 0, 1, 9.0), (1, 1.0, 1, 2, 9.0), (0, 1.0, 2, 3, 9.0), (2, 1.0, 3, 4, 9.0))
    found, expected = both(queries, "panoptic", label_ids_to_fuse={0})
    assert columns(found[0]["segmentation"]) == [1, 2, 1, 3]
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in found[0]["segments_info"]] == [
        (1, 0, True), (2, 1, False), (3, 2, False),
    ]  # fmt: skip
    assert columns(expected[0]["segmentation"]) == [1, 2, 1, 2]  # two classes with id 2
    assert [s["id"] for s in expected[0]["segments_info"]] == [1, 2, 1, 2]


def test_nothing_found_is_void_as_elsewhere():
    nothing = columns_output((0, 0.2, 0, 4, 9.0))
    found, expected = both(nothing, "panoptic")
    assert found[0]["segments_info"] == expected[0]["segments_info"] == []
    assert found[0]["segmentation"].dtype == torch.int32 and not found[0]["segmentation"].any()
    assert expected[0]["segmentation"].dtype == torch.float32 and (expected[0]["segmentation"] == -1).all()
    found, expected = both(nothing, "instance")
    assert (found[0]["segmentation"] == -1).all() and (expected[0]["segmentation"] == -1).all()
    assert found[0]["segmentation"].dtype == torch.int32 and expected[0]["segmentation"].dtype == torch.float32
    found, expected = both(nothing, "instance", return_binary_maps=True)
    assert found[0]["segmentation"].shape == (0, SIDE, SIDE) and expected[0]["segmentation"].shape == (SIDE, SIDE)
    found, expected = both(nothing, "instance", return_coco_annotation=True)
    assert found[0]["segmentation"] == [] and expected[0]["segmentation"] == [[1, SIDE * SIDE]]


def test_the_better_instance_is_on_top():
    """Of two that overlap; transformers takes the pairs in the order that `topk` happens to have."""
    queries = columns_output((0, 0.95, 0, 3, 9.0), (1, 0.9, 1, 4, 9.0))
    (found,) = FASegImageProcessor(task="instance").post_process_instance_segmentation(queries)
    assert [s["label_id"] for s in found["segments_info"]] == [0, 1]
    assert columns(found["segmentation"]) == [0, 0, 0, 1]


def test_logits_are_resized_not_probabilities():
    """A pixel of the result lies between two of 384: the first query's logits there are 56 and -1, the second's 7.5
    and 22.5."""
    queries = columns_output((0, 1.0, 0, 2, 200.0), (1, 1.0, 2, 4, 30.0))
    found, expected = both(queries, "panoptic", target_sizes=[(SIDE // 2, SIDE // 2)])
    assert found[0]["segmentation"][90, 94:99].tolist() == [1, 1, 1, 2, 2]
    assert expected[0]["segmentation"][90, 94:99].tolist() == [1, 1, 2, 2, 2]
