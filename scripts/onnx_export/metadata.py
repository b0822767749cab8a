"""What an ONNX file says of itself, so that it can be used without the checkpoint it came from."""

from __future__ import annotations

import json
from typing import Any

import onnx
import torch
import transformers
from transformers.image_utils import SizeDict

from scripts.models.input_channels import num_channels
from scripts.models.tasks import task_of
from scripts.onnx_export.kinds import Kind, Size


SETTINGS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
    "size_divisor",
    "task",
)


def describe(kind: Kind, processor: Any, graph: onnx.ModelProto, size: Size | None, **facts: Any) -> dict[str, str]:
    """The file's metadata: texts, those that are no plain words in JSON.

    Args:
        size: height and width of a static graph, None for a dynamic one.
        facts: `model_id`, `license`, `precision`, `with_processing`.
    """
    config = kind.config
    settings = {name: getattr(processor, name, None) for name in SETTINGS}
    if (limits := getattr(processor, "intensity_range", None)) is not None:
        settings["intensity_range"] = list(limits)
    # What a reader multiplies by, subtracts and divides by, whether or not the processor does.
    if not processor.do_rescale:
        settings["rescale_factor"] = 1.0
    if not processor.do_normalize:
        bands = num_channels(config)
        settings |= {"image_mean": [0.0] * bands, "image_std": [1.0] * bands}
    versions = {opset.domain or "onnx": opset.version for opset in graph.opset_import}
    facts |= kind.facts() | {
        "model_type": config.model_type,
        "id2label": {int(index): str(name) for index, name in config.id2label.items()},
        "task": task_of(config),
        "processor": {name: plain(value) for name, value in settings.items()},
        "size_divisor": processor.size_divisor,
        "sizes": kind.sizes(size),
        "opset": versions,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def plain(value: Any) -> Any:
    """A setting as JSON has it; sizes without the sides that are not set."""
    if isinstance(value, SizeDict):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
