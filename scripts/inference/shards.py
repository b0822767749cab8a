"""Label maps as parquet shards of a fixed number of rows, each written atomically, and found again.

A folder of predictions holds `data/<split>-<number>.parquet`, `predictions.json` (what made them), `id2label.json` and
`README.md`, by which `datasets.load_dataset(folder)` finds the shards.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from scripts.cli.errors import UserError, errors_explained
from scripts.models.tasks import PANOPTIC, SEMANTIC
from scripts.storage.atomic import atomic_file
from scripts.storage.json_files import read_json
from scripts.storage.shared_text import code, front_matter, markdown


COLUMNS = {
    "index": datasets.Value("int64"),
    "image_id": datasets.Value("string"),
    "label": datasets.Image(),
    "error": datasets.Value("string"),
}
SEGMENTS = [
    {
        "id": datasets.Value("int32"),
        "category_id": datasets.Value("int32"),
        "isthing": datasets.Value("int32"),
        "area": datasets.Value("int64"),
        "bbox": [datasets.Value("int32")],
        "iscrowd": datasets.Value("int32"),
        "score": datasets.Value("float64"),
    }
]
README = """
# {what} predicted by {model}

One row per row of {dataset}, split `{split}`, in its order{rows}.

| column | content |
|---|---|
| `index` | place of the row in the source, from 0 |
| `image_id` | id or file name of the image there, else `#<index>` |
| `label` | {label}, of the image's size; null if it could not be read |
| `error` | why an image could not be read, else null |
{more}
Read it with `datasets.load_dataset("path/to/this/folder", split="{split}")`.
"""
LABEL = {
    "semantic": "PNG, pixel value = class id of `id2label.json`",
    "instance": "PNG, id of the instance = R + 256 G + 65536 B, 0 = none; the best one is 1, and a better one "
    "lies on top of others",
    "panoptic": "PNG, id of the segment = R + 256 G + 65536 B, 0 = none",
}
SEGMENTS_ROW = (
    "| `segments_info` | list of the map's segments: `id`, `category_id` (class id of `id2label.json`), `isthing`, "
    "`area`, `bbox` (left, top, width, height), `iscrowd`, `score`; one that others cover has no line |\n"
)
AS_LABELS = """
The maps are of the form that `--label_encoding segments` of this project's commands reads, beside a column of images.
"""
SCORE_ROW = "| `score` | PNG, 255 times the share of the winning class in the pixel's class scores |\n"


@dataclass(frozen=True)
class Finished:
    """A shard on disk: the names of its rows, and why some of them have no label map."""

    names: list[str]
    errors: list[str]


@dataclass(frozen=True)
class ShardFolder:
    """The folder of a prediction run.

    Args:
        rows_per_shard: rows of every shard but the last, which may have fewer.
        task: of the model; of instances and panoptic segments there is a list beside each map.
        made_by: what the maps depend on, for `predictions.json`.
        overwrite: whether files of these names may be replaced in a folder that is none of predictions.
    """

    folder: Path
    split: str
    rows_per_shard: int
    made_by: dict[str, Any]
    with_scores: bool = False
    overwrite: bool = False
    task: str = SEMANTIC

    @property
    def features(self) -> datasets.Features:
        """Columns of the shards."""
        more: dict[str, Any] = {"score": datasets.Image()} if self.with_scores else {}
        if self.task != SEMANTIC:
            more["segments_info"] = SEGMENTS
        return datasets.Features(COLUMNS | more)

    @property
    def what(self) -> str:
        """What the maps are, as a heading."""
        return {SEMANTIC: "Label maps", PANOPTIC: "Panoptic segments"}.get(self.task, "Instances")

    @property
    def state_file(self) -> Path:
        """Where `made_by` is kept."""
        return self.folder / "predictions.json"

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self.folder / "data" / f"{self.split}-{number:05d}.parquet"

    def numbers(self) -> list[int]:
        """Shards on disk, in order."""
        files = self.path(0).parent.glob(f"{self.split}-[0-9]*.parquet")
        return sorted(int(file.stem.removeprefix(f"{self.split}-")) for file in files)

    def prepare(self, id2label: dict[int, str]) -> None:
        """Makes the folder, or makes sure that it is this run's; takes damaged and unfinished shards out.

        Raises:
            UserError: the folder's shards were made by something else.
        """
        data = self.path(0).parent
        with errors_explained(f"--output_dir {self.folder}", OSError):
            data.mkdir(parents=True, exist_ok=True)
            if self.state_file.exists():
                name = f"--output_dir {self.folder}: {self.state_file.name}"
                self._check_state(read_json(self.state_file, name, kinds={}))
            elif any(data.glob("*.parquet")):
                raise UserError(f"{data} holds parquet files of something else: give another --output_dir")
            elif not self.overwrite:
                self._check_strange()
            for partial in data.glob(".*.partial"):
                partial.unlink()
            for number in self.numbers():
                try:
                    self.read(number)
                except (OSError, ValueError, KeyError) as error:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    print(f"{self.path(number)}: damaged, predicted anew: {reason}", file=sys.stderr)
                    self.path(number).unlink()
            names = {str(index): name for index, name in sorted(id2label.items())}
            # The state first: by it the rest is known as this run's after a kill.
            for file, value in ((self.state_file, self.made_by), (self.folder / "id2label.json", names)):
                with atomic_file(file) as partial:
                    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            self.write_readme(None)

    def _check_strange(self) -> None:
        for name in ("README.md", "id2label.json", "overlays"):
            if (self.folder / name).exists():
                raise UserError(
                    f"--output_dir {self.folder} holds {name} of something else: give another, or add --overwrite"
                )

    def _check_state(self, state: dict[str, Any]) -> None:
        for key, value in self.made_by.items():
            if state.get(key) != value:
                raise UserError(
                    f"--output_dir {self.folder}: its shards were made with {key} {state.get(key)!r}, not {value!r}: "
                    "go on with the same settings, or give another --output_dir"
                )

    def read(self, number: int) -> Finished:
        """Names and errors of a shard, after its checksums and row numbers were compared.

        Raises:
            OSError, ValueError, KeyError: it is damaged, or not this shard.
        """
        table = pq.ParquetFile(self.path(number), page_checksum_verification=True).read()
        first = number * self.rows_per_shard
        indices = table["index"].to_pylist()
        if not 0 < len(indices) <= self.rows_per_shard or indices != list(range(first, first + len(indices))):
            raise ValueError(f"rows {indices[:1]}..{indices[-1:]}, need {first}..")
        return Finished(table["image_id"].to_pylist(), table["error"].drop_null().to_pylist())

    def write(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Writes a shard of rows that have `features`.

        Raises:
            UserError: it cannot be written; the shards before it stay.
        """
        table = pa.Table.from_pylist(rows, schema=self.features.arrow_schema)
        try:
            with atomic_file(self.path(number)) as partial:
                pq.write_table(table, partial, write_page_checksum=True)
        except OSError as error:
            raise UserError(f"{self.path(number)}: {error}: free space and run the command again to go on") from error

    def write_readme(self, rows: int | None) -> None:
        """Writes the card; `rows` of the whole split once all are there."""
        files = [{"split": self.split, "path": f"data/{self.split}-*.parquet"}]
        card: dict[str, Any] = {
            "pretty_name": f"{self.what} predicted by {self.made_by['model']}",
            "task_categories": ["image-segmentation"],
            "configs": [{"config_name": "default", "data_files": files}],
        }
        if rows is not None:
            card["dataset_info"] = {"splits": [{"name": self.split, "num_examples": rows}]}
        text = front_matter(card) + README.format(
            model=markdown(self.made_by["model"]),
            dataset=code(self.made_by["dataset"]),
            split=self.split,
            rows=" (unfinished: run the command again)" if rows is None else f": {rows} rows",
            what=self.what,
            label=LABEL[self.task],
            more=(SCORE_ROW if self.with_scores else "") + (SEGMENTS_ROW if self.task != SEMANTIC else ""),
        )
        text += AS_LABELS if self.task != SEMANTIC else ""
        with (
            errors_explained(f"--output_dir {self.folder}", OSError),
            atomic_file(self.folder / "README.md") as partial,
        ):
            partial.write_text(text, encoding="utf-8")
