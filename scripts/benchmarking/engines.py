"""Engines that run ONNX files on a CPU against eager PyTorch: speed and labels, with `GridSample` and with gathers,
in float32 and in 8 bits."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from scripts.benchmarking.contestants import Case, build_model
from scripts.benchmarking.measuring import Run, Stages, interleave, matmul_rate, quartiles
from scripts.benchmarking.parts import FASEG
from scripts.data.folders import counted
from scripts.models.input_channels import num_channels
from scripts.onnx_export.calibration import Sample, calibrated, read_samples, refuse_windows, validate
from scripts.onnx_export.checking import Comparison, compare_outputs, drawn_images
from scripts.onnx_export.decisions import FileDecisions, open_session
from scripts.onnx_export.kinds import Kind, kind_of
from scripts.onnx_export.network import INPUT, export_network
from scripts.onnx_export.openvino_session import OpenVINOSession


EAGER = "eager PyTorch"
BASELINE = "onnxruntime, grid_sample"
ENGINES: dict[str, Callable[[Any], Any]] = {"onnxruntime": open_session, "OpenVINO": OpenVINOSession}
FLOAT_FORMS = ("grid_sample", "gather")
EIGHT_BITS: dict[str, tuple[str, ...]] = {"int8": (), "int8 but the backbone": ("backbone",)}
MOST_IMAGES = 16  # of each folder


def measure_engines(
    folder: str | None,
    images: Sequence[str],
    repetitions: int,
    seconds: float,
    quick: bool,
    calibration_images: Sequence[str] = (),
    masks: str | None = None,
) -> dict[str, Any]:
    """A record of one model at one size: of each engine and form seconds, and labels against eager PyTorch.

    Args:
        folder: a trained model; None for FASeg with a ResNet-50 and random weights at 512 x 512.
        images: files and folders whose first images labels are compared on; drawn ones without.
        calibration_images: files and folders that show which numbers occur, for files that compute in 8 bits.
        masks: folder of the label maps of `images`, for the mean IoU of each engine and form.
    """
    if folder is None:
        case = Case(FASEG, height=64 if quick else 512, width=64 if quick else 512, quick=quick)
        model: Any = build_model(case)
        kind, size, title = kind_of(model.config), (case.height, case.width), "ResNet-50, random weights"
        processor, samples = None, [drawn_sample(size, seed, num_channels(model.config)) for seed in range(2)]
        calibration: list[Sample] = []
    else:
        model, kind, processor, samples, calibration = trained_samples(folder, images, calibration_images, masks)
        size, title = samples[0].size, Path(folder).resolve().name
    inputs = [torch.from_numpy(sample.pixels) for sample in samples]
    with tempfile.TemporaryDirectory() as place:
        files = write_files(model, kind, size, Path(place), [sample.pixels for sample in calibration])
        opened = {name: ENGINES[name.split(",")[0]](file) for name, file in files.items()}
        rows: dict[str, dict[str, Any]] = {EAGER: {}}
        rows |= {name: {"file_bytes": file.stat().st_size} for name, file in files.items()}
        if folder is not None:  # float noise grows in random weights from layer to layer: their labels say nothing
            for name, file in files.items():
                rows[name] |= labels_of(kind, model, opened[name], file, inputs)
        for name, session in opened.items() if masks else ():
            scores = validate(kind, model, processor, session, samples).mean_iou or ()
            for row, score in zip((rows[EAGER], rows[name]), scores):
                row["mean_iou"] = round(score, 2)
    runs: dict[str, Run] = {EAGER: partial(timed_eager, model, inputs), **{
        name: partial(timed_session, session, kind, inputs) for name, session in opened.items()
    }}  # fmt: skip
    measured, rates = interleave(runs, repetitions, seconds, partial(matmul_rate, torch.device("cpu")))
    spans = {name: [stages["run"] for stages in found] for name, found in measured.items()}
    for name, spent in spans.items():
        ratios = [base / own for base, own in zip(spans[BASELINE], spent, strict=True)]
        rows[name].update(seconds=quartiles(spent), speedup=quartiles(ratios))
    return {
        "kind": "engines",
        "title": f"{title}, 1 x {size[0]} x {size[1]}",
        "compared_on": None if folder is None else f"{len(inputs)} {'images' if images else 'drawn images'}",
        "calibrated_on": counted(len(calibration), "other image") if calibration else None,
        "rounds": len(rates),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "matmul_rate": quartiles(rates),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")},
        "contestants": {name: rows[name] for name in runs},
    }


def drawn_sample(size: tuple[int, int], seed: int, channels: int) -> Sample:
    """A normalised drawn image of this `(height, width)`."""
    return Sample(drawn_images(1, *size, seed, channels).numpy(), size)


def trained_samples(
    folder: str, images: Sequence[str], calibration_images: Sequence[str], masks: str | None
) -> tuple[Any, Kind, Any, list[Sample], list[Sample]]:
    """A trained model, its kind and processor, images to compare on and images to calibrate with, all padded to the
    canvas of the first.

    Raises:
        UserError: there is no model, or an image or its label map cannot be read.
    """
    from scripts.models.arguments import ModelArguments
    from scripts.models.loading import build_config, build_model, build_processor

    arguments = ModelArguments(model_name_or_path=folder)
    config = build_config(arguments)
    kind = kind_of(config, folder)
    model = build_model(arguments, config, new_classes=False).eval()
    processor = build_processor(arguments, config, **kind.processor_settings(None))
    for name, given in (("images", images), ("calibration_images", calibration_images)):
        if given:
            refuse_windows(kind, name, folder)
    if not images:
        least = max(kind.least_side, kind.step)
        size = kind.fixed or (least, least + kind.step)
        return model, kind, processor, [drawn_sample(size, seed, num_channels(config)) for seed in range(2)], []
    read = partial(read_samples, processor=processor, config=config, most=MOST_IMAGES)
    size = read("--images", images, least=1, most=1)[0].size
    samples = read("--images", images, masks=masks, least=1, one_size=size)
    calibration = read("--calibration_images", calibration_images, one_size=size) if calibration_images else []
    return model, kind, processor, samples, calibration


def write_files(
    model: Any, kind: Kind, size: tuple[int, int], folder: Path, calibration: Sequence[np.ndarray] = ()
) -> dict[str, Path]:
    """`engine, form` -> its file; all engines read the same one.

    Args:
        calibration: normalised images `(1, C, H, W)` with whose ranges files of 8 bits are made; none without.
    """
    graphs = {form: export_network(model, kind, size, gathers=form == "gather") for form in FLOAT_FORMS}
    if calibration:
        for form, float_modules in EIGHT_BITS.items():
            graphs[form] = calibrated(graphs["grid_sample"], calibration, float_modules)
    found: dict[str, Path] = {}
    for form, graph in graphs.items():
        file = folder / f"{form}.onnx"
        onnx.save(graph, file)
        found |= {f"{engine}, {form}": file for engine in ENGINES}
    return found


def labels_of(kind: Kind, model: Any, session: Any, file: Path, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The least share of equal labels over the images; of a float32 file also, with the engine's decisions repeated by
    the model, whether all outputs are within the tolerances of an export, and how many decisions were turned."""
    names = [output.name for output in kind.outputs]

    def compared(pixels: Tensor, theirs: Sequence[Any], decisions: FileDecisions | None) -> Comparison:
        return compare_outputs(kind, model, pixels, list(map(torch.as_tensor, theirs)), decisions)

    given = [{INPUT: pixels.numpy()} for pixels in inputs]
    alone = [compared(pixels, session.run(names, each), None) for pixels, each in zip(inputs, given, strict=True)]
    labels: dict[str, Any] = {"equal_labels": min(found.equal_labels for found in alone)}
    if file.stem not in FLOAT_FORMS:
        return labels
    decisions = FileDecisions(file, kind, OpenVINOSession if isinstance(session, OpenVINOSession) else open_session)
    repeated = [
        compared(pixels, decisions.read(each, names), decisions) for pixels, each in zip(inputs, given, strict=True)
    ]
    return labels | {
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
