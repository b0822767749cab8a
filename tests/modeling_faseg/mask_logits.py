"""Masks as whole logits: what the loss, which gets products, is compared with."""

import torch
from torch.nn import functional as F


class MaskLogits:
    """In place of `MaskProducts`: the masks of several predictions for the same images, logits `(B, Q, h, w)`."""

    def __init__(self, logits):
        self.logits = logits
        self.device = logits[0].device

    def at_points(self, prediction, points):
        """`(B, Q, P)` float32 logits at the points `(B, P, 2)` of each image; without gradient."""
        logits = self.logits[prediction].detach().float()
        return F.grid_sample(logits, 2 * points[:, None] - 1, mode="bilinear", align_corners=False)[:, :, 0]

    def of_queries(self, predictions, queries):
        """`(N, h, w)` float32 logits of some queries of each of `predictions`, given per prediction and image."""
        chosen = []
        for prediction, per_image in zip(predictions, queries):
            logits = self.logits[prediction]
            chosen.append(torch.cat([logits[image][index] for image, index in enumerate(per_image)]).float())
        return chosen
