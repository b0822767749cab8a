"""Images of other bands than RGB or of more than 8 bits, as a repository has them: arrays `(H, W, C)`.

The card says what their numbers mean and how to load them; samples of them lie in the repository as `.npy` files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from scripts.cli.errors import errors_explained
from scripts.data.bands import ImageForm
from scripts.data.image_files import bands_of_file


MAX_SAMPLE_SIDE = 960  # pixels
SNIPPET = """\
import numpy as np
import torch
{download}from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForUniversalSegmentation.from_pretrained("{name}", trust_remote_code=True)
image = np.load({image})  # (height, width, {bands})
inputs = processor(images=[image], input_data_format="channels_last", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
size = image.shape[:2]
"""


def array_snippet(name: str, form: ImageForm, ending: str, sample: str | None = None) -> str:
    """What a model finds in an array by the auto classes, with the repository `name`.

    Args:
        ending: what post-processes `outputs` to `size` and prints it.
        sample: a file of the repository to run on; None for a file of the reader's.
    """
    image, download = '"image.npy"', ""
    if sample is not None:
        image, download = f'hf_hub_download("{name}", "{sample}")', "from huggingface_hub import hf_hub_download\n"
    return SNIPPET.format(name=name, image=image, download=download, bands=form.num_bands) + ending


def images_read(form: ImageForm, processor: Any) -> dict[str, Any]:
    """What a card says of the images: `bands`, `range` (two numbers as texts, None for 8 bits), `divisor` (of the
    scale 0..255, as text) and, where it normalises, `rows` of a band's number, mean and deviation."""
    numbers = [
        list(value) if isinstance(value, list | tuple) else [value] * form.num_bands
        for value in (processor.image_mean, processor.image_std)
    ]
    limits = form.intensity_range
    return {
        "bands": form.num_bands,
        "range": None if limits is None else [f"{limit:.10g}" for limit in limits],
        "divisor": f"{1 / processor.rescale_factor:g}" if processor.do_rescale else "1",
        "rows": [
            (number, f"{mean:.6g}", f"{deviation:.6g}")
            for number, (mean, deviation) in enumerate(zip(*numbers, strict=True), 1)
        ]
        if processor.do_normalize
        else [],
    }


def sample_array(file: Path, form: ImageForm) -> np.ndarray:
    """`(H, W, C)` of a file with its own numbers, the bands that the model reads; of a larger image the middle part.

    Raises:
        UserError: it cannot be read, or is no image of this form.
    """
    faults = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
    with errors_explained(f"--sample_images {file}", *faults):
        found = bands_of_file({"bytes": None, "path": str(file)})
        if found is not None:
            bands = form.bands(*found)
        else:
            with Image.open(file) as image:
                bands = form.bands(ImageOps.exif_transpose(image))
        form.scaled(bands)
    top, left = (max(0, side - MAX_SAMPLE_SIDE) // 2 for side in bands.shape[1:])
    middle = bands[:, top : top + MAX_SAMPLE_SIDE, left : left + MAX_SAMPLE_SIDE]
    return np.ascontiguousarray(middle.transpose(1, 2, 0))
