"""`pipeline("image-segmentation")` on a tiny FASeg: what it answers follows the processor's task."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import pipeline

from clean_process import run_clean
from configuration import FASegConfig
from image_processing import FASegImageProcessor, FASegImageProcessorPil
from modeling_faseg import FASegForUniversalSegmentation
from scripts.data.synthetic_scenes import draw_sample
from space_models import write_tiny_model


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


SEGMENT_ELSEWHERE = """
import json, sys
from PIL import Image
from transformers import pipeline

segment = pipeline("image-segmentation", model=sys.argv[1], trust_remote_code=True)
found = segment(Image.open(sys.argv[2]), threshold=float(sys.argv[3]))
print(json.dumps([[one["label"], one["score"], one["mask"].size, one["mask"].getbbox()] for one in found]))
"""


@pytest.mark.system
@pytest.mark.parametrize(("task", "threshold"), [("instance", 0.5), ("panoptic", 0.1)])
def test_a_saved_model_of_segments_where_the_project_is_not_installed(task, threshold, tmp_path):
    """As the processor here finds them, each with its score, as a mask of the image's size."""
    folder = write_tiny_model(tmp_path / "model", task)
    image = draw_sample(np.random.default_rng(1))[0]
    image.save(tmp_path / "street.png")
    arguments = [str(folder), str(tmp_path / "street.png"), str(threshold)]
    answer = json.loads(run_clean(SEGMENT_ELSEWHERE, arguments, tmp_path).splitlines()[-1])
    processor = FASegImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = FASegForUniversalSegmentation.from_pretrained(folder).eval()(**processor(image, return_tensors="pt"))
    call = getattr(processor, f"post_process_{task}_segmentation")
    settings = {"overlap_mask_area_threshold": 0.5, "target_sizes": [(image.height, image.width)]}
    (expected,) = call(outputs, threshold=threshold, mask_threshold=0.5, **settings)
    assert len(answer) == len(expected["segments_info"]) > 0
    assert all(size == list(image.size) for _, _, size, _ in answer)
    for (_, score, _, box), segment in zip(answer, expected["segments_info"], strict=True):
        assert score == pytest.approx(segment["score"], abs=1e-4)
        mask = expected["segmentation"] == segment["id"]
        assert box is None or box[3] - box[1] == int(mask.any(1).nonzero().max() - mask.any(1).nonzero().min()) + 1
