"""Engines that run ONNX files on a CPU against eager PyTorch: speed and labels, with `GridSample` and with gathers."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from scripts.benchmarking.contestants import Case, build_model
from scripts.benchmarking.measuring import Run, Stages, interleave, matmul_rate, quartiles
from scripts.benchmarking.parts import FASEG
from scripts.cli.errors import UserError
from scripts.data.bands import form_of
from scripts.data.images import find_images, read_image
from scripts.inference.predictors import processed_inputs
from scripts.models.input_channels import num_channels
from scripts.onnx_export.checking import compare_outputs, drawn_images
from scripts.onnx_export.decisions import FileDecisions, open_session
from scripts.onnx_export.kinds import Kind, kind_of
from scripts.onnx_export.network import INPUT, export_network
from scripts.onnx_export.openvino_session import OpenVINOSession


EAGER = "eager PyTorch"
BASELINE = "onnxruntime, grid_sample"
ENGINES: dict[str, Callable[[Any], Any]] = {"onnxruntime": open_session, "OpenVINO": OpenVINOSession}
MOST_IMAGES = 16


def measure_engines(
    folder: str | None, images: Sequence[str], repetitions: int, seconds: float, quick: bool
) -> dict[str, Any]:
    """A record of one model at one size: of each engine and form seconds, and labels against eager PyTorch.

    Args:
        folder: a trained model; None for FASeg with a ResNet-50 and random weights at 512 x 512.
        images: files and folders whose first images labels are compared on; drawn ones without.
    """
    if folder is None:
        case = Case(FASEG, height=64 if quick else 512, width=64 if quick else 512, quick=quick)
        model: Any = build_model(case)
        kind, size, title = kind_of(model.config), (case.height, case.width), "ResNet-50, random weights"
        inputs = [drawn_images(1, *size, seed, num_channels(model.config)) for seed in range(2)]
    else:
        model, kind, inputs = trained_inputs(folder, images)
        size, title = (inputs[0].shape[2], inputs[0].shape[3]), Path(folder).resolve().name
    with tempfile.TemporaryDirectory() as place:
        files = write_files(model, kind, size, Path(place))
        opened = {name: ENGINES[name.split(",")[0]](file) for name, file in files.items()}
        rows: dict[str, dict[str, Any]] = {name: {"file_bytes": file.stat().st_size} for name, file in files.items()}
        if folder is not None:  # float noise grows in random weights from layer to layer: their labels say nothing
            for name, file in files.items():
                rows[name] |= labels_of(kind, model, opened[name], file, inputs)
    runs: dict[str, Run] = {EAGER: partial(timed_eager, model, inputs), **{
        name: partial(timed_session, session, kind, inputs) for name, session in opened.items()
    }}  # fmt: skip
    measured, rates = interleave(runs, repetitions, seconds, partial(matmul_rate, torch.device("cpu")))
    spans = {name: [stages["run"] for stages in found] for name, found in measured.items()}
    for name, found in spans.items():
        ratios = [base / own for base, own in zip(spans[BASELINE], found, strict=True)]
        rows.setdefault(name, {}).update(seconds=quartiles(found), speedup=quartiles(ratios))
    return {
        "kind": "engines",
        "title": f"{title}, 1 x {size[0]} x {size[1]}",
        "compared_on": None if folder is None else f"{len(inputs)} {'images' if images else 'drawn images'}",
        "rounds": len(rates),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "matmul_rate": quartiles(rates),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")},
        "contestants": {name: rows[name] for name in runs},
    }


def trained_inputs(folder: str, images: Sequence[str]) -> tuple[Any, Kind, list[Tensor]]:
    """A trained model, its kind, and normalised images `(1, C, H, W)` of one size, padded to the first one's canvas.

    Raises:
        UserError: there is no model, or no image that can be read.
    """
    from scripts.models.arguments import ModelArguments
    from scripts.models.loading import build_config, build_model, build_processor

    arguments = ModelArguments(model_name_or_path=folder)
    config = build_config(arguments)
    kind = kind_of(config, folder)
    model = build_model(arguments, config, new_classes=False).eval()
    processor = build_processor(arguments, config, **kind.processor_settings(None))
    if not images:
        least = max(kind.least_side, kind.step)
        size = kind.fixed or (least, least + kind.step)
        return model, kind, [drawn_images(1, *size, seed, num_channels(config)) for seed in range(2)]
    if kind.fixed:
        raise UserError(
            f"--images: {folder} takes windows of {kind.fixed[0]}x{kind.fixed[1]}, not images: leave it out"
        )
    form = form_of(config, processor)
    read = [read_image(found.path, form) for found in find_images(list(images))[:MOST_IMAGES]]
    known = [image for image in read if image is not None]
    if not known:
        raise UserError(f"--images {' '.join(images)}: none of the first {MOST_IMAGES} images can be read")
    first = processed_inputs(processor, known[0], "cpu")["pixel_values"].shape[2:]
    canvas: dict[str, Any] = {"pad_size": {"height": first[0], "width": first[1]}}
    return model, kind, [processed_inputs(processor, image, "cpu", **canvas)["pixel_values"] for image in known]


def write_files(model: Any, kind: Kind, size: tuple[int, int], folder: Path) -> dict[str, Path]:
    """`engine, form` -> its file; both engines read the same one."""
    found: dict[str, Path] = {}
    for gathers, form in ((False, "grid_sample"), (True, "gather")):
        file = folder / f"{form}.onnx"
        onnx.save(export_network(model, kind, size, gathers=gathers), file)
        found |= {f"{engine}, {form}": file for engine in ENGINES}
    return found


def labels_of(kind: Kind, model: Any, session: Any, file: Path, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The least share of equal labels over the images; and with the engine's decisions repeated by the model whether
    all outputs are within the tolerances of an export, and how many decisions were turned."""
    engine = OpenVINOSession if isinstance(session, OpenVINOSession) else open_session
    decisions = FileDecisions(file, kind, engine)
    names = [output.name for output in kind.outputs]
    equal, repeated = [], []
    for pixels in inputs:
        given = {INPUT: pixels.numpy()}
        theirs = list(map(torch.from_numpy, session.run(names, given)))
        equal.append(compare_outputs(kind, model, pixels, theirs, None).equal_labels)
        read = decisions.read(given, names)
        repeated.append(compare_outputs(kind, model, pixels, read, decisions))
    return {
        "equal_labels": min(equal),
        "within_tolerance": all(found.within_tolerance for found in repeated),
        "decisions": sum(found.decisions for found in repeated),
        "turned": sum(found.turned for found in repeated),
    }


@torch.no_grad()
def timed_eager(model: Any, inputs: Sequence[Tensor], seed: int) -> Stages:
    """Seconds of one image, the `seed`-th in turn."""
    return timed(lambda: model(pixel_values=inputs[seed % len(inputs)]))


def timed_session(session: Any, kind: Kind, inputs: Sequence[Tensor], seed: int) -> Stages:
    """As `timed_eager`, by an engine."""
    given = {INPUT: inputs[seed % len(inputs)].numpy()}
    return timed(lambda: session.run([output.name for output in kind.outputs], given))


def timed(call: Callable[[], Any]) -> Stages:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return {"run": time.perf_counter() - start}
