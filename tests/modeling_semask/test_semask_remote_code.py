"""Saved SeMask-FPN, and FASeg on a SeMask backbone, load in a clean process that cannot import the project."""

import pytest
import torch
from tiny_semask import tiny_batch, tiny_faseg, tiny_model

from clean_process import run_clean
from image_processing import FASegImageProcessor


SCRIPT = """
import sys
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
    pipeline,
)

folder, saved_again, batch, expected, model_type = sys.argv[1:]
trust = {"trust_remote_code": True}
pictures = torch.load(batch)


def check(path):
    config = AutoConfig.from_pretrained(path, **trust)
    assert (config.model_type, config.backbone_config.model_type) == (model_type, "semask_swin")
    assert type(config.backbone_config).__name__ == "SeMaskSwinConfig"
    for auto_class in (AutoModelForImageSegmentation, AutoModelForSemanticSegmentation):
        model = auto_class.from_pretrained(path, **trust)
        with torch.no_grad():
            outputs = model(pictures)
        logits = outputs.logits if model_type == "semask" else outputs.masks_queries_logits
        torch.testing.assert_close(logits, torch.load(expected), atol=1e-5, rtol=1e-4)
    for backend in ("torchvision", "pil", None):
        processor = AutoImageProcessor.from_pretrained(path, backend=backend, **trust)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    segments = pipeline("image-segmentation", model=path, **trust)(picture)
    assert segments and all(segment["mask"].size == (90, 70) for segment in segments)
    return model, processor


model, processor = check(folder)
model.save_pretrained(saved_again)
processor.save_pretrained(saved_again)
check(saved_again)
print("loaded")
"""


@pytest.mark.parametrize(
    ("make", "size", "divisor"), [(tiny_model, (50, 71), 0), (tiny_faseg, (64, 96), 32)], ids=["semask", "faseg"]
)
def test_loads_where_the_project_is_not_installed(make, size, divisor, tmp_path):
    model = make()
    pictures = tiny_batch(size=size)["pixel_values"]
    model.save_pretrained(tmp_path / "saved")
    processor = FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=divisor)
    processor.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        outputs = model(pictures)
    torch.save(pictures, tmp_path / "pictures.pt")
    torch.save(getattr(outputs, "logits", getattr(outputs, "masks_queries_logits", None)), tmp_path / "logits.pt")
    arguments = [str(tmp_path / name) for name in ("saved", "again", "pictures.pt", "logits.pt")]
    found = run_clean(SCRIPT, [*arguments, model.config.model_type], tmp_path)
    assert found.strip().endswith("loaded")
    code = {file.name for file in (tmp_path / "saved").glob("*.py")}
    assert {"backbone_semask.py", "configuration_semask.py", "loss_semask.py"} <= code
    assert not any("_qlseg" in name for name in code)
    bridges = [name for name in code if "from configuration." in (tmp_path / "saved" / name).read_text()]
    assert not bridges


def test_pipeline_answers_for_installed_code(tmp_path):
    from transformers import pipeline

    tiny_model().save_pretrained(tmp_path)
    FASegImageProcessor(size={"shortest_edge": 33, "longest_edge": 128}, size_divisor=0).save_pretrained(tmp_path)
    from PIL import Image

    picture = Image.effect_noise((90, 71), 80).convert("RGB")
    for batch_size in (1, 2):
        answers = pipeline("image-segmentation", model=str(tmp_path))([picture] * 2, batch_size=batch_size)
        for segments in answers:
            assert segments and all(segment["mask"].size == (90, 71) for segment in segments)
