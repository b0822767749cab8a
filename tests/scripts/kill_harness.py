"""Kills commands at random moments: none of their processes stays, and what is run again ends as if never killed.

`PYTHONPATH=. python tests/scripts/kill_harness.py --kills 60` takes the variants in turn and prints a line for each
kill. Only the group of a command is killed, as a job manager does it: workers of data loaders have their own groups.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "scripts")]

from tiny_folder import TINY_MODEL, write_model_folder  # noqa: E402
from training_processes import FLAGS, TIMED  # noqa: E402

from scripts.data import synthetic_shapes  # noqa: E402
from scripts.data.synthetic_scenes import write_dataset  # noqa: E402


VARIANTS = (
    "train", "train with eval_steps", "train in two processes", "train in bf16", "train instances", "eval", "predict",
)  # fmt: skip
SECONDS_TO_LEAVE = 10


def prepare(place: Path) -> None:
    """A data set, a recipe and a model, all tiny."""
    write_dataset(place / "shapes", {"train": 7, "validation": 24}, shards=3)
    synthetic_shapes.write_dataset(place / "segmented", {"train": 7, "validation": 3}, shards=3)
    (place / "tiny.yaml").write_text(TINY_MODEL)
    write_model_folder(place / "tiny.yaml", place / "model")


def command_of(variant: str, place: Path, folder: Path) -> list[str]:
    """The command line that writes into `folder`."""
    data = ["--dataset_name", place / "shapes"]
    if not variant.startswith("train"):
        model = ["--model_name_or_path", place / "model", "--dataloader_num_workers", 2]
        split = ["--eval_split_name" if variant == "eval" else "--split_name", "validation"]
        output = ["--output_file", folder / "results.json"]
        if variant == "predict":
            output = ["--output_dir", folder, "--rows_per_shard", 2]
        return list(map(str, [sys.executable, ROOT / "scripts" / f"{variant}.py", *model, *data, *split, *output]))
    at = FLAGS.index("--eval_steps")
    flags = FLAGS[:at] + FLAGS[at + 2 :] if variant in ("train", "train instances") else FLAGS
    if variant == "train instances":
        data = ["--dataset_name", place / "segmented", "--task", "instance"]
    start = [sys.executable]
    if "two" in variant:
        launcher = ["--config_file", ROOT / "configs" / "accelerate" / "cpu.yaml", "--num_processes", 2]
        start += ["-m", "accelerate.commands.launch", *launcher, "--main_process_port", 0]
    precision = ["--mixed_precision", "bf16" if "bf16" in variant else "no"]
    resume = ["--resume_from_checkpoint", "latest"] if any(folder.glob("checkpoint-*")) else []
    train = [ROOT / "scripts" / "train.py", place / "tiny.yaml", *data, "--output_dir", folder]
    return list(map(str, [*start, *train, *flags, *precision, *resume]))


def start(variant: str, place: Path, folder: Path) -> subprocess.Popen:
    """The command in a group of its own."""
    return start_command(command_of(variant, place, folder), folder)


def start_command(command: list[str], folder: Path) -> subprocess.Popen:
    """A command line that writes into `folder`, in a group of its own; what it says is beside the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".txt"), "w") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(variant: str, place: Path, folder: Path) -> None:
    """Runs it to its end."""
    code = start(variant, place, folder).wait()
    assert code == 0, f"{variant}: exit code {code}: {folder.with_suffix('.txt').read_text()[-2000:]}"


def result_of(variant: str, folder: Path) -> dict:
    """All that a command leaves, without times."""
    if variant == "eval":
        results = json.loads((folder / "results.json").read_text())
        return {key: results[key] for key in ("mean_iou", "per_class")}
    files = [*folder.glob("data/*.parquet"), *folder.glob("model.safetensors"), *folder.glob("best/*.safetensors")]
    result = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if (log := folder / "train_log.jsonl").exists():
        lines = map(json.loads, log.read_text().splitlines())
        result["log"] = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    assert result
    return result


def killed(process: subprocess.Popen, delay: float) -> bool:
    """Kills the group after `delay` seconds unless it is done; makes sure that nobody stays."""
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGSTOP)  # nobody is started while they are listed
        family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    was_killed = process.wait() == -signal.SIGKILL
    alive = psutil.wait_procs(family, timeout=SECONDS_TO_LEAVE)[1]
    for left in alive:
        left.kill()
    assert not alive, f"{len(alive)} of {len(family)} processes are alive {SECONDS_TO_LEAVE} s later: {alive}"
    return was_killed


def harness(kills: int, place: Path, seed: int = 0, variants=VARIANTS) -> None:
    """Kills the variants in turn, `kills` times in all, and runs each to its end."""
    prepare(place)
    chance, expected, seconds = random.Random(seed), {}, {}
    names = itertools.cycle(variants)
    for number in range(kills):
        variant = next(names)
        if variant not in expected:
            started = time.monotonic()
            finish(variant, place, place / f"whole {variant}")
            seconds[variant] = time.monotonic() - started
            expected[variant] = result_of(variant, place / f"whole {variant}")
        for attempt in itertools.count():
            folder = place / f"{number}-{attempt} {variant}"
            delay = chance.uniform(0.4, 1.0) * seconds[variant]
            if killed(start(variant, place, folder), delay):
                break
        finish(variant, place, folder)
        assert result_of(variant, folder) == expected[variant], f"{variant}, killed after {delay:.1f} s"
        print(f"{number + 1}: {variant}, killed after {delay:.1f} of {seconds[variant]:.1f} s: equal", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        harness(given.kills, Path(folder), given.seed)
