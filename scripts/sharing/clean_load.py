"""Loads a repository back as a stranger would: in a new process, without this project, from an empty cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_token
from PIL import Image

from scripts.cli.errors import UserError
from scripts.data.bands import ImageForm, form_of


TOLERANCE = 1e-4  # as between this project and the reference
SIZE = (96, 128)  # height and width of the image that is compared
TIMEOUT = 1800.0  # seconds, the download included
# The begin of a program that is to find none of the project, as a program in Python.
HIDE_PROJECT = """
import sys

class NotHere:
    # The project may be installed: a stranger's machine has none of it.
    def find_spec(self, name, path=None, target=None):
        if path is None and name in ("configuration", "image_processing", "modeling_faseg", "scripts"):
            raise ModuleNotFoundError(f"{name} is not to be had here")

sys.meta_path.insert(0, NotHere())
"""
PROGRAM = (
    HIDE_PROJECT
    + """
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

name, revision, image, output, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
settings = {"trust_remote_code": True} | ({"revision": revision} if revision else {})
processor = AutoImageProcessor.from_pretrained(name, **settings)
model = AutoModelForUniversalSegmentation.from_pretrained(name, **settings).eval()
inputs = processor(images=[np.load(image)], input_data_format="channels_last", return_tensors="pt")
with torch.no_grad():
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
found = {k: v.float() for k, v in outputs.items() if k.endswith(("logits", "scores")) and torch.is_tensor(v)}
np.savez(output, **found)
"""
)


def generated_image(form: ImageForm) -> np.ndarray:
    """`(*SIZE, C)` image of soft colours of this form, the same everywhere: 8 bits, or float32 over the range."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, form.num_bands), dtype=np.uint8)
    bands = [Image.fromarray(coarse[..., band]) for band in range(form.num_bands)]
    image = np.stack([np.asarray(band.resize(SIZE[::-1], Image.Resampling.BILINEAR)) for band in bands], axis=-1)
    if form.intensity_range is None:
        return image
    low, high = form.intensity_range
    return (low + (high - low) * (image / 255)).astype(np.float32)


def largest_difference(model: Any, processor: Any, found: Any) -> float:
    """Of the logits of `model` here from those `found` there.

    Raises:
        UserError: they are not the same outputs.
    """
    model = model.to("cpu").eval()
    image = generated_image(form_of(model.config, processor))
    inputs = processor(images=[image], input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    here = {
        key: value for key, value in outputs.items() if key.endswith(("logits", "scores")) and torch.is_tensor(value)
    }
    if set(here) != set(found):
        raise UserError(f"the copy returns {', '.join(found) or 'no logits'}, the model {', '.join(here)}")
    return max(float((value.float() - torch.from_numpy(found[key])).abs().max()) for key, value in here.items())


def load_back(name: str, revision: str | None, model: Any, processor: Any) -> float:
    """Loads `name` (a Hub id or a folder) in a clean process and compares its logits with `model`'s.

    Returns:
        The largest difference, at most `TOLERANCE`.
    Raises:
        UserError: it does not load, or its logits differ.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "image.npy", generated_image(form_of(model.config, processor)))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_MODULES_CACHE": str(folder / "modules")}
        if token := get_token():
            environment["HF_TOKEN"] = token
        files = [str(folder / "image.npy"), str(folder / "logits.npz")]
        arguments = [name, revision or "", *files, str(torch.get_num_threads())]
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", PROGRAM, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{name} does not load back: no end after {TIMEOUT:.0f} seconds") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(f"{name} does not load back: {lines[-1] if lines else f'exit code {done.returncode}'}")
        with np.load(folder / "logits.npz") as found:
            difference = largest_difference(model, processor, found)
    if not difference <= TOLERANCE:
        raise UserError(f"{name} loads back with other logits: they differ by {difference:.2g}")
    return difference
