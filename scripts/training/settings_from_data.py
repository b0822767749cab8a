"""Settings of a training run that follow from its data: sizes from those of the images, steps from their number.

The recipe `finetune` asks for them; what a flag or another line of the recipe gives stays as it is. Each is printed
with its reason, and stands in the `recipe.yaml` beside the model.
"""

from __future__ import annotations

import statistics
from dataclasses import MISSING, Field, dataclass, fields, replace
from itertools import islice
from typing import Any, TypeVar

from scripts.cli.errors import UserError
from scripts.cli.parser import read_recipe, recipe_flags, start_of
from scripts.data.labelled_dataset import NO_SUCH_SPLIT, LabelledDataset
from scripts.data.samples import image_sizes
from scripts.data.stored_rows import parquet_rows
from scripts.training.arguments import TrainArguments


SMALL_MODEL = "faseg-mobilenetv2-camvid"  # recipe whose architecture is taken where no model is named
LOOKED_AT = 64  # images
# The finest windows that HRCA reads are chosen from the tokens of stride 32: 36 of them are enough for all models.
LEAST_CROP = 192
STRIDE = 32
EPOCHS = 40
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)


@dataclass(frozen=True)
class Machine:
    """What a machine can do in a reasonable time.

    Args:
        name: as it stands in a reason.
        crop, view: longest side in pixels of a training crop, longest shorter side of an image.
        steps: fewest and most.
    """

    name: str
    crop: int
    view: int
    batch: int
    steps: tuple[int, int]
    precision: str


CPU = Machine("a CPU", crop=256, view=512, batch=8, steps=(300, 3000), precision="no")
GPU = Machine("a GPU", crop=512, view=1024, batch=16, steps=(1000, 20000), precision="bf16")
Arguments = TypeVar("Arguments", bound=TrainArguments)
Choices = dict[str, tuple[Any, str]]  # field of the arguments -> value, reason


def settings_from_data(
    arguments: TrainArguments, data: LabelledDataset, device: str, num_processes: int = 1
) -> Choices:
    """What the data of a training split ask for, but for what is given.

    Args:
        device: type of the device, such as "cpu" or "cuda".
        num_processes: that train together.
    Raises:
        UserError: no image can be read.
    """
    machine = CPU if device == "cpu" else GPU
    if not arguments.given:  # built in Python, where nothing tells a default from a value that is the same
        changed = {each.name for each in fields(arguments) if each.init and not is_default(each, arguments)}
        arguments = replace(arguments)
        arguments.given = frozenset(changed)
    choices = {
        **sizes(list(islice(image_sizes(data.stream, data.own_row_format), LOOKED_AT)), machine),
        **model_and_rates(arguments),
        "mixed_precision": (machine.precision, f"for {machine.name}"),
    }
    choices |= lengths(arguments, data, machine, num_processes)
    given = {*arguments.given, *(("shortest_edges", "longest_edge") if "scale_range" in arguments.given else ())}
    for side, other in (("crop_height", "crop_width"), ("crop_width", "crop_height")):
        if side in given:
            choices[other] = (getattr(arguments, side), f"as {side}, which is given")
    given -= {"config_overrides"}  # of which the given ones are among those chosen
    return {name: choice for name, choice in choices.items() if name not in given}


def is_default(each: Field[Any], arguments: TrainArguments) -> bool:
    """Whether a field has its default."""
    made = each.default_factory() if each.default_factory is not MISSING else each.default
    return bool(getattr(arguments, each.name) == made)


def sizes(found: list[tuple[int, int]], machine: Machine) -> Choices:
    """Crop, and sizes of whole images, from `(height, width)` of some."""
    if not found:
        raise UserError(f"no image of the training split can be read: see {start_of('check_dataset')}")
    shorter = int(statistics.median(min(size) for size in found))
    typical = sorted(found, key=min)[len(found) // 2]
    view = max(LEAST_CROP, min(shorter, machine.view))
    crop = max(LEAST_CROP, min(machine.crop, view // STRIDE * STRIDE))
    seen = f"images are {typical[1]}x{typical[0]} (median of the first {len(found)})"
    shrunk = f", more than {machine.view} takes {machine.name} long" if shorter > machine.view else ""
    enlarged = f", less than {LEAST_CROP} leaves HRCA no window" if shorter < LEAST_CROP else ""
    around = f"{SCALES[0]:g} to {SCALES[-1]:g} times the size at evaluation"
    return {
        "eval_shortest_edge": (view, f"{seen}{shrunk}{enlarged}"),
        "eval_longest_edge": (8 * view, "long images keep their shape"),
        "shortest_edges": ([round(scale * view) for scale in SCALES], around),
        "longest_edge": (12 * view, "long images keep their shape"),
        "crop_height": (crop, f"{machine.crop} at most on {machine.name}, a multiple of {STRIDE}, within the images"),
        "crop_width": (crop, "as high as wide"),
    }


def model_and_rates(arguments: TrainArguments) -> Choices:
    """Architecture and learning rates, from what is started from."""
    if arguments.model_name_or_path or arguments.warm_start:
        return {"learning_rate": (1e-4, "the whole model is pretrained")}
    choices: Choices = {"learning_rate": (5e-4, "the decoder is new")}
    own = arguments.config_name or any("backbone_config" in item for item in arguments.config_overrides)
    if arguments.model_type == "faseg" and not own:
        recipe = read_recipe(SMALL_MODEL, [field.name for field in fields(TrainArguments)])
        small = recipe_flags({"config_overrides": recipe["config_overrides"]})[1:]
        overrides = [*small, *arguments.config_overrides]
        choices["config_overrides"] = (overrides, f"no model is named: a small FASeg, as in {SMALL_MODEL}")
    if not arguments.backbone_weights:
        choices["backbone_lr_multiplier"] = (1.0, "the backbone is new too: --backbone_weights gives a trained one")
    return choices


def lengths(arguments: TrainArguments, data: LabelledDataset, machine: Machine, num_processes: int) -> Choices:
    """Batch, steps, and how often to evaluate and save, from the number of images."""
    images, total = number_of_images(data), arguments.total_train_batch_size
    micro, why_micro = micro_batch(arguments, images, machine, num_processes)
    batch = total or micro * num_processes * arguments.gradient_accumulation_steps
    least, most = machine.steps
    wanted = most if images is None else EPOCHS * images // batch
    steps = min(max(wanted, least), most)
    why = f"{EPOCHS} times {images} images" if images else "the number of images is not known"
    bounds = "" if steps == wanted else f", but {least} to {most} on {machine.name}"
    choices: Choices = {
        "per_device_train_batch_size": (micro, why_micro),
        "max_train_steps": (steps, f"{why}{bounds}"),
    }
    if "max_train_steps" in arguments.given or "num_train_epochs" in arguments.given:
        steps = arguments.max_train_steps or 0
        choices.pop("max_train_steps")
    if steps:
        choices["checkpointing_steps"] = (max(steps // 5, 1), "five on the way")
        if has_validation(data):
            why = "there is a validation split: the best model is kept in best/"
            choices["eval_steps"] = (max(steps // 5, 1), why)
    return choices


def micro_batch(
    arguments: TrainArguments, images: int | None, machine: Machine, num_processes: int
) -> tuple[int, str]:
    """Images that one process takes at a time, and why."""
    if "per_device_train_batch_size" in arguments.given:
        return arguments.per_device_train_batch_size, "as given"
    total = arguments.total_train_batch_size
    if total and total % num_processes == 0:
        share = total // num_processes
        micro = next(size for size in range(min(machine.batch, share), 0, -1) if share % size == 0)
        return micro, f"a part of the {total} of --total_train_batch_size, {machine.batch} at most on {machine.name}"
    return min(machine.batch, images or machine.batch), f"{machine.batch} on {machine.name}, no more than images"


def number_of_images(data: LabelledDataset) -> int | None:
    """Images of the split, from the ends of its parquet files where its card does not tell; None if neither does."""
    if data.num_examples or not data.files or not all(file.endswith(".parquet") for file in data.files):
        return data.num_examples
    return sum(map(sum, parquet_rows(data.files, with_names=False)[0]))


def has_validation(data: LabelledDataset) -> bool:
    """Whether the data have the split that is evaluated on, apart from what is trained on.

    Raises:
        UserError: there is one that cannot be opened.
    """
    arguments = data.arguments
    if (arguments.dataset_name or "").endswith(".parquet") and arguments.train_val_split is None:
        return False  # one file, all of which is trained on
    try:
        LabelledDataset(arguments, arguments.eval_split_name)  # type: ignore[attr-defined]
    except UserError as error:
        if NO_SUCH_SPLIT.search(str(error)):
            return False
        raise
    return True


def with_settings(arguments: Arguments, choices: Choices) -> Arguments:
    """`arguments` with what was chosen."""
    return replace(arguments, settings_from_data=False, **{name: value for name, (value, _) in choices.items()})


def in_words(choices: Choices) -> str:
    """The settings in a table, each with its reason."""
    rows = [(f"{name} {short(value)}", reason) for name, (value, reason) in choices.items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["settings from the data:", *(f"  {name:<{width}}  {reason}" for name, reason in rows)])


def short(value: Any) -> str:
    """A value in a few words."""
    if not isinstance(value, list):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(map(str, value)) if all(isinstance(item, int) for item in value) else f"({len(value)} fields)"


def settled(arguments: Arguments, device: str, num_processes: int = 1) -> Arguments:
    """`arguments` with the settings that the data ask for, which are printed; as they are where none are asked for."""
    if not arguments.settings_from_data:
        return arguments
    data = LabelledDataset(arguments, arguments.train_split_name)
    choices = settings_from_data(arguments, data, device, num_processes)
    print(in_words(choices), flush=True)
    return with_settings(arguments, choices)
