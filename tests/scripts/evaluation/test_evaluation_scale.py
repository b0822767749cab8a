"""Evaluation over two real processes, and over many large images in bounded memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_splits import samples, write_split
from training_processes import run_script_twice


ROOT = Path(__file__).parents[3]


@pytest.mark.system
def test_two_processes_equal_one(evaluated, shapes_model, tmp_path):
    """To the digit: means, classes, boundaries, sizes, interval, lens, and the samples skipped."""
    folder = write_split(tmp_path, samples(5, p1="image"))
    flags = ["--max_bad_samples", 1, "--protocol_lens", "--bootstrap_samples", 20]
    one, _ = evaluated(shapes_model, folder, *flags)
    file = tmp_path / "two.json"
    given = ["--model_name_or_path", shapes_model, "--dataset_name", folder, "--output_file", file]
    both = run_script_twice("scripts/eval.py", *given, "--dataloader_num_workers", 0, *flags, folder=ROOT)
    two = json.loads(file.read_text())
    assert [done.returncode for done in both] == [0, 0], both
    assert "mmseg" in both[0].stdout and not both[1].stdout
    assert two["processes"] == 2 and two["images"] == one["images"] == 4 and len(two["skipped"]) == 1
    differ = {"command", "date", "seconds", "processes", "project"}
    assert {k: v for k, v in one.items() if k not in differ} == {k: v for k, v in two.items() if k not in differ}


@pytest.mark.slow
def test_an_error_of_one_process_ends_both(shapes_model, tmp_path):
    """None waits for the sums of the other: row 1, with an id outside the classes, is the second process's."""
    folder = write_split(tmp_path, samples(4, p1="id"))
    given = ["--model_name_or_path", shapes_model, "--dataset_name", folder, "--dataloader_num_workers", 0]
    for done in run_script_twice("scripts/eval.py", *given, folder=ROOT):
        assert done.returncode == 2
        assert "label 77 in image p1" in done.stderr and "Traceback" not in done.stderr, done.stderr


PROGRAM = """
import resource, sys
import numpy as np, torch
from accelerate import Accelerator
from scripts.evaluation.bootstrap import BootstrapCounts
from scripts.evaluation.boundary import BoundaryCounts
from scripts.evaluation.split import evaluate_split
from scripts.evaluation.segment_size import SegmentSizeCounts
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset

class Model(torch.nn.Module):
    config = type("Config", (), {"num_labels": 19})()

class Watched(BootstrapCounts):
    def add(self, sample, prediction):
        super().add(sample, prediction)
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen in (20, 200):
            print(self.seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)  # decodes here as well

def predictor(image):
    pixels = np.asarray(image)
    return (pixels[..., 0] // 14).astype(np.uint8)

counters = [BoundaryCounts(19), SegmentSizeCounts(19), Watched(19, 1000)]
data = LabelledDataset(DatasetArguments(dataset_name=sys.argv[1]), "validation")
_, images = evaluate_split(Model(), None, data, Accelerator(cpu=True), predictor, None, 0, counters)
assert images == 200
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """200 images of 1024x2048 with every count on: the peak after 20 is the peak after 200, to a few images."""
    import numpy as np

    rng = np.random.default_rng(0)

    def large():
        for number in range(200):
            ids = np.kron(rng.integers(0, 19, (32, 64), dtype=np.uint8), np.ones((32, 32), dtype=np.uint8))
            image = np.repeat((np.roll(ids, 2, axis=1) * 14)[..., None], 3, axis=2)
            yield f"p{number}", image, ids

    folder = write_split(tmp_path, large())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(ROOT))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = {int(seen): int(megabytes) for seen, megabytes in map(str.split, done.stdout.splitlines())}
    print(f"peak memory after 20 images {peaks[20]} MiB, after 200 {peaks[200]} MiB")
    assert peaks[200] < 1.1 * peaks[20]
