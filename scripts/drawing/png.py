"""Images that a command leaves beside others' files: PNGs with the project's mark."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scripts.storage.atomic import atomic_file
from scripts.storage.outputs import MARK, check_output_file


def write_png(image: Image.Image, file: Path, overwrite: bool) -> None:
    """Writes the image atomically.

    Args:
        overwrite: whether a file that this project did not write may be replaced.
    Raises:
        UserError: it may not, and there is one.
        OSError: it cannot be written.
    """
    check_output_file("--output_dir:", file, overwrite)
    mark = PngInfo()
    mark.add_text("Software", MARK)
    with atomic_file(file) as partial:
        image.save(partial, "PNG", pnginfo=mark)
