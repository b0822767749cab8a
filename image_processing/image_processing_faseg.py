"""FASeg's image processor on torchvision, the default backend."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_backends import TorchvisionBackend

from .preprocessing import FASegImageProcessorBase, FASegImageProcessorKwargs


if TYPE_CHECKING:
    # Never runs: save_pretrained copies the files named like this, and a checkpoint carries both backends.
    # transformers asks again, after a broken download, only for files that the entry file itself names.
    from .host_transfers import to_host  # noqa: F401
    from .image_processing_pil_faseg import FASegImageProcessorPil  # noqa: F401
    from .intensities import scaled_intensities  # noqa: F401
    from .label_maps import read_label_map  # noqa: F401
    from .model_outputs import checked_sizes  # noqa: F401
    from .post_processing import FASegPostProcessing  # noqa: F401
    from .processor_settings import check_settings  # noqa: F401
    from .run_lengths import run_lengths  # noqa: F401
    from .segments import BoxedMask  # noqa: F401
    from .semantic_labels import ImageScores  # noqa: F401


class FASegImageProcessor(FASegImageProcessorBase, TorchvisionBackend):  # type: ignore[misc]
    """Images and label maps -> model inputs; logits -> maps and segments. On torchvision, on any device.

    The reference's evaluation: shortest edge 512, longest at most 2048, bilinear with antialiasing on 8 bits,
    ImageNet's mean and standard deviation, zero padding at the right and bottom to a multiple of 32.
    All settings: `FASegImageProcessorKwargs`.
    """

    valid_kwargs = FASegImageProcessorKwargs

    def to_backend(self, image: Any, device: Any) -> torch.Tensor:
        """A contiguous tensor on `device`, or where it is."""
        if not isinstance(image, torch.Tensor):
            image = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        return image.contiguous() if device is None else image.contiguous().to(device)

    def resize(  # type: ignore[override]
        self, image: torch.Tensor, size: Any, resample: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """Bilinear with antialiasing, or as `resample` says."""
        if (size.height, size.width) == (1, 1) and image.dtype == torch.uint8:
            # torchvision fails on one pixel of 8 bits.
            return super().resize(image.float(), size, resample, **kwargs).round().clamp(0, 255).to(torch.uint8)
        return super().resize(image, size, resample, **kwargs)

    def scale(self, image: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Rescale and normalise in one step."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(image, **{name: kwargs[name] for name in names}).float()

    def pad_to(self, image: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
        """Zeros at the right and bottom up to `canvas`."""
        return F.pad(image, (0, canvas[1] - image.shape[2], 0, canvas[0] - image.shape[1]))


__all__ = ["FASegImageProcessor"]
