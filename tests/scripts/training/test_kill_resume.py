"""A run that is killed and resumed ends bit-equal to the run that was never stopped."""

import os
import random
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from kill_harness import SECONDS_TO_LEAVE, VARIANTS, command_of, harness, prepare, start_command
from training_processes import arguments_for, assert_equal_end, end_state, in_processes, train_in_processes

from scripts.cli.errors import UserError
from scripts.storage import atomic
from scripts.train import train
from scripts.training.checkpointing import checkpoints


BF16 = ("--mixed_precision", "bf16", "--dataloader_num_workers", "0")


@pytest.fixture(scope="module")
def unbroken(tiny_recipe, shapes, tmp_path_factory):
    """(world, flags) -> (end state, seconds) of the run that is never stopped, each run once."""
    done = {}

    def get(world=1, *flags):
        if (world, *flags) not in done:
            in_processes(print)  # the server's start is no part of the run
            folder = tmp_path_factory.mktemp("unbroken")
            started = time.monotonic()
            codes, errors = train_in_processes(arguments_for(tiny_recipe, shapes, folder, *flags), world)
            assert codes == [0] * world, errors
            done[world, *flags] = end_state(folder), time.monotonic() - started
        return done[world, *flags]

    return get


def die_in_step(steps, rank):
    """Kills this process where the weights would move for the `steps[rank]`-th time."""
    original, calls = torch.optim.AdamW.step, []

    def step(*args, **kwargs):
        calls.append(1)
        if len(calls) == steps[rank]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    torch.optim.AdamW.step = step


def die_in_checkpoint(partial_folder, rank):
    """Kills this process when all of a checkpoint is written and the first of its files is synced."""
    original = atomic.sync

    def sync(path):
        if path.parent == partial_folder and (partial_folder / atomic.MANIFEST).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        original(path)

    atomic.sync = sync


def train_broken(arguments, break_it, rank):
    break_it(rank)
    train(arguments)


def killed_then_resumed(tiny_recipe, shapes, folder, break_it, world=1, flags=()):
    """A run that `break_it` gets killed, then the one that goes on; returns what that could go on from."""
    arguments = arguments_for(tiny_recipe, shapes, folder, *flags)
    codes, errors = in_processes(partial(train_broken, arguments, break_it), world)
    assert -signal.SIGKILL in codes, errors
    found = [path.name for path in checkpoints(folder)]
    resumed = arguments_for(tiny_recipe, shapes, folder, *flags, "--resume_from_checkpoint", "latest")
    codes, errors = train_in_processes(resumed, world)
    assert codes == [0] * world, errors
    return found


@pytest.mark.system
def test_killed_in_the_middle_of_a_step(tiny_recipe, shapes, tmp_path, unbroken):
    found = killed_then_resumed(tiny_recipe, shapes, tmp_path / "run", partial(die_in_step, [4]))
    assert found == ["checkpoint-2"]
    assert_equal_end(tmp_path / "run", unbroken()[0])


@pytest.mark.system
def test_killed_while_a_checkpoint_is_written(tiny_recipe, shapes, tmp_path, unbroken):
    folder = tmp_path / "run"
    found = killed_then_resumed(
        tiny_recipe, shapes, folder, partial(die_in_checkpoint, folder / ".checkpoint-4.partial")
    )
    assert found == ["checkpoint-2"]
    assert_equal_end(folder, unbroken()[0])


def hold_at_step(rank):
    """Waits to be killed where the weights would move for the third time; until then it holds the folder."""
    original, calls = torch.optim.AdamW.step, []

    def step(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            signal.pause()
        return original(*args, **kwargs)

    torch.optim.AdamW.step = step


@pytest.mark.system
def test_a_second_trainer_is_kept_out_of_the_folder(tiny_recipe, shapes, tmp_path, unbroken):
    """While one trains; once it was killed the next may go on."""
    folder = tmp_path / "run"
    resume = ("--resume_from_checkpoint", "latest")
    first = arguments_for(tiny_recipe, shapes, folder)
    refused = []

    def second():
        if not checkpoints(folder):
            return False
        for flags in ((), resume):
            codes, errors = train_in_processes(arguments_for(tiny_recipe, shapes, folder, *flags))
            assert codes == [1]
            refused.extend(errors)
        return True

    codes, _ = in_processes(partial(train_broken, first, hold_at_step), kill_after=0, counted_from=second)
    assert codes == [-signal.SIGKILL] and len(refused) == 2
    assert all(f"--output_dir {folder}: process " in error and "is writing into it" in error for error in refused)
    codes, errors = train_in_processes(arguments_for(tiny_recipe, shapes, folder, *resume))
    assert codes == [0], errors
    assert_equal_end(folder, unbroken()[0])


@pytest.mark.system
def test_processes_leave_with_their_launcher(tmp_path):
    """`accelerate launch` gives each a session of its own: whoever kills the launcher does not reach them."""
    prepare(tmp_path)
    folder = tmp_path / "run"
    command = [*command_of("train in two processes", tmp_path, folder), "--max_train_steps", "100000"]
    launcher = start_command(command, folder)
    try:
        deadline = time.monotonic() + 200
        while not (folder / "train_log.jsonl").exists():
            assert launcher.poll() is None and time.monotonic() < deadline, folder.with_suffix(".txt").read_text()
            time.sleep(0.2)
    finally:
        family = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        left = psutil.wait_procs(family, timeout=SECONDS_TO_LEAVE)[1]
        for process in left:
            process.kill()
    assert len(family) >= 2 and not left


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tiny_recipe, shapes, tmp_path, unbroken):
    folder = tmp_path / "run"
    found = killed_then_resumed(tiny_recipe, shapes, folder, partial(die_in_step, [100, 4]), world=2, flags=BF16)
    assert found == ["checkpoint-2"]
    assert_equal_end(folder, unbroken(2, *BF16)[0])
    alone = arguments_for(tiny_recipe, shapes, folder, *BF16, "--resume_from_checkpoint", "latest")
    codes, errors = train_in_processes(alone)
    assert codes == [1] and f"{UserError.__name__}: --resume" in errors[0]
    assert "number of processes 2, not 1" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_five_random_points(world, precision, tiny_recipe, shapes, tmp_path, unbroken):
    """From outside, at any moment: start-up, steps, evaluations, checkpoints, the last write.

    Every second time the clock starts at the first checkpoint, since most of such a short run is its start.
    """
    flags = ("--mixed_precision", precision)
    expected, seconds = unbroken(world, *flags)
    chance, points = random.Random(f"{world}{precision}"), []
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        arguments = arguments_for(tiny_recipe, shapes, folder, *flags)
        if len(points) % 2 == 0:
            delay, counted_from = chance.uniform(0.0, 0.5) * seconds, partial(checkpoints, folder)
        else:
            delay, counted_from = chance.uniform(0.1, 0.9) * seconds, None
        codes, errors = train_in_processes(arguments, world, delay, counted_from)
        if codes == [0] * world:  # it was faster than the run that was timed
            continue
        assert -signal.SIGKILL in codes, errors
        points.append(len(checkpoints(folder)))
        resume = ("--resume_from_checkpoint", "latest") if checkpoints(folder) else ()
        codes, errors = train_in_processes(arguments_for(tiny_recipe, shapes, folder, *flags, *resume), world)
        assert codes == [0] * world, errors
        assert_equal_end(folder, expected)
        if len(points) == 5:
            break
    assert len(points) == 5 and sum(map(bool, points)) >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_command_leaves_no_process_and_ends_equal(variant, tmp_path):
    """One kill of each; `tests/scripts/kill_harness.py --kills 60` does as many as are asked for."""
    harness(1, tmp_path, variants=(variant,))
