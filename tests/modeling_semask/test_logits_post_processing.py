"""Per-pixel logits to label maps: two resizes, as the reference's, for any image and padding."""

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from image_processing import FASegImageProcessor


def up(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.fixture
def processor():
    return FASegImageProcessor(size={"shortest_edge": 30, "longest_edge": 90}, size_divisor=0)


@pytest.mark.parametrize("target", [(30, 45), (61, 90), (17, 40)], ids=str)
def test_labels_are_the_argmax_of_two_resizes(processor, target):
    """30x45 is no multiple of 4: the canvas is the network's input, not four times the logits."""
    logits = torch.randn(1, 5, 8, 12)
    expected = up(up(logits[0], (30, 45)), target)
    outputs = SemanticSegmenterOutput(logits=logits)
    arguments = {"target_sizes": [target], "input_sizes": [(30, 45)]}
    labels = processor.post_process_semantic_segmentation(outputs, **arguments)[0]
    best, second = expected.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.99 and labels.dtype == torch.int64
    assert labels[clear].equal(expected.argmax(0)[clear])
    found = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True, **arguments)[0]
    torch.testing.assert_close(found["segmentation_scores"], expected)
    assert found["segmentation"].equal(expected.argmax(0))
    one_resize = up(logits[0], target).argmax(0)
    assert one_resize.equal(labels) == (target == (30, 45))


def test_padding_is_cut_and_sizes_follow_from_the_rule(processor):
    logits = torch.randn(2, 5, 12, 12)
    outputs = SemanticSegmenterOutput(logits=logits)
    sizes = [(30, 45), (46, 30)]
    found = processor.post_process_semantic_segmentation(outputs, [(60, 90), (92, 60)], sizes)
    for index, (size, target) in enumerate(zip(sizes, [(60, 90), (92, 60)])):
        canvas = up(logits[index], (46, 45))[:, : size[0], : size[1]]
        assert (found[index] == up(canvas, target).argmax(0)).float().mean() > 0.999
    inferred = processor.post_process_semantic_segmentation(outputs, [(60, 90), (92, 60)])
    assert all(left.equal(right) for left, right in zip(found, inferred))


def test_without_sizes_maps_cover_the_canvas(processor):
    logits = torch.randn(1, 5, 8, 12)
    labels = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))[0]
    assert (labels == up(logits[0], (32, 48)).argmax(0)).float().mean() > 0.999


def test_sizes_that_do_not_fit_are_refused(processor):
    outputs = SemanticSegmenterOutput(logits=torch.randn(1, 5, 8, 12))
    with pytest.raises(ValueError, match=r"input_sizes holds \(40, 45\), larger than the padded network input"):
        processor.post_process_semantic_segmentation(outputs, input_sizes=[(40, 45)])
    with pytest.raises(ValueError, match="2 sizes for 1 images"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(4, 5), (4, 5)])
