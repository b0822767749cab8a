"""One open data set: what it knows is read once, and its workers carry little."""

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer

from clean_process import run_apart
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset


ROOT = Path(__file__).parents[3]
PROGRAM = """
import json
from collections import Counter
sys.path.insert(0, sys.argv[1])
import datasets
from scripts.cli.parser import parse_arguments
from scripts.data import folders, sources
from scripts.training.arguments import TrainArguments
from scripts.training.run import set_up

calls = Counter()

def counted(module, name):
    original = getattr(module, name)

    def call(*args, **kwargs):
        calls[name if name != "hf_hub_download" else args[1]] += 1
        return original(*args, **kwargs)

    setattr(module, name, call)

counted(datasets, "load_dataset_builder")
counted(sources, "hf_hub_download")
run = set_up(parse_arguments(TrainArguments, sys.argv[2:]))
names = next(run.batches())["names"]
config = run.network.config
known = {"classes": config.num_labels, "palette": config.palette, "commit": run.settings["data: commit"]}
print(json.dumps({"calls": calls, "known": known, "names": names}))
"""


@pytest.mark.system
def test_a_training_run_opens_its_dataset_once(shapes, tiny_recipe, tmp_path):
    """From flags to the first batch, off the Hub: one look at its files, one request for each file beside the data."""
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)
    (folder / "palette.json").write_text('["#010203"]')
    flags = [str(tiny_recipe), "--dataset_name", "tester/shapes", "--output_dir", str(tmp_path / "run")]
    with HubServer(folder) as server:
        printed, _ = run_apart(
            PROGRAM,
            [str(ROOT), *flags, "--max_train_steps", "1"],
            tmp_path,
            HF_ENDPOINT=server.url,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_DATASETS_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
    found = json.loads(printed.splitlines()[-1])
    card = {"README.md": 1, ".huggingface.yaml": 1}
    assert found["calls"] == {"load_dataset_builder": 1, "id2label.json": 1, "palette.json": 1, **card}
    assert found["known"] == {"classes": 6, "palette": {"0": "#010203"}, "commit": COMMIT}
    assert found["names"]
    asked = Counter(server.asked)
    files = [name for name in asked if name.endswith(("id2label.json", "palette.json"))]
    assert len(files) >= 2 and all(asked[name] == 1 for name in files), files


def test_another_split_has_the_same_classes(shapes, tmp_path, monkeypatch):
    (tmp_path / "classes.yaml").write_text("ignore: [tree]")
    arguments = DatasetArguments(dataset_name=str(shapes), class_map=str(tmp_path / "classes.yaml"))
    data = LabelledDataset(arguments, "train")
    assert list(data.id2label.values()) == ["sky", "terrain", "road", "house", "car"]
    monkeypatch.setattr("scripts.data.labelled_dataset.classes_file", None)  # not asked again
    validation = data.other_split("validation")
    assert len(list(validation.stream)) == 3 and validation.id2label == data.id2label


@pytest.mark.parametrize("class_map", [None, "ignore: [tree]"])
def test_what_goes_to_the_workers_is_light(shapes, tmp_path, class_map):
    if class_map:
        (tmp_path / "classes.yaml").write_text(class_map)
    file = str(tmp_path / "classes.yaml") if class_map else None
    form = LabelledDataset(DatasetArguments(str(shapes), class_map=file, do_reduce_labels=True), "train").row_format
    sent = pickle.dumps(form)
    assert len(sent) < 4096
    again = pickle.loads(sent)
    assert (again.image_column, again.label_column, again.do_reduce_labels) == ("image", "label", True)
    assert (again.class_map is None) == (class_map is None)
