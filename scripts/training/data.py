"""Labelled pictures as a stream: reading, splitting over processes, checking, augmenting, collating.

Rows are read, undecoded, in each process; DataLoader workers decode and augment. Order and randomness come from
(seed, epoch, index of the sample in the epoch) alone, so they depend neither on the number of workers nor of shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from image_processing.preprocessing_faseg import pil_to_array
from scripts.training.command_line import UserError, project_path


IGNORE_INDEX = 255
NAME_COLUMNS = ("image_id", "file_name", "filename", "id")


@dataclass
class DatasetArguments:
    """The flags that name a dataset, shared by the commands."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub dataset, folder, or parquet file with an image and a label-map column."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the pictures."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the label maps, one id per pixel."})
    do_reduce_labels: bool = field(
        default=False, metadata={"help": "Label 0 means ignored and the classes start at 1 (ADE20K)."}
    )
    streaming: bool = field(default=True, metadata={"help": "Stream instead of downloading and converting first."})
    id2label: str | None = field(
        default=None,
        metadata={"help": 'JSON file {"0": "name", ...}; else id2label.json beside the data, else ClassLabel.'},
    )


def check_ignored_id(config: Any) -> None:
    """Refuses a model that ignores another id than the label maps do.

    Raises:
        UserError: `ignore_value` is not 255, or 255 would be a class.
    """
    ignored, num_labels = getattr(config, "ignore_value", IGNORE_INDEX), getattr(config, "num_labels", 0)
    if ignored != IGNORE_INDEX or num_labels > IGNORE_INDEX:
        raise UserError(
            f"label maps are read with {IGNORE_INDEX} as the ignored id: need ignore_value={IGNORE_INDEX} and at most "
            f"{IGNORE_INDEX} classes, not ignore_value={ignored} and {num_labels} classes"
        )


def readable(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`rows` as they come.

    Raises:
        UserError: a file of the dataset is broken or out of reach.
    """
    try:
        yield from rows
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset cannot be read: {first_line}") from error


def load_split(arguments: DatasetArguments, split: str) -> datasets.IterableDataset:
    """Stream of one split, images and maps undecoded.

    Raises:
        UserError: the dataset, split or a column does not exist.
    """
    if not arguments.dataset_name:
        raise UserError("no dataset: give --dataset_name (a Hub dataset, a folder or a parquet file)")
    name = project_path(arguments.dataset_name)
    try:
        if Path(name).suffix == ".parquet":
            if not Path(name).is_file():
                raise FileNotFoundError(f"no file {name}")
            data = datasets.load_dataset(
                "parquet", data_files={split: name}, split=split, streaming=arguments.streaming
            )
        else:
            data = datasets.load_dataset(
                name, arguments.dataset_config_name, split=split, streaming=arguments.streaming
            )
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"--dataset_name {arguments.dataset_name}, split {split!r}: {error}") from error
    if not isinstance(data, datasets.IterableDataset):
        splits = data.info.splits
        data = data.to_iterable_dataset()
        data.info.splits = splits
    columns = data.column_names
    if columns is None:
        columns = list(next(readable(data), {}))
    for flag, column in (("image", arguments.image_column_name), ("label", arguments.label_column_name)):
        if column not in columns:
            raise UserError(f"no column {column!r} in {name}: it has {', '.join(columns)}; set --{flag}_column_name")
    kept = [arguments.image_column_name, arguments.label_column_name]
    data = data.select_columns(kept + [column for column in NAME_COLUMNS if column in columns and column not in kept])
    for column in kept:
        feature = (data.features or {}).get(column)
        if feature is None or isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def number_of_examples(data: datasets.IterableDataset, split: str) -> int | None:
    """Rows of the split as its card tells, None where it does not."""
    info = (data.info.splits or {}).get(split)
    return info.num_examples if info is not None and info.num_examples else None


def load_classes(arguments: DatasetArguments, data: datasets.IterableDataset | None = None) -> dict[int, str] | None:
    """Class names by id, from `--id2label`, `id2label.json` beside the data, or a `ClassLabel`; else None.

    Raises:
        UserError: a file that is not `{"0": "name", ...}` with ids 0..K-1.
    """
    path = Path(project_path(arguments.id2label)) if arguments.id2label else None
    if path is None and arguments.dataset_name:
        place = Path(project_path(arguments.dataset_name))
        if place.exists():
            beside = (place if place.is_dir() else place.parent) / "id2label.json"
            path = beside if beside.is_file() else None
        else:
            try:
                path = Path(hf_hub_download(arguments.dataset_name, "id2label.json", repo_type="dataset"))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                path = None
    if path is not None:
        try:
            names = {int(key): str(name) for key, name in json.loads(path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f'{path}: {error}: write {{"0": "name", ...}}') from error
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"{path}: ids {sorted(names)[:5]}... are not 0..{len(names) - 1}: number the classes from 0"
            )
        return dict(sorted(names.items()))
    for feature in (data.features or {}).values() if data is not None else ():
        label = getattr(feature, "feature", feature)
        if isinstance(label, datasets.ClassLabel):
            return dict(enumerate(label.names))
    return None


def sample_name(row: dict[str, Any], image_column: str, index: int) -> str:
    """What errors call a sample: its id column, its file, or its place in the epoch."""
    for column in NAME_COLUMNS:
        if row.get(column) is not None:
            return str(row[column])
    image = row.get(image_column)
    path = image.get("path") if isinstance(image, dict) else None
    return Path(path).name if path else f"#{index}"


def decode_image(value: Any, name: str) -> torch.Tensor:
    """`(3, H, W)` uint8 RGB of an undecoded picture, turned upright by its EXIF orientation."""
    try:
        image = datasets.Image().decode_example(value)
        return torch.from_numpy(pil_to_array(image, do_convert_rgb=True)).permute(2, 0, 1).contiguous()
    except Exception as error:  # PIL raises many kinds on a broken file
        raise UserError(f"image of sample {name}: cannot be read: {error}") from error


def decode_label(value: Any, name: str) -> torch.Tensor:
    """`(H, W)` uint8 or int32 class ids of an undecoded picture."""
    try:
        label = np.asarray(datasets.Image().decode_example(value))
    except Exception as error:  # PIL raises many kinds on a broken file
        raise UserError(f"label map of sample {name}: cannot be read: {error}") from error
    if label.ndim != 2:
        raise UserError(
            f"label map of sample {name} has shape {label.shape}: need one channel of class ids, not colours"
        )
    if label.dtype.kind not in "uib":
        raise UserError(f"label map of sample {name} holds {label.dtype}: need integers, one class id per pixel")
    if label.min(initial=0) < 0:
        raise UserError(f"label map of sample {name} holds {label.min()}: ids start at 0, ignored is {IGNORE_INDEX}")
    return torch.from_numpy(label.astype(np.uint8 if label.max(initial=0) < 256 else np.int32))


def check_labels(label: torch.Tensor, num_labels: int, do_reduce_labels: bool, name: str) -> None:
    """Refuses a map with an id outside the classes.

    Raises:
        UserError: names the id, the sample and the fix.
    """
    counts = torch.bincount(label.flatten())
    present = counts.nonzero().flatten().tolist()
    first, last = (1, num_labels) if do_reduce_labels else (0, num_labels - 1)
    for value in present:
        if value != IGNORE_INDEX and not first <= value <= last and not (do_reduce_labels and value == 0):
            fix = "set --do_reduce_labels?" if value == num_labels and not do_reduce_labels else "check --id2label"
            raise UserError(f"label {value} in image {name} but {num_labels} classes ({first}..{last}): {fix}")


@dataclass(frozen=True)
class StreamRow:
    """An undecoded row and its place: `index` counts the samples of `epoch` over all processes."""

    epoch: int
    index: int
    row: dict[str, Any]


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used, carried from the worker to the process that stops."""

    message: str


class StreamBatches(Sampler[list[StreamRow]]):
    """Endless batches of one process: global batch after global batch, of each of which it takes its own part.

    Every sample comes once per epoch over all processes; a batch may straddle two epochs. Used as `batch_sampler`, so
    that reading stays in the process and workers get rows to decode.

    Args:
        data: undecoded stream.
        batch_size: per process.
        start: (epoch, index) of the first sample, to go on where a run stopped.
    """

    def __init__(
        self,
        data: datasets.IterableDataset,
        batch_size: int,
        seed: int,
        shuffle_buffer_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.process_index = process_index
        self.num_processes = num_processes
        self.start = start

    def rows(self) -> Iterator[StreamRow]:
        """All rows of all epochs from `start` on, in the order that every process agrees on."""
        epoch, skip = self.start
        while True:
            # One shard at a time: after reading several at once `datasets` 5.2 sleeps five seconds, in every epoch.
            data = self.data.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer_size, max_buffer_input_shards=1)
            data.set_epoch(epoch)
            index = -1
            for index, row in enumerate(readable(data)):
                if index >= skip:
                    yield StreamRow(epoch, index, row)
            if index < 0:
                raise UserError("the training split is empty")
            epoch, skip = epoch + 1, 0

    def __iter__(self) -> Iterator[list[StreamRow]]:
        global_batch: list[StreamRow] = []
        for row in self.rows():
            global_batch.append(row)
            if len(global_batch) == self.batch_size * self.num_processes:
                first = self.process_index * self.batch_size
                own = global_batch[first : first + self.batch_size]
                # The last row tells where the stream goes on, whichever process got it.
                yield [*own, StreamRow(row.epoch, row.index, {})]
                global_batch = []


class TrainingSamples(Dataset):
    """Decodes, checks and augments the row it is given as an index; random numbers depend on the sample alone."""

    def __init__(
        self,
        arguments: DatasetArguments,
        num_labels: int,
        augmentation: Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]],
        seed: int,
    ) -> None:
        self.arguments = arguments
        self.num_labels = num_labels
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, item: StreamRow) -> dict[str, Any] | BadSample | tuple[int, int]:
        if not item.row:
            return item.epoch, item.index + 1
        arguments = self.arguments
        name = sample_name(item.row, arguments.image_column_name, item.index)
        try:
            image = decode_image(item.row[arguments.image_column_name], name)
            label = decode_label(item.row[arguments.label_column_name], name)
            if image.shape[-2:] != label.shape:
                raise UserError(f"sample {name}: image {tuple(image.shape[-2:])} but label map {tuple(label.shape)}")
            check_labels(label, self.num_labels, arguments.do_reduce_labels, name)
        except UserError as error:
            return BadSample(str(error))
        sample_seed = np.random.SeedSequence([self.seed, item.epoch, item.index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(sample_seed))
            image, label = self.augmentation(tv_tensors.Image(image), tv_tensors.Mask(label))
        return {"image": image.as_subclass(torch.Tensor), "label": label.as_subclass(torch.Tensor), "name": name}


def collate(examples: Sequence[dict[str, Any]], processor: Any, do_reduce_labels: bool = False) -> dict[str, Any]:
    """Model inputs of `{"image": (3, H, W) uint8 or PIL, "label": (H, W)}` examples, without another resize.

    Returns:
        `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W), `mask_labels` and `class_labels` (lists of B).
    """
    inputs = processor(
        images=[example["image"] for example in examples],
        segmentation_maps=[example["label"] for example in examples],
        do_resize=False,
        do_reduce_labels=do_reduce_labels,
        ignore_index=IGNORE_INDEX,
        return_tensors="pt",
    )
    return {key: inputs[key] for key in ("pixel_values", "pixel_mask", "mask_labels", "class_labels")}


class TrainingCollator:
    """`collate` for `TrainingSamples`: adds the samples' names and where the stream goes on; passes `BadSample` up."""

    def __init__(self, processor: Any, do_reduce_labels: bool) -> None:
        self.processor = processor
        self.do_reduce_labels = do_reduce_labels

    def __call__(self, examples: list[Any]) -> dict[str, Any] | BadSample:
        *samples, position = examples
        for sample in samples:
            if isinstance(sample, BadSample):
                return sample
        batch = collate(samples, self.processor, self.do_reduce_labels)
        return {**batch, "names": [sample["name"] for sample in samples], "position": position}


def one_thread(_: int) -> None:
    """Workers share the cores with the training step: one thread each."""
    torch.set_num_threads(1)


def worker_loader(samples: Dataset, batches: Sampler, collator: Callable, num_workers: int) -> DataLoader:
    """DataLoader with its own random generator, so that making it does not move the run's."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def good_batches(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Batches of `loader`.

    Raises:
        UserError: at a sample that cannot be used.
    """
    for batch in loader:
        if isinstance(batch, BadSample):
            raise UserError(batch.message)
        yield batch
