"""Images that a model reads at a far smaller size than they have, in which small things are lost: said once."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from scripts.cli.errors import errors_explained


MOST = 2  # times smaller without a word


class Shrinking:
    """Counts the images that the processor makes more than `MOST` times smaller.

    Attributes:
        first: what is said of the first of them; count: how many there are.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.first, self.count = "", 0

    def add(self, name: str, image: Image.Image) -> None:
        """Looks at one image.

        Raises:
            UserError: it would be read at a size that no memory holds.
        """
        with errors_explained(name, ValueError):
            height, width = self.processor.network_size(image.height, image.width)
        times = max(image.height / height, image.width / width)
        if times > MOST:
            self.count += 1
            size = f"{image.height}x{image.width} (height x width)"
            self.first = self.first or f"{name} of {size} is read at {height}x{width}, {times:.1f} times smaller"

    def summary(self, accelerator: Accelerator) -> str:
        """One line about the images of all processes, which all call this; empty if there is nothing to say."""
        found = [(self.first, self.count)]
        if accelerator.num_processes > 1:
            found = gather_object(found)
        count = sum(each for _, each in found)
        if not count:
            return ""
        first = next(text for text, each in found if each)
        others = "" if count == 1 else f", as {'is' if count == 2 else 'are'} {count - 1} more of the images"
        return (
            f"{first}{others}: what is small there may be missed: --tile 512 reads images in tiles at their own size, "
            "--shortest_edge sets another"
        )
