"""How long a training step takes on this machine, found out within a bounded time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm


TIME_LIMIT = 60.0  # seconds that the measurement may take
PART_SIDE = 256  # pixels: of the part of a batch that is tried first


@dataclass(frozen=True)
class StepTime:
    """What was found out.

    Args:
        seconds: of one pass over the micro batch, forward and backward, and the optimiser's step; None if even a part
            of the batch took longer than `TIME_LIMIT`.
        how: in words.
        scaled: whether a part of the batch was measured and the time scaled up by its pixels.
    """

    seconds: float | None
    how: str
    scaled: bool = False


def say(words: str) -> None:
    """A line on what is being done, apart from the report."""
    print(words, file=sys.stderr, flush=True)


def part_of(inputs: dict[str, Any], side: int) -> dict[str, Any]:
    """The top left `side` x `side` pixels of the first image of a batch, or as much as it has."""
    found = dict(inputs)
    for name in ("pixel_values", "pixel_mask"):
        found[name] = inputs[name][:1, ..., :side, :side].contiguous()
    found["mask_labels"] = [masks[..., :side, :side].contiguous() for masks in inputs["mask_labels"][:1]]
    found["class_labels"] = inputs["class_labels"][:1]
    return found


class StepTimer:
    """Runs passes of a model on a batch and takes their time.

    Args:
        inputs: of the model, on its device, see `TrainingCollator`.
        limit: seconds that all passes together may take, but for the one that is running.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        inputs: dict[str, Any],
        accelerator: Accelerator,
        limit: float = TIME_LIMIT,
    ) -> None:
        self.model, self.optimizer, self.inputs = model, optimizer, inputs
        self.accelerator, self.limit = accelerator, limit
        self.started = self._now()

    def measure(self) -> StepTime:
        """Tries a part of the batch, and then, where there is time enough for it, the whole batch."""
        side = max(PART_SIDE, getattr(self.model.config, "image_size", None) or 0)  # QLSeg reads nothing smaller
        part = part_of(self.inputs, side)
        ratio = self.inputs["pixel_values"].numel() / part["pixel_values"].numel()
        if ratio > 1:
            passes = self._passes(part, "try a part of a training step")
            if len(passes) < 2:
                return StepTime(None, f"not measured: one step takes over {passes[0][0]:.0f} s")
            whole = passes[-1][0] * ratio + passes[-1][1]
            if self._now() - self.started + 2 * whole > self.limit:
                shape = "x".join(map(str, part["pixel_values"].shape[-2:]))
                how = f"scaled up by pixels from one crop of {shape}: two micro batches would take {2 * whole:.0f} s"
                return StepTime(whole, how, scaled=True)
            say(f"a pass over a whole micro batch takes about {whole:.1f} s: two are run")
        passes = self._passes(self.inputs, "measure a training step")
        how = "two steps run, the second measured" if len(passes) == 2 else "one step run, without one to warm up"
        return StepTime(sum(passes[-1]), how)

    def _passes(self, inputs: dict[str, Any], words: str) -> list[tuple[float, float]]:
        """Seconds of forward and backward and of the optimiser in two passes; of one where that passed the limit."""
        found: list[tuple[float, float]] = []
        for _ in tqdm(range(2), desc=words, unit="step", dynamic_ncols=True):
            started = self._now()
            with self.accelerator.autocast():
                loss = self.model(**inputs).loss
            loss.backward()
            passed = self._now()
            self.optimizer.step()
            self.optimizer.zero_grad()
            found.append((passed - started, self._now() - passed))
            if self._now() - self.started > self.limit:
                break
        return found

    def _now(self) -> float:
        """Seconds, after all work on the device is done."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return time.perf_counter()
