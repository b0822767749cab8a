"""Batches of a training stream, for test_streaming.py and the processes that it starts."""

from itertools import islice

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
