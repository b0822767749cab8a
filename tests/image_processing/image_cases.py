"""Images that several files of tests are about, and the backends that they are given to."""

import numpy as np
import PIL.Image
import PIL.ImageOps

from image_processing import FASegImageProcessor, FASegImageProcessorPil


BACKENDS = [FASegImageProcessor, FASegImageProcessorPil]


def random_image(height: int, width: int, mode: str = "RGB") -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode) if mode != "RGBA" else PIL.Image.fromarray(values)
