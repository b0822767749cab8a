"""Instances and panoptic segments made mask by mask: equal to the plain steps on whole tensors, in little memory."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from host_waits import host_waits
from image_processing import FASegImageProcessor
from image_processing import segments as segments_module
from image_processing.run_lengths import run_lengths
from image_processing.segments import logit


def plain_masks(mask_logits, input_size, target_size):
    """Mask logits `(Q, *size)`, of all queries at once."""
    canvas = (4 * mask_logits.shape[1], 4 * mask_logits.shape[2])
    masks = F.interpolate(mask_logits[None], canvas, mode="bilinear")[0][:, : input_size[0], : input_size[1]]
    return masks if target_size is None else F.interpolate(masks[None], target_size, mode="bilinear")[0]


def plain_instances(model_output, input_size, target_size, threshold, mask_threshold):
    """Masks, scores and labels by the reference's steps on whole tensors."""
    probs = model_output.class_queries_logits[0].softmax(-1)[:, :-1]
    scores, pairs = probs.flatten().topk(min(100, probs.numel()))
    queries, labels = pairs // probs.shape[1], pairs % probs.shape[1]
    logits = plain_masks(model_output.masks_queries_logits[0], input_size, target_size)
    masks = logits > logit(mask_threshold)
    quality = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    scores = scores * quality[queries]
    order = scores.argsort(descending=True, stable=True)
    order = order[(scores[order] >= threshold) & masks.flatten(1).any(1)[queries[order]]]
    return masks[queries[order]], scores[order].tolist(), labels[order].tolist()


def plain_panoptic(model_output, input_size, target_size, threshold, mask_threshold, overlap, fused_labels):
    """The map, and `(label, score)` of each segment, by the reference's steps on whole tensors."""
    scores, labels = model_output.class_queries_logits[0].softmax(-1).max(-1)
    kept = (labels != model_output.class_queries_logits.shape[-1] - 1) & (scores > threshold)
    probs = plain_masks(model_output.masks_queries_logits[0], input_size, target_size)[kept].sigmoid()
    scores, labels = scores[kept], labels[kept].tolist()
    result, segments, fused = torch.zeros(probs.shape[1:], dtype=torch.int32), [], {}
    winner = (scores[:, None, None] * probs).argmax(0) if labels else result
    for query, label in enumerate(labels):
        mask, won = probs[query] >= mask_threshold, winner == query
        if not (won & mask).any() or int(won.sum()) / int(mask.sum()) < overlap:
            continue
        if label not in fused:
            segments.append((label, round(scores[query].item(), 6)))
        number = fused.get(label, len(segments))
        if label in fused_labels:
            fused[label] = number
        result[won & mask] = number
    return result, segments


def random_output(seed, queries=30, classes=4, height=24, width=32):
    """Blobs of all sizes, some of them alike, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, queries, 3, 4, generator=generator) * 12 - 4
    masks = F.interpolate(coarse, (height, width), mode="bicubic")
    masks[:, 1] = masks[:, 0]
    class_logits = torch.randn(1, queries, classes + 1, generator=generator) * 4
    class_logits[:, 1] = class_logits[:, 0]
    return SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=masks)


SIZES = [
    ((96, 128), None),
    ((90, 121), (37, 50)),
    ((90, 121), (311, 420)),
    ((33, 128), (400, 130)),
    ((96, 60), (96, 500)),
    ((1, 1), (200, 180)),
]


@pytest.mark.parametrize("mask_threshold", [0.5, 0.3, 0.0, 1.0])
@pytest.mark.parametrize(("input_size", "target_size"), SIZES)
def test_equal_to_the_plain_steps(input_size, target_size, mask_threshold, monkeypatch):
    """Bit by bit, in few blocks or many; scores to the six digits that are given."""
    monkeypatch.setitem(segments_module.BLOCK_BYTES, "cpu", 2**18)
    model_output = random_output(seed=input_size[0])
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[])
    sizes = {"input_sizes": [input_size], "target_sizes": None if target_size is None else [target_size]}
    masks, scores, labels = plain_instances(model_output, input_size, target_size, 0.2, mask_threshold)
    call = processor.post_process_instance_segmentation
    kept = {"threshold": 0.2, "mask_threshold": mask_threshold, **sizes}
    (binary,), (runs,) = (
        call(model_output, return_binary_maps=True, **kept),
        call(model_output, return_coco_annotation=True, **kept),
    )
    assert [s["label_id"] for s in binary["segments_info"]] == labels
    assert [s["score"] for s in binary["segments_info"]] == [round(score, 6) for score in scores]
    assert torch.equal(binary["segmentation"], masks)
    assert runs["segmentation"] == [run_lengths(mask.numpy()) for mask in masks]
    on_top = torch.full(masks.shape[1:], -1, dtype=torch.int32)
    for index in reversed(range(len(masks))):
        on_top[masks[index]] = index
    assert torch.equal(call(model_output, **kept)[0]["segmentation"], on_top)

    for fused, overlap in (([], 0.8), ([0, 1], 0.1)):
        processor.label_ids_to_fuse = fused
        (result,) = processor.post_process_panoptic_segmentation(
            model_output, 0.4, mask_threshold, overlap_mask_area_threshold=overlap, **sizes
        )
        expected, segments = plain_panoptic(
            model_output, input_size, target_size, 0.4, mask_threshold, overlap, set(fused)
        )
        assert segments or overlap == 0.8 or mask_threshold == 1.0
        assert torch.equal(result["segmentation"], expected)
        assert [(s["label_id"], s["score"]) for s in result["segments_info"]] == segments


class Storages(TorchDispatchMode):
    """Notes the bytes of the largest storage that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_masks_of_all_queries_never_exist_at_once(task):
    """A map of the result's size holds 8 bytes per pixel at most; of 40 queries' masks in float32 it would be 160."""
    model_output, size = random_output(seed=0, queries=40), (900, 1200)
    processor = FASegImageProcessor(task=task, label_ids_to_fuse=[] if task == "panoptic" else None)
    with Storages() as storages:
        call = getattr(processor, f"post_process_{task}_segmentation")
        (result,) = call(
            model_output, 0.2, overlap_mask_area_threshold=0.0, target_sizes=[size], input_sizes=[(96, 128)]
        )
    assert len(result["segments_info"]) > 5
    assert storages.largest <= 8 * size[0] * size[1]


def test_a_gradient_is_not_kept():
    """Outside of `torch.no_grad` too."""
    model_output = random_output(seed=0)
    model_output.masks_queries_logits.requires_grad_()
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[])
    assert processor.post_process_instance_segmentation(model_output)[0]["segments_info"]
    assert not processor.post_process_panoptic_segmentation(model_output)[0]["segmentation"].requires_grad


def batch_of(*outputs):
    """Outputs of one image each as those of a batch."""
    names = ("class_queries_logits", "masks_queries_logits")
    return SimpleNamespace(**{name: torch.cat([getattr(output, name) for output in outputs]) for name in names})


METHODS = ("semantic", "instance", "panoptic")
FORMS = [
    ("semantic", {}, 1),
    ("semantic", {"return_segmentation_scores": True}, 1),
    ("instance", {"threshold": 0.2}, 2),
    ("instance", {"threshold": 0.0, "mask_threshold": 0.0}, 2),
    ("instance", {"threshold": 0.2, "return_binary_maps": True}, 2),
    ("instance", {"threshold": 0.2, "return_coco_rle": True}, 4),  # encodings are made on the host, of masks
    ("instance", {"threshold": 1.0}, 2),
    ("panoptic", {"threshold": 0.4, "overlap_mask_area_threshold": 0.3}, 2),
    ("panoptic", {"threshold": 0.4, "overlap_mask_area_threshold": 0.1, "label_ids_to_fuse": [0, 1]}, 2),
    ("panoptic", {"threshold": 1.0}, 2),
]


@pytest.mark.parametrize(("method", "settings", "transfers"), FORMS)
@pytest.mark.parametrize(("input_size", "target_size"), [SIZES[1], SIZES[2], SIZES[5]])
def test_a_device_is_waited_for_once_per_image(input_size, target_size, method, settings, transfers, monkeypatch):
    """And finds the same as the CPU, which reads each mask; in semantic segmentation once per batch."""
    monkeypatch.setitem(segments_module.BLOCK_BYTES, "cpu", 2**18)
    model_output = batch_of(random_output(seed=1), random_output(seed=2))
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[3])
    call = getattr(processor, f"post_process_{method}_segmentation")
    sizes = {"input_sizes": [input_size] * 2, "target_sizes": [target_size] * 2}
    expected = call(model_output, **sizes, **settings)
    with host_waits() as waits:
        found = call(model_output, **sizes, **settings)
    assert waits.found == [] and len(waits.transfers) == transfers
    for ours, theirs in zip(found, expected, strict=True):
        if method == "semantic" and not settings:
            assert torch.equal(ours, theirs)
            continue
        if method == "semantic":
            torch.testing.assert_close(ours.segmentation_scores, theirs.segmentation_scores)
            continue
        assert len(ours["segments_info"]) == len(theirs["segments_info"])
        assert (settings["threshold"] == 1.0) == (len(ours["segments_info"]) == 0)
        for segment, other in zip(ours["segments_info"], theirs["segments_info"], strict=True):
            assert segment == {**other, "score": pytest.approx(other["score"], abs=2e-6)}
        if isinstance(theirs["segmentation"], torch.Tensor):
            assert torch.equal(ours["segmentation"], theirs["segmentation"])
        else:
            assert ours["segmentation"] == theirs["segmentation"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["class_queries_logits", "masks_queries_logits"])
def test_logits_that_are_not_finite_are_refused_on_a_device_too(method, name):
    model_output = batch_of(random_output(seed=1), random_output(seed=2))
    getattr(model_output, name)[1, 4] = float("nan")
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[])
    with host_waits(), pytest.raises(ValueError, match=f"{name} hold nan: pass finite numbers"):
        getattr(processor, f"post_process_{method}_segmentation")(model_output)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_on_a_device_few_masks_exist_at_once(task, monkeypatch):
    """In float32; of an instance's bool masks all do, a byte per pixel and query."""
    monkeypatch.setattr(segments_module, "DEVICE_BLOCK_BYTES", 10 * 2**20)
    model_output, size = random_output(seed=0, queries=40), (900, 1200)
    processor = FASegImageProcessor(task=task, label_ids_to_fuse=[] if task == "panoptic" else None)
    call = getattr(processor, f"post_process_{task}_segmentation")
    with host_waits(), Storages() as storages:
        call(model_output, 0.2, overlap_mask_area_threshold=0.0, target_sizes=[size], input_sizes=[(96, 128)])
    assert storages.largest <= (40 if task == "instance" else 16) * size[0] * size[1]


# ---- made by hand: logits of 4 x 4 cells of 16 pixels, results by their middles ----


def drawn(*queries):
    """Queries `(class of 0..2, probability, rows of # where the mask is)`, sure of their masks."""
    masks = torch.full((1, len(queries), 16, 16), -30.0)
    probs = torch.full((1, len(queries), 4), 1e-9)
    for index, (label, probability, rows) in enumerate(queries):
        cells = torch.tensor([[cell == "#" for cell in row] for row in rows.split()])
        masks[0, index][cells.repeat_interleave(4, 0).repeat_interleave(4, 1)] = 30.0
        probs[0, index, label], probs[0, index, 3] = probability, 1 - probability + 1e-9
    return SimpleNamespace(class_queries_logits=probs.log(), masks_queries_logits=masks)


def cells_of(segmentation):
    """The map's values in the middle of the 4 x 4 cells, a row a word."""
    return " ".join(
        "".join("." if value < 0 else str(value) for value in row) for row in segmentation[8::16, 8::16].tolist()
    )


LEFT, RIGHT, TOP = "##.. ##.. ##.. ##..", "..## ..## ..## ..##", "#### #### .... ...."
CASES = {
    # name: queries, instance map and its (class, score), panoptic map and its (class, fused)
    "touching": (
        [(0, 0.95, LEFT), (0, 0.9, RIGHT)],
        "0011 0011 0011 0011", [(0, 0.95), (0, 0.9)],
        "1122 1122 1122 1122", [(0, False), (0, False)],
    ),
    "under the threshold": (
        [(0, 0.95, LEFT), (1, 0.4, RIGHT)],
        "00.. 00.. 00.. 00..", [(0, 0.95)],
        "1100 1100 1100 1100", [(0, False)],
    ),
    "void": (
        [(0, 0.95, TOP)],
        "0000 0000 .... ....", [(0, 0.95)],
        "1111 1111 0000 0000", [(0, False)],
    ),
    "fused stuff": (
        [(2, 0.9, "#... #... #... #..."), (1, 0.9, "..#. ..#. ..#. ..#."), (2, 0.95, "...# ...# ...# ...#")],
        "..0. ..0. ..0. ..0.", [(1, 0.9)],
        "1021 1021 1021 1021", [(2, True), (1, False)],
    ),
    "nothing found": (
        [(0, 0.1, LEFT), (3, 1.0, RIGHT)],
        ".... .... .... ....", [],
        "0000 0000 0000 0000", [],
    ),
    "overlapping": (  # of the second two rows of four are left, half of its mask: less than 0.8
        [(0, 0.95, TOP), (1, 0.9, "#### #### #### ####")],
        "0000 0000 1111 1111", [(0, 0.95), (1, 0.9)],
        "1111 1111 0000 0000", [(0, False)],
    ),
    "equal scores": (  # the first query wins
        [(0, 0.9, LEFT), (0, 0.9, LEFT)],
        "00.. 00.. 00.. 00..", [(0, 0.9), (0, 0.9)],
        "1100 1100 1100 1100", [(0, False)],
    ),
    "equal scores of classes": (
        [(1, 0.9, LEFT), (0, 0.9, RIGHT)],
        "0011 0011 0011 0011", [(1, 0.9), (0, 0.9)],
        "1122 1122 1122 1122", [(1, False), (0, False)],
    ),
    "an empty mask": (
        [(0, 0.95, ".... .... .... ...."), (1, 0.9, TOP)],
        "0000 0000 .... ....", [(1, 0.9)],
        "1111 1111 0000 0000", [(1, False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("device_waits", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_made_by_hand(case, device_waits):
    """Things are classes 0 and 1, stuff is class 2."""
    queries, instance_map, instances, panoptic_map, segments = CASES[case]
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[2])
    with host_waits() if device_waits else nullcontext():
        (found,) = processor.post_process_instance_segmentation(drawn(*queries))
        (panoptic,) = processor.post_process_panoptic_segmentation(drawn(*queries))
    assert cells_of(found["segmentation"]) == instance_map
    got = [(segment["id"], segment["label_id"], segment["score"]) for segment in found["segments_info"]]
    assert got == [(index, label, pytest.approx(score, abs=1e-3)) for index, (label, score) in enumerate(instances)]
    assert cells_of(panoptic["segmentation"]) == panoptic_map
    got = [(segment["id"], segment["label_id"], segment["was_fused"]) for segment in panoptic["segments_info"]]
    assert got == [(index, *segment) for index, segment in enumerate(segments, start=1)]
