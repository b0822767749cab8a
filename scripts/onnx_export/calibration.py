"""A graph whose convolutions and matrix products compute in 8 bits, with ranges measured on images.

Notation: B batch, C bands, H and W of the (padded) image.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from PIL import Image

from scripts.cli.errors import UserError, errors_explained
from scripts.data.bands import form_of
from scripts.data.folders import counted
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.images import find_images, read_image
from scripts.data.samples import reduced_labels
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion
from scripts.inference.predictors import input_size_of, processed_inputs
from scripts.onnx_export.kinds import Kind, Size
from scripts.onnx_export.network import INPUT


SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: where torch found it in the model
# Modules whose products stay in float32: of coordinates and weights of deformable attention a step of 8 bits is whole
# pixels, and masks, their embeddings and classes decide what queries look at.
EXACT = ("sampling_offsets", "attention_weights", "mask_embedder", "class_predictor")
LEAST_IMAGES = 8


def refuse_windows(kind: Kind, flag: str, model: str, fix: str = "leave it out") -> None:
    """Raises `UserError` for a model that takes windows, which images would have to be cut into."""
    if kind.fixed:
        raise UserError(f"--{flag}: {model} takes windows of {kind.fixed[0]}x{kind.fixed[1]}, not images: {fix}")


class Images(CalibrationDataReader):
    """Normalised images `(1, C, H, W)`, as onnxruntime's calibration asks for them."""

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self.left = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, or None after the last."""
        pixels = next(self.left, None)
        return None if pixels is None else {INPUT: pixels}


def calibrated(
    graph: onnx.ModelProto, pixels: Sequence[np.ndarray], float_modules: Sequence[str] = ()
) -> onnx.ModelProto:
    """`graph` with 8-bit weights, one scale for each channel, and 8-bit inputs of convolutions and of products with
    constant weights, as pairs of `QuantizeLinear` and `DequantizeLinear`. Inputs of products are signed, with 0 in
    the middle: OpenVINO cannot compile a product of maps put together whose zeros differ. Products of two computed
    maps, which are attention and masks, and the modules `EXACT` stay as they are.

    Args:
        pixels: normalised images `(1, C, H, W)` whose smallest and largest numbers at each place set its range.
        float_modules: names of further modules of the model that stay as they are.
    Raises:
        UserError: one of them has no convolution or product that would be changed.
    """
    # Imported here because it sets up the program's logging.
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(graph, before)
        quant_pre_process(before, before, skip_symbolic_shape=True, skip_optimization=True)
        network = onnx.load(before).graph
        left = list(left_exact(network, float_modules))
        signed = {"quant_type": QuantType.QInt8, "symmetric": True}
        tokens = {
            node.input[0] for node in network.node if node.op_type in ("MatMul", "Gemm") and node.name not in left
        }
        quantize_static(
            before,
            after,
            Images(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=left,
            extra_options={
                "ActivationSymmetric": False,
                "WeightSymmetric": True,
                "TensorQuantOverrides": {name: [dict(signed)] for name in sorted(tokens)},
            },
        )
        return onnx.load(after)


def left_exact(graph: onnx.GraphProto, float_modules: Sequence[str] = ()) -> Iterator[str]:
    """Names of the nodes that are not quantised; see `calibrated`."""
    unseen = dict.fromkeys(float_modules)
    constants = {value.name for value in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
        modules = {part for scope in re.findall(r"'([^']*)'", scopes) for part in scope.split(".")}
        named = modules & {*EXACT, *float_modules}
        if node.input[1] not in constants or named:
            yield node.name
        for name in named & unseen.keys():
            del unseen[name]
    if unseen:
        raise UserError(f"--float_modules {next(iter(unseen))}: the model has no such module with weights in it")


@dataclass
class Sample:
    """An image as the network takes it, `(1, C, H, W)`; its size before padding; its label map `(h, w)`, if any."""

    pixels: np.ndarray
    input_size: Sequence[int]
    label_map: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """`(H, W)` of `pixels`."""
        return self.pixels.shape[2], self.pixels.shape[3]


def read_samples(
    flag: str,
    names: Sequence[str],
    processor: Any,
    config: Any,
    masks: str | None = None,
    least: int = LEAST_IMAGES,
    most: int | None = None,
    one_size: Size | None = None,
) -> list[Sample]:
    """The images of these files and folders, with the label maps of folder `masks` that are named as they are.

    Args:
        least: how many there have to be.
        most: how many of the first are read; None for all.
        one_size: `(height, width)` of the canvas that every image is fitted to and padded up to; None for each to
            keep its own.
    Raises:
        UserError: there are fewer than `least`, one cannot be read, or has no label map of its size.
    """
    form = form_of(config, processor)
    found = find_images(list(names))
    if len(found) < least:
        raise UserError(f"{flag} {' '.join(names)}: {counted(len(found), 'image')}, give at least {least}")
    canvas: dict[str, Any] = {"pad_size": {"height": one_size[0], "width": one_size[1]}} if one_size else {}
    samples = []
    for path, _ in found[:most]:
        image = read_image(path, form)
        if image is None:
            raise UserError(f"{flag}: {path} cannot be read, take it out")
        inputs = processed_inputs(processor, image, "cpu", **canvas)
        sample = Sample(inputs["pixel_values"].numpy(), input_size_of(inputs))
        if masks is not None:
            file, size = Path(masks) / f"{path.stem}.png", (image.height, image.width)
            sample.label_map = read_label_map(file, size, config.num_labels, bool(processor.do_reduce_labels))
        samples.append(sample)
    return samples


def read_label_map(file: Path, size: tuple[int, int], num_labels: int, do_reduce_labels: bool) -> np.ndarray:
    """Class ids `(h, w)` of an image of this `(height, width)`, 255 where there is none.

    Args:
        do_reduce_labels: whether 0 is ignored in the file and classes begin at 1.
    Raises:
        UserError: the file is missing, or no map of the model's classes of that size.
    """
    with errors_explained(f"--validation_masks: no label map {file}", OSError), Image.open(file) as opened:
        label_map = np.array(opened)
    if label_map.shape != size:
        raise UserError(
            f"--validation_masks: {file} has shape {label_map.shape}, its image {size}: give one of its size"
        )
    if do_reduce_labels and label_map.max(initial=0) <= IGNORE_INDEX:
        label_map = reduced_labels(label_map.astype(np.uint8))
    if (label_map[label_map != IGNORE_INDEX] >= num_labels).any():
        ids = f"1..{num_labels}" if do_reduce_labels else f"0..{num_labels - 1}"
        raise UserError(f"--validation_masks: {file} is no map of class ids {ids} and {IGNORE_INDEX}")
    return label_map


@dataclass
class Validation:
    """The labels of a file beside those of its model: the share that is equal, and of samples with label maps the mean
    IoU of both in percent."""

    images: int
    equal_labels: float
    mean_iou: tuple[float, float] | None  # of the model, of the file

    def __str__(self) -> str:
        text = f"{self.images} validation images: {100 * self.equal_labels:.2f} % of labels equal"
        if self.mean_iou:
            text += f", mIoU {self.mean_iou[0]:.2f} of the model, {self.mean_iou[1]:.2f} of the int8 file"
        return text


@torch.no_grad()
def validate(kind: Kind, model: Any, processor: Any, session: Any, samples: Sequence[Sample]) -> Validation:
    """Labels by the processor at the sizes of the label maps, or of what the network was given without padding."""
    num_labels = model.config.num_labels
    equal, pixels = 0, 0
    confusions = [np.zeros((num_labels, num_labels), np.int64) for _ in range(2)]
    names = [output.name for output in kind.outputs]
    for sample in samples:
        ours = model(pixel_values=torch.from_numpy(sample.pixels))
        theirs = session.run(names, {INPUT: sample.pixels})
        sizes = {
            "target_sizes": [sample.input_size if sample.label_map is None else sample.label_map.shape],
            "input_sizes": [sample.input_size],
        }
        maps = [
            processor.post_process_semantic_segmentation(kind.as_outputs(outputs, sample.size), **sizes)[0].numpy()
            for outputs in ([ours[name] for name in names], list(map(torch.from_numpy, theirs)))
        ]
        equal, pixels = equal + int((maps[0] == maps[1]).sum()), pixels + maps[0].size
        if sample.label_map is not None:
            known = sample.label_map != IGNORE_INDEX
            for counts, labels in zip(confusions, maps):
                counts += confusion_matrix(labels[known], sample.label_map[known], num_labels)
    scores = tuple(100 * scores_from_confusion(counts)["mean_iou"] for counts in confusions)
    labelled = all(sample.label_map is not None for sample in samples)
    return Validation(len(samples), equal / pixels, (scores[0], scores[1]) if labelled else None)
