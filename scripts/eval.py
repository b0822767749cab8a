"""Evaluates a checkpoint on a streamed split, at the original size of every picture.

Runs alike as `python scripts/eval.py`, `python -m scripts.eval` and `accelerate launch scripts/eval.py`:
`python scripts/eval.py --model_name_or_path outputs/model --dataset_name DATA --output_file results/model.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass, field
from typing import Any

from scripts.evaluation.inference import MultiScale, evaluate_split
from scripts.evaluation.mean_iou import scores_from_confusion
from scripts.evaluation.results import build_results, results_table, weights_sha256, write_results
from scripts.training.command_line import (
    UserError,
    build_accelerator,
    check_at_least,
    check_folder,
    parse_arguments,
    project_path,
    run_command,
)
from scripts.training.data import DatasetArguments, check_ignored_id
from scripts.training.model_folder import ModelArguments, build_config, build_model, build_processor


@dataclass
class EvaluateArguments(ModelArguments, DatasetArguments):
    """Evaluate a checkpoint on a streamed split; a YAML recipe gives defaults, flags win."""

    recipe: str | None = field(default=None, metadata={"help": "YAML file with values of these flags."})
    eval_split_name: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    eval_shortest_edge: int | None = field(
        default=None, metadata={"help": "Shorter side fed to the model, in place of the checkpoint's own rule."}
    )
    eval_longest_edge: int | None = field(
        default=None, metadata={"help": "Bound of the longer side; by default 4 times the shorter."}
    )
    tta: bool = field(default=False, metadata={"help": "Average over sizes and mirror images (ms+flip)."})
    tta_shortest_edges: list[int] | None = field(
        default=None, metadata={"help": "Sizes of --tta; by default 0.5 to 1.75 times the single size in 6 steps."}
    )
    tta_longest_edge: int | None = field(
        default=None, metadata={"help": "Bound of --tta; by default 7 times the size."}
    )
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, bf16 or fp16; else accelerate's setting."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Stop after so many samples."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that decode."})


def check_arguments(arguments: EvaluateArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if not arguments.model_name_or_path:
        raise UserError("no checkpoint: give --model_name_or_path")
    edges = ("eval_shortest_edge", "eval_longest_edge", "tta_shortest_edges", "tta_longest_edge")
    check_at_least(arguments, 1, *edges, "max_eval_samples")
    check_at_least(arguments, 0, "dataloader_num_workers")
    if arguments.output_file:
        file = Path(arguments.output_file)
        if file.is_dir():
            raise UserError(f"--output_file {file} is a folder: name a file")
        check_folder("--output_file", file.parent)


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluates, prints the table and writes the results file; returns its content."""
    check_arguments(arguments)
    accelerator = build_accelerator(arguments.mixed_precision)

    # ---- model
    config = build_config(arguments)
    check_ignored_id(config)
    model = build_model(arguments, config, new_classes=False).to(accelerator.device)
    settings = {}
    if arguments.eval_shortest_edge:
        longest = arguments.eval_longest_edge or 4 * arguments.eval_shortest_edge
        settings["size"] = {"shortest_edge": arguments.eval_shortest_edge, "longest_edge": longest}
    processor = build_processor(arguments, config, **settings)
    # A model trained on reduced labels is compared with reduced labels.
    arguments.do_reduce_labels |= bool(processor.do_reduce_labels)

    # ---- protocol
    base = (processor.size["shortest_edge"], processor.size["longest_edge"])
    predictor = None
    protocol = {"shortest_edge": base[0], "longest_edge": base[1]}
    if arguments.tta:
        edges = arguments.tta_shortest_edges or [base[0] * quarter // 4 for quarter in range(2, 8)]
        longest = arguments.tta_longest_edge or 7 * base[0]
        predictor = MultiScale(model, processor, accelerator.device, base, edges, longest)
        protocol |= {"tta_shortest_edges": edges, "tta_longest_edge": longest, "tta_flip": True}

    # ---- figures
    confusion, images = evaluate_split(
        model,
        processor,
        arguments,
        arguments.eval_split_name,
        accelerator,
        predictor,
        arguments.max_eval_samples,
        arguments.dataloader_num_workers,
    )
    checkpoint = Path(project_path(arguments.model_name_or_path or ""))
    results = build_results(
        scores_from_confusion(confusion),
        dict(model.config.id2label),
        dataset=Path(arguments.dataset_name or "").name,
        split=arguments.eval_split_name,
        images=images,
        do_reduce_labels=arguments.do_reduce_labels,
        protocol=protocol,
        checkpoint=checkpoint.name,
        weights_sha256=weights_sha256(checkpoint),
        parameters=model.num_parameters(),
    )
    if accelerator.is_main_process:
        print(results_table(results))
        if arguments.output_file:
            try:
                write_results(results, Path(arguments.output_file))
            except OSError as error:
                raise UserError(f"--output_file {arguments.output_file}: {error}") from error
            print(f"results in {arguments.output_file}")
    accelerator.end_training()
    return results


def main() -> None:
    """Entry point."""
    evaluate(parse_arguments(EvaluateArguments))


if __name__ == "__main__":
    run_command(main)
