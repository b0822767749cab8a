"""What the backbones of the list give FASeg: whether they work and what for, their weights, and their time.

Each is built as the model builds it, in its published size and with random weights. No head is built: it costs the
same on all of them.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, PreTrainedModel

from configuration import FASegConfig
from modeling_faseg.backbone_faseg import build_backbone
from modeling_faseg.backbone_probe import ProbeError, probe
from modeling_faseg.feature_pyramid_faseg import FASegSimpleFeaturePyramid
from scripts.benchmarking.backbone_list import FOUR_STAGES, REFERENCE, config_fields, in_timm
from scripts.benchmarking.comparing import provenance
from scripts.benchmarking.measuring import Clock, Run, Stages, interleave, matmul_rate, quartiles
from scripts.benchmarking.parts import Effort
from scripts.models.backbone_weights import load_backbone_weights


SIZE, QUICK_SIZE = 256, 64  # pixels, height and width of the images
NAMING = ("model_type", "backbone", "out_features", "out_indices")  # fields of a backbone that adapt nothing
LARGEST = 100e6  # parameters of a backbone that is timed
# What a file of transformers holds, the first that there is of a backbone: a classifier, its body, or the backbone.
WHOLE = (AutoModelForImageClassification, AutoModel, AutoBackbone)


def measure_backbone(name: str, effort: Effort, reference: Run) -> dict[str, Any]:
    """The record of a backbone that goes into the results file.

    Args:
        reference: a run of the backbone that its time is compared with; see `timed`.
    """
    fields = config_fields(name)
    record: dict[str, Any] = {"library": "timm" if in_timm(name) else "transformers", "fields": fields}
    try:
        with torch.device("meta"):
            backbone = build_backbone(FASegConfig(**fields))
    except ValueError as error:
        record |= {"outcome": "refused", "refusal": str(error), **refused_shapes(FASegConfig(**fields))}
        return {**record, **provenance(effort)}
    maps = cast(Any, backbone).maps_as_built
    adaptations = adapted(fields, backbone)
    record |= {
        "outcome": "adapted" if adaptations else "works",
        "adaptations": adaptations,
        "strides": list(maps.strides),
        "widths": list(maps.widths),
        "parameters": sum(value.numel() for value in backbone.parameters()),
    }
    if record["parameters"] <= LARGEST:
        backbone = build_backbone(FASegConfig(**fields))
        record |= compared(timed(with_pyramid(backbone, FASegConfig(**fields)), effort), reference, effort)
        record["weights"] = loaded_weights(name, backbone)
    return {**record, **provenance(effort)}


def refused_shapes(config: FASegConfig) -> dict[str, Any]:
    """Parameters and strides of a backbone that is refused; None where its library cannot build or run it."""
    try:
        with torch.device("meta"):
            backbone = AutoBackbone.from_config(config.backbone_config, **(config.timm_backbone_kwargs or {}))
    except Exception:  # of whatever transformers, timm, or a package that is not there, says; the refusal has it
        return {"parameters": None, "strides": None}
    parameters = sum(value.numel() for value in backbone.parameters())
    try:
        strides = list(probe(backbone).strides)
    except ProbeError:
        strides = None
    return {"parameters": parameters, "strides": strides}


def adapted(fields: dict[str, Any], backbone: PreTrainedModel) -> list[str]:
    """What is done so that the backbone works: by the fields of its configuration, then by the model itself."""
    made, maps = [], cast(Any, backbone).maps_as_built
    if fields.get("simple_feature_pyramid"):
        made.append("feature pyramid on the last map")
    stages = fields["backbone_config"].get("out_features", FOUR_STAGES)
    if stages != FOUR_STAGES:
        made.append(f"stages chosen: {', '.join(stages)}")
    arguments = {**fields["backbone_config"], **fields.get("timm_backbone_kwargs", {})}
    made += [f"{key}={value}" for key, value in arguments.items() if key not in NAMING]
    if maps.channels_last:
        made.append("maps turned from channels last")
    if maps.widths != maps.declared_widths:
        made.append("widths of the maps taken from the maps, as the library declares others")
    if count := len(maps.unread):
        unread = "parameters that no map reads are" if count > 1 else "parameter that no map reads is"
        made.append(f"{count} {unread} frozen")
    return made


def with_pyramid(backbone: PreTrainedModel, config: FASegConfig) -> nn.Module:
    """The backbone, and the feature pyramid on it where the configuration has one: images to four maps."""
    if not config.simple_feature_pyramid:
        return backbone
    channels, strides = cast(Any, backbone).channels, cast(Any, backbone).maps_as_built.strides
    return PyramidOn(backbone, FASegSimpleFeaturePyramid(channels[-1], config.feature_size, strides[-1]))


class PyramidOn(nn.Module):
    """A backbone whose last map a feature pyramid makes four of, as in `FASegModel`."""

    def __init__(self, backbone: nn.Module, pyramid: FASegSimpleFeaturePyramid):
        super().__init__()
        self.backbone, self.pyramid = backbone, pyramid

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """`(B, 3, H, W)` to maps `(B, F, H/s, W/s)` for s = 4, 8, 16, 32."""
        return self.pyramid(self.backbone(self.pyramid.images(images)).feature_maps[-1])


def timed(backbone: nn.Module, effort: Effort) -> Run:
    """A run of a backbone on one image: seconds of this process on the CPU, which others may use too; else seconds."""
    device = torch.device(effort.device)
    backbone = backbone.to(device).eval()
    clock = Clock(device, time.process_time if device.type == "cpu" else time.perf_counter)
    size = QUICK_SIZE if effort.quick else SIZE

    def run(seed: int) -> Stages:
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
        with torch.no_grad(), clock.stage("backbone"):
            backbone(image)
        return clock.take()

    return run


def compared(run: Run, reference: Run, effort: Effort) -> dict[str, Any]:
    """Quartiles of the seconds of both, in turn, and of how many times as long as the reference the backbone takes."""
    device = torch.device(effort.device)
    runs = {"backbone": run, "reference": reference}
    measured, rates = interleave(
        runs, effort.repetitions, effort.seconds, lambda: matmul_rate(device, repetitions=1), least=1
    )
    own, other = ([stages["backbone"] for stages in measured[name]] for name in runs)
    return {
        "rounds": len(own),
        "seconds": quartiles(own),
        "reference": REFERENCE,
        "reference_seconds": quartiles(other),
        "relative_time": quartiles([mine / its for mine, its in zip(own, other)]),
        "matmul_rate": quartiles(rates),
    }


def loaded_weights(name: str, backbone: PreTrainedModel) -> dict[str, Any]:
    """How many tensors of the backbone come from a file as its library writes it, by `--backbone_weights`."""
    config = FASegConfig(**config_fields(name))
    model = SimpleNamespace(base_model=SimpleNamespace(backbone=backbone), config=config)
    with tempfile.TemporaryDirectory() as place:
        write = write_timm if in_timm(name) else write_transformers
        whole = write(name, config, Path(place))
        said = load_backbone_weights(cast(Any, model), place)
    counts = re.search(r"(\d+) of (\d+) tensors loaded", said)
    left_out = re.search(r"left out \(([^)]*)\)", said)
    assert counts is not None
    return {
        "file_of": whole,
        "loaded": int(counts[1]),
        "expected": int(counts[2]),
        "left_out": left_out[1].split(", ") if left_out else [],
    }


def write_timm(name: str, config: FASegConfig, folder: Path) -> str:
    """The whole network as timm's files hold it; its values are of no account. Returns the class."""
    with torch.device("meta"):
        whole = timm.create_model(name, **(config.timm_backbone_kwargs or {}))
    save_file(
        {key: torch.zeros(value.shape) for key, value in whole.state_dict().items()}, folder / "model.safetensors"
    )
    return type(whole).__name__


def write_transformers(name: str, config: FASegConfig, folder: Path) -> str:
    """The whole network as transformers saves it; its values are of no account. Returns the class."""
    kind = cast(Any, config.backbone_config)
    auto = next(auto for auto in WHOLE if type(kind) in cast(Any, auto)._model_mapping)
    with torch.device("meta"):
        whole = cast(Any, auto).from_config(kind)
    whole.to_empty(device="cpu").save_pretrained(folder)
    return type(whole).__name__


def measure_backbones(
    names: list[str], effort: Effort, store: Callable[[str, dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """Measures backbones one by one on one thread of the CPU; hands each record to `store` and returns all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = timed(build_backbone(FASegConfig(**config_fields(REFERENCE))), effort)
        records = {}
        for name in names:
            records[name] = measure_backbone(name, effort, reference)
            store(name, records[name])
        return records
    finally:
        torch.set_num_threads(threads)


def backbone_line(name: str, record: dict[str, Any]) -> str:
    """A record in one line."""
    if record["outcome"] == "refused":
        return f"{name}: refused: {record['refusal']}"
    words = [f"{name}: {record['outcome']}", *record["adaptations"]]
    words.append(f"{record['parameters'] / 1e6:.1f} M parameters")
    if "weights" in record:
        words.append("{loaded} of {expected} tensors loaded".format(**record["weights"]))
        words.append(f"{record['relative_time'][1]:.2f} times as long as {record['reference']}")
    return "; ".join(words)
