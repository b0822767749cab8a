"""The stream of folders: undecoded rows of images, their labels, and what a json file says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets

from scripts.data.annotated_folders import Annotations
from scripts.data.arguments import DatasetArguments
from scripts.data.coco import coco_file
from scripts.data.folders import Pair


MAX_SHARDS = 256


def pair_rows(shards: list[list[Pair]], annotations: Annotations | None = None) -> Iterator[dict[str, Any]]:
    """Rows whose files stay on disk until a worker decodes them.

    What a json file says is looked up here, so that shards stay small and each row carries its own words alone.
    """
    words = None
    if annotations and annotations.json_file:
        words = coco_file(annotations.json_file, annotations.source).images
    for shard in shards:
        for name, image, label, class_map in shard:
            row: dict[str, Any] = {"image": file_value(image), "label": file_value(label), "image_id": name}
            if class_map:
                row["class_map"] = file_value(class_map)
            if words is not None:
                row["segments" if label else "label"] = words[name].text
            yield row


def file_value(file: str) -> dict[str, Any] | None:
    """A file as an undecoded image."""
    return {"path": file, "bytes": None} if file else None


def folder_stream(
    pairs: list[Pair], arguments: DatasetArguments, split: str, annotations: Annotations | None = None
) -> datasets.IterableDataset:
    """Undecoded stream of `pairs` in up to `MAX_SHARDS` shards, which shuffle like the files of a dataset."""
    count = min(MAX_SHARDS, len(pairs))
    shards = [pairs[len(pairs) * at // count : len(pairs) * (at + 1) // count] for at in range(count)]
    file, text = datasets.Image(decode=False), datasets.Value("string")
    encoding = annotations.encoding if annotations else None
    features = {"image": file, "label": text if encoding == "coco" else file, "image_id": text}
    wanted = {"image": arguments.image_column_name, "label": arguments.label_column_name}
    if encoding == "segments":
        features["segments"], wanted["segments"] = text, arguments.segments_column_name
    if encoding == "instances":
        features["class_map"] = file
    data = datasets.IterableDataset.from_generator(
        pair_rows, features=datasets.Features(features), gen_kwargs={"shards": shards, "annotations": annotations}
    )
    if renamed := {old: new for old, new in wanted.items() if old != new}:
        data = data.rename_columns(renamed)
    data.info.splits = datasets.SplitDict({split: datasets.SplitInfo(name=split, num_examples=len(pairs))})
    return data
