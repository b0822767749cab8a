"""Matching, loss and transformer decoder against a plain implementation of the same.

Matching and loss in plain are transformers' own, one prediction after the other. The plain decoder has the same
layers, but predicts every mask at full size in every layer, and weighs positions in one product of queries x tokens x
channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.mask_predictions_faseg import MaskProducts
from modeling_faseg.transformer_decoder_faseg import FASegTransformerDecoder
from scripts.benchmarking.contestants import Case, faseg_config
from scripts.benchmarking.measuring import Clock, Stages
from scripts.benchmarking.parts import PLAIN
from scripts.benchmarking.workloads import random_batch


# Mask embeddings (B, Q, M) and class logits (B, Q, K + 1) of every prediction, the final one first; the mask features
# (B, M, H/4, W/4) that they share; mask labels and class labels.
Predictions = tuple[list[Tensor], list[Tensor], Tensor, list[Tensor], list[Tensor]]


class LossWork:
    """Matching and loss from mask embeddings, mask features and class logits, forward and backward."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.config = faseg_config(case)
        self.criterion = FASegLoss(self.config).to(self.device)
        self.plain = Mask2FormerLoss(self.config, {}).to(self.device)
        self.clock = Clock(self.device)

    def inputs(self, seed: int) -> Predictions:
        """Random predictions, with gradients, and labels."""
        case, count = self.case, self.config.decoder_layers + 1
        width = self.config.mask_feature_size
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = scale * torch.randn(case.batch, *shape, generator=generator)
            return drawn.to(self.device).requires_grad_()

        embeddings = [draw(case.queries, width, scale=width**-0.5) for _ in range(count)]
        class_logits = [draw(case.queries, case.classes + 1) for _ in range(count)]
        features = draw(width, case.height // 4, case.width // 4)
        batch = random_batch(case, seed)
        return embeddings, class_logits, features, batch["mask_labels"], batch["class_labels"]

    def loss(self, inputs: Predictions) -> Tensor:
        """The sum to minimise, by the case's contestant."""
        embeddings, class_logits, features, *labels = inputs
        if self.case.contestant == PLAIN:
            masks = multiplied(embeddings, features)
            terms = [self.plain(*each, *labels) for each in zip(masks, class_logits)]
        else:
            terms = [self.criterion(MaskProducts(embeddings, features), class_logits, *labels)]
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

    @torch.no_grad()
    def matches(self, inputs: Predictions) -> list[list[tuple[Tensor, Tensor]]]:
        """Per prediction and image the matched queries and targets, by the case's contestant."""
        embeddings, class_logits, features, *labels = inputs
        if self.case.contestant == PLAIN:
            masks = multiplied(embeddings, features)
            return [self.plain.matcher(*each, *labels) for each in zip(masks, class_logits)]
        chosen = range(len(class_logits))
        return self.criterion.matcher(MaskProducts(embeddings, features), chosen, class_logits, *labels)

    def run(self, seed: int) -> Stages:
        """Seconds of the one stage."""
        inputs = self.inputs(seed)
        with self.clock.stage("matching"):
            self.matches(inputs)
        return self.clock.take()


def multiplied(embeddings: list[Tensor], features: Tensor) -> list[Tensor]:
    """Mask logits `(B, Q, H/4, W/4)` of every prediction, which FASeg's loss does without."""
    return [torch.einsum("bqc,bchw->bqhw", each, features) for each in embeddings]


class DecoderWork:
    """The transformer decoder on random maps with the masks of every prediction, forward and backward."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.config = faseg_config(case)
        self.config._attn_implementation = "eager" if case.contestant == PLAIN else "sdpa"
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
            return plain_predictions(self.decoder, features, positions, mask_features)
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


def plain_predictions(
    decoder: Any, feature_maps: list[Tensor], positions: list[Tensor], mask_features: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Normalised queries `(B, Q, C)` and masks `(B, Q, H/4, W/4)` of every prediction, the initial one first."""
    config, learned = decoder.config, decoder.queries_embedder.weight[None]
    places = [position.flatten(2).transpose(1, 2) for position in positions]
    values = [
        level.flatten(2).transpose(1, 2) + embedding
        for level, embedding in zip(feature_maps, decoder.level_embed.weight)
    ]
    queries = decoder.queries_features.weight.expand(len(mask_features), -1, -1)
    predictions: list[tuple[Tensor, Tensor]] = []

    def probs(level: int) -> Tensor:
        """Mask probabilities `(B, Q, L)` on a level, of a new prediction; decisions let no gradient through."""
        normalised = decoder.layernorm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embedder(normalised), mask_features)
        predictions.append((normalised, masks))
        size = feature_maps[level].shape[-2:]
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False).sigmoid().flatten(2).detach()

    def focused(attention: Tensor, level: int) -> Tensor:
        focus = (attention[..., None] * places[level][:, None]).sum(2)
        return decoder.focus_queries.fc2(F.relu(decoder.focus_queries.fc1(focus + learned)))

    allowed, coarse = probs(0), None
    outside = (allowed < 0.5).float()
    position = focused(outside / (outside.sum(-1, keepdim=True) + 1e-6), 0)
    for index, weights in enumerate(decoder.layer_weights):
        layer, level = decoder.layers[weights], index % 4
        if level < 3:
            blocked = allowed < config.attention_mask_threshold
            blocked = (blocked & ~blocked.all(-1, keepdim=True))[:, None]
            keys = values[level] + places[level]
            queries, attention = layer(queries, position, position, keys, values[level], blocked)
            coarse = attention if level == 0 else coarse
        else:
            kept = window_tokens(coarse, feature_maps, config.high_resolution_reduction)
            value, place = (torch.stack([image[k] for image, k in zip(each[3], kept)]) for each in (values, places))
            queries, _ = layer(queries, learned, position, value + place, value, None, False, in_windows=True)
        allowed = probs((index + 1) % 4)
        if level < 3:
            position = focused(attention, level)
    return predictions


def window_tokens(coarse: Any, feature_maps: list[Tensor], reduction: int) -> Tensor:
    """`(B, W * side * side)` stride-4 tokens under the best-attended stride-32 tokens."""
    columns, fine_columns = feature_maps[0].shape[-1], feature_maps[3].shape[-1]
    side = fine_columns // columns
    kept = coarse.sum(1).argsort(-1, descending=True)[:, : coarse.shape[-1] // reduction]
    offsets = torch.arange(side, device=kept.device)
    rows = (kept // columns * side)[..., None, None] + offsets[:, None]
    return (rows * fine_columns + (kept % columns * side)[..., None, None] + offsets).flatten(1)
