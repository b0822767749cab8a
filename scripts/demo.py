"""The main job on generated data, end to end: stream, train, evaluate, save, segment through `pipeline`, report.

`python scripts/demo.py` leaves in `outputs/demo`: `dataset/` (parquet shards), `model/` (a folder for the Hub),
`results.json`, `example.png`, `prediction.png` and `report.html`. Exit code 1 if the validation mIoU is below ten
times that of the best constant map.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    # Ctrl-C is one line also while the imports below take their seconds.
    sys.excepthook = lambda kind, *others: (
        print("demo.py: interrupted", file=sys.stderr)
        if kind is KeyboardInterrupt
        else sys.__excepthook__(kind, *others)
    )

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import check_at_least, check_folder, flag, parse_arguments, program, run_command
from scripts.data.arguments import DatasetArguments
from scripts.eval import EvaluateArguments, evaluate
from scripts.explain import ExplainArguments
from scripts.storage.outputs import MARK, check_output_file
from scripts.train import TrainArguments, train
from scripts.training.stopping import Stopped


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.error_report.demo_page import Example


MARGIN = 10.0
SHARDS = 2  # of each split, none of them empty
MADE = ("dataset", "model", "results.json", "example.png", "prediction.png", "report.html")
OWN = ".demo"  # by this file a folder is known as a demo's

PIPELINE_PROGRAM = """
import json
from transformers import pipeline
model, image, masks = sys.argv[1:]
segment = pipeline("image-segmentation", model=model, trust_remote_code=True)
names = []
for number, region in enumerate(segment(image)):
    region["mask"].save(f"{masks}/{number}.png")
    names.append(region["label"])
print(json.dumps(names))
"""


@dataclass
class DemoArguments:
    """Generate data, train, evaluate, save, segment an image, and write a report."""

    output_dir: str = flag("outputs/demo", "Folder for all that the demo makes; an earlier demo in it is replaced.")
    overwrite: bool = flag(False, "Also replace files of these names that no demo wrote.")
    max_train_steps: int | None = flag(None, "How many steps are trained, in place of the recipe's number.")
    train_samples: int = flag(400, "How many images are generated to train on.")
    validation_samples: int = flag(60, "How many images are generated to evaluate on.")
    seed: int = flag(0, "Seed of the data, the initial weights, the order and the points of the loss.")
    readme_image: str | None = flag(
        None, "PNG file for the image that README shows, docs/demo.png: an example and where one query looked."
    )


def best_constant_map(data: LabelledDataset, num_labels: int) -> tuple[int, float]:
    """The class that, given to every pixel, reaches the highest mIoU on a split, and that mIoU."""
    import numpy as np

    from scripts.data.samples import decode_label

    maps = (decode_label(row["label"], row["image_id"]).numpy().ravel() for row in data.stream)
    counts = np.sum([np.bincount(labels, minlength=256) for labels in maps], axis=0)[:num_labels]
    best = int(counts.argmax())  # all other classes in the split then have an IoU of 0
    return best, float(counts[best] / counts.sum() / np.count_nonzero(counts))


def segment_elsewhere(model: Path, image_file: Path, id2label: dict[int, str]) -> np.ndarray:
    """Label map that `pipeline("image-segmentation")` gives in a process that cannot import the project."""
    import numpy as np
    from PIL import Image

    from scripts.sharing.clean_load import HIDE_PROJECT

    label2id = {name: index for index, name in id2label.items()}
    with tempfile.TemporaryDirectory() as folder:
        places = [str(model.resolve()), str(image_file.resolve()), folder]
        command = [sys.executable, "-I", "-c", HIDE_PROJECT + PIPELINE_PROGRAM, *places]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pipeline in a clean process failed:\n{done.stderr}")
        names = json.loads(done.stdout.strip().splitlines()[-1])
        with Image.open(image_file) as image:
            labels = np.full((image.height, image.width), 255, dtype=np.uint8)
        for number, name in enumerate(names):
            labels[np.asarray(Image.open(Path(folder) / f"{number}.png")) > 0] = label2id[name]
    return labels


def explained_example(model_dir: Path, image: Image.Image, truth: np.ndarray, labels: np.ndarray) -> Example:
    """Follows the query of the largest car, or of the smallest segment if the model finds no car."""
    import torch

    from scripts.data.synthetic_scenes import CAR
    from scripts.error_report.demo_page import Example
    from scripts.explaining.explainer import Explainer
    from scripts.explaining.paths import focus_path

    explainer = Explainer(ExplainArguments(model_name_or_path=str(model_dir)), torch.device("cpu"))
    seen = explainer.look(image)
    cars = [segment for segment in seen.segments if segment.label == CAR]
    model = explainer.described(names_kind=False)
    path = focus_path(seen, (cars or seen.segments[::-1])[0], model.config) if seen.segments else None
    return Example(image, truth, labels, seen, path, model)


def clear_output(folder: Path, overwrite: bool) -> None:
    """Makes the folder, without what an earlier demo left in it; other files stay.

    Raises:
        UserError: it holds something of a demo's names, and no demo wrote it.
    """
    check_folder("--output_dir", folder)
    present = [folder / name for name in MADE if (folder / name).exists()]
    if present and not (folder / OWN).is_file() and not overwrite:
        names = ", ".join(path.name for path in present)
        started = [sys.executable if word == "python" else word for word in program()]
        again = shlex.join([*started, *sys.argv[1:], "--overwrite"])
        raise UserError(
            f"--output_dir {folder} holds {names} of no demo that this version knows: name another folder; or, if "
            f"they may be deleted, such as those of an earlier version's demo: {again}"
        )
    for path in present:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN).write_text(f"{MARK}: scripts/demo.py\n", encoding="utf-8")


def run_demo(arguments: DemoArguments) -> int:
    """The whole demo; returns the exit code."""
    import numpy as np
    from transformers import set_seed

    from scripts.data.labelled_dataset import LabelledDataset
    from scripts.data.synthetic_scenes import draw_sample, write_dataset
    from scripts.drawing.visualization import with_legend
    from scripts.error_report.demo_page import EXAMPLE_SEED, EXAMPLE_SIZE, write_readme_image, write_report
    from scripts.training.log import read_log

    started = time.perf_counter()
    check_at_least(arguments, SHARDS, "train_samples", "validation_samples")
    check_at_least(arguments, 1, "max_train_steps")
    check_at_least(arguments, 0, "seed")
    output_dir = Path(arguments.output_dir)
    if arguments.readme_image:
        check_output_file("--readme_image", Path(arguments.readme_image), arguments.overwrite)
    with errors_explained(f"--output_dir {output_dir}", OSError):
        clear_output(output_dir, arguments.overwrite)
    model_dir, data_dir = output_dir / "model", output_dir / "dataset"
    set_seed(arguments.seed)

    # ---- data
    print(f"[1/5] generating {arguments.train_samples} + {arguments.validation_samples} samples in {data_dir}")
    sizes = {"train": arguments.train_samples, "validation": arguments.validation_samples}
    write_dataset(data_dir, sizes, SHARDS, arguments.seed)
    data = LabelledDataset(DatasetArguments(dataset_name=str(data_dir)), "validation")
    id2label = data.id2label or {}
    constant, constant_miou = best_constant_map(data, len(id2label))

    # ---- train
    print(f"[2/5] training FASeg on the stream, model in {model_dir}")
    flags = ["demo", "--dataset_name", str(data_dir), "--output_dir", str(model_dir), "--seed", str(arguments.seed)]
    if arguments.max_train_steps:
        flags += ["--max_train_steps", str(arguments.max_train_steps)]
    train(parse_arguments(TrainArguments, flags))

    # ---- evaluate
    print("[3/5] evaluating on samples not trained on")
    flags = ["--model_name_or_path", str(model_dir), "--dataset_name", str(data_dir)]
    results = evaluate(parse_arguments(EvaluateArguments, [*flags, "--output_file", str(output_dir / "results.json")]))

    # ---- use
    print("[4/5] segmenting an image through pipeline() in a process that cannot import the project")
    image, label_map = draw_sample(np.random.default_rng([arguments.seed, EXAMPLE_SEED]), EXAMPLE_SIZE)
    image.save(output_dir / "example.png")
    labels = segment_elsewhere(model_dir, output_dir / "example.png", id2label)
    example = explained_example(model_dir, image, np.asarray(label_map), labels)
    with_legend(image, labels, id2label, example.model.palette).save(output_dir / "prediction.png")

    # ---- report
    seconds = time.perf_counter() - started
    facts = {
        "validation mIoU": f"{results['mean_iou']:.1f}",
        "best constant map": f"{100 * constant_miou:.1f} ({id2label[constant]} everywhere)",
        "times the constant map": f"{results['mean_iou'] / (100 * constant_miou):.1f}",
        "parameters": f"{results['parameters'] / 1e6:.2f} M",
        "seconds": f"{seconds:.0f}",
    }
    write_report(output_dir / "report.html", facts, results, read_log(model_dir / "train_log.jsonl"), example)
    if arguments.readme_image:
        write_readme_image(Path(arguments.readme_image), example)
    print(f"[5/5] report in {output_dir / 'report.html'}")
    for name, text in facts.items():
        print(f"{name:<24}{text}")
    if results["mean_iou"] < MARGIN * 100 * constant_miou:
        print(f"mIoU is below {MARGIN:g} times the constant map's: the model has not learnt", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Entry point."""
    try:
        return run_demo(parse_arguments(DemoArguments))
    except Stopped as stopped:  # by Ctrl-C in training, which ends with its step
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 128 + stopped.signal_number


if __name__ == "__main__":
    run_command(main)
