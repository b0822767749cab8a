"""Exports a checkpoint to an ONNX file that runs without PyTorch.

`python scripts/export_onnx.py --model_name_or_path outputs/model --output_dir outputs/onnx` writes `model.onnx`, from
normalised images of any size and batch to logits; with `--with_processing` from an 8-bit image to its label map. A
QLSeg file takes windows of the model's size, of which a reader makes images.
The file is compared with the model before it gets its name. `examples/onnx_runtime.py` runs it.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import ReadPath, check_at_least, flag, parse_arguments, path_flag, run_command
from scripts.models.arguments import ModelArguments
from scripts.models.tasks import refuse_other_task
from scripts.storage.atomic import atomic_file, write_failure
from scripts.storage.outputs import MARK, check_output_file, overwrite_flag


if TYPE_CHECKING:
    import onnx

    from scripts.data.bands import ImageForm
    from scripts.onnx_export.kinds import Kind, Size


FILE_NAME = "model.onnx"
PRECISIONS = ("fp32", "fp16")
DEFORMABLE = ("grid_sample", "gather")
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass
class ExportArguments(ModelArguments):
    """Write a checkpoint as one ONNX file and compare it with the model. Without --height and --width the file takes
    images of any height and width that are multiples of 32, from 256 on for the released FASeg models and from 64 on
    for SeMask-FPN. Images of other sizes are padded; SeMask-FPN itself does not pad, so only a file for their very
    size (a multiple of 4) gives its labels. A QLSeg file takes batches of windows, or with --config_overrides
    use_windows=false images whose sides are multiples of its patch. The file's metadata says what it takes."""

    output_dir: str | None = flag(None, "Folder that gets model.onnx.")
    overwrite: bool = overwrite_flag()
    height: int | None = flag(
        None, "Height in pixels of the only size that the file takes, one image at a time; needs --width."
    )
    width: int | None = flag(
        None, "Width in pixels of the only size that the file takes; without both it takes any size."
    )
    precision: str = flag("fp32", "Precision of the weights: fp32 or fp16.")
    deformable: str = flag(
        "grid_sample",
        "How deformable attention samples maps in the file: grid_sample, by ONNX's GridSample; or gather, by plain "
        "gathers and arithmetic, for TensorRT, which compiles GridSample wrongly without an error.",
    )
    with_processing: bool = flag(
        False,
        "Put the processing of images and results into the file: an 8-bit image (H, W, 3) goes in, a label map "
        "(H, W) comes out. Of a model of other bands the image has those; of one with an intensity range it is "
        "float32.",
    )
    calibration_images: list[str] = flag(
        [],
        "Images and folders of them, 8 or more, that show which numbers occur: convolutions and matrix products of "
        "the file then compute in 8 bits. In place of --int8, which stores weights in 8 bits and computes in float32.",
        action=ReadPath,
    )
    validation_images: list[str] = flag(
        [],
        "Other images, on which labels of a file made with --calibration_images are compared with the model's; by "
        "default those of the calibration.",
        action=ReadPath,
    )
    validation_masks: str | None = path_flag(
        "Folder of the label maps of --validation_images, PNGs of class ids named as their images are: mean IoU of "
        "model and file is printed too."
    )
    float_modules: list[str] = flag(
        [],
        "With --calibration_images: modules of the model that go on computing in float32, such as backbone: small "
        "networks with depthwise convolutions lose most in 8 bits.",
    )
    int8: bool = flag(False, "Store the weights of matrix products in 8 bits, quantised by onnxruntime.")
    least_agreement: float = flag(
        0.95,
        "Least share of pixels, from 0 to 1, that must get the model's own label where --precision fp16, --int8, "
        "--calibration_images or --with_processing makes small differences.",
    )
    timing_runs: int = flag(5, "How many runs the comparison of speeds takes; 0 leaves it out.")
    seed: int = flag(0, "Seed of the random images that file and model are compared on.")


def check_arguments(arguments: ExportArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    check_output_file("--output_dir:", Path(arguments.output_dir) / FILE_NAME, arguments.overwrite)
    if arguments.precision not in PRECISIONS:
        raise UserError(f"--precision {arguments.precision}: choose one of {', '.join(PRECISIONS)}")
    if arguments.deformable not in DEFORMABLE:
        raise UserError(f"--deformable {arguments.deformable}: choose one of {', '.join(DEFORMABLE)}")
    if arguments.int8 and arguments.precision != "fp32":
        raise UserError(f"--int8 and --precision {arguments.precision}: leave one of them out")
    check_calibration(arguments)
    if (arguments.height is None) != (arguments.width is None):
        raise UserError("--height and --width belong together: give both, or neither for any size")
    check_at_least(arguments, 0, "timing_runs", "seed", "least_agreement")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")


def check_calibration(arguments: ExportArguments) -> None:
    """Raises `UserError` at flags of calibrated 8 bits that do not belong together."""
    if not arguments.calibration_images:
        for name in ("validation_images", "validation_masks", "float_modules"):
            if getattr(arguments, name):
                raise UserError(f"--{name} is for files made with --calibration_images: give that too")
        return
    for name in ("int8", "with_processing"):
        if getattr(arguments, name):
            raise UserError(f"--calibration_images and --{name}: leave one of them out")
    if arguments.precision != "fp32":
        raise UserError(f"--calibration_images and --precision {arguments.precision}: leave one of them out")
    if arguments.validation_masks and not arguments.validation_images:
        raise UserError("--validation_masks is for --validation_images: give them too")


def export_onnx(arguments: ExportArguments) -> Path:
    """Writes the file, or raises `UserError` and leaves none."""
    check_arguments(arguments)
    from scripts.data.bands import form_of
    from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite
    from scripts.onnx_export.kinds import kind_of

    # ---- model
    print(f"loading {arguments.model_name_or_path}", flush=True)
    config = build_config(arguments)
    kind = kind_of(config, arguments.model_name_or_path or "")
    if arguments.calibration_images:
        from scripts.onnx_export.calibration import refuse_windows

        fix = "leave it out, or add --config_overrides use_windows=false for a file that takes whole images"
        refuse_windows(kind, "calibration_images", str(arguments.model_name_or_path), fix)
    if arguments.with_processing:
        refuse_other_task(
            config,
            "--with_processing",
            "the file would give a map of one class for each pixel: leave it out, and make segments of the file's "
            "logits by the image processor's post_process methods",
        )
    size = None if arguments.height is None or arguments.width is None else (arguments.height, arguments.width)
    kind.check(size, arguments.with_processing)
    model = build_model(arguments, config, new_classes=False).eval()
    processor = build_processor(arguments, config, **kind.processor_settings(size))
    given = f"--model_name_or_path {arguments.model_name_or_path}"
    refuse_non_finite(model, given, ": the checkpoint is damaged, train it again")
    if arguments.with_processing and not size:
        refuse_small_images(processor, kind.least_side)

    # ---- graph
    fixed = size or kind.fixed
    print(
        f"tracing the model for {f'{fixed[0]}x{fixed[1]}' if fixed else 'any size, which takes minutes'}", flush=True
    )
    graph = build_graph(arguments, kind, model, processor, size)

    # ---- file
    takes = images_taken(form_of(config, processor)) if arguments.with_processing else kind.accepted(size)
    folder = Path(arguments.output_dir or "")
    new_folders = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with atomic_file(folder / FILE_NAME) as partial:
            partial.write_bytes(graph.SerializeToString())
            print(f"{FILE_NAME}: {partial.stat().st_size / 1e6:.1f} MB, {takes}", flush=True)
            compare(arguments, kind, model, processor, partial, size)
    except OSError as error:
        raise UserError(f"{folder / FILE_NAME} could not be written: {write_failure(error, folder)}") from error
    finally:
        with contextlib.suppress(OSError):  # those that hold the file now stay
            for place in new_folders:
                place.rmdir()
    print(f"{folder / FILE_NAME} written")
    return folder / FILE_NAME


def images_taken(form: ImageForm) -> str:
    """The images that a file with processing takes, in words."""
    bands = "" if form.num_bands == 3 else f" of {form.num_bands} band{'s' if form.num_bands > 1 else ''}"
    if form.intensity_range is None:
        return f"8-bit images{bands} of any size"
    low, high = form.intensity_range
    return f"float32 images{bands} of numbers from {low:g} to {high:g}, of any size"


def refuse_small_images(processor: Any, least: int) -> None:
    """Raises `UserError` if the processor makes images smaller than the dynamic graph takes."""
    sides = processor.pad_size or processor.size
    shortest = sides["shortest_edge"] or min(sides["height"] or 0, sides["width"] or 0)
    if not processor.do_resize or shortest < least:
        raise UserError(
            f"--with_processing: the processor makes images of {shortest or 'any size'}, the dynamic graph takes "
            f"{least} or more on each side: give --height and --width"
        )


def build_graph(
    arguments: ExportArguments, kind: Kind, model: Any, processor: Any, size: Size | None
) -> onnx.ModelProto:
    """The graph that the arguments ask for, with its metadata."""
    import onnx
    import torch

    from scripts.models.licences import license_of
    from scripts.onnx_export.metadata import describe
    from scripts.onnx_export.network import export_network, in_eight_bits
    from scripts.onnx_export.processing import with_processing

    for library in ("onnxscript", "onnx_ir", "onnxruntime.quantization"):  # a line for each node that they leave as is
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        graph = export_network(model, kind, size, arguments.precision == "fp16", arguments.deformable == "gather")
    except RuntimeError as error:  # torch's tracers have classes of their own below it
        hint = "" if size else ": a static file, with --height and --width, may do"
        raise UserError(f"torch {torch.__version__} cannot trace the model{hint}: {first_line(error)}") from error
    if arguments.with_processing:
        print("adding the processing of images and results", flush=True)
        graph = with_processing(graph, kind, processor)
    if arguments.int8:
        print("storing weights in 8 bits", flush=True)
        graph = in_eight_bits(graph)
    if arguments.calibration_images:
        from scripts.onnx_export.calibration import calibrated, read_samples

        samples = read_samples("--calibration_images", arguments.calibration_images, processor, model.config)
        graph = calibrated(graph, [sample.pixels for sample in samples], arguments.float_modules)
    print(grid_sample_nodes(graph, arguments.deformable), flush=True)
    name = arguments.model_name_or_path or ""
    facts = {
        "model_id": Path(name).resolve().name if Path(name).exists() else name,
        "license": license_of(name, model.config),
        "precision": "int8" if arguments.int8 or arguments.calibration_images else arguments.precision,
        "with_processing": arguments.with_processing,
        "deformable": arguments.deformable,
        "written_by": MARK,
    }
    onnx.helper.set_model_props(graph, describe(kind, processor, graph, size, **facts))
    return graph


def grid_sample_nodes(graph: onnx.ModelProto, deformable: str) -> str:
    """What the finished graph holds of `GridSample`, in words.

    Raises:
        UserError: it holds some though `gather` was asked for.
    """
    from scripts.onnx_export.gathering import grid_samples

    found = grid_samples(graph)
    if found and deformable == "gather":
        raise UserError(
            f"--deformable gather: the graph still holds GridSample ({found[0]}), from a part of the model that does "
            "not call torch.nn.functional.grid_sample. Nothing was written"
        )
    if found:
        return (
            f"{len(found)} GridSample nodes, which TensorRT compiles wrongly without an error (NVIDIA/TensorRT#4813): "
            "give --deformable gather for a file that is to run there"
        )
    return f"no GridSample node among the {len(graph.graph.node)} of the graph"


def first_line(error: Exception) -> str:
    """What went wrong, without the pages that torch adds."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---- check ----------------------------------------------------------------------------------------------------------


def compare(arguments: ExportArguments, kind: Kind, model: Any, processor: Any, file: Path, size: Size | None) -> None:
    """Runs file and model on the same inputs, prints what differs and how fast they are.

    Raises:
        UserError: they differ by more than the tolerance.
    """
    from scripts.onnx_export import checking, decisions

    print("loading the file in onnxruntime, and comparing it with the model", flush=True)
    with errors_explained("onnxruntime cannot load the file", Exception):  # it has no common class of errors
        session = decisions.open_session(file)
    exact = arguments.precision == "fp32" and not (arguments.int8 or arguments.calibration_images)
    decided = decisions.FileDecisions(file, kind) if exact else None
    comparisons: list[Any]
    if arguments.calibration_images:
        comparisons = [validation_of(arguments, kind, model, processor, session)]
    elif arguments.with_processing:
        comparisons = checking.compare_images(kind, model, processor, session, arguments.seed, decided)
    else:
        sizes = kind.sizes_to_check(processor, size)
        comparisons = checking.compare_network(kind, model, session, sizes, arguments.seed, decided)
    for found in comparisons:
        print(f"  {found}", flush=True)
    if failed := [found for found in comparisons if exact and not found.within_tolerance]:
        raise UserError(
            f"the file differs from the model: {failed[0]}; at most {kind.tolerances} and around thresholds are "
            "allowed. Nothing was written"
        )
    equal = min(found.equal_labels for found in comparisons)
    if equal < arguments.least_agreement and (arguments.with_processing or not exact):
        raise UserError(
            f"{100 * equal:.2f} % of labels are equal, --least_agreement asks for "
            f"{100 * arguments.least_agreement:g} %. Nothing was written"
        )
    if arguments.timing_runs:
        print(f"timing {arguments.timing_runs} runs of file and model", flush=True)
        print(measured_speed(arguments, kind, model, processor, session, size))


def validation_of(arguments: ExportArguments, kind: Kind, model: Any, processor: Any, session: Any) -> Any:
    """Labels of model and file on the images that the user gave for that."""
    from scripts.onnx_export.calibration import read_samples, validate

    flag_name = "--validation_images" if arguments.validation_images else "--calibration_images"
    if not arguments.validation_images:
        print("  compared on the images of the calibration: others, --validation_images, would tell more", flush=True)
    images = arguments.validation_images or arguments.calibration_images
    samples = read_samples(flag_name, images, processor, model.config, arguments.validation_masks)
    return validate(kind, model, processor, session, samples)


def measured_speed(
    arguments: ExportArguments, kind: Kind, model: Any, processor: Any, session: Any, size: Size | None
) -> str:
    """A line on the time of onnxruntime against eager, on the largest input of the check."""
    import torch

    from scripts.data.bands import form_of
    from scripts.models.input_channels import num_channels
    from scripts.onnx_export import checking
    from scripts.onnx_export.network import IMAGE, INPUT

    if arguments.with_processing:
        edge = processor.size["shortest_edge"] or processor.size["height"]
        image = checking.drawn_image(edge, edge * 4 // 3, arguments.seed, form_of(model.config, processor))
        what = f"an image of {image.shape[0]} x {image.shape[1]}, processing included"
        eager, exported = checking.median_times(
            lambda: checking.eager_labels(model, processor, image),
            lambda: session.run(None, {IMAGE: image}),
            arguments.timing_runs,
        )
    else:
        batch_size, height, width = kind.sizes_to_check(processor, size)[-1]
        pixels = checking.drawn_images(batch_size, height, width, arguments.seed, num_channels(model.config))
        what = f"{batch_size} x {height} x {width}"
        with torch.no_grad():
            eager, exported = checking.median_times(
                lambda: model(pixel_values=pixels),
                lambda: session.run(None, {INPUT: pixels.numpy()}),
                arguments.timing_runs,
            )
    return (
        f"speed on {what}: onnxruntime {1e3 * exported:.0f} ms, eager PyTorch {1e3 * eager:.0f} ms, "
        f"{eager / exported:.2f} times as fast (medians of {arguments.timing_runs} runs in turns, "
        f"{torch.get_num_threads()} thread(s))"
    )


def main() -> None:
    export_onnx(parse_arguments(ExportArguments))


if __name__ == "__main__":
    run_command(main)
