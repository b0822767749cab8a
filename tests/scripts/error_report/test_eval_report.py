"""`scripts/eval.py --report`: what the page says equals figures computed here in the plainest way."""

import base64
import csv
import html
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from random_splits import blobs, patches, random_pixels, write_split
from report_cases import NAMES, Told, section, told_image, write_page
from training_processes import run_script_twice

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import eval as eval_command
from scripts.error_report.confusion import SHOWN_CLASSES, largest_confusions
from scripts.error_report.counts import (
    DISTANCES,
    CalibrationCounts,
    DistanceCounts,
    boundary_distances,
    size_groups,
)
from scripts.error_report.images import WRONG_COLOUR, ImageRanking, error_map
from scripts.eval import DEFAULT_REPORT, EvaluateArguments, build_predictor, report_file
from scripts.evaluation.protocols import EvaluationSizes
from scripts.evaluation.segment_size import SegmentSizeCounts
from scripts.inference.predictors import (
    MultiScale,
    SingleScale,
    confidence_of,
    image_scores,
    labels_and_confidence,
    multi_scale_scores,
    processed_inputs,
    resized_view,
    semantic_labels,
    semantic_scores,
    view_size,
    window_scores,
)
from scripts.inference.sliding_window import Windows


ROOT = Path(__file__).parents[3]


# ---- distance from a boundary


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_distances_are_those_to_the_nearest_other_label(seed, cell):
    labels = blobs(seed, (9, 12), 3, cell)
    rows, columns = np.mgrid[:9, :12]
    for (row, column), found in np.ndenumerate(boundary_distances(labels)):
        steps = np.maximum(abs(rows - row), abs(columns - column))[labels != labels[row, column]]
        assert found == (steps.min() if steps.size else np.iinfo(np.int32).max)


def test_errors_count_in_the_band_of_their_distance():
    label = np.zeros((4, 200), dtype=np.uint8)
    label[:, 100:] = 1  # so column 99 and 100 are one pixel from another label, 98 and 101 two, ...
    label[:, 199] = 255  # whose outline is a boundary, too, and which itself counts nowhere
    prediction = label.copy()
    wrong_columns = {99: 1, 97: 1, 96: 1, 91: 2, 50: 3, 10: 1, 198: 2, 199: 4}  # column -> wrong pixels in it
    for column, count in wrong_columns.items():
        prediction[:count, column] = 1 - min(int(label[0, column]), 1)
    counter = DistanceCounts()
    counter.add({"label": label}, prediction)
    # distances 1 (twice), 3, 4, 9, 50, 90
    assert counter.totals[1].tolist() == [1 + 2, 0, 1 + 1, 0, 2, 0, 3, 1]
    expected = {1: 4 * (2 + 1), 2: 4 * (2 + 1), 4: 4 * (4 + 2), 8: 4 * (8 + 4), 16: 4 * (16 + 8), 32: 4 * (32 + 16)}
    assert counter.totals[0, :6].tolist() == [expected[last] for last in DISTANCES[:6]]
    assert counter.totals[0].sum() == 4 * 199


def test_a_map_of_one_label_is_far_from_any_boundary():
    counter = DistanceCounts()
    counter.add({"label": np.full((5, 6), 2, dtype=np.uint8)}, np.zeros((5, 6), dtype=np.uint8))
    assert counter.totals[:, -1].tolist() == [30, 30] and counter.totals.sum() == 60


# ---- segment size


def test_missed_pixels_by_size_of_segment():
    label = np.zeros((64, 64), dtype=np.uint8)
    label[28:] = 1
    label[5, 5] = label[10, 10] = label[15, 15] = 1  # three of one pixel
    prediction = np.where(np.arange(64)[:, None] >= 30, 1, 0).repeat(64, axis=1).astype(np.uint8)
    counter = SegmentSizeCounts(2)
    counter.add({"label": label}, prediction)
    groups = size_groups(counter)
    found = [(group.smallest, group.largest, group.segments, group.pixels, group.wrong) for group in groups]
    assert found[0] == (1, 1, 3, 3, 3)
    assert [row[2:] for row in found[1:]] == [(1, 28 * 64 - 3, 0), (1, 36 * 64, 2 * 64)]
    assert found[1][0] == 2 and found[-1][1] is None


# ---- calibration


def calibrated(*images):
    counter = CalibrationCounts(Told(*((prediction, confidence) for _, prediction, confidence in images)))
    for label, *_ in images:
        counter.add({"label": label}, counter(None))
    return counter


def test_bins_and_calibration_error_by_hand():
    label = np.array([[0, 0, 1, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 1, 0]], dtype=np.uint8)
    confidence = np.array([[0.5, 0.52, 0.99, 1.0, 0.1]])
    found = calibrated((label, prediction, confidence)).scores()
    assert found.pixels.tolist() == [0] * 10 + [2] + [0] * 8 + [2]
    assert found.accuracy[[10, 19]].tolist() == [0.5, 1]
    assert found.confidence[[10, 19]] == pytest.approx([0.51, 0.995], abs=1e-6)
    assert found.mean_accuracy == 0.75 and found.mean_confidence == pytest.approx(0.7525, abs=1e-6)
    assert found.expected_calibration_error == pytest.approx(0.5 * 0.01 + 0.5 * 0.005, abs=1e-6)


def test_calibration_error_is_the_textbook_s():
    images = [told_image(seed) for seed in range(4)]
    found = calibrated(*images).scores()
    label, prediction, confidence = (np.concatenate([p[i].ravel() for p in images]) for i in range(3))
    right, sure = (label == prediction)[label != 255], confidence.astype(np.float32)[label != 255]
    error = 0
    for number in range(20):
        inside = (sure >= number / 20) & ((sure < (number + 1) / 20) | (number == 19))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-4) and error > 0.02


def test_calibration_adds_up_over_processes_to_the_bit():
    images = [told_image(seed) for seed in range(5)]
    whole, parts = calibrated(*images), [calibrated(*images[::-2]), calibrated(*images[1::2])]
    assert np.array_equal(whole.totals, parts[0].totals + parts[1].totals)


# ---- confidence of a model


@pytest.fixture(scope="module")
def network(shapes_model):
    """With milder masks than the other tests', whose scores may be zero for all classes."""
    model = FASegForUniversalSegmentation.from_pretrained(shapes_model).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "mask_embedder" in name and name.endswith("weight"):
                value.div_(6)
    return model, FASegImageProcessor.from_pretrained(shapes_model)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(random_pixels(np.random.default_rng(0), 100, 70))


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_confidence_is_the_best_class_s_share_of_the_scores(network, image, task):
    """Made row by row; the label map is the evaluated one, to the bit."""
    model, processor = network
    processor = FASegImageProcessor(**{**processor.to_dict(), "task": task})
    inputs = processed_inputs(processor, image, "cpu")
    labels, confidence = labels_and_confidence(image_scores(model, processor, inputs, (100, 70)), softmax=False)
    assert np.array_equal(labels, semantic_labels(model, processor, inputs, (100, 70)))
    scores = semantic_scores(model, processor, inputs, (100, 70))
    torch.testing.assert_close(torch.from_numpy(confidence), scores.amax(0) / scores.sum(0), rtol=1e-4, atol=1e-5)
    assert confidence.max() - confidence.min() > 0.1


def test_confidence_of_several_sizes_and_of_windows(network, image):
    model, processor = network
    windows, edges = Windows(48, 40), [(48, None), (64, None)]
    single, several = (
        SingleScale(model, processor, "cpu", windows),
        MultiScale(model, processor, "cpu", (64, 256), edges),
    )
    view = resized_view(image, processor.network_size(100, 70), flip=False)
    through_windows = window_scores(model, processor, view, (view.height, view.width), windows, "cpu").stacked()
    through_windows = torch.nn.functional.interpolate(through_windows[None], size=(100, 70), mode="bilinear")[0]
    base = resized_view(image, view_size(image, 64, 256), flip=False)
    over_sizes = multi_scale_scores(model, processor, base, (100, 70), edges).stacked()
    for predictor, scores in ((single, through_windows), (several, over_sizes)):
        labels, confidence = predictor.with_confidence(image)
        assert np.array_equal(labels, predictor(image))
        assert np.allclose(confidence, confidence_of(scores).numpy(), atol=1e-6)


def test_confidence_without_queries_is_the_softmax_s():
    logits = 5 * torch.randn(1, 3, 16, 16)
    model = lambda **inputs: SimpleNamespace(logits=logits)  # noqa: E731
    processor = FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    inputs = {"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": torch.ones(1, 64, 64, dtype=torch.int64)}
    labels, confidence = labels_and_confidence(image_scores(model, processor, inputs, (64, 64)), softmax=True)
    large = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")[0]
    assert (labels == large.argmax(0).numpy()).mean() > 0.999  # but for ties
    torch.testing.assert_close(torch.from_numpy(confidence), large.softmax(0).amax(0), atol=1e-5, rtol=0)


def test_mmsegmentation_s_views_are_made_of_the_image_itself(network, image):
    model, processor = network
    edges = [(48, None), (64, None)]
    found = MultiScale(model, processor, "cpu", None, edges).scores(image).stacked()
    assert torch.equal(found, multi_scale_scores(model, processor, image, (100, 70), edges).stacked())
    assert not torch.allclose(found, MultiScale(model, processor, "cpu", (64, 256), edges).scores(image).stacked())


@pytest.mark.parametrize(
    ("protocol", "model_type", "base"),
    [
        ("native", "faseg", (64, 256)),
        ("ade20k", "faseg", (64, 256)),
        ("cityscapes", "semask", None),
        ("ade20k", "qlseg", None),
        ("coco-stuff10k", "faseg", None),
        ("pascal-context", "faseg", None),
    ],
)
def test_who_resizes_before_the_views(protocol, model_type, base):
    """detectron2, so FASeg's own protocols; not mmsegmentation, so neither its protocols nor the models of it."""
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    arguments, sizes = EvaluateArguments(tta=True, protocol=protocol), EvaluationSizes((64, 256), ((48, None),))
    assert build_predictor(arguments, model, None, sizes, "cpu").base == base


def test_nothing_found_is_no_confidence():
    assert confidence_of(torch.zeros(3, 2, 2)).tolist() == [[0, 0], [0, 0]]


# ---- best and worst images


def flat(share_wrong, index, size=(20, 10)):
    """A sample of two classes, half each, of whose first class so much is wrong, and its prediction."""
    width, height = size
    label = np.zeros((height, width), dtype=np.uint8)
    label[height // 2 :] = 1
    prediction = label.copy()
    prediction[0, : round(share_wrong * width)] = 1
    image = Image.new("RGB", size, (index, 0, 0))
    return {"image": image, "label": label, "name": f"p{index}", "index": index}, prediction


def names(images):
    return [kept.name for kept in images]


def test_the_best_and_the_worst_are_kept_and_no_more():
    order = np.random.default_rng(0).permutation(20)  # image i has i / 20 of a row wrong
    ranking = ImageRanking(2, images=3)
    halves = [ImageRanking(2, images=3), ImageRanking(2, images=3)]
    for index in map(int, order):
        ranking.add(*flat(index / 20, index))
        halves[index % 2].add(*flat(index / 20, index))
        assert len(ranking.worst) <= 3 and len(ranking.best) <= 3
    worst, best = ranking.ranked()
    assert names(worst) == ["p19", "p18", "p17"] and names(best) == ["p0", "p1", "p2"]
    right, missed = 100 - 19, 19
    iou = (right / 100 + 100 / (100 + missed)) / 2
    assert worst[0].mean_iou == pytest.approx(iou) and worst[0].accuracy == pytest.approx(1 - 19 / 200)

    gathered = ImageRanking(2, images=3)  # what gather_object gives: the lists of all processes, one after another
    gathered.worst, gathered.best = halves[1].worst + halves[0].worst, halves[1].best + halves[0].best
    gathered.totals += halves[0].totals + halves[1].totals
    gathered.gather(Accelerator())
    assert [names(kept) for kept in gathered.ranked()] == [names(worst), names(best)]


def test_no_image_is_in_both_lists_and_ignored_ones_are_in_none():
    ranking = ImageRanking(2, images=3)
    for index in range(3):
        ranking.add(*flat(index / 4, index))
    sample, prediction = flat(0.5, 9)
    ranking.add({**sample, "label": np.full_like(sample["label"], 255)}, prediction)
    worst, best = ranking.ranked()
    assert names(worst) == ["p2", "p1"] and names(best) == ["p0"]


def test_images_are_kept_small():
    ranking = ImageRanking(2, images=1)
    ranking.add(*flat(0.5, 1, (4000, 1000)))
    (kept,), _ = ranking.ranked()
    assert kept.image.size == kept.errors.size == (480, 120)
    assert kept.truth.shape == kept.prediction.shape == (120, 480)
    assert kept.truth[:60].max() == 0 and kept.truth[60:].min() == 1


def test_error_map_shows_thin_errors_and_ignored_parts():
    wrong, ignored = np.zeros((960, 960), dtype=bool), np.zeros((960, 960), dtype=bool)
    wrong[:480, 101], ignored[600:] = True, True
    wrong[:480, 200:240] = True
    colours = np.asarray(error_map(Image.new("RGB", (960, 960), (200, 200, 200)), wrong, ignored), dtype=int)
    orange, grey = WRONG_COLOUR.astype(int), np.full(3, 210)
    assert np.array_equal(colours[10, 110], orange) and not colours[400].any()
    assert np.array_equal(colours[10, 300], grey)
    assert np.abs(colours[10, 50] - (orange + grey) / 2).max() <= 1  # one pixel of two


# ---- the page


def titles(part):
    """What the pointer shows, over charts and cells."""
    found = re.findall(r"""<title>(.*?)</title>|<td[^>]* title='(.*?)'|<div[^>]* title="(.*?)\"""", part)
    return [html.unescape("".join(words)) for words in found]


def cells(part):
    """The text of the rows of the tables in it."""
    rows = re.findall(r"<tr>(.*?)</tr>", part)
    return [[html.unescape(re.sub("<.*?>", "", c)) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", r)] for r in rows]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    images = [told_image(seed) for seed in range(7)]
    return images, write_page(folder / "page.html", images)[0]


def everything(images):
    """Labels, predictions and confidences of all pixels that are not ignored."""
    label, prediction, confidence = (np.concatenate([p[i].ravel() for p in images]) for i in range(3))
    valid = label != 255
    return label[valid], prediction[valid], confidence.astype(np.float32)[valid]


def test_page_shows_the_confusion(told):
    images, page = told
    label, prediction, _ = everything(images)
    shown = titles(section(page, "confusion"))
    assert len(shown) == 16
    for truth in range(4):
        for taken in range(4):
            pixels = ((label == truth) & (prediction == taken)).sum()
            share = 100 * pixels / (label == truth).sum()
            assert f"{NAMES[truth]} taken for {NAMES[taken]}: {share:.2f} %, {pixels} px" in shown
    rows = cells(section(page, "confusion"))
    assert rows[0][1:] == list(NAMES.values())
    share = 100 * ((label == 2) & (prediction == 1)).sum() / (label == 2).sum()
    assert rows[3][0] == NAMES[2] and rows[3][2] == f"{share:.0f}"

    data = base64.b64decode(re.search(r"text/csv;charset=utf-8;base64,(.*?)\"", page)[1]).decode()
    table = list(csv.reader(io.StringIO(data)))
    assert table[0][1:] == list(NAMES.values())
    assert int(table[3][2]) == ((label == 2) & (prediction == 1)).sum()


def test_page_shows_the_largest_confusions(told):
    images, page = told
    label, prediction, _ = everything(images)
    pairs = {
        (truth, taken): ((label == truth) & (prediction == taken)).sum()
        for truth in range(4) for taken in range(4) if truth != taken
    }  # fmt: skip
    (truth, taken), pixels = max(pairs.items(), key=lambda pair: pair[1])
    rows = cells(section(page, "confusion").split("Largest confusions")[1])
    of_class, of_errors = 100 * pixels / (label == truth).sum(), 100 * pixels / (label != prediction).sum()
    assert rows[1] == [NAMES[truth], NAMES[taken], f"{of_class:.1f}", f"{of_errors:.1f}"]
    assert f"{of_class:.1f} % of {NAMES[truth]} is taken for {NAMES[taken]}" in html.unescape(page)


def test_page_shows_the_classes(told):
    images, page = told
    label, prediction, _ = everything(images)
    shown = titles(section(page, "classes"))
    order = []
    for index, name in NAMES.items():
        hit, either = (
            ((label == index) & (prediction == index)).sum(),
            ((label == index) | (prediction == index)).sum(),
        )
        share = 100 * (label == index).mean()
        line = f"{name}: IoU {100 * hit / either:.2f} %, {share:.1f} % of the pixels"
        assert shown.count(line) == 1
        order.append((hit / either, index))
    # Weakest first.
    assert [line.split(": IoU")[0] for line in shown] == [NAMES[index] for _, index in sorted(order)]


def test_page_shows_the_distances(told):
    images, page = told
    pixels, wrong = np.zeros(300), np.zeros(300)
    for label, prediction, _ in images:
        rows, columns = np.mgrid[: label.shape[0], : label.shape[1]]
        for (row, column), own in np.ndenumerate(label):
            if own != 255:
                distance = np.maximum(abs(rows - row), abs(columns - column))[label != own].min()
                pixels[distance] += 1
                wrong[distance] += prediction[row, column] != own
    found = {row[0]: row[1:] for row in cells(section(page, "distance")) if row}
    for band, inside in (("1 px", slice(1, 2)), ("2 px", slice(2, 3)), ("3-4 px", slice(3, 5))):
        rate, share = wrong[inside].sum() / pixels[inside].sum(), wrong[inside].sum() / wrong.sum()
        assert found[band] == [f"{100 * part:.1f} %" for part in (rate, share, pixels[inside].sum() / pixels.sum())]
    assert pixels[5:9].sum() and not pixels[33:].sum()
    assert found["33-64 px"] == ["-", "0.0 %", "0.0 %"]
    near = 100 * wrong[:5].sum() / wrong.sum()
    assert f"{near:.1f} % of the wrong pixels lie at most 4 px from a boundary" in page


def test_page_shows_the_calibration(told):
    images, page = told
    label, prediction, confidence = everything(images)
    found = {row[0]: row[1:] for row in cells(section(page, "calibration")) if row}
    inside = (confidence >= 0.75) & (confidence < 0.8)
    right, sure = (label == prediction)[inside].mean(), confidence[inside].mean()
    assert found["75 to 80 %"] == [str(inside.sum()), f"{100 * sure:.1f} %", f"{100 * right:.1f} %"]
    assert "no probabilities by themselves" in page
    overall = f"{100 * confidence.mean():.1f} % sure on average, {100 * (label == prediction).mean():.1f} % right"
    assert page.count(overall) == 2  # at the top and beside the diagram


def test_page_shows_the_images(told):
    images, page = told
    means = {}
    for index, (label, prediction, _) in enumerate(images):
        valid = label != 255
        ious = [
            ((label == c) & (prediction == c)).sum() / (((label == c) | (prediction == c)) & valid).sum()
            for c in np.unique(label[valid])
        ]
        means[f"p{index}"] = np.mean(ious)
    order = sorted(means, key=means.get)
    for anchor, expected in (("worst", order[:4]), ("best", order[:-4:-1])):
        headings = re.findall(r"<h3>\d+\. (\S+) <span class='quiet'>mean IoU ([\d.]+) %", section(page, anchor))
        assert headings == [(name, f"{100 * means[name]:.1f}") for name in expected]
        assert section(page, anchor).count("<img ") == 4 * len(expected)


def test_page_stands_alone_and_is_the_same_each_time(told, tmp_path):
    images, page = told
    again, _ = write_page(tmp_path / "page.html", images)
    assert "the softmax over all classes" in write_page(tmp_path / "other.html", images, model_type="semask")[0]
    assert again == page
    links = re.findall(r'(?:src|href)="(.*?)"', page)
    assert links and all(link.startswith("data:") for link in links) and "url(" not in page and "<script" not in page
    assert "<kerb>" not in page and "road &amp; &lt;kerb&gt;" in page
    for drawing in re.findall(r"<svg[^>]*>", page):
        assert re.search(r'role="img" aria-label="[^"]{20,}"', drawing)


def test_a_perfect_prediction_and_an_empty_truth(tmp_path):
    label = blobs(1)
    known = np.where(label == 255, 0, label).astype(np.uint8)
    page, _ = write_page(tmp_path / "perfect.html", [(label, known, np.ones(label.shape))])
    assert "No pixel is wrong" in page and "100.0 % of the pixels right" in page
    assert "There are too few images for this list" in section(page, "best")
    nothing = np.full(label.shape, 255, dtype=np.uint8)
    page, _ = write_page(tmp_path / "empty.html", [(nothing, known, np.ones(label.shape))])
    assert "nan" not in page and "Without a pixel in the truth" in page


def test_of_many_classes_the_most_confused_are_shown(tmp_path):
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 150, (20, 30)), np.ones((4, 4))).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.3, (label + 1) % 150, label).astype(np.uint8)
    prediction[label == 7] = 100
    many = {index: f"class {index}" for index in range(150)}
    page, confusion = write_page(tmp_path / "many.html", [(label, prediction, np.ones(label.shape))], many)
    rows = [row for row in cells(section(page, "confusion").split("<h3>")[0]) if row]
    assert len(rows) == 1 + SHOWN_CLASSES and rows[0][-1] == "all others"
    assert {"class 7", "class 100"} <= set(rows[0])
    pixels = confusion.sum(axis=1)
    shown = [int(name.split()[1]) for name in rows[0][1:-1]]
    others = [line for line in titles(section(page, "confusion")) if "any other class" in line]
    rest = confusion[7].sum() - confusion[7, shown].sum()
    assert f"class 7 taken for any other class: {100 * rest / pixels[7]:.2f} %, {rest} px" in others
    assert largest_confusions(confusion)[0].truth == 7
    # 150 bars in two columns, names beside them
    assert section(page, "classes").count('class="class-bars"') == 2


def test_a_class_name_is_whole_however_long_it_is(tmp_path):
    """Beside its bar; in the browser it takes as many lines as it needs."""
    names = NAMES | {3: "an unbroken_name_of_a_class_" + "w" * 60}
    page, _ = write_page(tmp_path / "long.html", [told_image(0)], names)
    assert f'<span class="name">{names[3]}</span>' in section(page, "classes")


def test_of_few_classes_none_is_called_the_weakest(tmp_path):
    page, _ = write_page(tmp_path / "two.html", [told_image(0, 2)], {0: "background", 1: "pedestrian"})
    assert "weakest classes by IoU" not in page and "IoU of the classes: " in page
    assert "weakest classes by IoU" in write_page(tmp_path / "four.html", [told_image(0)])[0]


# ---- the command


def without_command(page):
    return re.sub(r"<tr><th>command</th>.*?</tr>", "", page)


@pytest.mark.parametrize("flags", ["", "--tta --tta_shortest_edges 48 64", "--sliding_window --crop_size 48"])
def test_the_report_changes_no_figure(flags, evaluated, shapes_model, tmp_path):
    rng = np.random.default_rng(0)
    folder = write_split(tmp_path, [(f"p{i}", random_pixels(rng), patches(rng, range(6))) for i in range(3)])
    flags = [*flags.split(), "--bootstrap_samples", 5]
    plain, _ = evaluated(shapes_model, folder, *flags)
    page = tmp_path / "pages" / "page.html"
    results, out = evaluated(shapes_model, folder, *flags, "--report", page)
    differ = {"command", "date", "seconds"}
    assert {k: v for k, v in plain.items() if k not in differ} == {k: v for k, v in results.items() if k not in differ}
    text = page.read_text()
    assert f"report in {page}" in out and f"mean IoU {results['mean_iou']:.1f} %" in text
    assert text.count("<img ") == 4 * 3


def test_where_the_report_goes(command, shapes_model, shapes, tmp_path, monkeypatch):
    assert report_file("a/b").as_posix() == "a/b/report.html" and report_file("a/b.html").as_posix() == "a/b.html"
    given = ["--model_name_or_path", shapes_model, "--dataset_name", shapes, "--max_eval_samples", 1]
    monkeypatch.chdir(tmp_path)
    flags = ["--dataloader_num_workers", 0, "--extended_metrics", "false", "--report"]
    assert command(eval_command, *given, *flags)[0] == 0
    assert "missed segments" in (tmp_path / DEFAULT_REPORT / "report.html").read_text()
    assert [file.name for file in (tmp_path / DEFAULT_REPORT).iterdir()] == ["report.html"]
    (tmp_path / "recipe.yaml").touch()
    code, _, errors = command(eval_command, *given, "--report", "recipe.yaml")
    assert code == 2 and "--report recipe.yaml: recipe.yaml is a file: name another folder" in errors[-1]


@pytest.mark.slow
def test_the_report_of_two_processes_is_that_of_one(evaluated, shapes_model, tmp_path):
    rng = np.random.default_rng(0)
    folder = write_split(tmp_path, [(f"p{i}", random_pixels(rng), patches(rng, range(6))) for i in range(13)])
    flags = ["--bootstrap_samples", 5, "--report"]
    evaluated(shapes_model, folder, *flags, tmp_path / "one.html")
    given = ["--model_name_or_path", shapes_model, "--dataset_name", folder, "--dataloader_num_workers", 0]
    both = run_script_twice("scripts/eval.py", *given, *flags, tmp_path / "two.html", folder=ROOT)
    assert [done.returncode for done in both] == [0, 0], both
    one, two = (without_command((tmp_path / name).read_text()) for name in ("one.html", "two.html"))
    assert one == two and one.count("<img ") == 4 * 10


def test_memory_is_that_of_the_images_kept():
    """Three hundred images leave ten small ones behind."""
    ranking = ImageRanking(2)
    for index in range(300):
        ranking.add(*flat((index * 7919 % 300) / 300, index, (64, 40)))
    assert len({kept.index for kept in (*ranking.worst, *ranking.best)}) == 10
