"""What an ONNX file decides by thresholds and ranks, and a model that decides the same.

A model may decide by thresholds what its queries look at: which pixels are below their mask's threshold, and which
windows HRCA keeps. Float noise may turn a decision that stands on the threshold, and what follows then differs by far
more than noise. So the model repeats the file's decisions: logits have to agree within the tolerances of the golden
tests on every input, and each decision that the model alone would have taken otherwise has to stand so near to its
threshold that an error within those tolerances turns it.

Notation: B batch, Q queries, L tokens of a level, W kept windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from modeling_faseg.decisions import Decisions
from scripts.onnx_export.kinds import Kind
from scripts.onnx_export.network import INPUT


def open_session(file: Path | bytes) -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def not_nan(difference: float) -> float:
    """NaN as infinity, which no tolerance admits."""
    return math.inf if math.isnan(difference) else difference


class FileDecisions(Decisions):
    """What a file decides, in place of what a model would.

    `opened_by` makes of a file's content what runs it: `open_session`, or another engine's class of the same `run`.
    `count`, `turned` and `farthest` are `decisions`, `turned` and `farthest` of `Comparison`, since the last `read`.
    """

    def __init__(self, file: Path, kind: Kind, opened_by: Callable[[bytes], Any] = open_session) -> None:
        self.kind = kind
        watched = onnx.load(file)
        constants = {value.name: onnx.numpy_helper.to_array(value) for value in watched.graph.initializer}
        self.names = list(decisions_of(watched.graph, constants))
        results = {value.name for value in (*watched.graph.input, *watched.graph.output)}
        new = [name for name in (INPUT, *(output.name for output in kind.outputs), *self.names) if name not in results]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
        self.session = opened_by(watched.SerializeToString())

    def read(self, inputs: dict[str, np.ndarray], names: Sequence[str] = ()) -> list[Tensor]:
        """Runs the file and keeps what it decides; returns its values of these names."""
        found = [torch.from_numpy(value) for value in self.session.run([*self.names, *names], inputs)]
        self.left = found[: len(self.names)]
        self.count = sum(decided.numel() for decided in self.left)
        self.turned, self.farthest = 0, 0.0
        return found[len(self.names) :]

    @contextmanager
    def repeated_by(self, model: Any) -> Iterator[None]:
        """Inside the block the model decides as the file did."""
        decider = self.kind.decider(model)
        with ExitStack() as stack:
            if decider is not None:
                stack.enter_context(mock.patch.object(decider, "decisions", self))
            yield
        if self.left:  # the model takes fewer decisions than the file
            self._note(len(self.left), math.inf)

    def below(self, probs: Tensor, threshold: float) -> Tensor:
        """`True` where the file found the mask probabilities below the threshold."""
        own = super().below(probs, threshold)
        below = self._next(own)
        turned = own != below
        if turned.any():
            distances = probs[turned].double().logit() - math.log(threshold / (1 - threshold))
            self._note(int(turned.sum()), float(distances.abs().max()))
        return below

    def best(self, scores: Tensor, count: int) -> Tensor:
        """The file's choice in place of the model's own."""
        return self.windows(scores, super().best(scores, count))

    def windows(self, scores: Tensor, own: Tensor) -> Tensor:
        """The file's choice `(B, W)` in place of the model's `own`, by scores `(B, L)`."""
        if not own.numel():  # an image too small for any window: no decision
            return own
        kept = self._next(own)
        ranks, own_ranks = (scores.gather(1, index).sort().values for index in (kept, own))
        if turned := int((kept.sort().values != own.sort().values).sum()):
            apart = (ranks.log() - own_ranks.log()).abs()
            # Windows of the same attention, as of none at all, are a tie that either may break as it likes.
            self._note(turned, float(apart.where(ranks != own_ranks, 0).max()))
        return kept

    def _next(self, own: Tensor) -> Tensor:
        """The file's next decision, or the model's own where the file takes another one."""
        found = self.left.pop(0) if self.left else None
        if found is not None and found.shape == own.shape and found.dtype == own.dtype:
            return found
        self._note(1, math.inf)
        return own

    def _note(self, turned: int, distance: float) -> None:
        self.turned += turned
        self.farthest = max(self.farthest, not_nan(distance))


def decisions_of(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> Iterator[str]:
    """Names of the decisions in `graph`, in its order: what is below a threshold, and the indices of the best."""
    for node in graph.node:
        if node.op_type == "TopK":
            yield node.output[1]
        threshold = constants.get(node.input[1]) if node.op_type == "Less" else None
        if threshold is not None and threshold.size == 1 and threshold.dtype == np.float32:
            yield node.output[0]
