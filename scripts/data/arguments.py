"""The flags that name a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field


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
