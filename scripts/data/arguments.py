"""The flags that name a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scripts.cli.errors import UserError


@dataclass
class DatasetArguments:
    """The flags that name a dataset, shared by the commands."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub dataset, folder (also of save_to_disk), or parquet file or URL: images, label maps."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    train_images: str | None = field(
        default=None, metadata={"help": "Folder of training images, in place of --dataset_name."}
    )
    train_masks: str | None = field(default=None, metadata={"help": "Folder of their label PNGs, of equal stems."})
    eval_images: str | None = field(default=None, metadata={"help": "Folder of images to evaluate on."})
    eval_masks: str | None = field(default=None, metadata={"help": "Folder of their label PNGs, of equal stems."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the label maps, one id per pixel."})
    do_reduce_labels: bool = field(
        default=False, metadata={"help": "Label 0 means ignored and the classes start at 1 (ADE20K)."}
    )
    streaming: bool = field(default=True, metadata={"help": "Stream instead of downloading and converting first."})
    id2label: str | None = field(
        default=None,
        metadata={"help": 'JSON file {"0": "name", ...}; else id2label.json beside the data, else ClassLabel.'},
    )
    class_map: str | None = field(
        default=None, metadata={"help": "YAML file that merges, renames and ignores classes: road: [road, lane]"}
    )
    max_bad_samples: int | None = field(
        default=None, metadata={"help": "Unreadable samples to skip before stopping; by default 1%% of the samples."}
    )

    @cached_property
    def mapped_classes(self) -> Any:
        """What `--class_map` makes of the dataset's classes, None without one.

        Raises:
            UserError: a wrong file, or a dataset without `id2label`.
        """
        from scripts.data.class_map import build_class_map
        from scripts.data.sources import IGNORE_INDEX, dataset_classes

        if self.class_map is None:
            return None
        names = dataset_classes(self)
        if names is None:
            raise UserError(f"--class_map {self.class_map} needs the dataset's class names: give --id2label")
        return build_class_map(self.class_map, names, IGNORE_INDEX, self.do_reduce_labels)
