"""FASeg's image processor on Pillow and NumPy, for machines without torchvision."""

from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend

from .preprocessing import FASegImageProcessorBase, FASegImageProcessorKwargs
from .processor_settings import pillow_filter


if TYPE_CHECKING:
    # Never runs: save_pretrained copies the files named like this, and a checkpoint carries both backends.
    # transformers asks again, after a broken download, only for files that the entry file itself names.
    from .host_transfers import to_host  # noqa: F401
    from .image_processing_faseg import FASegImageProcessor  # noqa: F401
    from .intensities import scaled_intensities  # noqa: F401
    from .label_maps import read_label_map  # noqa: F401
    from .model_outputs import checked_sizes  # noqa: F401
    from .post_processing import FASegPostProcessing  # noqa: F401
    from .run_lengths import run_lengths  # noqa: F401
    from .segments import BoxedMask  # noqa: F401
    from .semantic_labels import ImageScores  # noqa: F401


class FASegImageProcessorPil(FASegImageProcessorBase, PilBackend):  # type: ignore[misc]
    """`FASegImageProcessor` on Pillow: the reference's own resizing, on the CPU. All settings are the same."""

    valid_kwargs = FASegImageProcessorKwargs

    def to_backend(self, image: Any, device: Any) -> np.ndarray:
        """A NumPy array; `device` is for the torchvision backend."""
        return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image

    def resize(  # type: ignore[override]
        self, image: np.ndarray, size: Any, resample: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Bilinear, or as `resample` says; uint8 stays uint8, and float32 is not rounded.

        Channel by channel: as one image, Pillow would take a second or fourth channel for transparency.
        """
        resample = pillow_filter(resample)
        bands = [PIL.Image.fromarray(band).resize((size.width, size.height), resample) for band in image]
        return np.stack([np.asarray(band) for band in bands])

    def scale(self, image: np.ndarray, kwargs: dict[str, Any]) -> np.ndarray:
        """Rescale, then normalise."""
        if kwargs["do_rescale"]:
            image = self.rescale(image, kwargs["rescale_factor"])
        if kwargs["do_normalize"]:
            image = self.normalize(image, kwargs["image_mean"], kwargs["image_std"])
        return image.astype(np.float32, copy=False)

    def pad_to(self, image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
        """Zeros at the right and bottom up to `canvas`."""
        return np.pad(image, ((0, 0), (0, canvas[0] - image.shape[1]), (0, canvas[1] - image.shape[2])))


__all__ = ["FASegImageProcessorPil"]
