"""From a split to a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from scripts.cli.errors import UserError
from scripts.cli.processes import raised_on_all, summed
from scripts.data.bands import as_image
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.loading import StreamRow, first_example, worker_loader
from scripts.data.samples import BadSample, BadSamples, RowFormat, check_labels, decode_sample, reduced_labels
from scripts.data.sources import readable
from scripts.evaluation.mean_iou import confusion_matrix, valid_part
from scripts.inference.predictors import SingleScale


class EvaluationRows(Sampler[list[StreamRow]]):
    """One pass over the rows of one process, one at a time, undecoded."""

    def __init__(
        self, data: datasets.IterableDataset, process_index: int, num_processes: int, limit: int | None
    ) -> None:
        self.data = data
        self.process_index = process_index
        self.num_processes = num_processes
        self.limit = limit

    def __iter__(self) -> Iterator[list[StreamRow]]:
        for index, row in enumerate(readable(self.data)):
            if self.limit is not None and index >= self.limit:
                return
            if index % self.num_processes == self.process_index:
                yield [StreamRow(0, index, row)]


class EvaluationSamples(Dataset):
    """Decodes and checks the row that it is given as an index.

    Args:
        id_table: `(256,)` uint8, the id that each stored id stands for, where maps hold other ids than the classes'.
    """

    def __init__(self, form: RowFormat, num_labels: int, id_table: np.ndarray | None = None) -> None:
        self.form = form
        self.num_labels = num_labels
        self.id_table = id_table

    def __getitem__(self, item: StreamRow) -> dict[str, Any] | UserError:
        """What `decode` gives, and `index`; or an error."""
        try:
            return self.decode(item) | {"index": item.index}
        except BadSample as error:
            return BadSample(f"{error} (row {item.index})")  # samples of one name are as many
        except UserError as error:
            return error

    def decode(self, item: StreamRow) -> dict[str, Any]:
        """`image` (see `as_image`), `label` (`(H, W)` uint8, ids below K or 255) and `name`.

        Raises:
            BadSample, UserError: see `decode_sample`.
        """
        form = self.form
        if self.id_table is None:
            image, label, name = decode_sample(item.row, form, self.num_labels, item.index)
        else:
            as_stored = replace(form, do_reduce_labels=False)
            image, label, name = decode_sample(item.row, as_stored, IGNORE_INDEX, item.index)
            label = torch.from_numpy(self.id_table)[label.long()]
            check_labels(label, self.num_labels, form.do_reduce_labels, name)
        ids = label.numpy().astype(np.uint8)  # checked: nothing above 255 is left
        if form.do_reduce_labels:
            ids = reduced_labels(ids)
        return {"image": as_image(image), "label": ids, "name": name}


class Counter(Protocol):
    """Counts something over images; `totals` of several processes add up."""

    totals: np.ndarray

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one image of `EvaluationSamples` and its predicted label map."""


def over_split(
    samples: EvaluationSamples,
    count: Callable[[dict[str, Any]], None],
    data: LabelledDataset,
    accelerator: Accelerator,
    limit: int | None = None,
    num_workers: int = 1,
    bad_samples: BadSamples | None = None,
) -> int:
    """Calls `count` with each sample of this process, one after the other.

    Args:
        limit: number of samples to stop at.
        bad_samples: gets what could not be read, of all processes; by default up to the data's `--max_bad_samples`.
    Returns:
        number of images of all processes.
    Raises:
        UserError: too many samples are bad, one cannot be meant for these classes, the split is empty.
    """
    bad_samples = bad_samples or BadSamples(data.arguments.max_bad_samples)
    rows = EvaluationRows(data.stream, accelerator.process_index, accelerator.num_processes, limit)
    loader = worker_loader(samples, rows, first_example, num_workers)
    seen = np.zeros(1, dtype=np.int64)
    examples = data.num_examples
    total = min(examples, limit) if examples and limit else examples or limit
    bad_samples.num_examples = total
    share = None if total is None else -(-total // accelerator.num_processes)
    bar = tqdm(total=share, desc="evaluate", unit="image", dynamic_ncols=True, disable=not accelerator.is_main_process)
    with raised_on_all(accelerator), accelerator.autocast(), bar:
        for sample in loader:
            if isinstance(sample, BadSample):
                bad_samples.add([str(sample)], 1)
            elif isinstance(sample, UserError):
                raise sample
            else:
                count(sample)
                seen += 1
            bar.update()
    images = int(summed(seen, accelerator)[0])
    if accelerator.num_processes > 1:
        bad_samples.messages = gather_object(bad_samples.messages)
    bad_samples.messages.sort()  # in whatever order the processes met them
    bad_samples.num_examples = images + len(bad_samples.messages)
    bad_samples.add([])  # now that all processes' are there: too many?
    if images == 0:
        raise UserError(f"split {data.split!r} is empty")
    return images


def evaluate_split(
    model: Any,
    processor: Any,
    data: LabelledDataset,
    accelerator: Accelerator,
    predictor: Callable[[Image.Image], np.ndarray] | None = None,
    limit: int | None = None,
    num_workers: int = 1,
    counters: Sequence[Counter] = (),
    bad_samples: BadSamples | None = None,
    id_table: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Confusion matrix of a split against its original label maps, summed over processes.

    Args:
        predictor: image -> label map at its size; single scale by default.
        counters: what else is to be counted; their totals are summed over processes too.
        id_table: see `EvaluationSamples`.
        limit, num_workers, bad_samples: see `over_split`.
    Returns:
        `(K, K + 1)` counts of valid pixels by (reference, prediction), see `mean_iou.valid_part`; number of images.
    Raises:
        UserError: as `over_split`.
    """
    model = accelerator.unwrap_model(model).eval()
    num_labels = model.config.num_labels
    predictor = predictor or SingleScale(model, processor, accelerator.device)
    size = max(256, num_labels + 2)
    counts = np.zeros((size, size), dtype=np.int64)

    def count(sample: dict[str, Any]) -> None:
        prediction = predictor(sample["image"])
        counts[:] += confusion_matrix(prediction, sample["label"], size)
        for counter in counters:
            counter.add(sample, prediction)

    samples = EvaluationSamples(data.row_format, num_labels, id_table)
    images = over_split(samples, count, data, accelerator, limit, num_workers, bad_samples)
    for counter in counters:
        counter.totals = summed(counter.totals, accelerator)
    return valid_part(summed(counts, accelerator), num_labels, IGNORE_INDEX), images
