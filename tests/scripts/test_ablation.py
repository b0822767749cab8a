"""The ablation command: finished runs are taken as they are, means and spreads are right, failures stop it."""

import json
from types import SimpleNamespace

import pytest
from training_processes import run_script

from scripts.ablation import VARIANTS, AblationArguments, ablation, run_name
from scripts.cli.errors import UserError


SCORES = {
    "DFPQ and HRCA": [40.0, 44.0],
    "DFPQ alone": [39.0, 41.0],
    "HRCA alone": [30.0, 31.0],
    "neither (Mask2Former's decoder)": [20.0, 20.5],
}


def finished_runs(folder, seeds):
    for variant, scores in SCORES.items():
        for seed in seeds:
            place = folder / run_name(variant, seed)
            place.mkdir(parents=True)
            results = {"metric": "mIoU", "dataset": "d", "split": "validation", "images": 3, "protocol": {}}
            (place / "results.json").write_text(json.dumps({**results, "mean_iou": scores[seed]}))


def arguments(tmp_path, seeds):
    return AblationArguments(
        train_recipe="demo",
        dataset_name="nowhere",
        output_dir=str(tmp_path / "runs"),
        output_file=str(tmp_path / "summary.json"),
        seeds=seeds,
    )


def test_means_and_sample_deviations_of_finished_runs(tmp_path, capsys):
    finished_runs(tmp_path / "runs", [0, 1])
    ablation(arguments(tmp_path, [0, 1]))
    variants = json.loads((tmp_path / "summary.json").read_text())["variants"]
    assert list(variants) == list(VARIANTS) == list(SCORES)
    both = variants["DFPQ and HRCA"]
    assert both["mean_iou_by_seed"] == {"0": 40.0, "1": 44.0}
    assert both["mean"] == 42.0
    assert both["standard_deviation"] == 2.83  # sqrt(8)
    assert "42.00 2.83 40.00, 44.00" in " ".join(capsys.readouterr().out.split())


def test_a_failing_run_stops_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda command, check: run_script(*command[1:], folder=tmp_path))
    finished_runs(tmp_path / "runs", [0])
    with pytest.raises(UserError, match=r"train\.py of dfpq1-hrca1-seed1 left with exit code 2"):
        ablation(arguments(tmp_path, [0, 1]))
    assert json.loads((tmp_path / "summary.json").read_text())["variants"]["DFPQ alone"]["mean"] == 39.0


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    given, commands = arguments(tmp_path, [0]), []
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: commands.append(command) or SimpleNamespace(returncode=1)
    )
    (tmp_path / "runs" / "dfpq1-hrca1-seed0" / "checkpoint-200").mkdir(parents=True)
    with pytest.raises(UserError, match="exit code 1"):
        ablation(given)
    assert commands[0][commands[0].index("--resume_from_checkpoint") + 1] == "latest"


def test_runs_of_other_flags_are_refused(tmp_path):
    finished_runs(tmp_path / "runs", [0])
    given = arguments(tmp_path, [0])
    ablation(given)
    given.train_flags = "--max_train_steps 7"
    with pytest.raises(UserError, match="--train_flags '', not '--max_train_steps 7': name another --output_dir"):
        ablation(given)


def test_missing_flags_are_named(tmp_path):
    given = arguments(tmp_path, [0])
    given.dataset_name = None
    with pytest.raises(UserError, match="--dataset_name"):
        ablation(given)
