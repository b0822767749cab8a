"""From a picture to class scores and from a split to a confusion matrix, single scale or multi-scale with flip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from scripts.evaluation.mean_iou import confusion_matrix, valid_part
from scripts.training.augmentation import shortest_edge_size
from scripts.training.command_line import UserError
from scripts.training.data import (
    IGNORE_INDEX,
    BadSample,
    DatasetArguments,
    StreamRow,
    check_labels,
    decode_image,
    decode_label,
    good_batches,
    load_split,
    number_of_examples,
    readable,
    sample_name,
    worker_loader,
)


@torch.no_grad()
def semantic_scores(model: Any, processor: Any, inputs: dict[str, Tensor], target_size: tuple[int, int]) -> Tensor:
    """`(K, *target_size)` class scores of one processed picture.

    Args:
        inputs: `pixel_values` (1, 3, H, W) and `pixel_mask` (1, H, W), 1 where there is picture.
    """
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    mask = inputs["pixel_mask"][0]
    result = processor.post_process_semantic_segmentation(
        outputs,
        target_sizes=[target_size],
        input_sizes=[(int(mask[:, 0].sum()), int(mask[0].sum()))],
        return_segmentation_scores=True,
    )[0]
    return result.segmentation_scores


def resized_inputs(
    processor: Any, image: Image.Image, size: tuple[int, int], flip: bool, device: Any
) -> dict[str, Tensor]:
    """Processed inputs of a uint8 picture that PIL has resized bilinearly to `size` and perhaps mirrored."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    inputs = processor(images=[resized], do_resize=False, return_tensors="pt")
    return {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}


def multi_scale_scores(
    model: Any,
    processor: Any,
    image: Image.Image,
    target_size: tuple[int, int],
    shortest_edges: Sequence[int],
    longest_edge: int,
    flip: bool = True,
    device: Any = "cpu",
) -> Tensor:
    """`(K, *target_size)` mean of the class scores over sizes and mirror images, as the reference averages them.

    Each view runs alone at its own padded size; its scores are resized to `target_size` and mirrored back before the
    plain mean.

    Args:
        image: RGB picture, already at the size of single-scale evaluation, as in the reference.
    """
    views = [(edge, mirrored) for edge in shortest_edges for mirrored in ((False, True) if flip else (False,))]
    total = torch.zeros(())
    for edge, mirrored in views:
        size = shortest_edge_size(image.height, image.width, edge, longest_edge)
        inputs = resized_inputs(processor, image, size, mirrored, device)
        scores = semantic_scores(model, processor, inputs, target_size)
        total = total.to(scores) + (scores.flip(-1) if mirrored else scores)
    return total / len(views)


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
    """Decodes and checks the row that it is given as an index."""

    def __init__(self, arguments: DatasetArguments, num_labels: int) -> None:
        self.arguments = arguments
        self.num_labels = num_labels

    def __getitem__(self, item: StreamRow) -> dict[str, Any] | BadSample:
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
        return {"image": F.to_pil_image(image), "label": label.numpy(), "name": name}


def first_example(examples: list[Any]) -> Any:
    """Collator of batches of one."""
    return examples[0]


def processed_inputs(processor: Any, image: Image.Image, device: Any) -> dict[str, Tensor]:
    """Inputs of a picture after the processor's own resize."""
    inputs = processor(images=[image], return_tensors="pt")
    return {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask")}


class SingleScale:
    """Label map of a picture at its own size, after the processor's resize."""

    def __init__(self, model: Any, processor: Any, device: Any) -> None:
        self.model, self.processor, self.device = model, processor, device

    def __call__(self, image: Image.Image) -> np.ndarray:
        inputs = processed_inputs(self.processor, image, self.device)
        scores = semantic_scores(self.model, self.processor, inputs, (image.height, image.width))
        return scores.argmax(dim=0).cpu().numpy()


class MultiScale:
    """Label map of a picture at its own size, over several sizes and their mirror images.

    Args:
        base: (shortest, longest) edge of single-scale evaluation, to which the reference resizes first.
    """

    def __init__(
        self, model: Any, processor: Any, device: Any, base: tuple[int, int], edges: Sequence[int], longest: int
    ) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.base, self.edges, self.longest = base, list(edges), longest

    def __call__(self, image: Image.Image) -> np.ndarray:
        height, width = shortest_edge_size(image.height, image.width, *self.base)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        scores = multi_scale_scores(
            self.model,
            self.processor,
            resized,
            (image.height, image.width),
            self.edges,
            self.longest,
            device=self.device,
        )
        return scores.argmax(dim=0).cpu().numpy()


def evaluate_split(
    model: Any,
    processor: Any,
    arguments: DatasetArguments,
    split: str,
    accelerator: Accelerator,
    predictor: Callable[[Image.Image], np.ndarray] | None = None,
    limit: int | None = None,
    num_workers: int = 1,
) -> tuple[np.ndarray, int]:
    """Confusion matrix of a split against its original label maps, summed over processes.

    Args:
        predictor: picture -> label map at its size; single scale by default.
        limit: number of samples to stop at.
    Returns:
        `(K, K + 1)` counts of valid pixels by (reference, prediction), see `mean_iou.valid_part`; number of pictures.
    """
    model = accelerator.unwrap_model(model).eval()
    num_labels = model.config.num_labels
    predictor = predictor or SingleScale(model, processor, accelerator.device)
    data = load_split(arguments, split)
    rows = EvaluationRows(data, accelerator.process_index, accelerator.num_processes, limit)
    loader = worker_loader(EvaluationSamples(arguments, num_labels), rows, first_example, num_workers)
    size = max(256, num_labels + 2)
    counts = np.zeros((size, size), dtype=np.int64)
    images = 0
    examples = number_of_examples(data, split)
    total = min(examples, limit) if examples and limit else examples or limit
    share = None if total is None else -(-total // accelerator.num_processes)
    bar = tqdm(total=share, desc="evaluate", unit="image", dynamic_ncols=True, disable=not accelerator.is_main_process)
    with accelerator.autocast(), bar:
        for sample in good_batches(loader):
            counts += confusion_matrix(predictor(sample["image"]), sample["label"], size)
            images += 1
            bar.update()
    totals = send_to_device(torch.from_numpy(np.append(counts.ravel(), images)), accelerator.device)
    totals = accelerator.reduce(totals, reduction="sum").cpu().numpy()
    if totals[-1] == 0:
        raise UserError(f"split {split!r} is empty")
    counts = totals[:-1].reshape(size, size)
    return valid_part(counts, num_labels, IGNORE_INDEX, arguments.do_reduce_labels), int(totals[-1])
