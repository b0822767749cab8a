"""Model cards: facts from `card.yaml`, figures from results files, published numbers from `published.yaml`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scripts.models import tasks
from scripts.models.licences import origin_notice, origin_of
from scripts.models.tasks import DEFAULT_THRESHOLDS, SEMANTIC
from scripts.sharing.card_facts import HUB_CARDS, CardFacts, read_published
from scripts.sharing.papers import paper_of
from scripts.sharing.results_files import FIGURES, PER_CLASS, parts_of, task_of_results
from scripts.storage.shared_text import code, code_fence, markdown, without_credentials


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


TEMPLATE = HUB_CARDS / "template.md"
NOT_MEASURED = "not measured"
METRICS = {  # named in the card's metadata
    "semantic": ["mean_iou", "accuracy"],
    "instance": ["average_precision"],
    "panoptic": ["panoptic_quality", "average_precision"],
}
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
        license_name=facts.license_name,
        license_link=facts.license_link,
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
        license=facts.licence,
        non_commercial=facts.is_non_commercial,
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
