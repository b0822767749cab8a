"""The ablation command: finished runs are taken as they are, means and spreads are right, failures stop it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_processes import run_script

from configuration import FASegConfig
from scripts.ablation import VARIANTS, AblationArguments, ablation, made_with, run_folder
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_overrides
from scripts.storage.outputs import MARK


SCORES = {
    "both": [40.0, 44.0],
    "dfpq": [39.0, 41.0],
    "hrca": [30.0, 31.0],
    "neither": [20.0, 20.5],
}


def finished_runs(given, scores=SCORES, minutes=3.0):
    for variant, by_seed in scores.items():
        for seed in given.seeds:
            place = run_folder(given, variant, seed)
            place.mkdir(parents=True, exist_ok=True)
            results = {"metric": "mIoU", "dataset": "d", "split": "validation", "images": 3, "protocol": {}}
            (place / "results.json").write_text(json.dumps({**results, "mean_iou": by_seed[seed]}))
            (place / "trained.json").write_text(json.dumps({"steps": 40, "processor_minutes": minutes}))


def recorded_commands(monkeypatch, returncode=1):
    commands = []
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: commands.append(command) or SimpleNamespace(returncode=returncode)
    )
    return commands


def value_of(command, flag):
    return command[command.index(flag) + 1]


def arguments(tmp_path, seeds, **others):
    return AblationArguments(
        **others,
        train_recipe="demo",
        dataset_name="nowhere",
        output_dir=str(tmp_path / "runs"),
        output_file=str(tmp_path / "summary.json"),
        seeds=seeds,
    )


def test_means_and_sample_deviations_of_finished_runs(tmp_path, capsys):
    given = arguments(tmp_path, [0, 1])
    finished_runs(given)
    ablation(given)
    variants = json.loads((tmp_path / "summary.json").read_text())["variants"]
    assert list(variants) == [VARIANTS[name].label for name in SCORES]
    both = variants["DFPQ and HRCA"]
    assert both["mean_iou_by_seed"] == {"0": 40.0, "1": 44.0}
    assert both["mean"] == 42.0
    assert both["standard_deviation"] == 2.83  # sqrt(8)
    assert both["steps"] == 40
    assert "42.00 2.83 40 3.0 40.00, 44.00" in " ".join(capsys.readouterr().out.split())


def test_seeds_of_an_earlier_command_stay_in_the_file(tmp_path):
    for seed in (0, 1):
        given = arguments(tmp_path, [seed])
        finished_runs(given)
        ablation(given)
    variants = json.loads((tmp_path / "summary.json").read_text())["variants"]
    assert variants["DFPQ alone"]["mean_iou_by_seed"] == {"0": 39.0, "1": 41.0}
    assert variants["DFPQ alone"]["mean"] == 40.0


def test_a_failing_run_stops_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda command, check: run_script(*command[1:], folder=tmp_path))
    finished_runs(arguments(tmp_path, [0]))
    with pytest.raises(UserError, match=r"train\.py of both-seed1 left with exit code 2"):
        ablation(arguments(tmp_path, [0, 1]))
    assert json.loads((tmp_path / "summary.json").read_text())["variants"]["DFPQ alone"]["mean"] == 39.0


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    given, commands = arguments(tmp_path, [0]), recorded_commands(monkeypatch)
    (run_folder(given, "both", 0) / "checkpoint-200").mkdir(parents=True)
    with pytest.raises(UserError, match="exit code 1"):
        ablation(given)
    assert value_of(commands[0], "--resume_from_checkpoint") == "latest"


def test_the_time_of_a_stopped_run_counts_all_its_steps(tmp_path, monkeypatch):
    given = arguments(tmp_path, [0], variants=["both"])
    finished_runs(given)
    folder = run_folder(given, "both", 0)
    (folder / "trained.json").unlink()
    (folder / "checkpoint-30").mkdir()
    (folder / "train_log.jsonl").write_text('{"step": 40}\n')
    recorded_commands(monkeypatch, returncode=0)
    times = iter([(0, 0, 5, 1, 0), (0, 0, 10, 2, 0)])
    monkeypatch.setattr("os.times", lambda: os.times_result(next(times)))
    # 6 seconds for the last 10 of 40 steps
    assert ablation(given)["runs"]["both"][0] == {"mean_iou": 40.0, "steps": 40, "processor_minutes": 0.4}


def test_a_trained_run_is_only_evaluated(tmp_path, monkeypatch):
    given, commands = arguments(tmp_path, [0]), recorded_commands(monkeypatch)
    finished_runs(given)
    (run_folder(given, "both", 0) / "results.json").unlink()
    with pytest.raises(UserError, match=r"eval\.py of both-seed0"):
        ablation(given)
    assert [Path(command[1]).name for command in commands] == ["eval.py"]


def test_mask2former_and_what_is_compared_to_it(tmp_path, monkeypatch):
    """Mask2Former is trained as published; FASeg gets its time, and a quarter of the steps when started from it."""
    given = arguments(tmp_path, [0], backbone_weights="timm.safetensors", variants=["warm-start", "equal-time"])
    commands = recorded_commands(monkeypatch)
    finished_runs(given, {"both": [40.0]}, minutes=4.0)
    with pytest.raises(UserError, match=r"train\.py of mask2former-seed0"):
        ablation(given)
    fields = commands[-1][commands[-1].index("--config_overrides") + 1 :]
    config = FASegConfig(**parse_overrides(fields))
    assert not config.use_dynamic_positional_queries and not config.use_high_resolution_cross_attention
    assert (config.decoder_layers, config.positional_encoding_type) == (9, "sine")
    assert config.attention_mask_threshold == 0.5
    assert value_of(commands[-1], "--backbone_weights") == "timm.safetensors"

    finished_runs(given, {"mask2former": [30.0]}, minutes=3.0)
    with pytest.raises(UserError, match=r"train\.py of equal-time-seed0"):
        ablation(given)
    assert value_of(commands[-1], "--max_train_steps") == "30"
    assert value_of(commands[-1], "--backbone_weights") == "timm.safetensors"

    finished_runs(given, {"equal-time": [41.0]})
    with pytest.raises(UserError, match=r"train\.py of warm-start-seed0"):
        ablation(given)
    assert value_of(commands[-1], "--max_train_steps") == "10"
    assert value_of(commands[-1], "--warm_start") == str(run_folder(given, "mask2former", 0))
    assert "--backbone_weights" not in commands[-1]


def test_runs_of_other_flags_are_refused(tmp_path):
    given = arguments(tmp_path, [0])
    finished_runs(given)
    ablation(given)
    given.train_flags = "--max_train_steps 7"
    with pytest.raises(UserError, match="--train_flags '', not '--max_train_steps 7': name another --output_file"):
        ablation(given)
    given.output_file = str(tmp_path / "other.json")
    with pytest.raises(UserError, match="--train_flags '', not '--max_train_steps 7': name another --output_dir"):
        ablation(given)


@pytest.mark.parametrize("runs", ['{"both": {"x": {}}}', '{"both": {"0": {"mean_iou": 1}}}', '{"all": {"0": {}}}'])
def test_odd_output_files_are_refused(tmp_path, runs):
    given = arguments(tmp_path, [0])
    flags = json.dumps(made_with(given) | {"written_by": MARK})
    (tmp_path / "summary.json").write_text(f'{flags[:-1]}, "runs": {runs}}}')
    with pytest.raises(UserError, match=r"summary\.json has an odd run"):
        ablation(given)


def test_unknown_variants_are_named(tmp_path):
    with pytest.raises(UserError, match="--variants maskformer: not one of both, dfpq"):
        ablation(arguments(tmp_path, [0], variants=["both", "maskformer"]))


def test_missing_flags_are_named(tmp_path):
    given = arguments(tmp_path, [0])
    given.dataset_name = None
    with pytest.raises(UserError, match="--dataset_name"):
        ablation(given)
