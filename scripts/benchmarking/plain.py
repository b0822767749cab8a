"""Matching, loss and transformer decoder against a plain implementation of the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.mask_predictions_faseg import MaskProducts
from modeling_faseg.transformer_decoder_faseg import FASegTransformerDecoder
from scripts.benchmarking import plain_reference
from scripts.benchmarking.contestants import Case, faseg_config
from scripts.benchmarking.measuring import Clock, Stages
from scripts.benchmarking.workloads import random_batch


PLAIN = "plain implementation"


@dataclass
class Predictions:
    """Of every prediction, the final one first: `embeddings` `(B, Q, M)` and `class_logits` `(B, Q, K + 1)`; the mask
    features `(B, M, H/4, W/4)` that they share; and the labels."""

    embeddings: list[Tensor]
    class_logits: list[Tensor]
    features: Tensor
    mask_labels: list[Tensor]
    class_labels: list[Tensor]

    def multiplied(self) -> list[tuple[Tensor, Tensor]]:
        """Mask logits `(B, Q, H/4, W/4)` and class logits: what the plain implementation starts from."""
        masks = [torch.einsum("bqc,bchw->bqhw", each, self.features) for each in self.embeddings]
        return list(zip(masks, self.class_logits))

    def products(self) -> MaskProducts:
        """The masks not multiplied out: what FASeg's loss gets."""
        return MaskProducts(self.embeddings, self.features)


class LossWork:
    """Matching and loss from mask embeddings, mask features and class logits, forward and backward."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.config = faseg_config(case)
        self.criterion = FASegLoss(self.config).to(self.device)
        self.clock = Clock(self.device)

    def inputs(self, seed: int) -> Predictions:
        """Random predictions, with gradients, and labels."""
        case, count = self.case, self.config.decoder_layers + 1
        width = self.config.mask_feature_size
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = scale * torch.randn(case.batch, *shape, generator=generator)
            return drawn.to(self.device).requires_grad_()

        batch = random_batch(case, seed)
        return Predictions(
            [draw(case.queries, width, scale=width**-0.5) for _ in range(count)],
            [draw(case.queries, case.classes + 1) for _ in range(count)],
            draw(width, case.height // 4, case.width // 4),
            batch["mask_labels"],
            batch["class_labels"],
        )

    def loss(self, inputs: Predictions) -> Tensor:
        """The sum to minimise, by the case's contestant."""
        labels = inputs.mask_labels, inputs.class_labels
        if self.case.contestant == PLAIN:
            points = self.config.train_num_points
            terms = list(plain_reference.losses(inputs.multiplied(), *labels, points, self.config.no_object_weight))
        else:
            terms = [self.criterion(inputs.products(), inputs.class_logits, *labels)]
        return torch.stack([self.criterion.weighted_sum(part) for part in terms]).sum()

    def run(self, seed: int) -> Stages:
        """Seconds forward and backward."""
        inputs = self.inputs(seed)
        with self.clock.stage("forward"):
            loss = self.loss(inputs)
        with self.clock.stage("backward"):
            loss.backward()
        return self.clock.take()


class MatcherWork(LossWork):
    """Matching of every prediction, from the same inputs."""

    def matches(self, inputs: Predictions) -> list[list[tuple[Tensor, Tensor]]]:
        """Per prediction and image the matched queries and targets, by the case's contestant."""
        labels = inputs.mask_labels, inputs.class_labels
        with torch.no_grad():
            if self.case.contestant == PLAIN:
                points = self.config.train_num_points
                return [plain_reference.match(each, *labels, points) for each in inputs.multiplied()]
            chosen = range(len(inputs.class_logits))
            return self.criterion.matcher(inputs.products(), chosen, inputs.class_logits, *labels)

    def run(self, seed: int) -> Stages:
        """Seconds of the one stage."""
        inputs = self.inputs(seed)
        with self.clock.stage("matching"):
            self.matches(inputs)
        return self.clock.take()


class DecoderWork:
    """The transformer decoder on random maps with the masks of every prediction, forward and backward."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.config = faseg_config(case)
        self.config._attn_implementation = "sdpa"
        torch.manual_seed(0)
        self.decoder = FASegTransformerDecoder(self.config).to(self.device).train()
        self.clock = Clock(self.device)

    def inputs(self, seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Feature maps, positions and mask features, with gradients."""
        case, channels = self.case, self.config.feature_size
        generator = torch.Generator().manual_seed(seed)

        def maps(channels: int, stride: int) -> Tensor:
            shape = (case.batch, channels, case.height // stride, case.width // stride)
            return torch.randn(shape, generator=generator).to(self.device).requires_grad_()

        features, positions = ([maps(channels, stride) for stride in (32, 16, 8, 4)] for _ in range(2))
        return features, positions, maps(self.config.mask_feature_size, 4)

    def predictions(self, features: list[Tensor], positions: list[Tensor], mask_features: Tensor) -> list:
        """Normalised queries and masks of every prediction, by the case's contestant."""
        if self.case.contestant == PLAIN:
            weights: dict[str, Tensor] = dict(self.decoder.named_parameters())
            return plain_reference.decode(weights, self.config, features, positions, mask_features)
        output = self.decoder(features, positions, mask_features, output_all_masks=True)
        return list(zip(output.intermediate_states, output.masks_queries_logits))

    def run(self, seed: int) -> Stages:
        """Seconds forward and backward."""
        inputs = self.inputs(seed)
        with self.clock.stage("forward"):
            predictions = self.predictions(*inputs)
            loss = torch.stack([queries.mean() + masks.mean() for queries, masks in predictions]).sum()
        with self.clock.stage("backward"):
            loss.backward()
        self.decoder.zero_grad()
        return self.clock.take()
