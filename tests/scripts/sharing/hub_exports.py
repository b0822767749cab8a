"""What the tests of exports share: a tiny checkpoint with its results, and clients that talk to a loopback Hub."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from push_hub import TOKEN, PushHub
from tiny_folder import decided

from clean_process import run_clean
from scripts.cli.parser import parse_arguments
from scripts.evaluation.results import weights_sha256
from scripts.models.input_channels import set_num_channels
from scripts.models.loading import build_config, build_model, build_processor, save_model_folder
from scripts.sharing.card_facts import card_file
from scripts.sharing.fit import architecture
from scripts.training.arguments import TrainArguments


ROOT = Path(__file__).parents[3]
LABELS = {index: f"class {index}" for index in range(6)}
MODEL_ID = "faseg-mobilenetv2-camvid"
NAME = "tester/tiny"
TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE


def done(outcome):
    """That a command succeeded."""
    code, _, errors = outcome
    assert code == 0, errors[-1:]
    return True


def error_of(outcome):
    """The one line of a user error, after whatever progress was shown."""
    code, _, errors = outcome
    assert code == 2 and "Traceback" not in "\n".join(errors), errors
    lines = [line for line in errors if line.startswith("export_hub.py: error: ")]
    assert len(lines) == 1 and lines[0] == errors[-1], errors
    return lines[0].removeprefix("export_hub.py: error: ")


def write_checkpoint(recipe, folder, num_channels=3, **settings):
    """A training run's output folder, with what must not leave it, `results.json` and `card.yaml` of its weights.

    Args:
        settings: of the image processor.
    """
    arguments = parse_arguments(TrainArguments, [str(recipe)])
    torch.manual_seed(0)
    config = build_config(arguments, LABELS)
    set_num_channels(config, num_channels)
    size = {"shortest_edge": 64, "longest_edge": 128}
    processor = build_processor(arguments, config, size=size, num_labels=6, **settings)
    model = decided(build_model(arguments, config))
    save_model_folder(model, processor, folder)
    (folder / "recipe.yaml").write_text(
        f"dataset_name: {folder}/data/camvid\noutput_dir: {folder}\nmax_train_steps: 3\nhub_token: {TOKEN}\n"
        "backbone_weights: ../weights/mobilenetv2_100.safetensors\nlearning_rate: 0.001\n"
    )
    (folder / "train_log.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.bin").write_bytes(b"state")
    rows = {label: {"iou": 10.0 + index, "accuracy": 20.0 + index} for index, label in LABELS.items()}
    rows["class 5"] = {"iou": None, "accuracy": None}
    results = {
        "metric": "mIoU, mean over classes present in the ground truth, ignored pixels left out",
        "mean_iou": 12.34, "mean_accuracy": 45.67, "overall_accuracy": 89.01, "mean_boundary_iou": None,
        "interval": {"low": 11.1, "high": 13.3, "confidence": 0.95, "resamples": 10, "seed": 0},
        "per_class": rows, "segment_sizes": [{"max_area": 9, "mean_iou": 3.21}, {"max_area": None, "mean_iou": 50.0}],
        "dataset": "camvid", "split": "validation", "images": 3, "protocol": {"name": "native", "shortest_edge": 64},
        "weights_sha256": weights_sha256(str(folder)), "parameters": model.num_parameters(),
        "project": {"commit": "abcdef0123"},
        "command": f"python scripts/eval.py --model_name_or_path {folder} --dataset_name ../data/shapes",
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    facts = yaml.safe_load(card_file(MODEL_ID).read_text())
    own = {"classes": list(LABELS.values()), "architecture": architecture(config)}
    (folder / "card.yaml").write_text(yaml.safe_dump(facts | own))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    image.save(folder / "street.png")
    return folder


@contextmanager
def loopback(monkeypatch, **settings):
    """A `PushHub` that this process and its children take for the Hub."""
    with PushHub(**settings) as hub:
        environment = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", TEMPLATE.replace(TEMPLATE.split("/{")[0], hub.url)
        )
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made anew, with the endpoint of now
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


# What a user runs who has nothing of this project: the card's snippet, the pipeline and the auto classes.
STRANGER = """
import json, re, sys
import numpy as np, torch
from PIL import Image
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

name, image, output = sys.argv[1:]
torch.set_num_threads(1)
image = Image.open(image)
segments = pipeline("image-segmentation", name, trust_remote_code=True)(image)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForUniversalSegmentation.from_pretrained(name, trust_remote_code=True)
with torch.no_grad():
    outputs = model(**processor(images=[image], return_tensors="pt"))
size = [(image.height, image.width)]
np.savez(
    output,
    logits=outputs.masks_queries_logits,
    labels=processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0],
    **{segment["label"]: np.asarray(segment["mask"]) for segment in segments},
)
snippets = re.findall(r"```python\\n(.*?)```", ModelCard.load(name).text, re.DOTALL)
assert len(snippets) == 2 and len(snippets[0].strip().splitlines()) == 6, snippets
for snippet in snippets:
    exec(snippet)
"""


def run_stranger(program, arguments, folder):
    """A process that cannot import the project, with empty caches, on the loopback Hub of the environment."""
    offline = os.environ["HF_HUB_OFFLINE"]
    return run_clean(program, list(map(str, arguments)), folder, HF_HUB_OFFLINE=offline)


def child(*arguments, wait=True):
    """export_hub.py in a process of its own, on the loopback Hub of the environment."""
    command = [sys.executable, "scripts/export_hub.py", *map(str, arguments)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        out, errors = started.communicate(timeout=280)
        assert started.returncode == 0, errors[-3000:]
        return out
    return started
