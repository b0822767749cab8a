"""Class scores of QLSeg's predictions, and images of any size read through square windows.

Notation: B batch, K classes, H and W of the (padded) images, S side of a window.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


WINDOWS_AT_ONCE = 4


def class_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum over queries of class probability times mask probability, float32.

    Args:
        class_logits: `(B, K, K + 1)`, the last class is "not in the image".
        mask_logits: `(B, K, h, w)`.
        size: height and width of the result.
    Returns:
        `(B, K, *size)`, values in 0..K.
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        class_probs = class_logits.float().softmax(dim=-1)[..., :-1]
        masks = nn.functional.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)
        return torch.matmul(class_probs.transpose(1, 2), masks.sigmoid().flatten(2)).unflatten(2, size)


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along one side, as mmsegmentation lays them; the last is shifted back to the border.

    A side shorter than the window has one window that ends outside.
    """
    number = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride + crop, length) - crop, 0) for index in range(number)]


def sliding_scores(
    pixel_values: Tensor,
    sizes: list[tuple[int, int]],
    side: int,
    stride: int,
    scores_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """`(B, K, H, W)` mean class scores of the windows over each image; zero on padding.

    Each image is read alone, without the padding that a batch gave it. Where it is smaller than the window it is
    padded with zeros, the mean colour, as training crops are.

    Args:
        pixel_values: `(B, 3, H, W)`.
        sizes: heights and widths of the images, which lie at the top left.
        side: of a window; stride: its step.
        scores_of: `(n, 3, S, S)` windows to their scores `(n, K, S, S)`.
    """
    result = None
    for index, (height, width) in enumerate(sizes):
        image = pixel_values[index, :, :height, :width]
        image = nn.functional.pad(image, (0, max(side - width, 0), 0, max(side - height, 0)))
        places = [
            (top, left) for top in window_starts(height, side, stride) for left in window_starts(width, side, stride)
        ]
        total, count = None, pixel_values.new_zeros(image.shape[-2:], dtype=torch.float32)
        for first in range(0, len(places), WINDOWS_AT_ONCE):
            part = places[first : first + WINDOWS_AT_ONCE]
            windows = torch.stack([image[:, top : top + side, left : left + side] for top, left in part])
            for (top, left), scores in zip(part, scores_of(windows)):
                if total is None:
                    total = scores.new_zeros(len(scores), *image.shape[-2:])
                total[:, top : top + side, left : left + side] += scores
                count[top : top + side, left : left + side] += 1
        assert total is not None
        if result is None:
            result = total.new_zeros(len(sizes), len(total), *pixel_values.shape[-2:])
        result[index, :, :height, :width] = (total / count)[:, :height, :width]
    assert result is not None
    return result
