"""From a picture to its label map and from a split to a confusion matrix, single scale or multi-scale with flip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm
from transformers.image_utils import SizeDict

from image_processing.post_processing_faseg import resize
from image_processing.preprocessing_faseg import network_size
from scripts.cli.parser import UserError
from scripts.data.samples import BadSample, BadSamples, check_labels, decode_sample
from scripts.data.sources import IGNORE_INDEX, DatasetArguments, load_split, number_of_examples, readable
from scripts.data.streaming import StreamRow, worker_loader
from scripts.evaluation.mean_iou import confusion_matrix, valid_part
from scripts.inference.confidence import confidence_of, labels_and_confidence
from scripts.inference.sliding_window import Windows


# Models whose class scores, averaged over windows as they are, become probabilities before sizes are averaged.
SOFTMAX_MODELS = ("qlseg", "semask")

# ---- from a picture to class scores ---------------------------------------------------------------------------------


@torch.no_grad()
def post_processed(
    model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int], with_scores: bool
) -> Any:
    """What the processor makes of one processed picture at `target_size`: labels, or labels and scores."""
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    mask = inputs["pixel_mask"][0]
    return processor.post_process_semantic_segmentation(
        outputs,
        target_sizes=[target_size],
        input_sizes=[(int(mask[:, 0].sum()), int(mask[0].sum()))],
        return_segmentation_scores=with_scores,
    )[0]


def semantic_scores(model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int]) -> Tensor:
    """`(K, *target_size)` class scores of one processed picture.

    Args:
        inputs: `pixel_values` (1, 3, H, W) and `pixel_mask` (1, H, W), 1 where there is picture.
    """
    return post_processed(model, processor, inputs, target_size, with_scores=True).segmentation_scores


def comparable_scores(model: Any, scores: Tensor) -> Tensor:
    """Class scores `(K, H, W)` as multi-scale evaluation averages them: of some models their softmax."""
    return scores.softmax(dim=0) if model.config.model_type in SOFTMAX_MODELS else scores


def semantic_labels(model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int]) -> Tensor:
    """`target_size` map of the class with the best score; all scores at that size never exist at once."""
    return post_processed(model, processor, inputs, target_size, with_scores=False)


def label_array(labels: Tensor) -> np.ndarray:
    """Class ids on the CPU, in one byte each where they fit."""
    return labels.to(torch.uint8 if int(labels.max()) < 256 else torch.int32).cpu().numpy()


def processed_inputs(
    processor: Any, image: Image.Image, device: Any, do_resize: bool | None = None
) -> dict[str, Tensor]:
    """Inputs of a picture after the processor's own resize, or without one."""
    settings = {} if do_resize is None else {"do_resize": do_resize}
    inputs = processor(images=[image], return_tensors="pt", **settings)
    return {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}


def resized_inputs(
    processor: Any, image: Image.Image, size: tuple[int, int], flip: bool, device: Any
) -> dict[str, Tensor]:
    """Processed inputs of a uint8 picture that PIL has resized bilinearly to `size` and perhaps mirrored."""
    return processed_inputs(processor, resized_view(image, size, flip), device, do_resize=False)


def view_size(image: Image.Image, shortest: int, longest: int | None) -> tuple[int, int]:
    """`(height, width)` of a picture whose shorter side is `shortest`, unless its longer would pass `longest`."""
    return network_size(image.height, image.width, SizeDict(shortest_edge=shortest, longest_edge=longest))


def resized_view(image: Image.Image, size: tuple[int, int], flip: bool) -> Image.Image:
    """A picture resized bilinearly to `(height, width)` and perhaps mirrored."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized


def window_scores(model: Any, processor: Any, image: Image.Image, windows: Windows, device: Any) -> Tensor:
    """`(K, height, width)` mean class scores of the windows over a picture, at the picture's size."""

    def scores(piece: Image.Image) -> Tensor:
        inputs = processed_inputs(processor, piece, device, do_resize=False)
        return semantic_scores(model, processor, inputs, (piece.height, piece.width))

    return windows.mean_scores(image, scores)


def multi_scale_scores(
    model: Any,
    processor: Any,
    image: Image.Image,
    target_size: tuple[int, int],
    edges: Sequence[tuple[int, int | None]],
    flip: bool = True,
    device: Any = "cpu",
    windows: Windows | None = None,
) -> Tensor:
    """`(K, *target_size)` mean of the class scores over sizes and mirror images, as the reference averages them.

    Each view runs alone at its own padded size; its scores are resized to `target_size` and mirrored back before the
    plain mean.

    Args:
        image: RGB picture; of FASeg already at the size of single-scale evaluation, as in the reference.
        edges: (shortest, longest) edge of each view.
        windows: if given, each view is read through them.
    """
    views = [(edge, mirrored) for edge in edges for mirrored in ((False, True) if flip else (False,))]
    total = torch.zeros(())
    for (shortest, longest), mirrored in views:
        size = view_size(image, shortest, longest)
        if windows is None:
            scores = semantic_scores(
                model, processor, resized_inputs(processor, image, size, mirrored, device), target_size
            )
        else:
            view = resized_view(image, size, mirrored)
            scores = resize(window_scores(model, processor, view, windows, device), target_size)
        scores = comparable_scores(model, scores)
        scores = scores.flip(-1) if mirrored else scores
        total = scores if total.ndim == 0 else total.add_(scores)
    return total.div_(len(views))


# ---- from a picture to its label map --------------------------------------------------------------------------------


class SingleScale:
    """Label map of a picture at its own size, after the processor's resize.

    Args:
        windows: if given, the resized picture is read through them.
    """

    def __init__(self, model: Any, processor: Any, device: Any, windows: Windows | None = None) -> None:
        self.model, self.processor, self.device, self.windows = model, processor, device, windows

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            return label_array(semantic_labels(self.model, self.processor, inputs, (image.height, image.width)))
        return label_array(self.scores_through_windows(image, self.windows).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence, see `confidence.py`."""
        if self.windows is None:
            inputs = processed_inputs(self.processor, image, self.device)
            size, softmax = (image.height, image.width), self.model.config.model_type in SOFTMAX_MODELS
            labels, confidence = labels_and_confidence(self.model, self.processor, inputs, size, softmax)
            return label_array(labels), confidence.cpu().numpy()
        scores = self.scores_through_windows(image, self.windows)
        return label_array(scores.argmax(dim=0)), confidence_of(comparable_scores(self.model, scores)).cpu().numpy()

    def scores_through_windows(self, image: Image.Image, windows: Windows) -> Tensor:
        """`(K, H, W)` class scores at the picture's size."""
        size = (image.height, image.width)
        view = resized_view(image, self.processor.network_size(*size), flip=False)
        return resize(window_scores(self.model, self.processor, view, windows, self.device), size)


class MultiScale:
    """Label map of a picture at its own size, over several sizes and their mirror images.

    Args:
        base: (shortest, longest) edge of single-scale evaluation, to which FASeg's reference resizes first; None:
            views are made of the picture itself, as in mmsegmentation.
        edges: (shortest, longest) edge of each view.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: Any,
        base: tuple[int, int | None] | None,
        edges: Sequence[tuple[int, int | None]],
        windows: Windows | None = None,
    ) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.base, self.edges, self.windows = base, list(edges), windows

    def __call__(self, image: Image.Image) -> np.ndarray:
        return label_array(self.scores(image).argmax(dim=0))

    def with_confidence(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The same label map, and its confidence, see `confidence.py`."""
        scores = self.scores(image)
        return label_array(scores.argmax(dim=0)), confidence_of(scores).cpu().numpy()

    def scores(self, image: Image.Image) -> Tensor:
        """`(K, H, W)` mean class scores at the picture's size."""
        size = (image.height, image.width)
        if self.base is not None:
            image = resized_view(image, view_size(image, *self.base), flip=False)
        return multi_scale_scores(
            self.model, self.processor, image, size, self.edges, device=self.device, windows=self.windows
        )


# ---- from a split to counts -----------------------------------------------------------------------------------------


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

    def __init__(self, arguments: DatasetArguments, num_labels: int, id_table: np.ndarray | None = None) -> None:
        self.arguments = arguments
        self.num_labels = num_labels
        self.id_table = id_table

    def __getitem__(self, item: StreamRow) -> dict[str, Any] | UserError:
        """`image` (PIL), `label` (`(H, W)` uint8, ids below K or 255), `name` and `index`; or what is wrong."""
        arguments = self.arguments
        try:
            if self.id_table is None:
                image, label, name = decode_sample(item.row, arguments, self.num_labels, item.index)
            else:
                as_stored = replace(arguments, do_reduce_labels=False)
                image, label, name = decode_sample(item.row, as_stored, IGNORE_INDEX, item.index)
                label = torch.from_numpy(self.id_table)[label.long()]
                check_labels(label, self.num_labels, arguments.do_reduce_labels, name)
        except BadSample as error:
            return BadSample(f"{error} (row {item.index})")  # samples of one name are as many
        except UserError as error:
            return error
        ids = label.numpy().astype(np.uint8)  # checked: nothing above 255 is left
        if arguments.do_reduce_labels:
            ids = reduced_labels(ids)
        return {"image": F.to_pil_image(image), "label": ids, "name": name, "index": item.index}


def reduced_labels(ids: np.ndarray) -> np.ndarray:
    """uint8 ids with 0 ignored and classes from 1 on -> classes from 0 on, ignored 255."""
    return np.where(ids == IGNORE_INDEX, np.uint8(IGNORE_INDEX), ids - np.uint8(1))


def first_example(examples: list[Any]) -> Any:
    """Collator of batches of one."""
    return examples[0]


class Counter(Protocol):
    """Counts something over pictures; `totals` of several processes add up."""

    totals: np.ndarray

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        """Counts one picture of `EvaluationSamples` and its predicted label map."""


def evaluate_split(
    model: Any,
    processor: Any,
    arguments: DatasetArguments,
    split: str,
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
        predictor: picture -> label map at its size; single scale by default.
        limit: number of samples to stop at.
        counters: what else is to be counted; their totals are summed over processes too.
        bad_samples: gets what could not be read, of all processes; by default up to `arguments.max_bad_samples`.
        id_table: see `EvaluationSamples`.
    Returns:
        `(K, K + 1)` counts of valid pixels by (reference, prediction), see `mean_iou.valid_part`; number of pictures.
    Raises:
        UserError: too many samples are bad, a map holds an id outside the classes, the split is empty.
    """
    model = accelerator.unwrap_model(model).eval()
    num_labels = model.config.num_labels
    predictor = predictor or SingleScale(model, processor, accelerator.device)
    bad_samples = bad_samples or BadSamples(arguments.max_bad_samples)
    data = load_split(arguments, split)
    rows = EvaluationRows(data, accelerator.process_index, accelerator.num_processes, limit)
    loader = worker_loader(EvaluationSamples(arguments, num_labels, id_table), rows, first_example, num_workers)
    size = max(256, num_labels + 2)
    counts = np.zeros((size, size), dtype=np.int64)
    seen = np.zeros(1, dtype=np.int64)
    examples = number_of_examples(data, split)
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
                prediction = predictor(sample["image"])
                counts += confusion_matrix(prediction, sample["label"], size)
                for counter in counters:
                    counter.add(sample, prediction)
                seen += 1
            bar.update()
    counts, images = summed(counts, accelerator), int(summed(seen, accelerator)[0])
    for counter in counters:
        counter.totals = summed(counter.totals, accelerator)
    if accelerator.num_processes > 1:
        bad_samples.messages = gather_object(bad_samples.messages)
    bad_samples.messages.sort()  # in whatever order the processes met them
    bad_samples.num_examples = images + len(bad_samples.messages)
    bad_samples.add([])  # now that all processes' are there: too many?
    if images == 0:
        raise UserError(f"split {split!r} is empty")
    return valid_part(counts, num_labels, IGNORE_INDEX), images


@contextmanager
def raised_on_all(accelerator: Accelerator) -> Iterator[None]:
    """Raises the `UserError` of any process in all of them at the end, so that none waits for one that has stopped."""
    failures: list[str] = []
    try:
        yield
    except UserError as error:
        if accelerator.num_processes == 1:
            raise
        failures = [str(error)]
    if accelerator.num_processes > 1:
        failures = gather_object(failures)
    if failures:
        raise UserError(failures[0])


def summed(counts: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """int64 counts summed over processes."""
    if accelerator.num_processes == 1:
        return counts
    total = send_to_device(torch.from_numpy(np.ascontiguousarray(counts)), accelerator.device)
    return accelerator.reduce(total, reduction="sum").cpu().numpy()
