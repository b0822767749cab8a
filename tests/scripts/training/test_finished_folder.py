"""What an earlier run left in the output folder is not lost unasked."""

import json

from safetensors.torch import load_file

from scripts.training.log import read_log


def test_a_finished_model_is_replaced_only_when_asked(start, tmp_path):
    folder = tmp_path / "run"
    assert start("--max_train_steps", 1)[0] == 0
    weights = (folder / "model.safetensors").read_bytes()
    log = (folder / "train_log.jsonl").read_bytes()
    code, _, errors = start("--max_train_steps", 2)
    assert code == 2 and len(errors) == 1
    assert f"--output_dir {folder} holds a finished model of an earlier run, and no checkpoint: " in errors[0]
    assert f"with --model_name_or_path {folder} to train that model on, or give --overwrite_output_dir" in errors[0]
    assert (folder / "model.safetensors").read_bytes() == weights and (folder / "train_log.jsonl").read_bytes() == log
    code, _, errors = start("--max_train_steps", 2, "--overwrite_output_dir", "--checkpointing_steps", 2)
    assert code == 0, errors
    assert (folder / "model.safetensors").read_bytes() != weights
    assert [line["step"] for line in read_log(folder / "train_log.jsonl")] == [1, 2]
    # Checkpoints of two runs are never mixed.
    code, _, errors = start("--max_train_steps", 2, "--overwrite_output_dir")
    assert code == 2 and "holds checkpoint-2 of an earlier run" in errors[0]
    assert load_file(folder / "model.safetensors")


def test_the_best_model_of_a_run_that_did_not_finish_is_kept_too(start, tmp_path):
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (best / "config.json").write_text(json.dumps({"model_type": "faseg"}))
    code, _, errors = start("--max_train_steps", 1)
    assert code == 2 and "holds the best model of an earlier run" in errors[0]
    assert f"--model_name_or_path {best} to train" in errors[0]
