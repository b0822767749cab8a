"""OpenVINO in the place of an onnxruntime session, so that its results are checked and timed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino
import torch


class OpenVINOSession:
    """An ONNX file compiled by OpenVINO for the CPU, with as many threads as torch, in float32.

    Without being told OpenVINO computes in bfloat16 on processors that have it, and labels differ.

    Args:
        file: the file, or its content.
    """

    def __init__(self, file: Path | bytes) -> None:
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = core.compile_model(core.read_model(file), "CPU", settings)

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """As `onnxruntime.InferenceSession.run`: the outputs of these names."""
        found = self.compiled(dict(inputs))
        return [np.array(found[self.compiled.output(name)]) for name in names]
