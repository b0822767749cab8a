"""Saved models carry their code: they load in a clean process that cannot import the project."""

import torch
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch

import modeling_faseg
from clean_process import run_clean
from image_processing import FASegImageProcessor


SCRIPT = """
import sys
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

folder, saved_again, batch, expected = sys.argv[1:]
trust = {"trust_remote_code": True}
pictures = torch.load(batch)


def check(path):
    assert AutoConfig.from_pretrained(path, **trust).model_type == "qlseg"
    assert type(AutoModel.from_pretrained(path, **trust)).__name__ == "QLSegModel"
    for auto_class in (
        AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation, AutoModelForImageSegmentation
    ):
        model = auto_class.from_pretrained(path, **trust)
        assert type(model).__name__ == "QLSegForSemanticSegmentation"
        torch.testing.assert_close(model(pictures).semantic_scores, torch.load(expected), atol=1e-5, rtol=1e-4)
    for backend in ("torchvision", "pil", None):
        processor = AutoImageProcessor.from_pretrained(path, backend=backend, **trust)
    segment = pipeline("image-segmentation", model=path, **trust)
    for size in ((90, 70), (64, 64), (65, 64), (20, 30), (300, 40)):
        picture = Image.effect_noise(size, 80).convert("RGB")
        segments = segment(picture)
        assert segments and all(found["mask"].size == size for found in segments)
        assert all(found["score"] is None for found in segments)
    return model, processor


model, processor = check(folder)
model.save_pretrained(saved_again)
processor.save_pretrained(saved_again)
check(saved_again)
print("loaded")
"""


def test_loads_where_the_project_is_not_installed(tmp_path):
    model, pictures = tiny_qlseg(), tiny_qlseg_batch((70, 100))["pixel_values"]
    model.save_pretrained(tmp_path / "saved")
    FASegImageProcessor(size={"shortest_edge": 64}, size_divisor=16).save_pretrained(tmp_path / "saved")
    torch.save(pictures, tmp_path / "pictures.pt")
    with torch.no_grad():
        torch.save(model(pictures).semantic_scores, tmp_path / "scores.pt")
    arguments = [str(tmp_path / name) for name in ("saved", "again", "pictures.pt", "scores.pt")]
    assert run_clean(SCRIPT, arguments, tmp_path).strip().endswith("loaded")


def test_installed_code_needs_no_trust(tmp_path):
    from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation, pipeline

    tiny_qlseg().save_pretrained(tmp_path)
    FASegImageProcessor(size={"shortest_edge": 64}, size_divisor=16).save_pretrained(tmp_path)
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation):
        assert type(auto_class.from_pretrained(tmp_path)) is modeling_faseg.QLSegForSemanticSegmentation
    assert pipeline("image-segmentation", model=str(tmp_path)).model is not None
