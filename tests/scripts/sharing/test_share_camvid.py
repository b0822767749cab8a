"""The model trained on CamVid, from its checkpoint to a stranger: pushed with its Space, pulled, run, bit for bit.

Needs what `README.md` trains and evaluates: `outputs/faseg-mobilenetv2-camvid`, its file under `results/`, and CamVid.
"""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from hub_exports import STRANGER, child, loopback, run_stranger
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from transformers import pipeline

from clean_process import PRELUDE
from scripts.evaluation.results import weights_sha256


ROOT = Path(__file__).parents[3]
MODEL_ID = "faseg-mobilenetv2-camvid"
CHECKPOINT, DATA = ROOT / "outputs" / MODEL_ID, ROOT / "outputs/data/camvid"
RESULTS = ROOT / "results" / f"{MODEL_ID}.json"
NAME = f"tester/{MODEL_ID}"
FILES = ["config.json", "preprocessor_config.json", "README.md", "LICENSE", "recipe.yaml", "train_log.jsonl"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (CHECKPOINT / "config.json").is_file(), reason=f"no {CHECKPOINT}: train it by its recipe"),
    pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}: link CamVid there"),
]

IN_THE_SPACE = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])  # a Space's program starts in its own folder
import app
import numpy as np

results, problems = app.segment_images([sys.argv[2]], app.MODELS[0], "semantic", 0.5)
assert not problems, problems
files = app.write_files(results, Path(sys.argv[3]))
print(app.MODELS[0], files[0])
"""


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """An image of CamVid's validation split."""
    row = next(iter(load_dataset(str(DATA), split="validation", streaming=True)))
    file = tmp_path_factory.mktemp("street") / "street.png"
    row["image"].convert("RGB").save(file)
    return file


@pytest.fixture
def hub(monkeypatch):
    with loopback(monkeypatch, stall_seconds=60) as server:
        yield server


def killed_when(condition, process) -> None:
    """Kills a process once something has happened, which must be before its end."""
    for _ in range(24000):
        if condition() or process.poll() is not None:
            break
        threading.Event().wait(0.01)
    process.kill()
    printed = process.communicate()
    assert process.returncode < 0, f"it ended before it could be killed: {printed}"


def test_camvid_model_from_checkpoint_to_stranger(street, tmp_path, hub):
    flags = [
        "--model_name_or_path",
        CHECKPOINT,
        "--model_id",
        MODEL_ID,
        "--results",
        RESULTS,
        "--sample_images",
        street,
        "--max_shard_size",
        "8MB",
    ]
    flags += ["--output_dir", tmp_path / "export", "--push", "--repo_id", NAME, "--space"]

    # ---- a push killed in its middle, one over a bad connection, one more that has nothing to do ----
    hub.faults = [["PUT /lfs/", None, 1], ["PUT /lfs/", "stall", 99]]
    killed_when(lambda: hub.objects and hub.requested("PUT /lfs/") > 1, child(*flags, wait=False))
    arrived = len(hub.objects)
    assert arrived and len(hub.repositories[f"models/{NAME}"].commits) == 1, "a commit of half of the files"
    hub.faults = [["PUT /lfs/", "drop", 1], ["PUT /lfs/", 503, 1], [f"GET /{NAME}/resolve", "drop", 2]]
    hub.requests = []
    printed = child(*flags)
    assert "loads from the Hub without this project; largest difference of logits 0" in printed
    repository, space = hub.repositories[f"models/{NAME}"], hub.repositories[f"spaces/{NAME}"]
    shards = [name for name in repository.files if name.endswith(".safetensors")]
    assert len(shards) > 2 and all(fault[2] == 0 for fault in hub.faults), hub.faults
    assert hub.requested("PUT /lfs/") == len(shards) - arrived + 2, "a shard that had arrived was sent again"
    assert set(FILES) <= repository.files.keys() and {"app.py", "README.md", "requirements.txt"} <= space.files.keys()
    assert yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])["models"] == [NAME]
    commits = [list(repository.commits), list(space.commits)]
    assert child(*flags).count("nothing to change, already at commit") == 2
    assert [list(repository.commits), list(space.commits)] == commits

    # ---- its card: the figures are those of the results file ----
    card = ModelCard(repository.files["README.md"].decode())
    results = json.loads(RESULTS.read_text())
    assert results["weights_sha256"] == weights_sha256(str(CHECKPOINT))
    figures = {metric.metric_type: metric.metric_value for metric in card.data.eval_results}
    assert figures["mean_iou"] == round(results["mean_iou"], 1) and f"{results['mean_iou']:.1f}" in card.text
    assert card.data.license == "cc-by-nc-4.0"

    # ---- a pull killed in its middle, then one over a connection that breaks ----
    hub.faults = [[f"/{NAME}/resolve", None, 12], [f"GET /{NAME}/resolve", "stall", 99]]
    hub.requests = []
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", PRELUDE + STRANGER, NAME, str(street), str(tmp_path / "there.npz")]
    pulling = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    killed_when(lambda: hub.faults[1][2] < 99, pulling)
    hub.faults = [[f"GET /{NAME}/resolve", "drop", 2], [f"GET /{NAME}/resolve", 503, 1]]
    printed = run_stranger(STRANGER, [NAME, street, tmp_path / "there.npz"], tmp_path)
    assert all(fault[2] == 0 for fault in hub.faults), hub.faults
    there = np.load(tmp_path / "there.npz")

    # ---- the same map, bit for bit: here, through the pipeline and through the auto classes there ----
    local = pipeline("image-segmentation", str(CHECKPOINT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there
    try:
        image = Image.open(street)
        segments = local(image)
        with torch.no_grad():
            outputs = local.model(**local.image_processor(images=[image], return_tensors="pt"))
    finally:
        torch.set_num_threads(threads)
    size = [(image.height, image.width)]
    labels = local.image_processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0].numpy()
    assert np.array_equal(there["logits"], outputs.masks_queries_logits)
    assert np.array_equal(there["labels"], labels) and len(np.unique(labels)) > 4
    ids = {name: index for index, name in local.model.config.id2label.items()}
    for segment in segments:
        assert np.array_equal(there[segment["label"]], np.asarray(segment["mask"]))
        assert np.array_equal(np.asarray(segment["mask"]) > 0, labels == ids[segment["label"]])
    assert {segment["label"] for segment in segments} <= {line.split(" (")[0] for line in printed.splitlines()}

    # ---- and in the Space, pulled from the Hub, with its own code ----
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")
    folder = snapshot_download(NAME, repo_type="space", local_dir=tmp_path / "space")
    (tmp_path / "found").mkdir()
    model, file = run_stranger(IN_THE_SPACE, [folder, street, tmp_path / "found"], tmp_path).split()[-2:]
    with Image.open(file) as found:
        assert model == NAME and np.array_equal(np.asarray(found), labels)
    assert not re.search(rb"hf_[A-Za-z]{20}", b"".join(repository.files.values()) + b"".join(space.files.values()))
