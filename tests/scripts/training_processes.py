"""Training runs and commands in processes of their own, which tests may kill, one or two at a time.

They are forked from a server that has imported everything and trained nothing, since autograd does not survive a fork
of a process that has used it; what they run must be found by name in a module. A start of Python that imports the
project takes seconds, a fork none.
"""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from accelerate.state import PartialState
from safetensors.torch import load_file

from scripts.cli.parser import parse_arguments
from scripts.train import TrainArguments, train


SERVER = multiprocessing.get_context("forkserver")
# The commands, and what they import once their flags are checked.
SERVER.set_forkserver_preload(
    ["scripts.train", "scripts.training.loop", "scripts.training.run", "scripts.training.tracking", "scripts.eval"]
    + ["scripts.error_report.report", "scripts.evaluation.lens", "scripts.evaluation.label_ids"]
    + ["scripts.predict", "scripts.inference.stream", "pytest"]
)
TIMED = ("images_per_second", "data_wait_seconds", "data_wait_share", "peak_memory_gib")
# Logs, evaluations and checkpoints fall on different steps; samples are dropped, averaged and accumulated.
FLAGS = [
    "--max_train_steps", 6, "--checkpointing_steps", 2, "--eval_steps", 3, "--logging_steps", 3,
    "--gradient_accumulation_steps", 2, "--ema_decay", 0.8, "--dataloader_num_workers", 1,
    "--config_overrides", "dropout=0.1",
]  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_child(function, rank, world, port, errors):
    """One training process: quiet, on one thread, and one line in `errors` if it fails."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as users' runs start the workers of the data loader
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    code = 0
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
        try:
            function(rank)
        except BaseException as error:
            code = 1
            errors.put(f"{type(error).__name__}: {error}")
            errors.close()
            errors.join_thread()
        if code == 0:
            PartialState().destroy_process_group()
    os._exit(code)


def in_processes(function, world=1, kill_after=None, counted_from=None):
    """Runs `function(rank)` in `world` processes; returns their exit codes and what they failed with.

    Args:
        kill_after: seconds until all are killed; they also are once one has been.
        counted_from: these seconds begin when it first returns true; at the start, if it is left out.
    """
    errors, port = SERVER.Queue(), free_port()
    children = [SERVER.Process(target=run_child, args=(function, rank, world, port, errors)) for rank in range(world)]
    for child in children:
        child.start()
    end = time.monotonic() + (120 if kill_after is None or counted_from else kill_after)
    while any(child.is_alive() for child in children):
        if counted_from and counted_from():
            end, counted_from = time.monotonic() + kill_after, None
        if time.monotonic() > end or any(child.exitcode == -signal.SIGKILL for child in children):
            for child in children:
                child.kill()
        time.sleep(0.01)
    for child in children:
        child.join()
    codes = [child.exitcode for child in children]
    return codes, [errors.get(timeout=5) for code in codes if code == 1]


def script_child(file, arguments, folder, environment, printed):
    """A script as `python file arguments` runs it in `folder`, whose output goes into `printed`.out and .err.

    With `-m` in place of the file, the module named next.
    """
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(printed + ending, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    if file == "-m":
        sys.argv = arguments
        sys.modules.pop(arguments[0], None)  # or Python warns that it is run a second time
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [file, *arguments]
        runpy.run_path(file, run_name="__main__")


def run_scripts(argv, folder, environments):
    """Runs a script of the project in one process for each of `environments`, at the same time.

    Args:
        argv: its file and its arguments.
        environments: variables on top of those of this process.
    Returns:
        a `subprocess.CompletedProcess` for each.
    """
    argv = list(map(str, argv))
    with tempfile.TemporaryDirectory() as place:
        children = []
        for number, variables in enumerate(environments):
            given = (argv[0], argv[1:], str(folder), {**os.environ, **variables}, f"{place}/{number}")
            children.append(SERVER.Process(target=script_child, args=given))
            children[-1].start()
        try:
            for child in children:
                child.join(280)
            codes = [child.exitcode for child in children]
        finally:
            for child in children:
                child.kill()
        printed = [[Path(f"{place}/{n}{end}").read_text() for end in (".out", ".err")] for n in range(len(codes))]
    return [subprocess.CompletedProcess(argv, code, *texts) for code, texts in zip(codes, printed)]


def run_script(*argv, folder, **environment):
    """`run_scripts` of one process, on the processor and without network."""
    (done,) = run_scripts(argv, folder, [{"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"} | environment])
    return done


def run_script_twice(*argv, folder):
    """`run_scripts` of the two processes of one gloo group."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return run_scripts(argv, folder, [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)])


def train_rank(arguments, rank):
    train(arguments)


def train_in_processes(arguments, world=1, kill_after=None, counted_from=None):
    return in_processes(partial(train_rank, arguments), world, kill_after, counted_from)


def arguments_for(tiny_recipe, shapes, output_dir, *flags):
    flags = [tiny_recipe, "--dataset_name", shapes, "--output_dir", output_dir, *FLAGS, *flags]
    return parse_arguments(TrainArguments, [str(flag) for flag in flags])


def as_it_was(output_dir, step, folder):
    """A copy of a run as a kill after the checkpoint of that step would have left it."""
    shutil.copytree(output_dir / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(output_dir / "train_log.jsonl", folder)
    return folder


def end_state(output_dir):
    """All that a run leaves, without times."""
    lines = [json.loads(line) for line in (output_dir / "train_log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    best = json.loads((output_dir / "best" / "best.json").read_text())
    return log, best, load_file(output_dir / "model.safetensors"), load_file(output_dir / "best" / "model.safetensors")


def assert_equal_end(output_dir, expected):
    log, best, *weights = end_state(output_dir)
    assert log == expected[0] and best == expected[1]
    for found, wanted in zip(weights, expected[2:], strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert not [path.name for path in output_dir.iterdir() if path.name.startswith(".")]
