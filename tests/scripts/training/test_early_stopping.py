"""Early stopping: when it ends a run, what it leaves, and that it survives a resumption."""

import json
from functools import partial

import pytest
from safetensors.torch import load_file
from training_processes import arguments_for, in_processes

from scripts.cli.errors import UserError
from scripts.train import TrainArguments, train
from scripts.training import figures, loop
from scripts.training.arguments import check_values
from scripts.training.checkpointing import Progress
from scripts.training.log import read_log


@pytest.mark.parametrize(
    ("threshold", "counts"),
    [
        (0.0, [0, 0, 0, 0, 0, 1, 2, 0]),
        (0.003, [0, 0, 1, 0, 1, 2, 3, 0]),  # 0.304 has risen by more since 0.3
        (0.01, [0, 0, 1, 2, 3, 4, 5, 0]),
    ],
)
def test_evaluations_are_counted_since_the_last_rise(threshold, counts):
    progress = Progress()
    found = []
    for score in [0.1, 0.3, 0.302, 0.304, 0.306, 0.2, float("nan"), 0.4]:
        progress.count_evaluation(score, threshold)
        found.append(progress.not_improved)
    assert found == counts


def test_a_run_that_improves_no_more_ends_as_a_finished_one_also_after_a_resumption(start, tmp_path, monkeypatch):
    """From the checkpoint before the end, which keeps the patience used up, and from that of the end itself."""
    scores = {1: 0.3, 2: 0.301, 3: 0.2, 4: 0.9}
    at = []
    evaluate, original = loop.evaluate_if_due, figures.scores_from_confusion
    monkeypatch.setattr(
        loop, "evaluate_if_due", lambda this, log: at.append(this.progress.step) or evaluate(this, log)
    )
    monkeypatch.setattr(
        figures, "scores_from_confusion", lambda matrix: original(matrix) | {"mean_iou": scores[at[-1]]}
    )
    flags = ["--max_train_steps", 4, "--eval_steps", 1, "--checkpointing_steps", 1, "--checkpoints_total_limit", 9]
    flags += ["--early_stopping_patience", 2, "--early_stopping_threshold", 0.01]
    code, out, errors = start(*flags)
    assert code == 0, errors
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best == {"step": 2, "mean_iou": 0.301}
    line = (
        "stopped early at step 3 of 4: no rise of mIoU by more than 0.01 in 2 evaluations; the best was 30.10 at step"
    )
    assert out.count(line) == 1
    weights = load_file(tmp_path / "run" / "model.safetensors")
    expected = read_log(tmp_path / "run" / "train_log.jsonl")
    assert expected[-1] == {"step": 3, "best_step": 2, "stopped_early": 2}
    for step in (2, 3):
        code, out, errors = start(*flags, "--resume_from_checkpoint", tmp_path / "run" / f"checkpoint-{step}")
        assert code == 0 and line in out, errors
        found = read_log(tmp_path / "run" / "train_log.jsonl")
        assert [set(each) for each in found] == [set(each) for each in expected] and found[-1] == expected[-1]
        again = load_file(tmp_path / "run" / "model.safetensors")
        assert all(value.equal(again[name]) for name, value in weights.items())
    for changed, message in (
        (["--early_stopping_patience", 3], "--early_stopping_patience 2, not 3"),
        (["--eval_steps", 2], "--eval_steps 1, not 2"),  # else free
    ):
        code, _, errors = start(*flags, *changed, "--resume_from_checkpoint", "latest")
        assert code == 2 and message in errors[-1], errors


def stop_on_two(arguments, rank):
    train(arguments)


@pytest.mark.system
def test_two_processes_stop_together(tiny_recipe, shapes, tmp_path):
    """No evaluation is better than the first by so much."""
    flags = ["--eval_steps", 1, "--early_stopping_patience", 2, "--early_stopping_threshold", 0.999]
    arguments = arguments_for(tiny_recipe, shapes, tmp_path / "run", *flags)
    codes, errors = in_processes(partial(stop_on_two, arguments), world=2)
    assert codes == [0, 0], errors
    log = read_log(tmp_path / "run" / "train_log.jsonl")
    assert log[-1]["step"] == 3 and log[-1]["stopped_early"] == 2
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stopping_patience": 2}, "--early_stopping_patience: it counts evaluations: give --eval_steps"),
        ({"early_stopping_patience": 0, "eval_steps": 1}, "--early_stopping_patience 0: give at least 1"),
        ({"early_stopping_threshold": 0.1, "eval_steps": 1}, "give --early_stopping_patience, which it is for"),
        (
            {"early_stopping_threshold": 1.5, "early_stopping_patience": 1, "eval_steps": 1},
            "--early_stopping_threshold 1.5: give at most 1",
        ),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(UserError) as refused:
        check_values(TrainArguments(max_train_steps=1, **values))
    assert message in str(refused.value)
