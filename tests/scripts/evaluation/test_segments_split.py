"""AP and PQ of a whole split: in any number of processes, by `scripts/eval.py`, and what it refuses."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from random_segments import Answers, instances_of, random_panoptic, write_segments
from random_splits import png, write_split
from tiny_folder import TINY_MODEL, decided
from training_processes import in_processes

from configuration import FASegConfig
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import eval as eval_command
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.segments import segments_of_ids, segments_of_masks
from scripts.evaluation import segments_split
from scripts.evaluation.average_precision import PrecisionCounts
from scripts.evaluation.panoptic_quality import PanopticCounts, image_counts
from scripts.evaluation.segment_rules import check_segment_classes
from scripts.evaluation.segments_split import evaluate_segments
from scripts.inference.found_segments import PanopticMap
from scripts.sharing.results_files import FIGURES, PER_CLASS, results_fault
from scripts.tables import results_markdown


NAMES = ["cell", "debris", "glass"]
STUFF = [2]
IMAGES = 9


def random_split():
    """`(reference, (panoptic map, instances))` of each image; one is empty."""
    rng = np.random.default_rng(0)
    pairs = [random_panoptic(rng, len(NAMES)) for _ in range(IMAGES - 1)]
    pairs.append((segments_of_ids(np.zeros((48, 48), dtype=int), {}), pairs[0][1]))
    return [
        (reference, (found, [each for each in instances_of(rng, found) if each.label not in STUFF]))
        for reference, found in pairs
    ]


def evaluated_split(folder, task, num_workers=0):
    split = random_split()
    data = LabelledDataset(DatasetArguments(dataset_name=str(folder)), "validation")
    data.task = task
    model = torch.nn.Identity()
    model.config = SimpleNamespace(num_labels=len(NAMES))
    processor = SimpleNamespace(task=task, label_ids_to_fuse=STUFF if task == "panoptic" else None)
    answers = Answers([found for _, found in split])
    scores = evaluate_segments(
        model, processor, data, Accelerator(cpu=True), answers, resamples=20, precision=True, num_workers=num_workers
    )
    return scores | {"segments": scores["segments"].tolist()}


def write_scores(folder, file, rank):
    """Of one of several processes."""
    scores = {task: evaluated_split(folder, task) for task in ("instance", "panoptic")}
    file.with_name(f"{file.name}{rank}").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    pytest.importorskip("pycocotools")
    return write_segments(tmp_path_factory.mktemp("segments"), [reference for reference, _ in random_split()], NAMES)


# ---- any number of processes


def test_figures_of_a_split_are_those_of_its_images(split):
    panoptic, things = PanopticCounts(len(NAMES), 20), PrecisionCounts(len(NAMES), [0, 1])
    for index, (reference, (found, instances)) in enumerate(random_split()):
        panoptic.add(index, reference, found)
        things.add(index, reference.chosen(~torch.isin(reference.classes, torch.tensor(STUFF))), instances)
    found = evaluated_split(split, "panoptic")
    expected = things.scores() | panoptic.scores([0, 1]) | {"interval": panoptic.interval(), "images": IMAGES}
    expected["segments"] = panoptic.segments().tolist()
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert 0.05 < found["average_precision"] < 0.95 and 0.05 < found["panoptic_quality"] < 0.95
    assert np.isnan(found["per_category_average_precision"]).tolist() == [False, False, True]


@pytest.mark.system
def test_two_processes_find_what_one_finds(split, tmp_path):
    write_scores(split, tmp_path / "alone", 0)
    codes, errors = in_processes(partial(write_scores, split, tmp_path / "both"), world=2)
    assert codes == [0, 0], errors
    expected = (tmp_path / "alone0").read_text()
    assert (tmp_path / "both0").read_text() == (tmp_path / "both1").read_text() == expected
    assert json.loads(expected)["instance"]["interval"]["low"] < json.loads(expected)["instance"]["interval"]["high"]
    again = evaluated_split(split, "instance", num_workers=2)
    assert json.dumps(again, sort_keys=True) == json.dumps(json.loads(expected)["instance"], sort_keys=True)


def test_overlapping_segments_make_no_panoptic_map():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[:, 1] = True
    reference = segments_of_masks(masks, [0, 1], [False] * 2, (4, 4))
    with pytest.raises(ValueError, match="reference segments overlap: panoptic quality needs at most one"):
        image_counts(reference, PanopticMap(np.zeros((4, 4), dtype=np.int32), []), 2)


@pytest.mark.parametrize("encoding", ["segments", "class_and_instance"])
def test_unnamed_data_with_stuff_are_no_instance_models(encoding):
    data = SimpleNamespace(task="instance", encoding=encoding, class_names=None, class_map=None)
    data.holds_instances_of_one_class, data.holds_class_maps = False, encoding != "segments"
    with pytest.raises(UserError, match=r"an instance model numbers the things alone.*give --id2label"):
        check_segment_classes(data, {0: "car", 1: "person"})


# ---- the command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Task -> folder of a tiny random model of `NAMES` for it; none may change it."""
    folders = {}
    for task in ("semantic", "instance", "panoptic"):
        folders[task] = folder = tmp_path_factory.mktemp(task)
        torch.manual_seed(0)
        names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
        fields = yaml.safe_load(TINY_MODEL)["config_overrides"]
        decided(FASegForUniversalSegmentation(FASegConfig(**fields, **names, task=task))).save_pretrained(folder)
        size, stuff = {"shortest_edge": 64, "longest_edge": 256}, STUFF if task == "panoptic" else None
        FASegImageProcessor(size=size, task=task, label_ids_to_fuse=stuff).save_pretrained(folder)
    return folders


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_command_measures_the_tasks_figures(evaluated, models, split, task, tmp_path):
    results, out = evaluated(models[task], split, "--bootstrap_samples", 10)
    assert results["task"] == task and results["images"] == IMAGES and results["segments"] > 20
    assert results["metric"].startswith({"instance": "mask AP", "panoptic": "PQ"}[task])
    assert results["protocol"]["name"] == "native" and len(results["weights_sha256"]) == 64
    assert list(results["per_class"]) == NAMES and set(PER_CLASS[task]) <= set(results["per_class"]["cell"])
    for key in FIGURES[task]:
        assert 0 <= results[key] <= 100
    assert results["interval"]["resamples"] == 10
    assert f"interval of {'PQ' if task == 'panoptic' else 'AP'} over images" in out and "AP75" in out
    assert ("things" in results) == (task == "panoptic") and "mean_iou" not in results
    # what reads results files
    assert results_fault(results) is None
    assert results_fault(results | {"task": "depth"}) == "has a wrong field: 'task' is 'depth', need " + ", ".join(
        FIGURES
    )
    table = results_markdown(tmp_path, "")
    assert f"| {results['average_precision']:.1f} |" in table and "mIoU" in table


def test_of_every_image_all_is_found_that_has_a_score(monkeypatch, models, split, evaluated):
    """Average precision counts detections of whatever score."""
    thresholds = []

    def build(model, processor, device, threshold, **_):
        thresholds.append(threshold)
        return Answers([found for _, found in random_split()])

    monkeypatch.setattr(segments_split, "SegmentPredictor", build)
    results, _ = evaluated(models["instance"], split, "--no_extended_metrics")
    assert thresholds == [0] and results["average_precision"] > 5 and "interval" not in results


@pytest.mark.parametrize("flags", [
    ["--tta"], ["--sliding_window"], ["--protocol", "ade20k"], ["--protocol_lens"], ["--focus"], ["--report"],
    ["--label_ids", "raw", "--protocol", "cityscapes"], ["--do_reduce_labels"],
], ids=lambda flags: flags[0])  # fmt: skip
def test_flags_of_class_maps_are_refused(command, models, split, flags, tmp_path):
    flags = [*flags, tmp_path / "page"] if flags == ["--report"] else flags
    given = ["--model_name_or_path", models["panoptic"], "--dataset_name", split, *flags]
    code, _, errors = command(eval_command, *given)
    assert code == 2 and len(errors) == 1
    assert "but the model is for --task panoptic: leave it out" in errors[0]


def test_a_semantic_model_is_scored_on_painted_maps(evaluated, models, split, tmp_path):
    """As on class maps of the same classes, 255 where no segment is."""
    rows = []
    for index, (reference, _) in enumerate(random_split()):
        image = np.random.default_rng(index).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        image[0, 0, 0] = index
        rows.append((f"#{index}", image, png(reference.label_map().numpy())))
    painted = write_split(tmp_path, rows)
    expected, _ = evaluated(models["semantic"], painted, "--no_extended_metrics")
    found, _ = evaluated(models["semantic"], split, "--no_extended_metrics")
    assert found["per_class"] == expected["per_class"] and found["mean_iou"] == expected["mean_iou"] > 0


def test_a_semantic_model_of_reduced_labels_is_scored_on_instances_beside_classes(evaluated, models, tmp_path):
    """As on class maps alone: 0 is ignored, the others start at 1."""
    model = shutil.copytree(models["semantic"], tmp_path / "model")
    FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, do_reduce_labels=True).save_pretrained(model)
    maps, both = [], []
    for index, (reference, _) in enumerate(random_split()):
        image = np.random.default_rng(index).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        classes = reference.label_map().numpy()
        stored = np.where(classes == 255, 0, classes + 1).astype(np.uint8)
        instances = reference.layers[0].numpy().astype(np.uint8)
        maps.append((f"#{index}", image, stored))
        both.append((f"#{index}", image, np.stack([stored, instances, np.zeros_like(stored)], axis=-1)))
    found = []
    for name, rows in (("maps", maps), ("both", both)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
        flags = ["--label_encoding", "class_and_instance"] if name == "both" else []
        found.append(evaluated(model, write_split(tmp_path / name, rows), "--no_extended_metrics", *flags)[0])
    assert found[0]["per_class"] == found[1]["per_class"] and found[0]["mean_iou"] == found[1]["mean_iou"] > 0


def test_segments_have_no_ids_of_class_maps(command, random_model, split):
    flags = ["--dataset_name", split, "--protocol", "cityscapes"]
    code, _, errors = command(eval_command, "--model_name_or_path", random_model(19), *flags)
    assert code == 2 and errors[-1].endswith("but these label maps hold segments: leave it out")


def test_other_classes_than_the_models_are_refused(command, evaluated, models, tmp_path):
    references = [reference for reference, _ in random_split()]
    given = ["--model_name_or_path", models["instance"], "--dataset_name"]
    more = write_segments(tmp_path / "more", references, [*NAMES, "dust"])
    code, _, errors = command(eval_command, *given, more)
    assert code == 2 and "classes of the data's segments: 4, of the model: 3: --thing_classes" in errors[-1]
    swapped = write_segments(tmp_path / "swapped", references, [NAMES[1], NAMES[0], NAMES[2]])
    code, _, errors = command(eval_command, *given, swapped)
    assert code == 2 and "class 'debris' is number 0 by the data" in errors[-1] and "but 1 in the model" in errors[-1]
    renamed = write_segments(tmp_path / "renamed", references, ["cells", *NAMES[1:]])
    code, _, errors = command(eval_command, *given, renamed, "--dataloader_num_workers", 0)
    assert code == 0 and any("'cells' is 'cell'" in line for line in errors)
    nameless = write_segments(tmp_path / "nameless", references)
    assert evaluated(models["panoptic"], nameless)[0]["images"] == IMAGES  # its numbers are taken for the model's
    code, _, errors = command(eval_command, *given, nameless)
    assert code == 2 and "nothing tells which ids of the data are things: give --id2label" in errors[-1]


def test_class_maps_hold_no_instances(command, models, shapes):
    given = ["--model_name_or_path", models["instance"], "--dataset_name", shapes]
    code, _, errors = command(eval_command, *given)
    assert code == 2 and "give --label_encoding instances" in errors[-1]


def test_model_and_processor_are_of_one_task(command, models, split, tmp_path):
    folder = tmp_path / "model"
    FASegForUniversalSegmentation.from_pretrained(models["panoptic"]).save_pretrained(folder)
    FASegImageProcessor.from_pretrained(models["instance"]).save_pretrained(folder)
    code, _, errors = command(eval_command, "--model_name_or_path", folder, "--dataset_name", split)
    assert code == 2 and "preprocessor_config.json says task instance, but config.json says panoptic" in errors[-1]


def test_without_pycocotools_it_says_what_to_install(monkeypatch, split):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(UserError, match=r"faseg-transformers\[coco\]"):
        evaluated_split(split, "instance")


# ----------------------------------------------------------------------------------------- instances without a name


@pytest.mark.parametrize(("task", "of_model"), [("instance", {0: "cell"}), ("semantic", {0: "background", 1: "cell"})])
def test_unnamed_instances_are_of_the_models_one_class(tmp_path, task, of_model):
    data = unnamed_instances(tmp_path, task)
    check_segment_classes(data, of_model)
    (row,) = data.stream
    painted = data.row_format.segments.painted(row, data.row_format, "a").unique().tolist()
    assert painted == ([0, 255] if task == "instance" else [0, 1])
    assert data.id2label[data.row_format.segments.classes.class_of(0, "a")] == "cell"


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_unnamed_instances_are_of_none_of_several_classes(tmp_path, task):
    with pytest.raises(UserError, match="instances of one class: name it by --thing_classes"):
        check_segment_classes(unnamed_instances(tmp_path, task), {0: "background", 1: "cell", 2: "debris"})


def unnamed_instances(folder, task):
    ids = np.zeros((8, 8), dtype=np.uint8)
    ids[2:4], ids[6:] = 1, 2
    flags = {name: str(folder / name) for name in ("eval_images", "eval_masks")}
    for place in flags.values():
        Path(place).mkdir()
        Image.fromarray(ids).save(Path(place) / "a.png")
    data = LabelledDataset(DatasetArguments(**flags, label_encoding="instances"), "validation")
    data.task = task
    return data
