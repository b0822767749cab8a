"""Evaluates a checkpoint on a streamed split, at the original size of every image: mean IoU, AP or PQ by its task.

Runs alike as `python scripts/eval.py`, `python -m scripts.eval` and `accelerate launch scripts/eval.py`:
`python scripts/eval.py --model_name_or_path outputs/model --dataset_name DATA --output_file results/model.json`.
`--protocol ade20k` evaluates with the image sizes and label rules of that benchmark; `--tta` averages over several
sizes of each image and its mirror image, `--sliding_window` reads it through overlapping windows.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import (
    check_at_least,
    check_at_most,
    check_recipe_read,
    flag,
    parse_arguments,
    run_command,
)
from scripts.data.arguments import CLASSES, DatasetArguments, check_dataset_flags, parse_range
from scripts.evaluation.protocols import (
    LABEL_IDS,
    NATIVE,
    PROTOCOLS,
    EvaluationSizes,
    check_classes,
    check_label_ids,
    protocol_sizes,
)
from scripts.evaluation.results import (
    METRICS,
    build_results,
    details_text,
    in_percent,
    project_commit,
    results_table,
    weights_sha256,
    write_results,
)
from scripts.models.arguments import ModelArguments
from scripts.models.compiling import CompileArguments, compile_network
from scripts.models.families import family_of
from scripts.storage.outputs import check_output_file, overwrite_flag
from scripts.storage.shared_text import without_credentials


MOST_RESAMPLES = 100_000  # of 150 classes they take 360 MB
DEFAULT_REPORT = "outputs/report"


@dataclass
class EvaluateArguments(ModelArguments, DatasetArguments, CompileArguments):
    """Evaluate a checkpoint on a streamed split. A YAML recipe may give the values of flags; flags on the command line
    win."""

    recipe: str | None = flag(None, "YAML file with values of these flags.")
    eval_split_name: str = flag("validation", "Split of the dataset that is evaluated on.")
    output_file: str | None = flag(None, "JSON file that the results are written to.")
    overwrite: bool = overwrite_flag()
    report: str | None = flag(
        None,
        "Also write a page about the errors (worst images, confused classes, calibration) into this "
        f"folder, or as this .html file; without a value into {DEFAULT_REPORT}.",
        nargs="?",
        const=DEFAULT_REPORT,
    )
    protocol: str = flag(
        NATIVE,
        f"Benchmark whose image sizes and label rules are used: {', '.join(PROTOCOLS)}. With {NATIVE} "
        "they are those stored with the checkpoint.",
    )
    label_ids: str = flag(
        "auto",
        "Which ids the label maps hold: raw (the dataset's own, of Cityscapes or COCO-Stuff), train (those of the "
        "benchmark), reduced (classes already start at 0), or auto, which looks into the first maps.",
    )
    eval_shortest_edge: int | None = flag(
        None, "Pixels of an image's shorter side in the model's input, in place of the protocol's."
    )
    eval_longest_edge: int | None = flag(
        None,
        "Most pixels of the longer side in the model's input; by default by the protocol's ratio, else 4 times "
        "the shorter side.",
    )
    tta: bool = flag(False, "Average the scores over several sizes of each image and its mirror image (ms+flip).")
    tta_shortest_edges: list[int] | None = flag(
        None,
        "Pixels of the shorter sides that --tta averages over; by default 0.5, 0.75, 1, 1.25, 1.5 and 1.75 times "
        "the single size. ADE20K's released Swin-L figure used 256 384 512 640 768 896 and --tta_longest_edge "
        "3584, at a single size of 640 too.",
    )
    tta_longest_edge: int | None = flag(
        None,
        "Most pixels of the longer side under --tta; by default the protocol's, else 7 times the single size; "
        "with --sliding_window there is no limit.",
    )
    sliding_window: bool = flag(False, "Read each image through overlapping square windows and average their scores.")
    crop_size: int | None = flag(None, "Side of a window in pixels; by default the protocol's.")
    stride: int | None = flag(None, "Pixels from one window to the next; by default the protocol's.")
    protocol_lens: bool = flag(
        False, "Also report which mean IoU the same weights get under habits of other evaluation scripts."
    )
    focus: bool = flag(False, "Also report how much each decoder layer looks where its segments turn out to be.")
    extended_metrics: bool = flag(
        True,
        "Also report an interval for the main figure and, of a semantic model, boundary IoU and mean IoU by segment "
        "size.",
    )
    bootstrap_samples: int = flag(1000, "How often the images are resampled for the interval.")
    seed: int = flag(0, "Seed of the resampling.")
    mixed_precision: str | None = flag(
        None, "Precision of the computation: no, bf16 or fp16; by default what accelerate is set to."
    )
    max_eval_samples: int | None = flag(None, "How many samples are evaluated at most; by default the whole split.")
    dataloader_num_workers: int = flag(1, "Processes that decode images.")


def report_file(name: str) -> Path:
    """The page that `--report` means: itself if it ends in .html, else in the folder of that name."""
    path = Path(name)
    return path if path.suffix.lower() in (".html", ".htm") else path / "report.html"


def check_arguments(arguments: EvaluateArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    check_recipe_read(arguments)
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    check_dataset_flags(arguments)
    if arguments.protocol not in (*PROTOCOLS, NATIVE):
        raise UserError(f"--protocol {arguments.protocol}: choose one of {', '.join(PROTOCOLS)}, {NATIVE}")
    if arguments.label_ids not in LABEL_IDS:
        raise UserError(f"--label_ids {arguments.label_ids}: choose one of {', '.join(LABEL_IDS)}")
    for name in ("class_map", "mask_values", "mask_colors"):
        if getattr(arguments, name) and arguments.protocol != NATIVE:
            raise UserError(f"--{name} changes the classes of --protocol {arguments.protocol}: leave one of them out")
    edges = ("eval_shortest_edge", "eval_longest_edge", "tta_shortest_edges", "tta_longest_edge")
    check_at_least(arguments, 1, *edges, "crop_size", "stride", "bootstrap_samples", "max_eval_samples")
    check_at_least(arguments, 0, "dataloader_num_workers", "max_bad_samples", "seed")
    check_at_most(arguments, MOST_RESAMPLES, "bootstrap_samples")
    if not arguments.sliding_window and (arguments.crop_size or arguments.stride):
        raise UserError("--crop_size and --stride belong to --sliding_window: add it, or leave them out")
    if not arguments.tta and (arguments.tta_shortest_edges or arguments.tta_longest_edge):
        raise UserError("--tta_shortest_edges and --tta_longest_edge belong to --tta: add it, or leave them out")
    if arguments.eval_longest_edge and not arguments.eval_shortest_edge:
        raise UserError("--eval_longest_edge belongs to --eval_shortest_edge: add it, or leave it out")
    parse_range(arguments.intensity_range)
    check_label_ids(arguments.protocol, arguments.label_ids)
    if arguments.label_ids == "reduced" and arguments.do_reduce_labels:
        raise UserError("--label_ids reduced and --do_reduce_labels contradict each other: leave one of them out")
    if arguments.output_file:
        check_output_file("--output_file", Path(arguments.output_file), arguments.overwrite)
    if arguments.report:
        check_output_file("--report", report_file(arguments.report), arguments.overwrite)


def evaluation_sizes(arguments: EvaluateArguments, processor: Any) -> EvaluationSizes:
    """Sizes of the protocol for this checkpoint, with those that flags give in their place."""
    size = processor.size
    own = size["shortest_edge"], size["longest_edge"]
    if own[0] and arguments.sliding_window:
        own = (own[0], own[1] or 4 * own[0])  # with windows the longer side has no bound
    if not all(own):
        if not (arguments.protocol != NATIVE or arguments.eval_shortest_edge):
            raise UserError(
                f"the checkpoint's processor has size {dict(size)}: give --eval_shortest_edge, or a --protocol"
            )
        own = (512, 2048)
    return protocol_sizes(
        arguments.protocol,
        own,
        arguments.sliding_window,
        shortest=arguments.eval_shortest_edge,
        longest=arguments.eval_longest_edge,
        crop=arguments.crop_size,
        stride=arguments.stride,
        tta_edges=arguments.tta_shortest_edges,
        tta_longest=arguments.tta_longest_edge,
    )


def protocol_facts(arguments: EvaluateArguments, sizes: EvaluationSizes, label_ids: str) -> dict[str, Any]:
    """What the results file says about the protocol."""
    facts: dict[str, Any] = {"name": arguments.protocol}
    if arguments.protocol in PROTOCOLS:
        facts |= {"source": PROTOCOLS[arguments.protocol].source, "label_ids": label_ids}
    facts |= {"shortest_edge": sizes.base[0], "longest_edge": sizes.base[1]}
    if arguments.tta:
        shortest, longest = zip(*sizes.views, strict=True)
        facts |= {"tta_shortest_edges": list(shortest), "tta_longest_edges": list(longest), "tta_flip": True}
    if arguments.size_divisor:
        facts["size_divisor"] = arguments.size_divisor
    if sizes.windows:
        facts["sliding_window"] = {"crop": sizes.windows.crop, "stride": sizes.windows.stride}
    return facts


def build_predictor(
    arguments: EvaluateArguments, model: Any, processor: Any, sizes: EvaluationSizes, device: Any
) -> Callable[..., Any]:
    """Image -> label map, by the flags."""
    from scripts.inference.predictors import MultiScale, SingleScale

    if arguments.tta:
        protocol = PROTOCOLS.get(arguments.protocol)
        of_image = family_of(model.config).views_of_image or (protocol is not None and protocol.views_of_image)
        base = None if of_image else sizes.base
        return MultiScale(model, processor, device, base, sizes.views, sizes.windows)
    return SingleScale(model, processor, device, sizes.windows)


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluates, prints the table and writes the results file; returns its content, {} off the main process."""
    check_arguments(arguments)
    from scripts.cli.processes import build_accelerator, on_main
    from scripts.data.bands import form_of, use_range
    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.data.samples import BadSamples
    from scripts.data.sources import check_ignored_id
    from scripts.error_report.report import ErrorReport
    from scripts.evaluation import bootstrap, boundary, degenerate, lens, mean_iou, segment_figures, segment_size
    from scripts.evaluation.label_ids import label_rule
    from scripts.evaluation.segment_rules import (
        check_segment_classes,
        refuse_class_map_flags,
        refuse_semantic_flags,
    )
    from scripts.evaluation.split import evaluate_split
    from scripts.explaining.focus import FocusCounts
    from scripts.models import tasks
    from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite

    accelerator = build_accelerator(arguments.mixed_precision)

    # ---- model
    config = build_config(arguments)
    check_ignored_id(config)
    task = tasks.task_of(config)
    if task == tasks.SEMANTIC:
        degenerate.refuse_one_class(config.id2label or {})
    else:
        refuse_semantic_flags(arguments, task)
    if getattr(config, "use_windows", False):  # QLSeg reads images through the windows that it was trained on
        windows: dict[str, Any] = {"crop_size": arguments.crop_size or config.image_size, "sliding_window": True}
        arguments = replace(arguments, **windows, stride=arguments.stride or config.window_stride)
    if arguments.protocol_lens and not family_of(config).masks_of_images:
        raise UserError(
            f"--protocol_lens: one of its habits resizes masks of queries, which {config.model_type} gives none of "
            "whole images: leave it out"
        )
    num_labels: int = config.num_labels or 0
    if arguments.protocol != NATIVE:
        check_classes(arguments.protocol, num_labels)
    model = build_model(arguments, config, new_classes=False).to(accelerator.device)
    refuse_non_finite(model, f"--model_name_or_path {arguments.model_name_or_path}")
    processor = use_range(build_processor(arguments, config), arguments.intensity_range)
    tasks.check_task(processor, config, f"--model_name_or_path {arguments.model_name_or_path}")

    # ---- protocol
    sizes = evaluation_sizes(arguments, processor)
    # The lens compares habits at a single scale without windows.
    plain = evaluation_sizes(replace(arguments, sliding_window=False, crop_size=None, stride=None), processor)
    lens_processor = processor
    if arguments.protocol != NATIVE or arguments.eval_shortest_edge or arguments.sliding_window:
        limits = {"intensity_range": processor.intensity_range} if arguments.intensity_range else {}
        processor = build_processor(arguments, config, size=sizes.processor_size, **limits)
        lens_processor = build_processor(arguments, config, size=plain.processor_size, **limits)
    compile_network(arguments, model, processor, lens_processor)
    data = LabelledDataset(arguments, arguments.eval_split_name)
    data.image_form = form_of(config, processor)
    data.task = task
    bad_samples = BadSamples(arguments.max_bad_samples)
    if task != tasks.SEMANTIC:
        protocol = protocol_facts(arguments, sizes, "")
        measured = segment_figures.measure(arguments, model, processor, data, accelerator, bad_samples)
        results = finish(arguments, accelerator, model, data, bad_samples, measured.scores, protocol, measured.facts)
        if not measured.look.whole and not arguments.max_eval_samples:
            degenerate.refuse_absent_classes(measured.segments, model.config.id2label or {}, data)
        return results
    label_ids, id_table = arguments.label_ids, None
    if data.encoding != CLASSES:  # each segment is painted in its class
        if data.holds_class_maps:
            data.do_reduce_labels |= bool(processor.do_reduce_labels)
        refuse_class_map_flags(arguments)
        check_segment_classes(data, model.config.id2label or {})
    elif arguments.protocol == NATIVE:
        # A model trained on reduced labels is compared with reduced labels.
        data.do_reduce_labels |= bool(processor.do_reduce_labels) and label_ids != "reduced"
    else:
        label_ids, id_table, data.do_reduce_labels = label_rule(arguments.protocol, num_labels, label_ids, data)

    look = None
    if arguments.class_map or arguments.mask_values or arguments.mask_colors:
        degenerate.refuse_other_numbers(data.id2label or {}, model.config.id2label or {})
    if arguments.protocol == NATIVE:
        look = on_main(accelerator, lambda: degenerate.look_at_classes(data, model.config.id2label or {}))

    # ---- figures
    counters: dict[str, Any] = {}
    if arguments.extended_metrics:
        counters["boundary"] = boundary.BoundaryCounts(num_labels)
        counters["segment_sizes"] = segment_size.SegmentSizeCounts(num_labels)
        counters["interval"] = bootstrap.BootstrapCounts(num_labels, arguments.bootstrap_samples, arguments.seed)
    if arguments.protocol_lens:
        lens_alone = arguments.tta or arguments.sliding_window
        counters["lens"] = lens.ProtocolLens(model, lens_processor, accelerator.device, lens_alone)
    if arguments.focus:
        counters["focus"] = FocusCounts(model, lens_processor, accelerator.device)
    predictor = build_predictor(arguments, model, processor, sizes, accelerator.device)
    error_report = ErrorReport(num_labels, predictor, counters) if arguments.report else None
    started = time.perf_counter()
    confusion, images = evaluate_split(
        model,
        processor,
        data,
        accelerator,
        error_report.predictor if error_report else predictor,
        arguments.max_eval_samples,
        arguments.dataloader_num_workers,
        list(counters.values()),
        bad_samples,
        id_table,
    )
    if error_report:
        error_report.gather(accelerator)
    seconds = time.perf_counter() - started
    scores = mean_iou.scores_from_confusion(confusion)

    # ---- results
    details: dict[str, Any] = {"images": images, "seconds": round(seconds, 1)}
    if warning := degenerate.why_it_says_nothing(confusion, model.config.id2label or {}):
        details["warning"] = warning
        accelerator.print(f"warning: {warning}", file=sys.stderr)
    if arguments.extended_metrics:
        edges = counters["boundary"].scores()
        scores |= {key: edges[key] for key in ("mean_boundary_iou", "per_category_boundary_iou")}
        details["boundary_dilation_ratio"] = edges["dilation_ratio"]
        interval = counters["interval"].scores()
        details["interval"] = interval | in_percent({key: interval[key] for key in ("low", "high")})
        details["segment_sizes"] = in_percent(counters["segment_sizes"].scores())
    if arguments.protocol_lens:
        details["protocol_lens"] = in_percent(counters["lens"].rows())
    if arguments.focus:
        details["focus_consistency"] = in_percent(counters["focus"].scores())
    protocol = protocol_facts(arguments, sizes, label_ids)
    results = finish(arguments, accelerator, model, data, bad_samples, scores, protocol, details)
    if accelerator.is_main_process and error_report:
        file = report_file(arguments.report or "")
        with errors_explained(f"--report {arguments.report}", OSError):
            error_report.write(file, results, confusion, model.config)
        print(f"report in {file}")
    if look is not None and not look.whole and not arguments.max_eval_samples:
        degenerate.refuse_absent_classes(confusion, model.config.id2label or {}, data)
    return results


def finish(
    arguments: EvaluateArguments,
    accelerator: Any,
    model: Any,
    data: Any,
    bad_samples: Any,
    scores: dict[str, Any],
    protocol: dict[str, Any],
    details: dict[str, Any],
) -> dict[str, Any]:
    """Writes and prints the results in the main process, and returns them; {} in others.

    Args:
        scores: fractions, see `build_results`.
        protocol: of `protocol_facts`.
        details: what else was measured.
    """
    results: dict[str, Any] = {}
    if data.held_back is not None:
        details["train_val_split"] = arguments.train_val_split
    if accelerator.is_main_process:
        checkpoint = Path(arguments.model_name_or_path or "")
        task = data.task
        results = build_results(
            scores,
            dict(model.config.id2label),
            METRICS[task],
            task=task,
            **details,
            dataset=Path(without_credentials(arguments.dataset_name or arguments.eval_images or "")).name,
            dataset_revision=data.revision(),
            split=arguments.eval_split_name,
            skipped=bad_samples.messages,
            do_reduce_labels=data.do_reduce_labels,
            protocol=protocol,
            checkpoint=checkpoint.name,
            weights_sha256=weights_sha256(str(checkpoint)),
            parameters=model.num_parameters(),
            mixed_precision=str(accelerator.mixed_precision),
            processes=accelerator.num_processes,
            project=project_commit(),
        )
        report(results, arguments.output_file)
    accelerator.end_training()
    return results


def report(results: dict[str, Any], output_file: str | None) -> None:
    """Writes the results, if a file is named, and prints them."""
    if output_file:
        with errors_explained(f"--output_file {output_file}", OSError):
            write_results(results, Path(output_file))
    print(results_table(results))
    if details := details_text(results):
        print(details)
    if output_file:
        print(f"results in {output_file}")


def main() -> None:
    evaluate(parse_arguments(EvaluateArguments))


if __name__ == "__main__":
    run_command(main)
