"""From class scores to label maps, as the reference orders the steps."""

import numpy as np
import pytest
import torch
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch

from image_processing import FASegImageProcessor
from modeling_faseg import QLSegForSemanticSegmentationOutput
from scripts.inference.predictors import comparable_scores, image_scores, labels_and_confidence


@pytest.fixture(scope="module")
def processor():
    return FASegImageProcessor(size={"shortest_edge": 64}, size_divisor=16)


def test_scores_are_resized_then_compared(processor):
    scores = torch.rand(1, 3, 64, 96)
    outputs = QLSegForSemanticSegmentationOutput(semantic_scores=scores)
    sizes = {"target_sizes": [(128, 180)], "input_sizes": [(64, 90)]}
    expected = torch.nn.functional.interpolate(scores[..., :90], size=(128, 180), mode="bilinear")[0]
    result = processor.post_process_semantic_segmentation(outputs, **sizes, return_segmentation_scores=True)[0]
    torch.testing.assert_close(result.segmentation_scores, expected)
    labels = processor.post_process_semantic_segmentation(outputs, **sizes)[0]
    assert (labels == expected.argmax(0)).float().mean() > 0.999
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (64, 96)


@pytest.mark.parametrize("size", [(64, 64), (70, 90)])
def test_confidence_is_the_best_probability(processor, size):
    """Both for an image that is one window, which has queries, and for one that is several."""
    model, images = tiny_qlseg(), tiny_qlseg_batch(size, targets=(0,))["pixel_values"]
    inputs = {"pixel_values": images, "pixel_mask": torch.ones(1, *size, dtype=torch.long)}
    labels, confidence = labels_and_confidence(image_scores(model, processor, inputs, size), softmax=True)
    with torch.no_grad():
        scores = model(**inputs).semantic_scores[0]
    assert np.array_equal(labels, scores.argmax(0))
    torch.testing.assert_close(
        torch.from_numpy(confidence), comparable_scores(model, scores).amax(0), atol=1e-5, rtol=1e-5
    )


def test_scales_are_averaged_as_probabilities():
    scores = torch.rand(3, 4, 5)
    torch.testing.assert_close(comparable_scores(tiny_qlseg(), scores), scores.softmax(0))
