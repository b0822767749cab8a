"""Packs a folder of images and a folder of label PNGs into parquet shards that `load_dataset` streams.

`python scripts/pack_dataset.py --train_images photos/ --train_masks masks/ --output_dir packed` writes
`packed/data/train-00000-of-0000N.parquet` and so on with the files' own bytes, `id2label.json` if classes have names,
and a README that tells the Hub what is in it. Maps of other values or of colours become maps of ids. With
`--eval_images` and `--eval_masks` also a validation split; with `--dataset_name FOLDER` all splits of a folder; with
`--train_val_split 0.15` one that is held back. Images are put into the shards in a random order that is always the
same, so that each shard is a fair sample.
Runs alike as `python -m scripts.pack_dataset`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import io
import json
import random
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import yaml

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_at_least, check_folder, flag, parse_arguments, path_flag, run_command
from scripts.data.arguments import DatasetArguments, check_dataset_flags


if TYPE_CHECKING:
    from scripts.data.folders import Pair
    from scripts.data.samples import RowFormat

FEATURES = {"image": "image", "label": "image", "image_id": "string"}


@dataclass
class PackArguments:
    """Pack images and label maps into parquet shards."""

    dataset_name: str | None = path_flag(
        "Folder of images and label maps, such as train/images and train/masks, images/train and masks/train, or "
        "a.jpg beside a_mask.png; in place of the four flags."
    )
    train_images: str | None = path_flag("Folder of the training images.")
    train_masks: str | None = path_flag(
        "Folder of the training label maps: PNGs whose pixels are class ids, named as their images are."
    )
    eval_images: str | None = path_flag("Folder of the validation images.")
    eval_masks: str | None = path_flag("Folder of the validation label maps, named as their images are.")
    mask_suffix: str | None = flag(
        None,
        "What names of label maps have behind those of their images: _mask of a_mask.png. By default it is found out.",
    )
    train_val_split: float | None = flag(
        None, "Share of the training images that become the validation split, for data without one; see train.py."
    )
    allow_links: bool = flag(
        False, "Let files of --dataset_name be links that lead out of its folder; for links that you made yourself."
    )
    id2label: str | None = path_flag(
        'JSON file with the name of each class id, {"0": "road", "1": "car"}; by default id2label.json beside the '
        "images."
    )
    class_map: str | None = path_flag("YAML file that merges, renames or ignores classes; see train.py.")
    mask_values: list[str] | None = flag(
        None, "Class of each value that the label maps hold, VALUE=NAME: 0=background 255=cell. Ids are packed."
    )
    mask_colors: str | None = path_flag(
        "JSON file with the colour of each class, for label maps in colours; by default palette.json beside the "
        "images. Ids are packed."
    )
    output_dir: str | None = flag(None, "Folder for the dataset; it must be new or empty.")
    shard_megabytes: int = flag(256, "Most megabytes that one parquet file holds, give or take an image.")


def shard_pairs(pairs: list[Pair], most_bytes: int) -> list[list[Pair]]:
    """`pairs` in a fixed random order, in at least four shards (if there are as many) of about equal numbers."""
    pairs = random.Random(0).sample(pairs, len(pairs))
    total = sum(Path(file).stat().st_size for pair in pairs for file in pair.files)
    count = min(len(pairs), max(4, -(-total // most_bytes)))
    return [pairs[len(pairs) * at // count : len(pairs) * (at + 1) // count] for at in range(count)]


def map_bytes(file: Path, name: str, form: RowFormat) -> bytes:
    """The bytes of a label map: its own, or those of a PNG of the ids that its values or colours stand for.

    Raises:
        UserError: a map in colours that are not known, or values of no class.
    """
    from PIL import Image

    from scripts.data.samples import decode_label

    content = file.read_bytes()
    try:
        with Image.open(file) as image:
            in_colours = len(image.getbands()) > 1 or bool(form.colours and form.colours.applies_to(image))
    except (OSError, ValueError, SyntaxError):
        return content  # training names it and goes on
    if form.class_map is None and not in_colours:
        return content
    label = decode_label({"bytes": content, "path": None}, name, colours=form.colours)
    label = form.class_map.apply(label, name) if form.class_map else label
    png = io.BytesIO()
    Image.fromarray(label.numpy()).save(png, format="PNG")
    return png.getvalue()


def write_shard(file: Path, pairs: list[Pair], form: RowFormat) -> int:
    """Writes one parquet file with the bytes of the images as they are and those of `map_bytes`; returns how many."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "image_id": datasets.Value("string")}
    )
    rows, size = [], 0
    for stem, image, label, _ in pairs:
        files = {"image": Path(image).read_bytes(), "label": map_bytes(Path(label), stem, form)}
        names = {"image": Path(image).name, "label": Path(label).name}
        rows.append({"image_id": stem} | {key: {"bytes": files[key], "path": names[key]} for key in files})
        size += sum(map(len, files.values()))
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    return size


def readme(sizes: dict[str, tuple[int, int]]) -> str:
    """Dataset card of splits of `(examples, bytes)`."""
    info = {
        "features": [{"name": name, "dtype": kind} for name, kind in FEATURES.items()],
        "splits": [
            {"name": split, "num_examples": examples, "num_bytes": size} for split, (examples, size) in sizes.items()
        ],
    }
    files = [{"split": split, "path": f"data/{split}-*"} for split in sizes]
    card = {
        "task_categories": ["image-segmentation"],
        "dataset_info": info,
        "configs": [{"config_name": "default", "data_files": files}],
    }
    table = "\n".join(f"| {split} | {examples} |" for split, (examples, _) in sizes.items())
    return f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n| split | images |\n| --- | --- |\n{table}\n"


def data_arguments(arguments: PackArguments) -> DatasetArguments:
    """The flags that say what is packed.

    Raises:
        UserError: none, one of a pair, or values that cannot work.
    """
    given = asdict(arguments)
    data = DatasetArguments(**{each.name: given[each.name] for each in fields(DatasetArguments) if each.name in given})
    check_dataset_flags(data)
    named = [data.dataset_name and f"--dataset_name {data.dataset_name}"]
    for kind in ("train", "eval"):
        images, masks = given[f"{kind}_images"], given[f"{kind}_masks"]
        if bool(images) != bool(masks):
            raise UserError(f"--{kind}_images and --{kind}_masks go together: give both")
        named.append(images and f"--{kind}_images {images}")
    if not any(named):
        raise UserError("nothing to pack: give --train_images and --train_masks, or --dataset_name")
    if named[0] and any(named[1:]):
        raise UserError(f"{' and '.join(filter(None, named))}: give the folder or the flags of its parts")
    return data


def pack(arguments: PackArguments) -> None:
    """Writes the dataset atomically."""
    check_at_least(arguments, 1, "shard_megabytes")
    if not arguments.output_dir:
        raise UserError("no output folder: give --output_dir")
    final = Path(arguments.output_dir)
    check_folder("--output_dir", final)
    if final.is_dir() and any(final.iterdir()):
        raise UserError(f"--output_dir {final} is not empty: name a new folder")
    data = data_arguments(arguments)
    import datasets
    from tqdm import tqdm

    from scripts.data.folder_splits import labelled_splits
    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.data.sources import bounds_of
    from scripts.storage.atomic import atomic_folder

    datasets.disable_progress_bars()
    splits = labelled_splits(data)
    for split, pairs in splits.items():
        bounds = bounds_of(data, split)
        for pair in pairs:
            for file in pair.files:
                bounds.checked_name(file, f"sample {pair.name}")
    first = LabelledDataset(data, next(iter(splits)))
    names, form = first.id2label, first.row_format

    sizes = {}
    total = sum(len(pairs) for pairs in splits.values())
    with (
        errors_explained(f"--output_dir {final}", OSError),
        tqdm(total=total, desc="pack", unit="image", dynamic_ncols=True) as bar,
        atomic_folder(final, manifest=False) as partial,
    ):
        (partial / "data").mkdir()
        for split, pairs in splits.items():
            shards, size = shard_pairs(pairs, arguments.shard_megabytes * 2**20), 0
            for number, shard in enumerate(shards):
                size += write_shard(
                    partial / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet", shard, form
                )
                bar.update(len(shard))
            sizes[split] = (len(pairs), size)
        if names is not None:
            text = json.dumps({str(index): name for index, name in names.items()}, indent=2, ensure_ascii=False)
            (partial / "id2label.json").write_text(text + "\n", encoding="utf-8")
        (partial / "README.md").write_text(readme(sizes), encoding="utf-8")
    print(f"{total} images in {final}: train.py --dataset_name {final}")


def main() -> None:
    pack(parse_arguments(PackArguments))


if __name__ == "__main__":
    run_command(main)
