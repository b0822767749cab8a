"""Exports to the Hub: the folder, the push, what a stranger gets, and every way to fail."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
import torch
import yaml
from hub_exports import MODEL_ID, NAME, STRANGER, child, done, error_of, run_stranger
from huggingface_hub import ModelCard, constants
from PIL import Image
from push_hub import OTHER_TOKEN
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments, pipeline

from scripts.cli.errors import UserError
from scripts.sharing import clean_load
from scripts.sharing import hub as sharing_hub
from scripts.sharing.leaks import check_leaks


PUSH = ["--push", "--repo_id", NAME]
MODEL = f"models/{NAME}"


# ---- the folder ----


def test_a_dry_run_writes_all_that_a_stranger_needs(export, checkpoint, tmp_path, hub):
    flags = ["--dry_run", "--results", checkpoint / "results.json", "--sample_images", checkpoint / "street.png"]
    code, _, errors = export(*flags, "--max_shard_size", "100KB")
    assert code == 0, errors[-1:]
    folder = tmp_path / "export"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "preprocessor_config.json", "README.md", "LICENSE", "LICENSE-CODE", "recipe.yaml"} <= names
    assert {"image_processing_faseg.py", "image_processing_pil_faseg.py", "configuration_faseg.py"} <= names
    assert {"model.safetensors.index.json", "samples/1.jpg", "samples/1_input.jpg", "train_log.jsonl"} <= names
    assert sum(name.startswith("model-") for name in names) > 1, "not sharded"
    assert not any("checkpoint" in name or "optimizer" in name or "results" in name for name in names)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {
        "dataset_name": "camvid", "max_train_steps": 3, "backbone_weights": "mobilenetv2_100.safetensors",
        "learning_rate": 0.001,
    }  # fmt: skip
    for name in names - {"samples/1.jpg", "samples/1_input.jpg"}:
        assert str(tmp_path.parent).encode() not in (folder / name).read_bytes(), name
    with Image.open(folder / "samples/1.jpg") as sheet:
        assert sheet.width >= 2 * 80 and sheet.height > 48
    assert hub.requests == [], "a dry run talks to nobody"


def test_images_leave_without_their_metadata(export, checkpoint, tmp_path):
    image = Image.open(checkpoint / "street.png")
    exif = image.getexif()
    exif[0x010F], exif[0x0112] = "MakerOfTheCamera", 6  # turned by a quarter
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert done(export("--dry_run", "--sample_images", tmp_path / "photo.jpg"))
    for name in ("1.jpg", "1_input.jpg"):
        body = (tmp_path / "export/samples" / name).read_bytes()
        assert b"MakerOfTheCamera" not in body
    with Image.open(tmp_path / "export/samples/1_input.jpg") as written:
        assert written.size == (48, 80) and not written.getexif()


def test_an_export_replaces_only_an_export(export, checkpoint, tmp_path):
    first = export("--dry_run")
    assert done(first)
    (tmp_path / "export" / "fusion_faseg.py").write_text("")  # code of an earlier version
    assert done(export("--dry_run")) and not (tmp_path / "export" / "fusion_faseg.py").exists()
    assert "is the checkpoint itself" in error_of(export("--dry_run", output_dir=checkpoint))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert "thesis.txt is no part of a model repository" in error_of(export("--dry_run", output_dir=other))
    run = tmp_path / "another_run"
    run.mkdir()
    shutil.copy(checkpoint / "model.safetensors", run)
    assert "no earlier export" in error_of(export("--dry_run", output_dir=run))
    assert (other / "thesis.txt").is_file() and (run / "model.safetensors").is_file()


# ---- push and pull ----


@pytest.mark.system
def test_a_stranger_gets_the_same_map_bit_for_bit(export, checkpoint, tmp_path, hub):
    """Pushed over a connection that breaks, pulled over one that breaks; the card's snippet runs as it stands."""
    hub.faults = [["PUT /lfs/", "drop", 2], ["PUT /lfs/", 503, 1], ["GET /tester/tiny/resolve", "drop", 2]]
    flags = ["--results", checkpoint / "results.json", "--sample_images", checkpoint / "street.png"]
    assert done(export(*PUSH, *flags, "--revision", "v1.0"))
    assert len(hub.repositories[MODEL].commits) == 2, "the first is the Hub's own"
    assert hub.repositories[MODEL].tags == {"v1.0": hub.repositories[MODEL].head}
    printed = run_stranger(STRANGER, [NAME, checkpoint / "street.png", tmp_path / "there.npz"], tmp_path)
    assert all(fault[2] == 0 for fault in hub.faults), hub.faults
    there = np.load(tmp_path / "there.npz")
    local = pipeline("image-segmentation", str(checkpoint))
    image = Image.open(checkpoint / "street.png")
    segments = local(image)
    with torch.no_grad():
        outputs = local.model(**local.image_processor(images=[image], return_tensors="pt"))
    labels = local.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 80)])[0]
    assert np.array_equal(there["logits"], outputs.masks_queries_logits)
    assert np.array_equal(there["labels"], labels) and len(labels.unique()) > 1
    for segment in segments:
        assert np.array_equal(there[segment["label"]], np.asarray(segment["mask"]))
        assert np.array_equal(np.asarray(segment["mask"]) > 0, labels.numpy() == int(segment["label"][-1]))
    assert {segment["label"] for segment in segments} <= {line.split(" (")[0] for line in printed.splitlines()}


def test_a_second_push_changes_nothing(export, hub):
    assert done(export(*PUSH))
    commits, uploads = list(hub.repositories[MODEL].commits), hub.requested("PUT /lfs/")
    code, out, errors = export(*PUSH)
    assert code == 0 and "nothing to change, already at commit " + commits[-1] in out, (out, errors)
    assert list(hub.repositories[MODEL].commits) == commits and len(commits) == 2
    assert (hub.requested("/commit/"), hub.requested("PUT /lfs/")) == (1, uploads)


def test_a_push_replaces_what_it_wrote_before_and_leaves_the_rest(export, hub):
    assert done(export(*PUSH, "--max_shard_size", "100KB"))
    repository = hub.repositories[MODEL]
    repository.files["demo.gif"] = b"the owner's own"
    assert any(name.startswith("model-") for name in repository.files)
    assert done(export(*PUSH))
    assert not any(name.startswith("model-") for name in repository.files), "old shards beside the new weights"
    assert {"model.safetensors", "demo.gif", ".gitattributes"} <= repository.files.keys()


def test_what_went_up_is_not_sent_again(export, hub, monkeypatch):
    """The second of two shards is cut for good; the next run sends that one only."""
    hub.faults = [["POST /nothing", 500, 0]]
    shards = ["--max_shard_size", "100KB"]
    first = sharing_hub.HfApi.preupload_lfs_files

    def one_then_broken(self, repo_id, additions, **settings):
        one = [item for item in additions if item.path_in_repo.endswith(".safetensors")][:1]
        first(self, repo_id, one, **settings)
        hub.faults = [["PUT /lfs/", "drop", 1000]]
        return first(self, repo_id, additions, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(sharing_hub.HfApi, "preupload_lfs_files", one_then_broken)
        message = error_of(export(*PUSH, *shards))
    assert "does not answer" in message and "was created and is still empty: run the same command again" in message
    assert len(hub.objects) == 1 and len(hub.repositories[MODEL].commits) == 1
    hub.faults, hub.requests = [], []
    assert done(export(*PUSH, *shards))
    weights = [name for name in hub.repositories[MODEL].files if name.endswith(".safetensors")]
    assert hub.requested("PUT /lfs/") == len(weights) - 1 > 0


def test_a_commit_whose_answer_is_lost_is_not_made_twice(export, hub):
    hub.faults = [["/commit/", "lost", 1]]
    message = error_of(export(*PUSH))
    commits = list(hub.repositories[MODEL].commits)
    assert f"the commit {commits[-1][:12]} arrived all the same: run the same command again" in message
    assert done(export(*PUSH)) and list(hub.repositories[MODEL].commits) == commits


def test_tags_stay_where_they_are(export, checkpoint, hub):
    assert done(export(*PUSH, "--revision", "v1")) and done(export(*PUSH, "--revision", "v1"))
    tagged = hub.repositories[MODEL].tags["v1"]
    results = ["--results", checkpoint / "results.json"]
    message = error_of(export(*PUSH, "--revision", "v1", *results))
    assert "but --revision v1 stands for" in message and "pushed as commit" in message
    assert "--revision v1: the tag stands for commit" in error_of(export(*PUSH, "--revision", "v1"))
    assert done(export(*PUSH, "--revision", "v2", *results))
    assert hub.repositories[MODEL].tags == {"v1": tagged, "v2": hub.repositories[MODEL].head}


def test_private_stays_private(export, hub, monkeypatch):
    assert done(export(*PUSH, "--private"))
    assert hub.repositories[MODEL].private
    assert done(export("--push", "--repo_id", "tester/open"))
    assert "is public: change it in its settings" in error_of(
        export("--push", "--repo_id", "tester/open", "--private")
    )


@pytest.mark.system
def test_the_space_is_pushed_beside_the_model(export, hub, tmp_path):
    code, _, errors = export(*PUSH, "--space")
    assert code == 0, errors[-1:]
    files = hub.repositories[f"spaces/{NAME}"].files
    assert {"app.py", "README.md", "requirements.txt"} <= files.keys()
    assert NAME in files["README.md"].decode() and (tmp_path / "export-space/app.py").is_file()
    assert "app.py" not in hub.repositories[MODEL].files
    assert done(export(*PUSH, "--space")) and len(hub.repositories[f"spaces/{NAME}"].commits) == 2
    files["README.md"] = b"---\ntitle: Chess\nsdk: gradio\napp_file: app.py\n---\n"
    assert f"{hub.url}/spaces/{NAME} holds another app: take another name" in error_of(export(*PUSH, "--space"))


# ---- failing well ----


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (["POST /api/repos/create", 500, 99], "has a fault of its own (500); nothing on the Hub was changed"),
        pytest.param(["GET /api/whoami-v2", 429, 99], "asks to slow down (429)", marks=pytest.mark.slow),
        (["GET /api/whoami-v2", "stall", 99], "does not answer (ReadTimeout)"),
        pytest.param(["/preupload/", 500, 99], "has a fault of its own (500)", marks=pytest.mark.slow),
        (["PUT /lfs/", 429, 99], "asks to slow down (429)"),
        (["PUT /lfs/", "drop", 99], "does not answer"),
        (["/commit/", 413, 99], "refuses the size"),
        (["/commit/", 500, 99], "has a fault of its own (500)"),
        pytest.param(["/commit/", 409, 99], "being changed by somebody else", marks=pytest.mark.slow),
        pytest.param(["/validate-yaml", 503, 99], "has a fault of its own (503)", marks=pytest.mark.slow),
    ],
)
def test_a_hub_at_fault_is_one_line_and_safe_to_run_again(fault, message, export, hub, monkeypatch):
    monkeypatch.setattr(sharing_hub, "READ_TIMEOUT", 0.5)
    hub.stall_seconds = 3
    hub.faults = [fault]
    found = error_of(export(*PUSH))
    assert message in found and "run the same command again" in found
    if MODEL in hub.repositories:
        assert f"{hub.url}/{NAME} was created and is still empty" in found
        assert len(hub.repositories[MODEL].commits) == 1
    hub.faults = []
    assert done(export(*PUSH)) and len(hub.repositories[MODEL].commits) == 2


def test_who_may_not_push(export, hub, monkeypatch):
    assert "the token may not write to other/tiny" in error_of(export("--push", "--repo_id", "other/tiny"))
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    assert "does not accept the token" in error_of(export(*PUSH))
    monkeypatch.setattr(sharing_hub, "get_token", lambda: None)
    assert "no token to push with: run `hf auth login`" in error_of(export(*PUSH))
    assert hub.repositories == {}


def test_a_name_taken_by_somebody_else(export, hub, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("HF_TOKEN", OTHER_TOKEN)
        assert done(export("--push", "--repo_id", "other/tiny"))
    message = error_of(export("--push", "--repo_id", "other/tiny", "--sample_images", "docs/demo.png"))
    assert "the token may not write to other/tiny" in message and f"{hub.url}/other/tiny is as it was" in message
    assert len(hub.repositories["models/other/tiny"].commits) == 2


def test_another_kind_of_model_is_not_written_over(export, hub):
    assert done(export(*PUSH))
    repository = hub.repositories[MODEL]
    repository.files["config.json"] = b'{"model_type": "bert"}'
    assert f"{hub.url}/{NAME} holds a bert model: take another name" in error_of(export(*PUSH))
    del repository.files["config.json"]
    assert f"{hub.url}/{NAME} holds model.safetensors: take another name" in error_of(export(*PUSH))
    assert len(repository.commits) == 2


def test_a_file_refused_for_its_size(export, hub):
    hub.max_lfs_bytes = 1000
    message = error_of(export(*PUSH))
    assert "refuses the size of a file or of the account: You need to buy more storage" in message
    assert "still empty" in message


def test_offline_says_so(export, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of(export(*PUSH))


def test_weights_that_are_not_numbers(export, copy):
    weights = load_file(copy / "model.safetensors")
    name = "model.pixel_decoder.mask_projection.weight"
    name = name if name in weights else sorted(key for key in weights if weights[key].is_floating_point())[5]
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    message = error_of(export("--dry_run", source=copy))
    assert f"--model_name_or_path {copy}: {name} holds values that are NaN or infinite: nothing to share" in message


def test_a_model_with_its_datasets_colours_is_shared(export, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"palette": {"0": "#a8cbe8"}}))
    assert done(export("--dry_run", source=copy))
    assert json.loads((tmp_path / "export" / "config.json").read_text())["palette"] == {"0": "#a8cbe8"}


def test_code_older_than_the_configuration(export, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"focus_temperature": 2.0}))
    message = error_of(export("--dry_run", source=copy))
    assert "has 'focus_temperature', which this code does not know: the code is older" in message
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_repository_whose_code_is_older_than_its_configuration(export, copy, tmp_path, hub, monkeypatch):
    """Pushed well and then spoilt, as by somebody else's commit: seen when it is loaded back."""
    push = sharing_hub.push

    def pushed_and_spoilt(*arguments):
        result = push(*arguments)
        files = hub.repositories[MODEL].files
        code = files["transformer_decoder_faseg.py"].decode()
        assert "self.config.attention_mask_threshold" in code
        code = code.replace("self.config.attention_mask_threshold", "0.9")
        files["transformer_decoder_faseg.py"] = code.encode()
        return result

    load_back = clean_load.load_back
    monkeypatch.setattr(sharing_hub, "push", pushed_and_spoilt)
    monkeypatch.setattr(clean_load, "load_back", lambda name, *rest: load_back(name, *rest) if name == NAME else 0.0)
    message = error_of(export(*PUSH, real_load=True))
    assert "pushed as commit" in message and "loads back with other logits: they differ by" in message


def test_figures_of_other_weights_and_missing_ones(export, checkpoint, copy, tmp_path):
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps(results | {"weights_sha256": "0" * 64}))
    message = error_of(export("--dry_run", "--results", copy / "results.json"))
    assert "measured on other weights" in message and "python scripts/eval.py" in message
    message = error_of(export("--dry_run", "--results", tmp_path / "none.json"))
    assert "no such file: write it with python scripts/eval.py" in message
    del results["per_class"]
    (copy / "results.json").write_text(json.dumps(results))
    assert "it has no 'per_class'" in error_of(export("--dry_run", "--results", copy / "results.json"))
    code, out, _ = export("--dry_run")
    assert code == 0 and "the card says 'not measured'" in out
    assert "Not measured:" in ModelCard.load(tmp_path / "export/README.md").text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --dry_run"),
        (["--push"], "--push needs --repo_id"),
        (["--push", "--repo_id", "no-user"], "write USER/NAME"),
        (["--push", "--repo_id", "a/b/c"], "--repo_id a/b/c"),
        (["--dry_run", "--space"], "--space needs --repo_id USER/NAME"),
        (["--dry_run", "--private"], "--private needs --push"),
        (["--dry_run", "--revision", "v1"], "--revision needs --push"),
        (["--dry_run", "--max_shard_size", "much"], "--max_shard_size much"),
        (["--dry_run", "--sample_images", "none.jpg"], "--sample_images none.jpg"),
        (["--dry_run", "--model_id", "faseg-none"], "no hub_cards/faseg-none/card.yaml: one of faseg-"),
        (["--dry_run", "--model_id", "semask-tiny-camvid"], "is a faseg model: name one of that type in hub_cards"),
        (["--dry_run", "--model_name_or_path", "nowhere/at-all-here"], "--model_name_or_path nowhere/at-all-here"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, export, hub):
    assert message in error_of(export(*flags, card=None if "--model_id" in flags else "card.yaml"))


# ---- nothing secret leaves ----


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "train_log.jsonl",
            '{"step": 1}\n{"resumed": "/home/jane/runs/checkpoint-2"}\n',
            "line 2: holds a place on this",
        ),
        ("train_log.jsonl", '{"image": "C:\\\\Users\\\\jane\\\\a.png"}\n', "line 1: holds a place on this machine"),
        ("recipe.yaml", f"seed: 0\n\nnote: hf_{'A' * 34}\n", "holds a Hugging Face token (hf_AAA...)"),
        ("recipe.yaml", "dataset_config_name: s3://key:secret@host/bucket\n", "holds an address with a password"),
        ("config.json", None, "holds a place on this machine (/scratch/jane/weights)"),
    ],
)
def test_what_must_not_leave_is_refused(name, text, message, export, copy, hub):
    if text is None:
        config = json.loads((copy / name).read_text())
        config["backbone_config"]["_name_or_path"] = "/scratch/jane/weights"
        text = json.dumps(config, indent=1)
    (copy / name).write_text(text)
    found = error_of(export(*PUSH, source=copy))
    assert message in found and name in found and re.search(r"line \d+", found)
    assert hub.requests == [] and "A" * 34 not in found


def test_a_file_put_into_the_folder_is_refused(export, tmp_path):
    assert done(export("--dry_run"))
    folder = tmp_path / "export"
    for name in ("optimizer.pt", "checkpoint-200/model.safetensors", ".env", "manifest.json", "pytorch_model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
        with pytest.raises(UserError, match=re.escape(name)):
            check_leaks(folder)
        (folder / name).unlink()
    check_leaks(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"from": "/mnt/jane/run"})
    with pytest.raises(UserError, match=r"model\.safetensors, line 1: holds a place on this machine"):
        check_leaks(folder)


# ---- killed, and the models' own push_to_hub ----


@pytest.mark.slow
def test_a_killed_push_goes_on(checkpoint, tmp_path, hub):
    """Killed in the middle of the upload of one of several shards; the next run sends the others only."""
    flags = ["--model_name_or_path", checkpoint, "--model_id", MODEL_ID, "--output_dir", tmp_path / "export", *PUSH]
    flags += ["--card", checkpoint / "card.yaml"]
    flags += ["--max_shard_size", "100KB"]
    hub.stall_seconds, hub.faults = 60, [["PUT /lfs/", None, 1], ["PUT /lfs/", "stall", 99]]
    killed = child(*flags, wait=False)
    for _ in range(24000):
        if hub.objects and hub.requested("PUT /lfs/") > 1:
            break
        threading.Event().wait(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode < 0 and len(hub.repositories[MODEL].commits) == 1
    arrived, hub.faults, hub.requests = len(hub.objects), [], []
    out = child(*flags)
    weights = [name for name in hub.repositories[MODEL].files if name.endswith(".safetensors")]
    assert hub.requested("PUT /lfs/") == len(weights) - arrived and arrived >= 1
    assert "loads from the Hub without this project; largest difference of logits 0" in out


LOAD = """
import sys
import numpy as np
from PIL import Image
from transformers import pipeline

for segment in pipeline("image-segmentation", sys.argv[1], trust_remote_code=True)(Image.open(sys.argv[2])):
    print(segment["label"], int((np.asarray(segment["mask"]) > 0).sum()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["model", "trainer"])
def test_push_to_hub_of_model_and_trainer_gives_a_working_repository(by, checkpoint, tmp_path, hub):
    """`model.push_to_hub` carries weights and code, `processor.push_to_hub` the rest; a Trainer carries both."""
    local = pipeline("image-segmentation", str(checkpoint))
    image = Image.open(checkpoint / "street.png")
    if by == "model":
        local.model.push_to_hub(NAME)
        local.image_processor.push_to_hub(NAME)
    else:
        arguments = TrainingArguments(tmp_path / "trainer", hub_model_id=NAME, report_to=[], use_cpu=True)
        Trainer(local.model, arguments, processing_class=local.image_processor).push_to_hub()
    printed = run_stranger(LOAD, [NAME, checkpoint / "street.png"], tmp_path)
    expected = [f"{segment['label']} {int((np.asarray(segment['mask']) > 0).sum())}" for segment in local(image)]
    assert printed.splitlines() == expected
