"""Saved SeMask-FPN, and FASeg on a SeMask backbone, load in a clean process that cannot import the project."""

import pytest
from PIL import Image
from tiny_semask import tiny_batch, tiny_faseg, tiny_model
from transformers import pipeline

from image_processing import FASegImageProcessor
from saved_models import check_loads_elsewhere


SAME_BACKBONE = """
    backbone = config.backbone_config
    assert (backbone.model_type, type(backbone).__name__) == ("semask_swin", "SeMaskSwinConfig")
"""


@pytest.mark.system
@pytest.mark.parametrize(
    ("make", "size", "divisor", "field"),
    [(tiny_model, (50, 71), 0, "logits"), (tiny_faseg, (64, 96), 32, "masks_queries_logits")],
    ids=["semask", "faseg"],
)
def test_loads_where_the_project_is_not_installed(make, size, divisor, field, tmp_path):
    model, images = make(), tiny_batch(size=size)["pixel_values"]
    processor = FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=divisor)
    auto_classes = ("AutoModelForImageSegmentation", "AutoModelForSemanticSegmentation")
    classes = dict.fromkeys(auto_classes, type(model).__name__)
    saved = check_loads_elsewhere(model, processor, images, field, classes, tmp_path, also=SAME_BACKBONE.strip())
    code = {file.name: file.read_text() for file in saved.glob("*.py")}
    assert {"backbone_semask.py", "configuration_semask.py", "loss_semask.py"} <= set(code)
    assert not any("_qlseg" in name for name in code)
    assert not [name for name, text in code.items() if "from configuration." in text]


def test_pipeline_answers_for_installed_code(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    FASegImageProcessor(size={"shortest_edge": 33, "longest_edge": 128}, size_divisor=0).save_pretrained(tmp_path)
    image = Image.effect_noise((90, 71), 80).convert("RGB")
    for batch_size in (1, 2):
        answers = pipeline("image-segmentation", model=str(tmp_path))([image] * 2, batch_size=batch_size)
        for segments in answers:
            assert segments and all(segment["mask"].size == (90, 71) for segment in segments)
