"""The ablation command: finished runs are taken as they are, means and spreads are right, failures stop it."""

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_processes import run_script

from configuration import FASegConfig
from scripts import ablation as ablation_module
from scripts.ablation import VARIANTS, AblationArguments, ablation, made_with, run_folder
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_overrides
from scripts.models.mask2former import PLAIN
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


def processor_times(monkeypatch, *seconds):
    """Commands take these seconds of processor time, one after the other."""
    ends = [0.0, *itertools.accumulate(seconds)]
    times = iter([os.times_result((0, 0, end, 0, 0)) for pair in itertools.pairwise(ends) for end in pair])
    monkeypatch.setattr("os.times", lambda: next(times))


def test_the_time_of_a_stopped_run_is_that_of_all_attempts(tmp_path, monkeypatch):
    given = arguments(tmp_path, [0], variants=["both"])
    finished_runs(given)
    folder = run_folder(given, "both", 0)
    (folder / "trained.json").unlink()
    processor_times(monkeypatch, 6.0, 18.0)
    recorded_commands(monkeypatch, returncode=1)
    with pytest.raises(UserError, match="exit code 1"):
        ablation(given)
    assert not (folder / "results.json").exists(), "of other weights"
    (folder / "checkpoint-40").mkdir()
    (folder / "train_log.jsonl").write_text('{"step": 40}\n')
    finished_runs(given, {"both": [40.0]})
    (folder / "trained.json").unlink()
    recorded_commands(monkeypatch, returncode=0)
    with pytest.raises(UserError, match=r"results\.json"):  # eval.py wrote none here
        ablation(given)
    assert json.loads((folder / "trained.json").read_text()) == {"steps": 40, "processor_minutes": 0.4}


def test_the_time_of_a_killed_attempt_is_not_known(tmp_path, monkeypatch):
    given = arguments(tmp_path, [0], variants=["equal-time"])
    finished_runs(given, {"both": [40.0], "mask2former": [30.0]})
    folder = run_folder(given, "both", 0)
    (folder / "trained.json").write_text('{"steps": 40, "processor_minutes": null}')
    with pytest.raises(UserError, match=r"equal-time-seed0: how long both-seed0 and .* is not known"):
        ablation(given)
    assert (
        json.loads((tmp_path / "summary.json").read_text())["variants"]["DFPQ and HRCA"]["processor_minutes"] is None
    )
    (folder / "trained.json").unlink()
    (folder / "checkpoint-20").mkdir()
    (folder / "train_log.jsonl").write_text('{"step": 40}\n')
    recorded_commands(monkeypatch, returncode=0)
    with pytest.raises(UserError, match=r"results\.json"):
        ablation(given)
    assert json.loads((folder / "trained.json").read_text())["processor_minutes"] is None


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
    assert {name: getattr(config, name) for name in PLAIN} == PLAIN, "as a converted Mask2Former is run"
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


def test_a_time_that_the_output_file_has_is_not_trained_for_again(tmp_path, monkeypatch):
    given = arguments(tmp_path, [0], variants=["both", "mask2former"])
    finished_runs(given, {"both": [40.0]}, minutes=4.0)
    finished_runs(given, {"mask2former": [30.0]}, minutes=3.0)
    ablation(given)
    for name in ("both", "mask2former"):
        shutil.rmtree(run_folder(given, name, 0))
    commands = recorded_commands(monkeypatch)
    with pytest.raises(UserError, match=r"train\.py of equal-time-seed0"):
        ablation(replace(given, variants=["equal-time"]))
    assert value_of(commands[-1], "--max_train_steps") == "30"
    with pytest.raises(UserError, match=r"train\.py of mask2former-seed0"):  # whose weights are needed
        ablation(replace(given, variants=["equal-time", "warm-start"]))


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


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ('{"both": {"x": {}}}', "has an odd run, both of seed x"),
        ('{"both": {"²": {"mean_iou": 1, "steps": 1}}}', "has an odd run, both of seed ²"),
        ('{"both": {"0": {"mean_iou": 1}}}', "has an odd run, both of seed 0"),
        ('{"all": {"0": {}}}', "has an odd run, all of seed 0"),
        ('{"both": []}', "has a wrong field: Field 'runs"),
        ("null", "has a wrong field: Field 'runs'"),
    ],
)
def test_odd_output_files_are_refused_or_replaced_when_asked(tmp_path, runs, message):
    given, file = arguments(tmp_path, [0]), tmp_path / "summary.json"
    finished_runs(given)
    flags = json.dumps(made_with(given) | {"written_by": MARK})
    file.write_text(f'{flags[:-1]}, "runs": {runs}}}')
    with pytest.raises(UserError, match=rf"summary\.json .*{message}.*: name another --output_file, or add"):
        ablation(given)
    given.overwrite = True
    ablation(given)
    assert list(json.loads(file.read_text())["runs"]) == list(SCORES)


def test_commands_side_by_side_lose_no_run(tmp_path, monkeypatch):
    """What another command has written since is kept."""
    given, other = arguments(tmp_path, [0], variants=["both", "dfpq"]), arguments(tmp_path, [1], variants=["both"])
    finished_runs(given)
    finished_runs(other)
    evaluated = ablation_module.run_once

    def run_once(arguments, name, *others):
        if name == "dfpq":
            monkeypatch.setattr(ablation_module, "run_once", evaluated)
            ablation(other)
        return evaluated(arguments, name, *others)

    monkeypatch.setattr(ablation_module, "run_once", run_once)
    runs = ablation(given)["runs"]
    assert {name: sorted(by_seed) for name, by_seed in runs.items()} == {"both": [0, 1], "dfpq": [0]}


def test_results_into_a_pipe_have_all_runs(tmp_path):
    given = arguments(tmp_path, [0], variants=["both", "dfpq"])
    finished_runs(given)
    given.output_file = os.devnull
    assert list(ablation(given)["runs"]) == ["both", "dfpq"]


@pytest.mark.parametrize(
    ("recipe", "flags", "named"),
    [
        ("faseg-swin-tiny-ade20k", "", "config_name"),
        ("demo", "--backbone_weights w.safetensors", "backbone_weights"),
    ],
)
def test_a_warm_start_that_train_would_refuse_is_refused_at_once(tmp_path, recipe, flags, named):
    given = arguments(tmp_path, [0], variants=["warm-start"])
    given.train_recipe, given.train_flags = recipe, flags
    with pytest.raises(UserError, match=f"--variants warm-start: .* has {named}, which"):
        ablation(given)


def test_unknown_variants_are_named(tmp_path):
    with pytest.raises(UserError, match="--variants maskformer: not one of both, dfpq"):
        ablation(arguments(tmp_path, [0], variants=["both", "maskformer"]))


def test_missing_flags_are_named(tmp_path):
    given = arguments(tmp_path, [0])
    given.dataset_name = None
    with pytest.raises(UserError, match="--dataset_name"):
        ablation(given)
