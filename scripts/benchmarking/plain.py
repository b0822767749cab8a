"""Matching, loss and transformer decoder against the plain implementation that the tests compare with.

That implementation is part of the tests, so these parts run from a checkout of the project only.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from modeling_faseg.loss_faseg import FASegLoss
from modeling_faseg.mask_predictions_faseg import MaskProduct, mask_predictions
from modeling_faseg.transformer_decoder_faseg import FASegTransformerDecoder
from scripts.benchmarking.contestants import Case, faseg_config
from scripts.benchmarking.measuring import Clock, Stages
from scripts.benchmarking.names import PLAIN
from scripts.benchmarking.workloads import random_batch
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT


PLAIN_FILE = PROJECT_ROOT / "tests" / "modeling_faseg" / "plain_reference.py"


def plain_implementation() -> ModuleType:
    """The module of the tests.

    Raises:
        UserError: there are no tests here.
    """
    name = "faseg_plain_reference"
    if name not in sys.modules:
        if not PLAIN_FILE.is_file():
            raise UserError(f"{PLAIN_FILE} is not there: run from a checkout of the project")
        spec = importlib.util.spec_from_file_location(name, PLAIN_FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


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

    def products(self) -> list[MaskProduct]:
        """The masks not multiplied out: what FASeg's loss gets in training."""
        return [MaskProduct(each, self.features) for each in self.embeddings]


class LossWork:
    """Matching and loss from mask embeddings, mask features and class logits, forward and backward."""

    def __init__(self, case: Case):
        self.case, self.device = case, torch.device(case.device)
        self.config = faseg_config(case)
        self.criterion = FASegLoss(self.config).to(self.device)
        self.plain = plain_implementation()
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
            terms = list(self.plain.losses(inputs.multiplied(), *labels, points, self.config.no_object_weight))
        else:
            first, *earlier = [
                {"masks_queries_logits": masks, "class_queries_logits": classes}
                for masks, classes in zip(inputs.products(), inputs.class_logits)
            ]
            terms = [self.criterion(*first.values(), *labels, earlier)]
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
                return [self.plain.match(each, *labels, points) for each in inputs.multiplied()]
            predictions = mask_predictions(inputs.products())
            return self.criterion.matcher.match(
                predictions, range(len(inputs.class_logits)), inputs.class_logits, *labels
            )

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
        self.plain = plain_implementation()
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
            weights = dict(self.decoder.named_parameters())
            return self.plain.decode(weights, self.config, features, positions, mask_features)
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
