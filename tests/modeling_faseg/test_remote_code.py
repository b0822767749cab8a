"""Saved models carry their code: they load in a clean process that cannot import the project."""

import pytest
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch, tiny_model
from transformers import AutoModelForSemanticSegmentation

from image_processing import FASegImageProcessor
from saved_models import check_loads_elsewhere, check_loads_here


CLASSES = {
    "AutoModel": "FASegModel",
    "AutoModelForSemanticSegmentation": "FASegForUniversalSegmentation",
    "AutoModelForUniversalSegmentation": "FASegForUniversalSegmentation",
}
SIZE = {"shortest_edge": 64, "longest_edge": 128}


@pytest.mark.system
@pytest.mark.parametrize(
    ("backbone", "sharing"), [(TINY_RESNET, "reused"), (TINY_SWIN, "none")], ids=["resnet", "swin"]
)
def test_loads_where_the_project_is_not_installed(backbone, sharing, tmp_path):
    model = tiny_model(backbone_config=dict(backbone), high_resolution_sharing=sharing)
    images = tiny_batch()["pixel_values"]
    also = "assert model(images, output_focus=True).focus_maps is not None"
    processor = FASegImageProcessor(size=SIZE)
    check_loads_elsewhere(model, processor, images, "masks_queries_logits", CLASSES, tmp_path, also=also)


def test_installed_code_needs_no_trust(tmp_path):
    check_loads_here(tiny_model(), FASegImageProcessor(size=SIZE), (AutoModelForSemanticSegmentation,), tmp_path)
