"""A saved model carries its code: it loads where the project is not installed, and is the same model there."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import pipeline

from clean_process import run_clean


PROGRAM = """
import json
import sys
import torch
import transformers
from PIL import Image

folder, saved_again, batch, expected, asked = sys.argv[1:]
asked = json.loads(asked)
trust = {"trust_remote_code": True}
images = torch.load(batch)


def also(config, model):
    ALSO


def check(path):
    config = transformers.AutoConfig.from_pretrained(path, **trust)
    assert config.model_type == asked["model_type"]
    for auto_class, name in asked["classes"].items():
        model = getattr(transformers, auto_class).from_pretrained(path, **trust)
        assert type(model).__name__ == name
        if auto_class == "AutoModel":
            continue
        with torch.no_grad():
            found = model(images)[asked["field"]]
        torch.testing.assert_close(found, torch.load(expected), atol=1e-5, rtol=1e-4)
        also(config, model)
    for backend in ("torchvision", "pil", None):
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend=backend, **trust)
    segment = transformers.pipeline("image-segmentation", model=path, **trust)
    for size in asked["sizes"]:
        segments = segment(Image.effect_noise(size, 80).convert("RGB"))
        assert segments and all(found["mask"].size == tuple(size) for found in segments)
        assert all(found["score"] is None for found in segments)
    return model, processor


model, processor = check(folder)
model.save_pretrained(saved_again)
processor.save_pretrained(saved_again)
check(saved_again)
print("loaded")
"""


def check_loads_elsewhere(
    model: Any,
    processor: Any,
    images: Tensor,
    field: str,
    classes: dict[str, str],
    folder: Path,
    sizes: tuple[tuple[int, int], ...] = ((90, 70),),
    also: str = "pass",
) -> Path:
    """Save a model and load it in a clean process, by every auto class, through `pipeline`, and saved again there.

    Args:
        images: `(B, 3, H, W)`; field: the output of the model that must be the same.
        classes: auto class -> name of the class that it is to load; of `AutoModel` the name alone is looked at.
        sizes: widths and heights of images for the pipeline.
        also: a statement on `config`, `model` and `images`, run there for each of `classes` but `AutoModel`.
    Returns:
        The saved folder.
    """
    model.save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")
    torch.save(images, folder / "images.pt")
    with torch.no_grad():
        torch.save(model(images)[field], folder / "expected.pt")
    asked = {"model_type": model.config.model_type, "classes": classes, "field": field, "sizes": sizes}
    files = [str(folder / name) for name in ("saved", "again", "images.pt", "expected.pt")]
    said = run_clean(PROGRAM.replace("ALSO", also), [*files, json.dumps(asked)], folder)
    assert said.strip().endswith("loaded")
    return folder / "saved"


def check_loads_here(model: Any, processor: Any, auto_classes: tuple[Any, ...], folder: Path) -> None:
    """The installed code's own class is loaded, without `trust_remote_code`, by auto classes and `pipeline` alike."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for auto_class in auto_classes:
        assert type(auto_class.from_pretrained(folder)) is type(model)
    assert type(pipeline("image-segmentation", model=str(folder)).model) is type(model)
