"""Batches of a training stream, for tests of streams and the processes that they start."""

from itertools import islice

import torch

from image_processing import FASegImageProcessor
from scripts.data.augmentation import training_augmentation
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.loading import good_batches, worker_loader
from scripts.data.streaming import StreamBatches, TrainingCollator, TrainingSamples


def batches(arguments, batch_size=2, workers=0, count=7, **kwargs):
    data = LabelledDataset(arguments, "train")
    stream = StreamBatches(data.stream, batch_size, seed=0, shuffle_buffer_size=4, **kwargs)
    samples = TrainingSamples(data.row_format, 6, training_augmentation(32, 32), seed=0)
    loader = worker_loader(samples, stream, TrainingCollator(FASegImageProcessor()), workers)
    return list(islice(good_batches(loader), count))


def segment_batches(arguments, batch_size=2, workers=0, count=7, **kwargs):
    """The same of segments, of an instance model."""
    data = LabelledDataset(arguments, "train")
    data.task = "instance"
    stream = StreamBatches(data.stream, batch_size, seed=0, shuffle_buffer_size=4, **kwargs)
    augmentation = training_augmentation(32, 32, unlabelled=(0,))
    samples = TrainingSamples(data.row_format, len(data.id2label), augmentation, seed=0, task="instance")
    loader = worker_loader(samples, stream, TrainingCollator(FASegImageProcessor()), workers)
    return list(islice(good_batches(loader), count))


def same(one, other):
    """Whether two batches are equal bit for bit."""
    return (
        one["names"] == other["names"]
        and one["position"] == other["position"]
        and torch.equal(one["pixel_values"], other["pixel_values"])
        and all(torch.equal(a, b) for a, b in zip(one["mask_labels"], other["mask_labels"], strict=True))
    )
