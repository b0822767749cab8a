"""Saved models carry their code: they load in a clean process that cannot import the project."""

import pytest
import torch
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch, tiny_model

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
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

folder, saved_again, batch, expected = sys.argv[1:]
trust = {"trust_remote_code": True}
pictures = torch.load(batch)


def check(path):
    assert AutoConfig.from_pretrained(path, **trust).model_type == "faseg"
    assert type(AutoModel.from_pretrained(path, **trust)).__name__ == "FASegModel"
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation):
        model = auto_class.from_pretrained(path, **trust)
        assert type(model).__name__ == "FASegForUniversalSegmentation"
        torch.testing.assert_close(model(pictures).masks_queries_logits, torch.load(expected), atol=1e-5, rtol=1e-4)
        assert model(pictures, output_focus=True).focus_maps is not None
    for backend in ("torchvision", "pil", None):
        processor = AutoImageProcessor.from_pretrained(path, backend=backend, **trust)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    segments = pipeline("image-segmentation", model=path, **trust)(picture)
    assert segments and all(segment["mask"].size == (90, 70) for segment in segments)
    assert all(segment["score"] is None for segment in segments)
    return model, processor


model, processor = check(folder)
model.save_pretrained(saved_again)
processor.save_pretrained(saved_again)
check(saved_again)
print("loaded")
"""


@pytest.mark.parametrize("backbone", [TINY_RESNET, TINY_SWIN], ids=lambda config: config["model_type"])
def test_loads_where_the_project_is_not_installed(backbone, tmp_path):
    model = tiny_model(backbone_config=dict(backbone))
    pictures = tiny_batch()["pixel_values"]
    model.save_pretrained(tmp_path / "saved")
    FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path / "saved")
    torch.save(pictures, tmp_path / "pictures.pt")
    with torch.no_grad():
        torch.save(model(pictures).masks_queries_logits, tmp_path / "masks.pt")
    arguments = [str(tmp_path / name) for name in ("saved", "again", "pictures.pt", "masks.pt")]
    assert run_clean(SCRIPT, arguments, tmp_path).strip().endswith("loaded")


def test_installed_code_needs_no_trust(tmp_path):
    from transformers import AutoModelForSemanticSegmentation, pipeline

    import modeling_faseg

    tiny_model().save_pretrained(tmp_path)
    FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is modeling_faseg.FASegForUniversalSegmentation
    assert pipeline("image-segmentation", model=str(tmp_path)).model is not None
