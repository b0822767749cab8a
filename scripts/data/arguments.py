"""The flags that name a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import ReadPath, flag


@dataclass
class DatasetArguments:
    """The flags that name a dataset, shared by the commands."""

    dataset_name: str | None = flag(
        None,
        "Dataset with a column of images and one of label maps: its name on the Hub, a folder (one written by "
        "save_to_disk as well), or a parquet file or the URL of one.",
        action=ReadPath,
    )
    dataset_config_name: str | None = flag(None, "Name of the dataset's configuration, if it has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a dataset on the Hub; by default the newest.")
    train_images: str | None = flag(
        None, "Folder of the training images, in place of --dataset_name.", action=ReadPath
    )
    train_masks: str | None = flag(
        None,
        "Folder of the training label maps: PNGs whose pixels are class ids, named as their images are.",
        action=ReadPath,
    )
    eval_images: str | None = flag(
        None, "Folder of the images to evaluate on, in place of --dataset_name.", action=ReadPath
    )
    eval_masks: str | None = flag(
        None, "Folder of the label maps to evaluate on, named as their images are.", action=ReadPath
    )
    image_column_name: str = flag("image", "Column of the dataset that holds the images.")
    label_column_name: str = flag("label", "Column of the dataset that holds the label maps, one class id per pixel.")
    do_reduce_labels: bool = flag(
        False, "Ignore label 0 and count the classes from label 1 on, as ADE20K's label maps need it."
    )
    streaming: bool = flag(True, "Stream instead of downloading and converting the whole dataset first.")
    id2label: str | None = flag(
        None,
        'JSON file with the name of each class id, {"0": "road", "1": "car"}; by default id2label.json beside the '
        "data, or the names that the dataset itself holds.",
        action=ReadPath,
    )
    class_map: str | None = flag(
        None, "YAML file that merges, renames or ignores classes, a line for each: road: [road, lane]", action=ReadPath
    )
    max_bad_samples: int | None = flag(
        None, "How many unreadable samples are skipped before the command stops; by default 1%% of the samples."
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
