"""Logits to maps and segments: the reference's numbers, HF's forms, and where HF's Mask2Former falls short."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_post_processing import load_case, outputs, sizes
from torch.nn import functional as F

from image_processing import FASegImageProcessor, FASegImageProcessorPil
from image_processing.run_lengths import run_lengths


STUFF = [1, 3, 4]  # of the recorded case: things are 0, 2, 5


@pytest.fixture(params=["copy", "shared"])
def case(request: pytest.FixtureRequest) -> SimpleNamespace:
    return load_case(None if request.param == "copy" else request.getfixturevalue("shared"))


@pytest.mark.parametrize("before", [False, True])
def test_semantic_scores_are_the_references(case, before):
    """Float noise only (1e-5; the scores are sums of at most 12 products), maps equal where the margin is larger."""
    processor = FASegImageProcessor()
    results = processor.post_process_semantic_segmentation(
        outputs(case), return_segmentation_scores=True, resize_masks_first=before, **sizes(case)
    )
    maps = processor.post_process_semantic_segmentation(outputs(case), resize_masks_first=before, **sizes(case))
    suffix = "before_" if before else ""
    for index, result in enumerate(results):
        scores = result.segmentation_scores
        if f"sub8/sem_seg_{suffix}{index}" in case.tensors:
            expected = case.tensors[f"sub8/sem_seg_{suffix}{index}"]
            torch.testing.assert_close(scores[:, ::8, ::8], expected, atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(scores, case.tensors[f"out/sem_seg_{suffix}{index}"], atol=1e-5, rtol=0)
        assert torch.equal(result.segmentation, maps[index])
        label_map = case.tensors.get(f"out/sem_{suffix}argmax_{index}")
        if label_map is not None:
            best, second = scores.topk(2, dim=0).values
            clear = best - second > 2e-5
            assert clear.float().mean() > 0.999
            assert torch.equal(maps[index][clear], label_map.long()[clear])


def test_panoptic_segments_are_the_references(case):
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=STUFF)
    results = processor.post_process_panoptic_segmentation(outputs(case), **sizes(case))
    for index, result in enumerate(results):
        expected = case.segments[index]["segments_info"]
        got = [(s["id"], s["label_id"], not s["was_fused"]) for s in result["segments_info"]]
        assert got == [(s["id"], s["category_id"], s["isthing"]) for s in expected]
        if f"out/panoptic_{index}" in case.tensors:
            assert torch.equal(result["segmentation"], case.tensors[f"out/panoptic_{index}"].int())


@pytest.mark.parametrize("things_only", [False, True])
def test_instances_are_the_references(case, things_only):
    """A panoptic model has instances of things only, an instance model of every class."""
    processor = FASegImageProcessor(
        task="panoptic" if things_only else "instance", label_ids_to_fuse=STUFF if things_only else None
    )
    results = processor.post_process_instance_segmentation(
        outputs(case),
        threshold=0.0,
        max_detections=case.params["topk"],
        return_binary_maps=True,
        **sizes(case),
    )
    prefix = "instances_things_only" if things_only else "instances_all"
    for index, result in enumerate(results):
        scores = case.tensors[f"out/{prefix}_scores_{index}"]
        solid = scores > 0  # the reference keeps empty masks, with a score of 0
        segments = result["segments_info"]
        torch.testing.assert_close(torch.tensor([s["score"] for s in segments]), scores[solid], atol=2e-6, rtol=0)
        assert [s["label_id"] for s in segments] == case.tensors[f"out/{prefix}_classes_{index}"][solid].tolist()
        masks = case.tensors.get(f"out/{prefix}_masks_{index}")
        if masks is None:
            continue
        if things_only:  # recorded as areas
            assert torch.equal(result["segmentation"].flatten(1).sum(1).float(), masks[solid])
        else:
            assert torch.equal(result["segmentation"], masks[solid].bool())


def test_instance_forms_agree():
    """The three forms of the same instances: the map shows the better one on top, masks and runs keep overlaps."""
    logits = torch.full((1, 2, 4, 4), -20.0)
    logits[0, 0, :2], logits[0, 1, :, :2] = 20.0, 10.0
    classes = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    model_output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=logits)
    processor = FASegImageProcessor(task="instance")
    call = processor.post_process_instance_segmentation
    plain, masks, runs = call(model_output), call(model_output, return_binary_maps=True), None
    runs = call(model_output, return_coco_annotation=True)[0]["segmentation"]
    segments = plain[0]["segments_info"]
    assert [s["label_id"] for s in segments] == [1, 0]
    assert segments[0]["score"] > segments[1]["score"] > 0.9
    best, second = masks[0]["segmentation"]
    assert (best & second).any()
    assert torch.equal(plain[0]["segmentation"] == 0, best)
    assert torch.equal(plain[0]["segmentation"] == 1, second & ~best)
    assert runs == [run_lengths(best.numpy()), run_lengths(second.numpy())]
    with pytest.raises(ValueError, match="are True: choose one"):
        call(model_output, return_binary_maps=True, return_coco_annotation=True)


def test_nothing_found():
    model_output = SimpleNamespace(
        class_queries_logits=torch.zeros(1, 5, 4), masks_queries_logits=torch.full((1, 5, 8, 8), -9.0)
    )
    processor = FASegImageProcessor(task="panoptic")
    panoptic = processor.post_process_panoptic_segmentation(model_output, target_sizes=[(20, 20)])[0]
    assert panoptic["segments_info"] == [] and panoptic["segmentation"].shape == (20, 20)
    assert not panoptic["segmentation"].any()
    masks = processor.post_process_instance_segmentation(model_output, return_binary_maps=True)[0]
    assert masks["segments_info"] == [] and masks["segmentation"].shape == (0, 32, 32)
    fused = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[0, 1, 2])
    masks = fused.post_process_instance_segmentation(model_output, return_binary_maps=True)[0]
    assert masks["segmentation"].shape == (0, 32, 32)


def test_thin_stripe_survives():
    """HF's Mask2Former squashes to 384x384 and loses a stripe one pixel wide."""
    masks = torch.full((1, 2, 32, 128), -20.0)
    masks[0, 0], masks[0, 1] = 5.0, -20.0
    masks[0, 0, :, 64], masks[0, 1, :, 64] = -40.0, 40.0
    classes = torch.tensor([[[20.0, 0.0, 0.0], [0.0, 20.0, 0.0]]])
    model_output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    (result,) = FASegImageProcessor().post_process_semantic_segmentation(
        model_output, target_sizes=[(128, 512)], input_sizes=[(128, 512)]
    )
    stripe = (result == 1).all(dim=0).nonzero().flatten().tolist()
    assert stripe and stripe == list(range(stripe[0], stripe[-1] + 1))
    assert stripe[0] <= 64 * 4 + 1 and stripe[-1] >= 64 * 4 + 2 and len(stripe) <= 8


def plain_semantic(model_output, index, canvas, input_size, target_size):
    """The reference's steps on whole tensors, without chunks."""
    masks = F.interpolate(model_output.masks_queries_logits[index][None], canvas, mode="bilinear")[0]
    probs = model_output.class_queries_logits[index].softmax(-1)[:, :-1]
    scores = torch.einsum("qk,qhw->khw", probs, masks.sigmoid())[:, : input_size[0], : input_size[1]]
    return F.interpolate(scores[None], target_size, mode="bilinear")[0]


@pytest.mark.parametrize("pad_size", [None, {"height": 96, "width": 128}])
def test_input_sizes_follow_from_target_sizes(pad_size, caplog):
    """Left out, input sizes are the resize rule's, and the same as the processor returned."""
    processor = FASegImageProcessor(size={"shortest_edge": 60, "longest_edge": 120}, pad_size=pad_size)
    target_sizes = [(31, 47), (90, 40)]
    inputs = processor([torch.zeros(3, *size, dtype=torch.uint8) for size in target_sizes], return_tensors="pt")
    height, width = inputs.pixel_values.shape[-2:]
    model_output = SimpleNamespace(
        class_queries_logits=torch.randn(2, 20, 41), masks_queries_logits=torch.randn(2, 20, height // 4, width // 4)
    )
    with caplog.at_level(logging.WARNING):
        inferred = processor.post_process_semantic_segmentation(model_output, target_sizes)
        given = processor.post_process_semantic_segmentation(model_output, target_sizes, inputs.input_sizes)
    assert not caplog.records
    for index, target in enumerate(target_sizes):
        size = tuple(inputs.input_sizes[index].tolist())
        expected = plain_semantic(model_output, index, (height, width), size, target).argmax(0)
        assert torch.equal(inferred[index], given[index])
        assert (inferred[index] == expected).float().mean() > 0.999
    unresized = processor.post_process_semantic_segmentation(model_output, input_sizes=inputs.input_sizes)
    assert [tuple(m.shape) for m in unresized] == [tuple(s) for s in inputs.input_sizes.tolist()]


def test_settings_changed_on_the_processor_count():
    """Users set plain dictionaries on a processor; the inferred input sizes must follow."""
    processor = FASegImageProcessor()
    processor.size = {"shortest_edge": 64, "longest_edge": 96}
    processor.pad_size = {"height": 128, "width": 128}
    inputs = processor(torch.zeros(3, 40, 50, dtype=torch.uint8), return_tensors="pt")
    assert inputs.input_sizes.tolist() == [list(processor.network_size(40, 50))] == [[64, 80]]
    assert tuple(inputs.pixel_values.shape[-2:]) == processor.canvas_size([(64, 80)]) == (128, 128)


def test_target_sizes_that_do_not_explain_the_canvas_are_warned_about():
    """Never a silent wrong cut: the whole canvas is taken, and the warning names input_sizes."""
    processor = FASegImageProcessor()
    model_output = SimpleNamespace(
        class_queries_logits=torch.randn(1, 4, 3), masks_queries_logits=torch.randn(1, 4, 8, 8)
    )
    handler = logging.Handler()
    messages: list[str] = []
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("image_processing.post_processing")
    logger.addHandler(handler)
    try:
        (result,) = processor.post_process_semantic_segmentation(model_output, [(1, 4)])
    finally:
        logger.removeHandler(handler)
    assert result.shape == (1, 4)
    assert len(messages) == 1 and "input_sizes" in messages[0] and "(32, 32)" in messages[0]


def test_half_precision_logits_give_float_scores():
    model_output = SimpleNamespace(
        class_queries_logits=torch.randn(1, 4, 3).bfloat16(), masks_queries_logits=torch.randn(1, 4, 8, 8).bfloat16()
    )
    (result,) = FASegImageProcessor().post_process_semantic_segmentation(model_output, return_segmentation_scores=True)
    assert result.segmentation_scores.dtype == torch.float32
    assert result.segmentation_scores.shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("sizes_", "message"),
    [
        ({"target_sizes": [(8, 8)] * 3}, "target_sizes has 3 sizes for 2 images"),
        ({"input_sizes": [(8, 8)]}, "input_sizes has 1 sizes for 2 images"),
        ({"input_sizes": [(8, 8), (8, 33)]}, r"\(8, 33\), larger than the padded network input \(32, 32\)"),
        ({"target_sizes": [(8, 8), (0, 8)]}, r"\(0, 8\): pass \(height, width\), both at least 1"),
        ({"target_sizes": [(8, 8), (30.5, 8)]}, r"target_sizes holds \(30.5, 8\): pass whole numbers of pixels"),
        ({"input_sizes": torch.tensor([[8, 8], [8.0, 7.5]])}, r"input_sizes holds \(8.0, 7.5\): pass whole numbers"),
        ({"target_sizes": [(8, 8), (8, float("nan"))]}, r"\(8, nan\): pass \(height, width\), both at least 1"),
        ({"target_sizes": [(8, 8), (8, float("inf"))]}, r"\(8, inf\): pass a size of at most 268435456 pixels"),
        ({"target_sizes": [(8, 8), (10**6, 10**6)]}, "pass a size of at most 268435456 pixels"),
        ({"target_sizes": (8, 8)}, r"target_sizes holds \(8,\): pass \(height, width\)"),
        ({"target_sizes": [(8, 8), ("8", 8)]}, r"target_sizes holds \('8', 8\): pass \(height, width\)"),
        ({"target_sizes": [(8, 8), (8, 8, 3)]}, r"target_sizes holds \(8, 8, 3\): pass \(height, width\)"),
    ],
)
def test_wrong_sizes_are_refused(sizes_, message):
    model_output = SimpleNamespace(
        class_queries_logits=torch.randn(2, 4, 3), masks_queries_logits=torch.randn(2, 4, 8, 8)
    )
    with pytest.raises(ValueError, match=message):
        FASegImageProcessor().post_process_semantic_segmentation(model_output, **sizes_)


@pytest.mark.parametrize("sizes_", [torch.tensor([[8.0, 9.0]]), [(torch.tensor(8), np.int64(9))], np.array([[8, 9]])])
def test_sizes_may_come_in_any_numbers(sizes_):
    model_output = SimpleNamespace(
        class_queries_logits=torch.randn(1, 4, 3), masks_queries_logits=torch.randn(1, 4, 8, 8)
    )
    (result,) = FASegImageProcessor().post_process_semantic_segmentation(model_output, sizes_, [(32, 32)])
    assert result.shape == (8, 9)


METHODS = ("semantic", "instance", "panoptic")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("classes", "masks", "message"),
    [
        (torch.zeros(1, 5, 4), torch.zeros(1, 4, 8, 8), r"\(1, 5, 4\) and masks_queries_logits \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 4, 8, 8), "the same B images and Q queries"),
        (torch.zeros(2, 4, 4), torch.zeros(1, 4, 8, 8), "the same B images and Q queries"),
        (torch.zeros(1, 4, 1), torch.zeros(1, 4, 8, 8), r"pass \(B, Q, K\+1\) and \(B, Q, h, w\)"),
        (torch.zeros(1, 4, 4), torch.zeros(4, 8, 8), r"masks_queries_logits have shape \(4, 8, 8\): pass \(images"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 8, 8), NAN), "masks_queries_logits hold nan: pass finite numbers"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 8, 8), -INF), "masks_queries_logits hold -inf"),
        (torch.full((1, 4, 4), INF), torch.zeros(1, 4, 8, 8), "class_queries_logits hold inf"),
        (torch.full((1, 4, 4), NAN), torch.zeros(1, 4, 8, 8), "class_queries_logits hold nan"),
    ],
)
def test_logits_that_cannot_be_right_are_refused(method, classes, masks, message):
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[])
    model_output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    with pytest.raises(ValueError, match=message):
        getattr(processor, f"post_process_{method}_segmentation")(model_output)


def test_a_class_may_be_ruled_out():
    """-inf as the logit of a class: it is never the answer."""
    classes = torch.tensor([[[-INF, 1.0, 0.0]]])
    model_output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=torch.full((1, 1, 4, 4), 9.0))
    (result,) = FASegImageProcessor().post_process_semantic_segmentation(model_output)
    assert (result == 1).all()


def test_a_model_without_queries_has_no_segments():
    model_output = SimpleNamespace(logits=torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="no class_queries_logits: only models with queries find segments"):
        FASegImageProcessor(task="instance").post_process_instance_segmentation(model_output)
    with pytest.raises(ValueError, match="no logits and no semantic_scores"):
        FASegImageProcessor().post_process_semantic_segmentation(SimpleNamespace())


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": NAN}, "^threshold=nan: pass a number from 0 to 1"),
        ({"threshold": 50}, "^threshold=50: pass a number from 0 to 1"),
        ({"mask_threshold": -0.1}, "mask_threshold=-0.1: pass a number from 0 to 1"),
        ({"overlap_mask_area_threshold": 80}, "overlap_mask_area_threshold=80: pass a number from 0 to 1"),
    ],
)
def test_thresholds_are_shares(method, setting, message):
    processor = FASegImageProcessor(task="panoptic", label_ids_to_fuse=[])
    with pytest.raises(ValueError, match=message):
        getattr(processor, f"post_process_{method}_segmentation")(None, **setting)


def test_max_detections_is_positive():
    with pytest.raises(ValueError, match="max_detections=0: pass a number of at least 1"):
        FASegImageProcessor(task="instance").post_process_instance_segmentation(None, max_detections=0)


@pytest.mark.parametrize("processor_class", [FASegImageProcessor, FASegImageProcessorPil])
@pytest.mark.parametrize(
    ("task", "offered"), [("semantic", METHODS[:1]), ("instance", METHODS[:2]), ("panoptic", METHODS)]
)
def test_offered_methods_follow_the_task(processor_class, task, offered):
    processor = processor_class(task=task)
    assert tuple(m for m in METHODS if hasattr(processor, f"post_process_{m}_segmentation")) == offered
    assert all(hasattr(processor_class, f"post_process_{m}_segmentation") for m in METHODS)
    if task == "semantic":
        with pytest.raises(AttributeError, match=r"task='semantic'.*load it with task='panoptic'"):
            processor.post_process_panoptic_segmentation(None)


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task='panoptik': choose one of semantic, instance, panoptic"):
        FASegImageProcessor(task="panoptik")


@pytest.mark.parametrize(("task", "warned"), [("semantic", 0), ("instance", 1), ("panoptic", 0)])
def test_a_map_of_classes_of_an_instance_model_is_warned_of(task, warned, monkeypatch):
    said = []
    monkeypatch.setattr("image_processing.post_processing.logger.warning_once", said.append)
    outputs = SimpleNamespace(
        class_queries_logits=torch.zeros(1, 2, 4), masks_queries_logits=torch.zeros(1, 2, 8, 8), logits=None
    )
    processor = FASegImageProcessor(size={"shortest_edge": 32}, task=task)
    processor.post_process_semantic_segmentation(outputs)
    assert len(said) == warned and all("task='instance'" in line for line in said)
