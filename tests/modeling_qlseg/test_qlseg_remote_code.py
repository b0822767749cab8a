"""Saved models carry their code: they load in a clean process that cannot import the project."""

import pytest
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

from image_processing import FASegImageProcessor
from saved_models import check_loads_elsewhere, check_loads_here


CLASSES = {
    "AutoModel": "QLSegModel",
    "AutoModelForSemanticSegmentation": "QLSegForSemanticSegmentation",
    "AutoModelForUniversalSegmentation": "QLSegForSemanticSegmentation",
    "AutoModelForImageSegmentation": "QLSegForSemanticSegmentation",
}


@pytest.mark.system
def test_loads_where_the_project_is_not_installed(tmp_path):
    images, sizes = tiny_qlseg_batch((70, 100))["pixel_values"], ((90, 70), (64, 64), (65, 64), (20, 30), (300, 40))
    processor = FASegImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    saved = check_loads_elsewhere(tiny_qlseg(), processor, images, "semantic_scores", CLASSES, tmp_path, sizes)
    for file in saved.glob("*.py"):
        assert "from configuration." not in file.read_text(), f"{file.name} is a bridge"


def test_installed_code_needs_no_trust(tmp_path):
    processor = FASegImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    auto_classes = (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation)
    check_loads_here(tiny_qlseg(), processor, auto_classes, tmp_path)
