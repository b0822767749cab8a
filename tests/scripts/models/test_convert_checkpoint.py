"""Official checkpoints to from_pretrained folders: names, bad files, download, and the folder itself."""

import http.server
import json
import os
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_processes import run_script

from clean_process import run_clean
from golden_cases import indexed, load_case, normalized_batch, official_state_dict, tiny_config
from modeling_faseg import FASegForUniversalSegmentation
from scripts import convert_checkpoint
from scripts.models.checkpoint_files import download, read_checkpoint
from scripts.models.parameter_names import (
    ConversionError,
    convert_state_dict,
    official_parameter_names,
    official_source,
)
from scripts.storage.digests import sha256


ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def case():
    """`(official state dict, config)` of a narrow model."""
    tensors, meta = load_case(None, "full_r50narrow")
    return official_state_dict(tensors), tiny_config(meta)


@pytest.fixture(scope="module")
def files(case, tmp_path_factory):
    """A folder with the narrow model's `config.json` and its checkpoint in every kind of file."""
    official, config = case
    folder = tmp_path_factory.mktemp("files")
    config.save_pretrained(folder)
    save_file(official, folder / "model.safetensors")
    torch.save({"model": official, "iteration": 7}, folder / "model.pth")
    torch.save(official, folder / "plain.pkl")
    return folder


# --- names -----------------------------------------------------------------------------------------------------------


def test_packed_projections_are_split_in_order(case):
    official, config = case
    converted = convert_state_dict(official, config)
    layer = "model.transformer_decoder.layers.3.cross_attn."
    packed = official["sem_seg_head.predictor.transformer_cross_attention_layers.3.multihead_attn.in_proj_weight"]
    joined = torch.cat([converted[f"{layer}{letter}_proj.weight"] for letter in "qkv"])
    assert torch.equal(joined, packed)


def test_every_value_arrives_once(case):
    official, config = case
    converted = convert_state_dict(official, config)
    names = official_parameter_names(config)
    assert converted.keys() == names.keys()
    counted = sum(value.numel() for name, value in converted.items() if not name.endswith("num_batches_tracked"))
    assert counted == sum(value.numel() for value in official.values())
    assert set(official) <= set(names.values())


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("swin.encoder.layers.2.blocks.5.attention.k_proj.bias", "encoder.layers.2.blocks.5.attention.self.key.bias"),
        (
            "swin.encoder.layers.0.blocks.1.attention.o_proj.bias",
            "encoder.layers.0.blocks.1.attention.output.dense.bias",
        ),
        ("swin.encoder.layers.0.blocks.1.mlp.fc1.bias", "encoder.layers.0.blocks.1.intermediate.dense.bias"),
        ("swin.encoder.layers.0.blocks.1.mlp.fc2.bias", "encoder.layers.0.blocks.1.output.dense.bias"),
        (
            "swin.encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_table",
            "encoder.layers.0.blocks.1.attention.self.relative_position_bias_table",
        ),
        ("swin.embeddings.patch_embeddings.projection.bias", "embeddings.patch_embeddings.projection.bias"),
    ],
)
def test_both_spellings_of_swin(new, old):
    assert official_source(f"model.backbone.{new}") == official_source(f"model.backbone.{old}")


def test_frozen_batch_norms_start_counting_at_zero(case):
    official, config = case
    assert not any(name.endswith("num_batches_tracked") for name in official)
    converted = convert_state_dict(official, config)
    counters = [value for name, value in converted.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 53
    assert all(value == 0 and value.dtype == torch.int64 for value in counters)


def without(official, *prefixes):
    return {name: value for name, value in official.items() if not name.startswith(prefixes)}


def test_missing_and_unexpected_names_are_listed(case):
    official, config = case
    broken = without(official, "sem_seg_head.predictor.decoder_norm.weight") | {"surprise.weight": torch.zeros(1)}
    with pytest.raises(ConversionError) as error:
        convert_state_dict(broken, config)
    assert "sem_seg_head.predictor.decoder_norm.weight" in str(error.value)
    assert "surprise.weight" in str(error.value)


def test_constants_are_knowingly_ignored(case):
    official, config = case
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    assert convert_state_dict(official | extra, config).keys() == convert_state_dict(official, config).keys()


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        (("sem_seg_head.predictor.adapt_pos2d", "sem_seg_head.pixel_decoder.pos_linear"), "Mask2Former"),
        (("sem_seg_head.", "criterion."), "no head weights"),
        (("backbone.", "sem_seg_head.", "criterion."), "no tensors"),
    ],
)
def test_checkpoint_of_another_model(case, prefixes, said):
    official, config = case
    with pytest.raises(ConversionError, match=said):
        convert_state_dict(without(official, *prefixes), config)


def test_decode_head_checkpoint(case):
    official, config = case
    other = {f"decode_head.{name}": value for name, value in official.items()}
    with pytest.raises(ConversionError, match="SeMask"):
        convert_state_dict(other, config)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_labels", 19, "num_labels=6.*num_labels=19"),
        ("hidden_dim", 96, "hidden_dim=64.*hidden_dim=96"),
        ("num_queries", 20, "num_queries=8.*num_queries=20"),
        ("mask_feature_size", 64, "mask_feature_size=32.*mask_feature_size=64"),
        ("encoder_feedforward_dim", 512, "encoder_feedforward_dim=1024.*encoder_feedforward_dim=512"),
        ("dim_feedforward", 128, "dim_feedforward=64.*dim_feedforward=128"),
        ("decoder_layers", 4, "decoder_layers=5.*decoder_layers=4"),
        ("encoder_layers", 2, "encoder_layers=1.*encoder_layers=2"),
    ],
)
def test_other_sizes_are_named_with_both_values(case, field, value, said):
    official, config = case
    settings = config.to_dict()
    for name in ("id2label", "label2id"):
        settings.pop(name)
    settings |= {"num_labels": 6, field: value}
    if field == "hidden_dim":
        settings["feature_size"] = value
    with pytest.raises(ConversionError, match=said):
        convert_state_dict(official, type(config)(**settings))


def test_other_backbone_width(case):
    official, config = case
    settings = config.to_dict()
    settings["backbone_config"]["hidden_sizes"] = [64, 128, 256, 512]
    with pytest.raises(ConversionError, match=r"\(32, 8, 1, 1\).*\(64, 8, 1, 1\)"):
        convert_state_dict(official, type(config)(**settings))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "plain.pkl"])
def test_kinds_of_files(case, files, name):
    official, _ = case
    found = read_checkpoint(files / name)
    assert found.keys() == official.keys()
    assert all(torch.equal(value, official[key]) for key, value in found.items())


class RunsCode:
    """A pickle of this makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


BAD_FILES = {  # name of a checkpoint -> what the error must say
    "absent.pth": "no such",
    "folder.pth": "not a file",
    "truncated.pth": "truncated",
    "truncated.safetensors": "truncated",
    "empty.pth": "empty",
    "empty.safetensors": "truncated",
    "empty.pkl": "empty",
    "page.pth": "page.pth",
    "code.pth": "mkdir",
    "code.pkl": "run code",
    "official_layout.pkl": "pickle",
    "list.pth": "list, not a state dict",
    "lists.pth": "not a tensor",
    "nan.pth": "not finite",
    "model.onnx": "unknown kind",
}


@pytest.fixture(scope="module")
def bad_files(files, tmp_path_factory):
    """Folder of the checkpoints that `BAD_FILES` names."""
    folder = tmp_path_factory.mktemp("bad")
    whole = (files / "model.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    whole = (files / "model.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.pth", "empty.safetensors", "empty.pkl"):
        (folder / name).write_bytes(b"")
    (folder / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    torch.save({"model": {"weight": RunsCode(str(folder / "ran"))}}, folder / "code.pth")
    (folder / "code.pkl").write_bytes(pickle.dumps({"model": RunsCode(str(folder / "ran"))}))
    numbers = {"model": {"stem.conv1.weight": np.zeros(3)}, "__author__": "third party"}
    (folder / "official_layout.pkl").write_bytes(pickle.dumps(numbers))
    torch.save([1, 2], folder / "list.pth")
    torch.save({"model": {"weight": [1.0]}}, folder / "lists.pth")
    torch.save({"weight": torch.tensor([float("nan")])}, folder / "nan.pth")
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "folder.pth").mkdir()
    return folder


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_exit_code_2(name, files, bad_files, tmp_path, command):
    flags = ["--checkpoint", bad_files / name, "--config", files / "config.json", "--output_dir", tmp_path / "out"]
    code, _, errors = command(convert_checkpoint, *flags)
    assert code == 2
    assert len(errors) == 1, errors
    assert BAD_FILES[name] in errors[0]
    assert not (tmp_path / "out").exists()
    assert not (bad_files / "ran").exists(), "a pickle ran its code"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model_id", "faseg-resnet50-ade20k"], "--output_dir"),
        (["--output_dir", "out"], "--model_id or --config"),
        (["--output_dir", "out", "--model_id", "faseg-resnet18"], "faseg-resnet50-ade20k"),
        (["--output_dir", "out", "--config", "nowhere.json", "--checkpoint", "x.pth"], "nowhere.json"),
        (["--output_dir", "out", "--config", "config.json"], "--checkpoint"),
        (["--output_dir", "out", "--no_such_flag", "1"], "no_such_flag"),
    ],
)
def test_wrong_flags(argv, said, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, errors = command(convert_checkpoint, *argv)
    assert (code, len(errors)) == (2, 1)
    assert said in errors[0]


@pytest.mark.parametrize(
    "content", ["{", '{"model_type": "resnet"}', '{"model_type": "faseg", "num_queries": "many"}']
)
def test_wrong_config(content, files, tmp_path, command):
    (tmp_path / "config.json").write_text(content)
    flags = [
        "--checkpoint",
        files / "model.pth",
        "--config",
        tmp_path / "config.json",
        "--output_dir",
        tmp_path / "out",
    ]
    code, _, errors = command(convert_checkpoint, *flags)
    assert (code, len(errors)) == (2, 1)


# --- folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    """A folder that the command wrote."""
    folder = tmp_path_factory.mktemp("converted") / "narrow"
    flags = ["--checkpoint", files / "model.pth", "--config", files / "config.json", "--output_dir", folder]
    finished = run_script(ROOT / "scripts" / "convert_checkpoint.py", *flags, folder=folder.parent)
    assert finished.returncode == 0, finished.stderr
    assert sha256(files / "model.pth") in finished.stdout
    return folder


@pytest.mark.system
def test_folder_loads_with_the_same_numbers(case, converted):
    official, config = case
    tensors, _ = load_case(None, "full_r50narrow")
    model, info = FASegForUniversalSegmentation.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values()), info
    for name, value in convert_state_dict(official, config).items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        logits = model.eval()(normalized_batch(indexed(tensors, "in/image_"))).class_queries_logits
    assert (logits - tensors["out/pred_logits"]).abs().max() < 1e-4


@pytest.mark.system
def test_constants_that_a_trimmed_checkpoint_lacks_come_from_the_config(case, files, converted, tmp_path, command):
    """The weights of the classes in the loss are none of the training's."""
    official, _ = case
    save_file(without(official, "criterion."), tmp_path / "trimmed.safetensors")
    flags = ["--checkpoint", tmp_path / "trimmed.safetensors", "--config", files / "config.json"]
    code, printed, errors = command(convert_checkpoint, *flags, "--output_dir", tmp_path / "out")
    assert code == 0, errors
    assert "not in the checkpoint, computed from the config: criterion.empty_weight\n" in printed
    trimmed, whole = load_file(tmp_path / "out" / "model.safetensors"), load_file(converted / "model.safetensors")
    assert trimmed.keys() == whole.keys() and all(torch.equal(value, whole[name]) for name, value in trimmed.items())


@pytest.mark.system
def test_folder_loads_where_the_project_cannot_be_imported(converted, tmp_path):
    program = """
import importlib.util, sys
assert importlib.util.find_spec("modeling_faseg") is None
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation
model, info = AutoModelForUniversalSegmentation.from_pretrained(
    sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, type(processor).__name__)
"""
    output = run_clean(program, [str(converted)], tmp_path)
    assert output.split() == ["FASegForUniversalSegmentation", "FASegImageProcessor"]


def test_a_filled_folder_is_kept_unless_told_otherwise(files, tmp_path, command):
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    flags = ["--checkpoint", files / "model.pth", "--config", files / "config.json", "--output_dir", output]
    code, _, errors = command(convert_checkpoint, *flags)
    assert (code, len(errors)) == (2, 1)
    assert "--overwrite" in errors[0]
    assert (output / "precious.txt").read_text() == "mine"

    code, printed, _ = command(convert_checkpoint, *flags, "--overwrite")
    assert code == 0
    assert str(output) in printed
    assert not (output / "precious.txt").exists()
    assert (output / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == [output]


def test_an_interrupted_write_leaves_nothing(files, tmp_path, monkeypatch, command):
    def stop(model, processor, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr("scripts.models.loading.save_model_folder", stop)
    flags = ["--checkpoint", files / "model.pth", "--config", files / "config.json", "--output_dir", tmp_path / "out"]
    code, _, errors = command(convert_checkpoint, *flags)
    assert (code, len(errors)) == (2, 1)
    assert "No space left" in errors[0]
    assert list(tmp_path.iterdir()) == []


# --- download --------------------------------------------------------------------------------------------------------


class Server:
    """A loopback web server of one file that continues downloads and can hang up in the middle."""

    def __init__(self, content: bytes):
        self.content = content
        self.etag = '"one"'
        self.ranges_allowed = True
        self.bytes_before_hanging_up: list[int] = []
        self.status = 200
        self.asked: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/release/model.pth"

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.status != 200:
            return handler.send_error(self.status)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges_allowed else 0
        if handler.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        total = len(self.content)
        if start and start >= total:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{total}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(total - start))
        handler.end_headers()
        body = self.content[start:]
        handler.wfile.write(body[: self.bytes_before_hanging_up.pop(0)] if self.bytes_before_hanging_up else body)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    server = Server(bytes(range(256)) * 4096)
    yield server
    server.close()


def test_download_goes_on_after_lost_connections(server, tmp_path):
    server.bytes_before_hanging_up = [100_000, 50_000]
    path = download(server.url, tmp_path, wait_seconds=0)
    assert path.read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pth"]
    download(server.url, tmp_path)
    assert len(server.asked) == 3, "a complete file was fetched again"


def test_download_goes_on_in_the_next_run(server, tmp_path):
    server.bytes_before_hanging_up = [100_000]
    with pytest.raises(ConversionError, match="100000 bytes are kept"):
        download(server.url, tmp_path, attempts=1)
    assert not (tmp_path / "model.pth").exists()
    assert download(server.url, tmp_path).read_bytes() == server.content
    assert server.asked[-1] == "bytes=100000-"


def test_download_never_joins_two_versions(server, tmp_path):
    server.bytes_before_hanging_up = [100_000]
    with pytest.raises(ConversionError):
        download(server.url, tmp_path, attempts=1)
    server.content, server.etag = server.content[::-1], '"two"'
    assert download(server.url, tmp_path).read_bytes() == server.content


def test_download_from_a_server_that_cannot_continue(server, tmp_path):
    server.ranges_allowed, server.etag = False, ""
    server.bytes_before_hanging_up = [100_000]
    assert download(server.url, tmp_path, wait_seconds=0).read_bytes() == server.content


@pytest.mark.parametrize("surplus", [0, 10])
def test_download_of_which_everything_or_more_had_arrived(server, tmp_path, surplus):
    (tmp_path / "model.pth.part").write_bytes(server.content + b"x" * surplus)
    assert download(server.url, tmp_path, wait_seconds=0).read_bytes() == server.content


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 2)])
def test_download_refused(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(ConversionError, match=str(status)):
        download(server.url, tmp_path, attempts=2, wait_seconds=0)
    assert len(server.asked) == requests


def test_command_fetches_and_converts(files, server, tmp_path, monkeypatch, command):
    server.content = (files / "model.pth").read_bytes()
    server.bytes_before_hanging_up = [1_000_000]
    monkeypatch.setattr(convert_checkpoint, "HUB_CARDS", tmp_path)
    card = tmp_path / "faseg-resnet50-ade20k"
    card.mkdir()
    (card / "config.json").write_text((files / "config.json").read_text())
    base = server.url.rsplit("/", 1)[0] + "/"
    code, printed, errors = command(
        convert_checkpoint,
        *(
            "--model_id",
            card.name,
            "--url",
            base,
            "--download_dir",
            tmp_path / "cache",
            "--output_dir",
            tmp_path / "out",
        ),
    )
    assert code == 0, errors
    assert sha256(files / "model.pth") in printed
    assert any("ade_faseg_r50.pth" in line and "%" in line for line in errors), "no progress bar"
    assert (tmp_path / "cache" / "ade_faseg_r50.pth").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "faseg"


def test_command_offline(server, files, tmp_path, monkeypatch, command):
    server.close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    flags = ["--url", server.url, "--download_dir", tmp_path, "--output_dir", tmp_path / "out"]
    code, _, errors = command(convert_checkpoint, "--config", files / "config.json", *flags)
    assert (code, len(errors)) == (2, 1)
    assert "cannot fetch" in errors[0]
    assert "--checkpoint" in errors[0]


def test_processor_of_a_bare_config_agrees_with_it(tmp_path):
    """Without a preprocessor file beside `--config` the folder's processor reads labels as the model counts them."""
    from scripts.convert_checkpoint import config_and_processor

    content = {"model_type": "faseg", "task": "instance", "num_labels": 3, "ignore_value": 200}
    (tmp_path / "config.json").write_text(json.dumps(content))
    _, processor = config_and_processor(tmp_path / "config.json")
    assert (processor.task, processor.num_labels, processor.ignore_index) == ("instance", 3, 200)
