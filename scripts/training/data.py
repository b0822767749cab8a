"""Re-exports `dataset`, `samples` and `streaming` until every import names them."""

from scripts.training.dataset import (
    IGNORE_INDEX,
    NAME_COLUMNS,
    DatasetArguments,
    check_ignored_id,
    load_classes,
    load_split,
    number_of_examples,
    readable,
)
from scripts.training.samples import BadSample, check_labels, decode_image, decode_label, decode_sample, sample_name
from scripts.training.streaming import (
    StreamBatches,
    StreamRow,
    TrainingCollator,
    TrainingSamples,
    collate,
    good_batches,
    worker_loader,
)


__all__ = [
    "IGNORE_INDEX",
    "NAME_COLUMNS",
    "BadSample",
    "DatasetArguments",
    "StreamBatches",
    "StreamRow",
    "TrainingCollator",
    "TrainingSamples",
    "check_ignored_id",
    "check_labels",
    "collate",
    "decode_image",
    "decode_label",
    "decode_sample",
    "good_batches",
    "load_classes",
    "load_split",
    "number_of_examples",
    "readable",
    "sample_name",
    "worker_loader",
]
