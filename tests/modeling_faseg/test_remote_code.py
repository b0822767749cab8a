"""Saved models carry their code: they load in a clean process that cannot import the project."""

import os
import subprocess
import sys
import textwrap

from tiny_models import tiny_batch, tiny_model

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

for name in ("configuration", "modeling_faseg", "image_processing", "scripts"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is importable: the test shows nothing")

folder, saved_again, batch, expected = sys.argv[1:]
trust = {"trust_remote_code": True}
pictures = torch.load(batch)


def check(path):
    assert AutoConfig.from_pretrained(path, **trust).model_type == "faseg"
    assert type(AutoModel.from_pretrained(path, **trust)).__name__ == "FASegModel"
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation):
        model = auto_class.from_pretrained(path, **trust)
        assert type(model).__name__ == "FASegForUniversalSegmentation"
        assert torch.equal(model(pictures).masks_queries_logits, torch.load(expected))
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


def test_loads_where_the_project_is_not_installed(tmp_path):
    import torch

    model = tiny_model()
    pictures = tiny_batch()["pixel_values"]
    model.save_pretrained(tmp_path / "saved")
    FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path / "saved")
    torch.save(pictures, tmp_path / "pictures.pt")
    with torch.no_grad():
        torch.save(model(pictures).masks_queries_logits, tmp_path / "masks.pt")
    script = tmp_path / "load.py"
    script.write_text(textwrap.dedent(SCRIPT))
    # -P: neither the script's folder nor the working directory is searched; site-packages may hold the project
    # as an editable install, whose finder is taken out.
    prelude = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    prelude += "sys.path = [p for p in sys.path if p not in " + repr([str(path) for path in project_paths()]) + "]; "
    code = prelude + f"sys.argv = sys.argv[1:]; exec(compile(open({str(script)!r}).read(), 'load.py', 'exec'))"
    arguments = [str(tmp_path / name) for name in ("saved", "again", "pictures.pt", "masks.pt")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, "load.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("loaded")
    assert "is not supported" not in result.stderr


def project_paths():
    """Where the project could be found from."""
    from pathlib import Path

    root = Path(__file__).parents[2]
    return [root, root / "scripts"]


def test_installed_code_needs_no_trust(tmp_path):
    from transformers import AutoModelForSemanticSegmentation, pipeline

    import modeling_faseg

    tiny_model().save_pretrained(tmp_path)
    FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is modeling_faseg.FASegForUniversalSegmentation
    assert pipeline("image-segmentation", model=str(tmp_path)).model is not None
