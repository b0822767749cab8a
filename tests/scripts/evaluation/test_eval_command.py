"""`scripts/eval.py` under protocols, through windows, over broken samples; what it writes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from random_splits import patches, random_pixels, samples, write_split

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import eval as eval_command
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSamples
from scripts.evaluation.mean_iou import confusion_matrix, scores_from_confusion, valid_part
from scripts.evaluation.results import build_results, command_line, project_commit, weights_sha256
from scripts.evaluation.split import evaluate_split
from scripts.inference.predictors import SingleScale, window_scores
from scripts.inference.sliding_window import Windows


# ---- what it writes


def test_results_say_what_was_measured(evaluated, shapes_model, shapes):
    results, out = evaluated(shapes_model, shapes, "--bootstrap_samples", 40)
    assert results["protocol"] == {"name": "native", "shortest_edge": 64, "longest_edge": 256}
    assert results["images"] == 3 and results["skipped"] == [] and results["processes"] == 1
    revision = results["dataset_revision"]
    assert len(revision["sha256"]) == 64 and revision["files"] == len(list(shapes.glob("**/validation*.parquet")))
    assert results["project"] == project_commit()
    assert results["seconds"] > 0 and "torch" in results["versions"] and "eval.py" in results["command"]
    assert results["interval"]["low"] <= results["interval"]["high"]
    for key in ("mean_iou", "mmseg_mean_iou", "mean_boundary_iou", "mean_accuracy", "frequency_weighted_iou"):
        assert 0 <= results[key] <= 100
        assert f"{results[key]:.2f}" in out
    assert set(results["per_class"]["LABEL_1"]) == {"iou", "accuracy", "boundary_iou"}
    assert sum(group["segments"] for group in results["segment_sizes"]) > 3
    assert "protocol_lens" not in results


def test_the_tiny_model_tells_classes_apart(shapes_model):
    """Else none of the figures above depended on where things are."""
    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor.from_pretrained(shapes_model)
    image = Image.fromarray(random_pixels(np.random.default_rng(0)))
    assert len(np.unique(SingleScale(model, processor, "cpu")(image))) > 1


def test_the_command_and_the_weights_are_recorded_without_the_machine(monkeypatch, tmp_path, shapes_model):
    monkeypatch.setattr("sys.argv", [str(PROJECT_ROOT / "scripts" / "eval.py"), "--tta"])
    assert command_line() == "python scripts/eval.py --tta"
    monkeypatch.setattr("sys.argv", [str(tmp_path / "eval.py")])
    assert command_line() == "python eval.py"
    folder = weights_sha256(str(shapes_model))
    assert len(folder) == 64
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *names, **settings: str(shapes_model))
    assert weights_sha256("somebody/model") == folder
    monkeypatch.undo()
    assert weights_sha256("somebody/no-such-model") is None


def test_maps_without_a_class_give_a_file_of_nothing(evaluated, shapes_model, tmp_path):
    rng = np.random.default_rng(0)
    data = write_split(tmp_path, [("a", random_pixels(rng), patches(rng, [255]))])
    results, out = evaluated(shapes_model, data, "--bootstrap_samples", 5, "--allow_absent_classes")
    assert results["mean_iou"] is None and results["interval"]["low"] is None
    assert "interval of mean IoU over images: - to -" in out


def test_quick_results_leave_out_what_is_dear(evaluated, shapes_model, shapes):
    results, _ = evaluated(shapes_model, shapes, "--no_extended_metrics")
    assert not {"interval", "segment_sizes", "mean_boundary_iou"} & set(results)
    assert set(results["per_class"]["LABEL_1"]) == {"iou", "accuracy"}


# ---- protocols


def test_ade20k_reduces_raw_maps(evaluated, random_model, tmp_path):
    """0 is unlabelled, 1..150 are the classes; sizes are the benchmark's, not the checkpoint's."""
    rng = np.random.default_rng(0)
    data = write_split(tmp_path, [(f"{i}", random_pixels(rng), patches(rng, [0, 1, 150])) for i in range(2)])
    results, _ = evaluated(random_model(150), data, "--protocol", "ade20k", "--no_extended_metrics")
    assert results["do_reduce_labels"] is True
    protocol = results["protocol"]
    assert (protocol["name"], protocol["shortest_edge"], protocol["longest_edge"]) == ("ade20k", 512, 2048)
    present = [number for number, row in enumerate(results["per_class"].values()) if row["iou"] is not None]
    assert present == [0, 149]


def test_maps_reduced_already_are_not_reduced_again(command, evaluated, random_model, tmp_path):
    rng = np.random.default_rng(0)
    data = write_split(tmp_path, [("a", random_pixels(rng), patches(rng, [0, 149, 255]))])
    flags = ["--protocol", "ade20k", "--eval_shortest_edge", 64, "--no_extended_metrics"]
    given = ["--model_name_or_path", random_model(150), "--dataset_name", data]
    code, _, errors = command(eval_command, *given, *flags)
    assert code == 2 and "Give --label_ids reduced; if 0 is unlabelled in them, --label_ids train" in errors[-1]
    results, _ = evaluated(random_model(150), data, *flags, "--label_ids", "reduced")
    assert results["do_reduce_labels"] is False and results["protocol"]["label_ids"] == "reduced"
    present = [number for number, row in enumerate(results["per_class"].values()) if row["iou"] is not None]
    assert present == [0, 149]
    results, _ = evaluated(random_model(150), data, *flags, "--label_ids", "train")
    present = [number for number, row in enumerate(results["per_class"].values()) if row["iou"] is not None]
    assert present == [148]


def test_cityscapes_recognises_raw_ids(evaluated, random_model, tmp_path):
    """The same image with train ids and with the dataset's own: the same result, and it says which."""
    rng = np.random.default_rng(0)
    image, train = random_pixels(rng), patches(rng, [0, 10, 13, 255])
    table = np.full(256, 1, dtype=np.uint8)  # ego vehicle
    table[[0, 10, 13]] = 7, 23, 26
    found = []
    for name, ids in (("train", train), ("raw", table[train])):
        (tmp_path / name).mkdir()
        data = write_split(tmp_path / name, [("a", image, ids)])
        flags = ["--protocol", "cityscapes", "--eval_shortest_edge", 64, "--no_extended_metrics"]
        results, _ = evaluated(random_model(19), data, *flags)
        assert results["protocol"]["label_ids"] == name
        found.append(results["per_class"])
    assert found[0] == found[1]
    present = [number for number, row in enumerate(found[0].values()) if row["iou"] is not None]
    assert present == [0, 10, 13]


def test_windows_of_a_protocol(evaluated, shapes_model, shapes):
    flags = ["--sliding_window", "--crop_size", 64, "--stride", 48, "--no_extended_metrics"]
    results, _ = evaluated(shapes_model, shapes, *flags, "--tta", "--max_eval_samples", 1)
    assert results["protocol"]["sliding_window"] == {"crop": 64, "stride": 48}
    assert min(results["protocol"]["tta_shortest_edges"]) == 64 and results["protocol"]["longest_edge"] is None


# ---- windows


def test_scores_of_windows_are_averaged_where_they_overlap():
    rng = np.random.default_rng(0)
    image = Image.fromarray(random_pixels(rng, 40, 70))
    windows, calls = Windows(32, 20), []

    def processor(images, **_):
        calls.extend(images)
        size = (1, images[0].height, images[0].width)
        return {"pixel_values": torch.zeros(size), "pixel_mask": torch.ones(size)}

    def model(**_):
        return SimpleNamespace(logits=torch.full((1, 2, 8, 8), float(len(calls))))

    model.config = SimpleNamespace(num_labels=2)
    own = FASegImageProcessor(size_divisor=0)
    processor.semantic_scores = own.semantic_scores

    found = window_scores(model, processor, image, (40, 70), windows, "cpu").stacked()
    starts = [(top, left) for top in (0, 8) for left in (0, 20, 38)]
    expected, count = np.zeros((40, 70)), np.zeros((40, 70))
    for number, (top, left) in enumerate(starts, 1):
        expected[top : top + 32, left : left + 32] += number
        count[top : top + 32, left : left + 32] += 1
        assert calls[number - 1].size == (32, 32)
        assert np.array_equal(np.asarray(calls[number - 1]), np.asarray(image)[top : top + 32, left : left + 32])
    assert len(calls) == 6 and np.allclose(found.numpy(), expected / count)


def test_one_window_over_all_is_no_window(shapes_model):
    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor.from_pretrained(shapes_model)
    image = Image.fromarray(random_pixels(np.random.default_rng(0), 64, 64))
    processor.size = {"shortest_edge": 64, "longest_edge": 64}
    plain = SingleScale(model, processor, "cpu")(image)
    assert np.array_equal(SingleScale(model, processor, "cpu", Windows(64, 40))(image), plain)
    assert window_scores(model, processor, image, (64, 64), Windows(48, 40), "cpu").stacked().shape == (6, 64, 64)


# ---- lens


def test_the_lens_shows_the_same_weights_under_other_habits(evaluated, shapes_model, shapes):
    results, out = evaluated(shapes_model, shapes, "--protocol-lens", "--no_extended_metrics")
    rows = {row["habit"]: row for row in results["protocol_lens"]}
    assert len(rows) == 3 and all(habit in out for habit in rows)
    assert rows["protocol"]["detectron2"] == results["mean_iou"]
    assert rows["protocol"]["mmseg"] == rows["protocol"]["torchmetrics_macro"] == results["mmseg_mean_iou"]


@pytest.mark.parametrize("flags", ["--tta", "--sliding_window --crop_size 48"])
def test_the_lens_compares_at_a_single_scale(flags, evaluated, shapes_model, shapes):
    plain, _ = evaluated(shapes_model, shapes, "--protocol_lens", "--no_extended_metrics")
    other, _ = evaluated(shapes_model, shapes, "--protocol_lens", "--no_extended_metrics", *flags.split())
    assert other["protocol_lens"] == plain["protocol_lens"]
    assert other["mean_iou"] != plain["mean_iou"]


def test_the_lens_squashes_as_transformers_does(shapes_model, shapes):
    """Its own Mask2Former post-processing on the same outputs gives the same labels."""
    from transformers import Mask2FormerImageProcessor

    from scripts.evaluation.lens import ProtocolLens

    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor.from_pretrained(shapes_model)
    image = Image.fromarray(random_pixels(np.random.default_rng(0), 40, 70))
    inputs = processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    expected = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes=[(40, 70)])[0]
    found = ProtocolLens(model, processor, "cpu").squashed_labels(image)
    assert (found == expected.numpy()).mean() > 0.999  # ties


def test_the_lens_resizes_the_ground_truth(shapes_model):
    from scripts.evaluation.lens import ProtocolLens

    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    processor = FASegImageProcessor.from_pretrained(shapes_model)
    rng = np.random.default_rng(0)
    image, ids = random_pixels(rng, 40, 56), patches(rng, range(6))
    lens = ProtocolLens(model, processor, "cpu")
    lens.add({"image": Image.fromarray(image), "label": ids, "index": 0}, ids)
    assert [int(total.sum()) for total in lens.totals] == [40 * 56, 40 * 56, 64 * 64]
    assert lens.rows()[0]["detectron2"] == 1


# ---- broken samples


class Stub(torch.nn.Module):
    """Stands for a model of six classes."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_labels": 6})()


def constant(image):
    return np.zeros((image.height, image.width), dtype=np.uint8)


def evaluate_stub(folder, bad_samples, num_workers=0):
    data = LabelledDataset(DatasetArguments(dataset_name=str(folder)), "validation")
    return evaluate_split(Stub(), None, data, Accelerator(), constant, None, num_workers, bad_samples=bad_samples)


def test_a_bad_sample_in_a_hundred_is_skipped_and_named(tmp_path):
    skipped = BadSamples()
    _, images = evaluate_stub(write_split(tmp_path, samples(200, p3="image", p150="sizes")), skipped, num_workers=1)
    assert images == 198
    assert len(skipped.messages) == 2 and "p3" in skipped.messages[0] and "p150" in skipped.messages[1]
    assert skipped.messages == sorted(skipped.messages)
    assert "0x" not in skipped.messages[0]


def test_more_bad_samples_stop(tmp_path):
    folder = write_split(tmp_path, samples(20, p3="image", p7="sizes"))
    with pytest.raises(UserError, match=r"2 bad samples, more than the 1 of --max_bad_samples; the last: sample p7"):
        evaluate_stub(folder, BadSamples())
    assert evaluate_stub(folder, BadSamples(2))[1] == 18
    with pytest.raises(UserError, match="1 bad samples, more than the 0"):
        evaluate_stub(folder, BadSamples(0))


def test_bad_samples_of_one_name_are_as_many_and_in_order(tmp_path):
    broken = {"bytes": b"no image", "path": None}
    folder = write_split(tmp_path, [*samples(2), *(("p", broken, ids) for _, _, ids in samples(3))])
    skipped = BadSamples(3)
    assert evaluate_stub(folder, skipped)[1] == 2
    assert [message[-8:] for message in skipped.messages] == [" (row 2)", " (row 3)", " (row 4)"]


def test_an_id_outside_the_classes_stops_at_once(tmp_path):
    folder = write_split(tmp_path, samples(3, p1="id"))
    with pytest.raises(UserError, match=r"label 77 in image p1 but 6 classes \(0\.\.5\)"):
        evaluate_stub(folder, BadSamples(3))


def test_skipped_samples_are_in_the_results(evaluated, shapes_model, tmp_path):
    folder = write_split(tmp_path, samples(4, p2="image"))
    results, out = evaluated(shapes_model, folder, "--max_bad_samples", 1)
    assert results["images"] == 3 and len(results["skipped"]) == 1 and "p2" in results["skipped"][0]
    assert "skipped: image of sample p2" in out


# ---- errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--protocol imagenet", "--protocol imagenet: choose one of ade20k, cityscapes"),
        ("--protocol ade20k", "--protocol ade20k has 150 classes, the model 6"),
        ("--label_ids some", "--label_ids some: choose one of auto"),
        ("--stride 20", "--crop_size and --stride belong to --sliding_window"),
        ("--sliding_window --crop_size 32 --stride 40", "--stride 40 is more than the window of 32"),
        ("--eval_longest_edge 99", "--eval_longest_edge belongs to --eval_shortest_edge"),
        ("--tta_shortest_edges 64", "--tta_shortest_edges and --tta_longest_edge belong to --tta"),
        ("--label_ids raw", "--label_ids raw: --protocol native knows no other ids"),
        ("--label_ids train", "--label_ids train belongs to a --protocol"),
        ("--protocol cityscapes --label_ids reduced", "classes of --protocol cityscapes start at 0 anyway"),
        ("--do_reduce_labels --label_ids reduced", "contradict each other"),
        ("--bootstrap_samples 0", "--bootstrap_samples 0: give at least 1"),
        ("--bootstrap_samples 100000000", "--bootstrap_samples 100000000: give at most 100000"),
        ("--protocol ade20k --class_map some.yaml", "--class_map changes the classes of --protocol ade20k"),
        ("--protocol ade20k --mask_values 0=a 1=b", "--mask_values changes the classes of --protocol ade20k"),
        ("--max_bad_samples -1", "--max_bad_samples -1: give at least 0"),
    ],
)
def test_errors_are_one_line(flags, message, command, shapes_model, shapes):
    code, _, errors = command(
        eval_command, "--model_name_or_path", shapes_model, "--dataset_name", shapes, *flags.split()
    )
    errors = [line for line in errors if line and not line.startswith("Loading weights: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0], errors


def test_classes_of_one_name_are_told_apart_by_their_ids():
    """A model from elsewhere may have such: each keeps its figures."""
    scores = {"mean_iou": 0.5, "per_category_iou": [0.25, 0.5, 0.75]}
    per_class = build_results(scores, {0: "door", 1: "car", 2: "door"})["per_class"]
    assert per_class == {"door (id 0)": {"iou": 25.0}, "car": {"iou": 50.0}, "door (id 2)": {"iou": 75.0}}


def test_a_perfect_reference_of_reduced_labels_scores_one(tmp_path):
    """Reduced once, in the worker: neither the matrix nor a counter reduces again."""
    rng = np.random.default_rng(0)
    ids = patches(rng, range(7))
    folder = write_split(tmp_path, [("a", random_pixels(rng), ids)])
    data = LabelledDataset(DatasetArguments(dataset_name=str(folder), do_reduce_labels=True), "validation")
    truth = np.where(ids == 0, 3, ids - np.uint8(1)).astype(np.uint8)
    confusion, _ = evaluate_split(Stub(), None, data, Accelerator(), lambda image: truth, num_workers=0)
    assert scores_from_confusion(confusion)["mean_iou"] == 1
    plain = valid_part(confusion_matrix(truth, ids, 256), 6, reduce_labels=True)
    assert np.array_equal(confusion, plain) and not math.isnan(confusion.sum())
