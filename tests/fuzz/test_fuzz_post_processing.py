"""Post-processing: refused, or maps of the size asked for, of classes that there are, equal to a plain computation."""

import math
from types import SimpleNamespace

import torch
from hostile import anything, tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import answered
from torch.nn import functional as F

from image_processing import FASegImageProcessor


SIDES = st.sampled_from([1, 2, 5, 8, 16])
TARGETS = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([(0, 4), (-1, 5), (30.5, 40), (4,), (1, 2, 3), "ab", None, (math.nan, 3), (64.0, 48.0), ("3", 4)]),
)


def logits_of(batch, queries, classes, size, scale, seed, damage):
    """Class and mask logits of a model that makes some sense, or that has lost something."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = scale * torch.randn(batch, queries, classes + 1, generator=generator)
    mask_logits = scale * torch.randn(batch, queries, *size, generator=generator)
    if damage == "queries":
        mask_logits = torch.cat([mask_logits, mask_logits[:, :1]], dim=1)
    elif damage == "batch":
        mask_logits = torch.cat([mask_logits, mask_logits])
    elif damage == "nan":
        mask_logits[0, 0, 0, 0] = math.nan
    elif damage == "flat":
        class_logits = class_logits[0]
    elif damage == "half":
        class_logits, mask_logits = class_logits.half(), mask_logits.half()
    return class_logits, mask_logits


DAMAGE = [None] * 6 + ["queries", "batch", "nan", "flat", "half"]
TASKS = ["semantic", "instance", "panoptic"]


def plain_labels(class_logits, mask_logits, input_size, target):
    """Label map of one image by the reference's rule, all at once and in float64."""
    classes, masks = class_logits.double().softmax(-1)[:, :-1], mask_logits.double()[None]

    def resized(maps, size):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    masks = resized(masks, (4 * masks.shape[-2], 4 * masks.shape[-1]))[..., : input_size[0], : input_size[1]]
    scores = torch.einsum("qk,qhw->khw", classes, masks[0].sigmoid())
    scores = resized(scores[None], target)[0]
    best = scores.topk(min(2, len(scores)), dim=0).values
    certain = best[0] - best[-1] > 1e-4 if len(scores) > 1 else torch.ones_like(best[0], dtype=torch.bool)
    return scores.argmax(0), certain


@tried(150)
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 5), st.tuples(SIDES, SIDES),
    st.sampled_from([1.0, 8.0, 80.0]),
    st.integers(0, 99), st.sampled_from(DAMAGE), st.one_of(st.none(), st.lists(TARGETS, max_size=4)),
    st.sampled_from(TASKS),
)  # fmt: skip
def test_maps_are_right_or_refused(batch, queries, classes, size, scale, seed, damage, targets, task):
    targets = targets if targets is None else (targets * batch)[: max(batch, len(targets))]
    class_logits, mask_logits = logits_of(batch, queries, classes, size, scale, seed, damage)
    outputs = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, logits=None)
    processor = FASegImageProcessor(task=task)
    canvas = (4 * size[0], 4 * size[1])
    inputs = [canvas] * len(class_logits)
    method = getattr(processor, f"post_process_{task}_segmentation")
    more = {} if task == "semantic" else {"threshold": 0.2}
    found, refusal = answered(lambda: method(outputs, target_sizes=targets, input_sizes=inputs, **more))
    assert refusal or damage not in ("queries", "batch", "flat")
    if refusal:
        return
    assert len(found) == len(class_logits)
    sizes = [canvas] * len(found) if targets is None else targets
    for index, (answer, wanted) in enumerate(zip(found, sizes, strict=True)):
        labels = answer if task == "semantic" else answer["segmentation"]
        assert tuple(labels.shape) == tuple(wanted)
        if task == "semantic":
            target = tuple(map(int, wanted))
            plain, certain = plain_labels(class_logits[index], mask_logits[index], canvas, target)
            if damage is None:
                assert labels[certain].equal(plain[certain])
            continue
        segments = answer["segments_info"]
        first = 1 if task == "panoptic" else 0
        assert [segment["id"] for segment in segments] == list(range(first, first + len(segments)))
        assert set(labels.unique().tolist()) - {first - 1} <= {segment["id"] for segment in segments}
        assert all(0 <= segment["label_id"] < class_logits.shape[-1] - 1 for segment in segments)
        assert all(0.2 <= segment["score"] <= 1.000001 for segment in segments)


@tried(80)
@given(st.dictionaries(st.sampled_from(["threshold", "mask_threshold", "overlap_mask_area_threshold", "max_detections",
                                        "target_sizes", "input_sizes", "label_ids_to_fuse"]), anything, max_size=2),
       st.sampled_from(["instance", "panoptic"]))  # fmt: skip
def test_settings_of_a_call_are_refused_or_taken(settings, task):
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        class_queries_logits=torch.randn(1, 9, 4, generator=generator),
        masks_queries_logits=torch.randn(1, 9, 8, 8, generator=generator),
    )
    settings.pop("max_detections" if task == "panoptic" else "label_ids_to_fuse", None)
    method = getattr(FASegImageProcessor(task=task), f"post_process_{task}_segmentation")
    found, refusal = answered(lambda: method(outputs, **settings))
    assert refusal or len(found) == 1
