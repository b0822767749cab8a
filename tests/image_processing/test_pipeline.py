"""`pipeline("image-segmentation")` on a tiny FASeg: what it answers follows the processor's task."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import pipeline

from configuration import FASegConfig
from image_processing import FASegImageProcessor, FASegImageProcessorPil
from modeling_faseg import FASegForUniversalSegmentation


@pytest.fixture(scope="module")
def model() -> FASegForUniversalSegmentation:
    torch.manual_seed(0)
    backbone = {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [32, 32, 32, 32],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = FASegConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=4,
        dim_feedforward=32,
        num_attention_heads=4,
        num_queries=8,
        num_labels=5,
    )
    return FASegForUniversalSegmentation(config).eval()


IMAGES = [
    PIL.Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8))
    for i, size in enumerate([(40, 60), (90, 30), (17, 23)])
]


@pytest.mark.parametrize("processor_class", [FASegImageProcessor, FASegImageProcessorPil])
def test_semantic_answer_without_a_subtask(model, processor_class):
    """Every pixel belongs to exactly one mask, at the image's size; mixed sizes run as one batch with pad_size."""
    processor = processor_class(
        size={"shortest_edge": 64, "longest_edge": 128}, pad_size={"height": 128, "width": 128}
    )
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    single, batched = segmenter(IMAGES), segmenter(IMAGES, batch_size=2)
    for image, answer, same in zip(IMAGES, single, batched, strict=True):
        masks = np.stack([np.asarray(segment["mask"]) for segment in answer])
        assert all(segment["score"] is None for segment in answer)
        assert masks.shape[1:] == image.size[::-1]
        assert (masks.astype(int).sum(0) == 255).all()
        assert [s["label"] for s in answer] == [s["label"] for s in same]
        agree = [(np.asarray(a["mask"]) == np.asarray(b["mask"])).mean() for a, b in zip(answer, same, strict=True)]
        assert min(agree) > 0.999
    with pytest.raises(ValueError, match="Subtask panoptic is not supported"):
        segmenter(IMAGES[0], subtask="panoptic")


@pytest.mark.parametrize(("task", "lowest_id"), [("instance", 0), ("panoptic", 1)])
def test_segments_of_other_tasks(model, task, lowest_id):
    """A threshold of 0 finds segments in an untrained model too; each has a score and a mask of the image's size."""
    processor = FASegImageProcessor(size={"shortest_edge": 64}, task=task, label_ids_to_fuse=[0])
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    answer = segmenter(IMAGES[0], threshold=0.0, overlap_mask_area_threshold=0.0)
    assert answer
    for segment in answer:
        assert segment["mask"].size == IMAGES[0].size
        assert 0 <= segment["score"] <= 1 and segment["label"] in model.config.id2label.values()
    inputs = processor(IMAGES[0], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    call = getattr(processor, f"post_process_{task}_segmentation")
    (direct,) = call(outputs, threshold=0.0, overlap_mask_area_threshold=0.0, target_sizes=[(40, 60)])
    assert len(direct["segments_info"]) == len(answer)
    assert all(segment["id"] >= lowest_id for segment in direct["segments_info"])
    assert direct["segmentation"].min() >= lowest_id - 1
