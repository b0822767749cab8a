"""Model cards: facts from `card.yaml`, figures from results files, published numbers from `published.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, start_of
from scripts.models import tasks
from scripts.models.licences import is_non_commercial, origin_notice, origin_of
from scripts.models.tasks import DEFAULT_THRESHOLDS, SEMANTIC
from scripts.sharing.papers import paper_of
from scripts.storage.json_files import object_fault, read_json
from scripts.storage.shared_text import code, code_fence, markdown, without_credentials


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


HUB_CARDS = PROJECT_ROOT / "hub_cards"
TEMPLATE = HUB_CARDS / "template.md"
PUBLISHED = HUB_CARDS / "published.yaml"
DATASET_FACTS = ("name", "id", "url", "split", "license", "description")
NOT_MEASURED = "not measured"
BLANK = "FILL IN"  # stands in a card that --init_card wrote where only its owner knows what to write
# By task: results key -> name in the card, type in the card's metadata. The first has the interval.
AVERAGE_PRECISION = {
    "average_precision": ("mask AP", "average_precision"),
    "average_precision_50": ("mask AP at IoU 0.5", "average_precision_50"),
    "average_precision_75": ("mask AP at IoU 0.75", "average_precision_75"),
}
FIGURES = {
    "semantic": {
        "mean_iou": ("mean IoU", "mean_iou"),
        "mean_accuracy": ("mean accuracy", "mean_accuracy"),
        "overall_accuracy": ("pixel accuracy", "accuracy"),
        "mean_boundary_iou": ("mean boundary IoU", "mean_boundary_iou"),
    },
    "instance": AVERAGE_PRECISION,
    "panoptic": {
        "panoptic_quality": ("PQ", "panoptic_quality"),
        "segmentation_quality": ("SQ", "segmentation_quality"),
        "recognition_quality": ("RQ", "recognition_quality"),
        "panoptic_quality_things": ("PQ of things", "panoptic_quality_things"),
        "panoptic_quality_stuff": ("PQ of stuff", "panoptic_quality_stuff"),
        **AVERAGE_PRECISION,
    },
}
# By task: column of `per_class` -> title in the card; the first says which classes are found worst.
PER_CLASS = {
    "semantic": {"iou": "IoU", "accuracy": "accuracy"},
    "instance": {"average_precision": "AP", "average_precision_50": "AP50"},
    "panoptic": {"panoptic_quality": "PQ", "segmentation_quality": "SQ", "recognition_quality": "RQ"},
}
METRICS = {  # named in the card's metadata
    "semantic": ["mean_iou", "accuracy"],
    "instance": ["average_precision"],
    "panoptic": ["panoptic_quality", "average_precision"],
}
NEEDED = ("dataset", "split", "images", "protocol", "command", "per_class")
FIGURE = float | int | None
# Of what kind is what a card takes from a results file, and what its parts have to hold.
RESULTS: dict[str, Any] = {
    "dataset": str,
    "split": str,
    "images": int,
    "protocol": dict[str, Any],
    "command": str,
    "per_class": dict[str, dict[str, FIGURE]],
    "metric": str,
    "task": str,
    "parameters": int,
    "interval": dict[str, Any],
    "segment_sizes": list[dict[str, Any]],
    "protocol_lens": list[dict[str, Any]],
    "project": dict[str, Any],
    "dataset_revision": dict[str, Any],
    "weights_sha256": str,
    **{key: FIGURE for figures in FIGURES.values() for key in figures},
}
INSIDE: dict[str, dict[str, Any]] = {
    "protocol": {"name": str},
    "interval": {"confidence": float | int, "low": FIGURE, "high": FIGURE},
    "segment_sizes": {"max_area": int | None, "mean_iou": FIGURE},
    "protocol_lens": {"habit": str, "detectron2": FIGURE},
    "project": {"commit": str},
    "dataset_revision": {"hub_commit": str, "sha256": str},
}
NEEDED_INSIDE = {
    "interval": ("confidence", "low", "high"),
    "segment_sizes": ("max_area", "mean_iou"),
    "protocol_lens": ("habit",),
}
MOST = 2**53  # of what is counted; beyond it a float is no longer exact
PUBLISHED_FIGURES = {
    "mean_iou": "mIoU, single scale",
    "mean_iou_multi_scale": "mIoU, multi-scale and flip",
    "crop": "crop",
    "parameters_millions": "parameters (millions)",
    "gflops": "GFLOPs",
}
RECIPE_ROWS = {
    "dataset_name": "dataset",
    "max_train_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch per process and micro step",
    "total_train_batch_size": "batch in all",
    "gradient_accumulation_steps": "micro steps per step",
    "crop_height": "crop height",
    "crop_width": "crop width",
    "learning_rate": "learning rate",
    "backbone_lr_multiplier": "multiplier of the learning rate for the backbone",
    "lr_scheduler_type": "schedule",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient norm clipped to",
    "mixed_precision": "mixed precision",
    "ema_decay": "moving average of weights",
    "seed": "seed",
}
SNIPPET = """\
{download}from transformers import pipeline

segment = pipeline("image-segmentation", model="{name}", trust_remote_code=True)
for region in segment({image}{threshold}):
    print(region["label"],{score} region["mask"].getbbox())"""
OUTPUTS = """\
import torch
{download}from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForUniversalSegmentation.from_pretrained("{name}", trust_remote_code=True)
image = Image.open({image}).convert("RGB")
with torch.no_grad():
    outputs = model(**processor(images=[image], return_tensors="pt"))
size = (image.height, image.width)
"""
MAP_ENDING = """\
(labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
for index in labels.unique().tolist():  # class ids of the pixels; labels has the image's height and width
    print(model.config.id2label[index], (labels == index).float().mean().item())"""
SEGMENTS_ENDING = """\
(found,) = processor.post_process_{task}_segmentation(outputs, target_sizes=[size])
for segment in found["segments_info"]:
    inside = found["segmentation"] == segment["id"]  # the map has the image's height and width
    print(model.config.id2label[segment["label_id"]], segment["score"], inside.float().mean().item())"""
TUNING = """\
python scripts/train.py --model_name_or_path {name} --train_images images/ --train_masks masks/ \\
    {crops}--per_device_train_batch_size 4 \\
    --max_train_steps 2000 --output_dir outputs/finetuned"""
SEGMENTS_TUNING = """\
python scripts/train.py --model_name_or_path {name} --task {task} --dataset_name DATA \\
    {crops}--per_device_train_batch_size 4 \\
    --max_train_steps 2000 --output_dir outputs/finetuned"""
LEAST_FOR_WORST = 4  # of fewer classes or groups, "the worst" would be all or nearly all


@dataclass
class CardFacts:
    """A `card.yaml`: what no results file knows, and no figures.

    Args:
        notice: what the licence follows from, by where the weights come from: "trained" (there is a recipe beside
            them) and "converted" (from the authors' release).
        dataset: `DATASET_FACTS`, and perhaps `known_as`: other names of the data, separated by commas.
        classes: names of the model's classes in the order of their ids; None where the card does not say.
        architecture: of the model, as `fit.architecture` words it; None where the card does not say.
    """

    name: str
    summary: str
    backbone: str
    license: str
    notice: dict[str, str]
    dataset: dict[str, str]
    limits: list[str] = field(default_factory=list)
    base_model: str | None = None
    classes: list[str] | None = None
    architecture: str | None = None


def read_yaml(file: Path) -> Any:
    """Contents of a YAML file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: {error}") from error


def read_card(file: Path) -> CardFacts:
    """The facts of a `card.yaml`.

    Raises:
        UserError: names the file and the field that is missing, unknown or of another kind.
    """
    found = read_yaml(file)
    known = {item.name for item in fields(CardFacts)}
    needed = known - {"limits", "base_model", "classes", "architecture"}
    if not isinstance(found, dict) or (unknown := found.keys() - known) or (missing := needed - found.keys()):
        what = "no mapping" if not isinstance(found, dict) else f"{(unknown and 'unknown') or 'missing'} field "
        which = "" if not isinstance(found, dict) else sorted(unknown or missing)[0]
        raise UserError(f"{file}: {what}{which}: a card has {', '.join(sorted(known))}")
    if blanks := blank_fields(found):
        raise UserError(f"{file}: still to be filled in: {', '.join(blanks)}: write over {BLANK!r}, then export again")
    for name in ("notice", "dataset"):
        if not isinstance(found[name], dict):
            raise UserError(f"{file}: {name} holds {found[name]!r}: write `key: value` lines")
    if lacking := [name for name in DATASET_FACTS if not found["dataset"].get(name)]:
        raise UserError(f"{file}: dataset lacks {lacking[0]}")
    if not found["notice"] or found["notice"].keys() - {"trained", "converted"}:
        raise UserError(f"{file}: notice has {sorted(found['notice'])}: give trained, converted or both")
    if fault := object_fault(found, get_type_hints(CardFacts), needed):
        raise UserError(f"{file} {fault}")
    return CardFacts(**{name: value for name, value in found.items() if value is not None})


def blank_fields(value: Any, name: str = "") -> list[str]:
    """Names of the fields of a card that hold nothing but what `--init_card` wrote for a user to replace."""
    if isinstance(value, dict):
        return [field for key, part in value.items() for field in blank_fields(part, f"{name}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [field for index, part in enumerate(value) for field in blank_fields(part, f"{name}[{index}]")]
    return [name] if isinstance(value, str) and BLANK in value else []


def card_file(model_id: str) -> Path:
    """Where the card's facts of a model id are.

    Raises:
        UserError: it has none.
    """
    known = {path.parent.name: path for path in sorted(HUB_CARDS.glob("*/card.yaml"))}
    if model_id not in known:
        raise UserError(
            f"--model_id {model_id}: no hub_cards/{model_id}/card.yaml: one of {', '.join(known)}; or give --card FILE"
        )
    return known[model_id]


def read_published(file: Path = PUBLISHED) -> dict[str, dict[str, Any]]:
    """Model id -> what the paper's authors report for it; models of this project's own are not there."""
    return read_yaml(file) or {}


def read_results(file: Path) -> dict[str, Any]:
    """A results file of `scripts/eval.py`.

    Raises:
        UserError: it is not there or is something else.
    """
    name = f"--results {file}"
    try:
        found = read_json(file, name)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{name}: no such file: write it with {start_of('eval')} --output_file {file}") from error
        raise
    if fault := results_fault(found):
        raise UserError(f"{name} is no results file: it {fault}")
    return found


def results_fault(found: Any) -> str | None:
    """What keeps `found` from being the content of a results file: the first part that lacks or is of another kind."""
    if fault := object_fault(found, RESULTS, NEEDED):
        return fault
    if task_of_results(found) not in FIGURES:
        return f"has a wrong field: 'task' is {task_of_results(found)[:20]!r}, need {', '.join(FIGURES)}"
    for key, kinds in INSIDE.items():
        for part in parts_of(found, key):
            if fault := object_fault(part, kinds, NEEDED_INSIDE.get(key, ())):
                return f"has a wrong field: {key!r} {fault}"
    for name, value, most in figures_of(found):
        if value is not None and not 0 <= value <= most:  # nan is not either
            return f"has a wrong field: {name} is {str(value)[:20]}, need 0 to {most}"
    return None


def task_of_results(results: dict[str, Any]) -> str:
    """What the model of a results file is for; files from before there were others do not say."""
    return results.get("task") or SEMANTIC


def parts_of(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The mappings that a field of a results file holds: one, several, or none where it was not measured."""
    value = found.get(key) or []
    return [value] if isinstance(value, dict) else value


def figures_of(found: dict[str, Any]) -> Iterator[tuple[str, float | None, int]]:
    """`(name, value, the most that it can be)` of all figures of a results file that a card shows."""
    figures = dict.fromkeys(FIGURES[task_of_results(found)], 100)
    for key, most in {**figures, "images": MOST, "parameters": MOST}.items():
        yield repr(key), found.get(key), most
    for label, row in found["per_class"].items():
        for column in PER_CLASS[task_of_results(found)]:
            yield f"{column!r} of class {label!r}", row.get(column), 100
    inside = {
        "interval": {"low": 100, "high": 100, "confidence": 1},
        "segment_sizes": {"mean_iou": 100, "max_area": MOST},
        "protocol_lens": {"detectron2": 100},
    }
    for key, bounds in inside.items():
        for part in parts_of(found, key):
            for column, most in bounds.items():
                yield f"{column!r} of {key!r}", part.get(column), most


def rounded(value: float) -> float:
    """A figure in percent as every place of a card gives it: with one decimal."""
    return round(value, 1)


def number(value: float | None) -> str:
    """A figure in percent as text; says so where there was nothing to measure."""
    return NOT_MEASURED if value is None else f"{rounded(value):.1f}"


def without_local_paths(command: str) -> str:
    """A command whose absolute and upward paths are cut down to `path/to/<name>`."""
    return re.sub(
        r"(?<![\w/.])(?:/|~/|\.\./|[A-Za-z]:\\)[^\s'\"]*?([^\s'\"/\\]+)(?=[\s'\"]|$)", r"path/to/\1", command
    )


def measured_on(results: dict[str, Any], facts: CardFacts) -> str:
    """The data set and the split that the figures are of, such as `CamVid validation`."""
    return f"{markdown(facts.dataset['name'])} {markdown(results['split'])}"


def measured_facts(results: dict[str, Any], facts: CardFacts) -> dict[str, Any]:
    """What the template's section of measured figures shows."""
    task = task_of_results(results)
    rows = [(label, number(results.get(key))) for key, (label, _) in FIGURES[task].items()]
    if interval := results.get("interval"):
        span = f"{number(interval['low'])} to {number(interval['high'])}"
        rows.insert(1, (f"{interval['confidence']:.0%} interval over images (bootstrap)", span))
    if parameters := results.get("parameters"):
        rows.append(("parameters (millions)", f"{parameters / 1e6:.1f}"))
    protocol = dict(results["protocol"])
    settings = ", ".join(f"{key} {value}" for key, value in protocol.items() if key != "name")
    name = protocol.get("name") or "native"
    return {
        "on": measured_on(results, facts),
        "images": markdown(results["images"]),
        "rows": rows,
        "metric": markdown(results.get("metric") or "mIoU"),
        "protocol": code(name) + (f" ({markdown(settings)})" if settings else ""),
        "commit": code(((results.get("project") or {}).get("commit") or "unknown")[:7]),
        "command": (command := without_credentials(without_local_paths(results["command"]))),
        "fence": code_fence(command),
        "columns": list(PER_CLASS[task].values()),
        "per_class": [
            (markdown(label), *(number(row.get(column)) for column in PER_CLASS[task]))
            for label, row in results["per_class"].items()
        ],
        "habits": [
            (markdown(row["habit"]), number(row.get("detectron2")))
            for row in parts_of(results, "protocol_lens")
            if row["habit"] != "protocol"
        ],
    }


def eval_results(results: dict[str, Any], facts: CardFacts) -> list[EvalResult]:
    """The figures as the Hub's `model-index` holds them; one that was not measured is left out."""
    from huggingface_hub import EvalResult

    revision = results.get("dataset_revision") or {}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"{task_of_results(results).capitalize()} segmentation",
            dataset_type=facts.dataset["id"],
            dataset_name=facts.dataset["name"],
            dataset_split=results["split"],
            dataset_revision=revision.get("hub_commit") or revision.get("sha256"),
            metric_type=metric,
            metric_name=label,
            metric_value=rounded(results[key]),
        )
        for key, (label, metric) in FIGURES[task_of_results(results)].items()
        if results.get(key) is not None
    ]


def size_limit(results: dict[str, Any], facts: CardFacts) -> str | None:
    """How well small segments are found; None where nothing was measured that could tell."""
    measured = [group for group in parts_of(results, "segment_sizes") if group["mean_iou"] is not None]
    if len(measured) < 2:
        return None
    worst, last = min(measured, key=lambda group: group["mean_iou"]), measured[-1]
    if worst is last or measured[0]["mean_iou"] >= (results.get("mean_iou") or 0):  # small ones are not found worse
        smallest = f"{number(measured[0]['mean_iou'])} among segments up to {measured[0]['max_area']} pixels"
        return (
            f"Mean IoU on {measured_on(results, facts)} by the size of segments: {smallest}, "
            f"{number(last['mean_iou'])} among the largest."
        )
    groups = f" (the worst of {len(measured)} groups by size)" if len(measured) >= LEAST_FOR_WORST else ""
    return (
        f"Small things are found far less well than large ones: mean IoU over all sizes is "
        f"{number(results.get('mean_iou'))} on {measured_on(results, facts)}, but {number(worst['mean_iou'])} among "
        f"segments up to {worst['max_area']} pixels{groups}."
    )


def limits(facts: CardFacts, results: dict[str, Any] | None, published: dict[str, Any]) -> list[str]:
    """What the model is not good at: of its data, of its size of segments as measured, and what nobody reproduced."""
    found = []
    if results is not None and (by_size := size_limit(results, facts)):
        found.append(by_size)
    else:
        found.append(
            "Small and thin things are found far less well than large ones; by how much was not measured here."
        )
    if results is not None:
        column, title = next(iter(PER_CLASS[task_of_results(results)].items()))
        classes = [(row[column], name) for name, row in results["per_class"].items() if row.get(column) is not None]
        if len(classes) >= LEAST_FOR_WORST:
            worst = ", ".join(f"{markdown(name)} ({number(figure)})" for figure, name in sorted(classes)[:3])
            found.append(f"The classes found worst, by {title} on {measured_on(results, facts)}: {worst}.")
    if published and results is None:
        found.append(
            "The published figures were not reproduced by this project: nobody trained or evaluated the model on that "
            "dataset here; equality with the authors' implementation is shown on recorded inputs and outputs."
        )
    return found + facts.limits


def training_rows(recipe: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the card says of a `recipe.yaml`."""
    return [
        (label, markdown(recipe[key])) for key, label in RECIPE_ROWS.items() if recipe and recipe.get(key) is not None
    ]


def snippets(name: str, task: str, sample: str | None = None) -> tuple[str, str]:
    """Regions by the pipeline, and a label map or segments by the auto classes, with the repository `name`.

    Args:
        task: of the model.
        sample: an image of the repository to run on; None for a file of the reader's.
    """
    image, download = '"image.jpg"', ""
    if sample is not None:
        image, download = f'hf_hub_download("{name}", "{sample}")', "from huggingface_hub import hf_hub_download\n"
    words = {"download": download, "name": name, "image": image, "task": task, "threshold": "", "score": ""}
    if task != SEMANTIC:  # the pipeline's own threshold is 0.9
        words |= {"threshold": f", threshold={DEFAULT_THRESHOLDS[task]}", "score": ' region["score"],'}
    return SNIPPET.format(**words), OUTPUTS.format(**words) + ending_of(task)


def ending_of(task: str) -> str:
    """What post-processes `outputs` to `size` and prints it, by the model's task."""
    return MAP_ENDING if task == SEMANTIC else SEGMENTS_ENDING.format(task=task)


def tuning(name: str, task: str, recipe: dict[str, Any] | None) -> str:
    """The command that trains on from the repository `name`, on crops of the size that it was trained on."""
    crops = [f"--{key} {recipe[key]} " for key in ("crop_height", "crop_width") if recipe and recipe.get(key)]
    return (TUNING if task == SEMANTIC else SEGMENTS_TUNING).format(name=name, task=task, crops="".join(crops))


def licence_notice(facts: CardFacts, recipe: dict[str, Any] | None, config: Any) -> str:
    """What the licence of the weights follows from: of what they were trained on, or converted from, or both."""
    origins = ["trained"] if recipe else ["converted"]
    if recipe and recipe.get("model_name_or_path"):  # tuned further: what the first weights came with stays
        origins = ["converted", "trained"]
    said = [facts.notice[origin] for origin in origins if origin in facts.notice] or [*facts.notice.values()]
    return " ".join([*said, *filter(None, [origin_notice(config)])])


def model_card(
    model_id: str,
    repo_id: str,
    config: Any,
    facts: CardFacts,
    results: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    samples: list[dict[str, str]] | None = None,
    files: frozenset[str] = frozenset(),
    needs_timm: bool = False,
    processor: Any = None,
) -> ModelCard:
    """The card of a repository.

    Args:
        config: the model's configuration; it tells the paper, and what the weights come from.
        results: of `read_results`; without them the card says "not measured".
        recipe: what the weights were trained with; None for converted ones.
        samples: `image`, `input` and `caption` of each sample image.
        files: names beside the card, which it refers to.
        processor: the image processor; of images that are no RGB of 8 bits the card says what their numbers mean.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from scripts.data.bands import PLAIN, form_of
    from scripts.sharing.array_images import array_snippet, images_read

    form = PLAIN if processor is None else form_of(config, processor)
    sample = samples[0]["input"] if samples else None
    published, paper, task = read_published().get(model_id, {}), paper_of(config.model_type), tasks.task_of(config)
    shown: Sequence[str] = snippets(repo_id, task, sample)
    if not form.is_plain:
        shown = [array_snippet(repo_id, form, ending_of(task), sample)]
    data = ModelCardData(
        license=facts.license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", f"{task}-segmentation", paper.family, "vision"],
        base_model=facts.base_model or origin_of(config).get("base_model"),
        metrics=METRICS[task_of_results(results)] if results else None,
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=eval_results(results, facts) if results else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=facts.name,
        summary=facts.summary,
        paper=paper,
        notice=licence_notice(facts, recipe, config),
        license=facts.license,
        non_commercial=is_non_commercial(facts.license),
        samples=samples or [],
        task=task,
        snippets=shown,
        arrays=None if form.is_plain else images_read(form, processor),
        tuning=tuning(repo_id, task, recipe),
        needs_timm=needs_timm,
        has_onnx=any(name.startswith("onnx/") for name in files),
        has_log="train_log.jsonl" in files,
        measured=measured_facts(results, facts) if results else None,
        published=[
            (f"{label}, {published['dataset']}" if "mIoU" in label else label, str(published[key]))
            for key, label in PUBLISHED_FIGURES.items()
            if key in published
        ],
        dataset=facts.dataset,
        backbone=facts.backbone,
        training=training_rows(recipe),
        converted=not recipe and "converted" in facts.notice,
        limits=limits(facts, results, published),
    )
