"""Average precision against pycocotools and faster-coco-eval over whole sets at once."""

import contextlib
import io

import numpy as np
import pytest
from random_segments import SIZE, boxed, random_instances

from scripts.data.segments import segments_of_masks
from scripts.evaluation.average_precision import PrecisionCounts
from scripts.evaluation.bootstrap import multiplicities
from scripts.inference.found_segments import Instance


pytest.importorskip("pycocotools")
NUM_LABELS = 4
KEYS = [
    "average_precision", "average_precision_50", "average_precision_75", "average_precision_small",
    "average_precision_medium", "average_precision_large", "average_recall_1", "average_recall_10",
    "average_recall_100", "average_recall_small", "average_recall_medium", "average_recall_large",
]  # fmt: skip
PARTS = [
    pytest.param("pycocotools.coco", "pycocotools.cocoeval", "COCOeval", id="pycocotools"),
    pytest.param("faster_coco_eval", "faster_coco_eval", "COCOeval_faster", id="faster-coco-eval"),
]


@pytest.fixture(scope="module")
def images():
    """Of which some are empty, and of which the last class occurs in none; two have more than 100 detections."""
    rng = np.random.default_rng(0)
    found = [random_instances(rng, NUM_LABELS - 1, empty=index % 7 == 3) for index in range(40)]
    for index in (4, 9):
        reference, instances = found[index]
        many = [each._replace(score=float(rng.integers(1, 12) / 12)) for each in instances * 60][:400]
        found[index] = reference, sorted(many, key=lambda each: -each.score)
    return found


def annotations(images):
    """`(references, detections)` as COCO's json has them, masks as run-length encodings."""
    from pycocotools.mask import area, encode

    expected, found = [], []
    for index, (reference, instances) in enumerate(images):
        parts = zip(reference.masks().numpy(), reference.classes.tolist(), reference.crowd.tolist())
        for mask, label, crowd in parts:
            expected.append({"image_id": index + 1, "category_id": label, "iscrowd": int(crowd)})
            expected[-1] |= {"segmentation": encode(np.asfortranarray(mask, dtype=np.uint8)), "id": len(expected)}
        for each in instances:
            found.append({"image_id": index + 1, "category_id": each.label, "score": each.score, "iscrowd": 0})
            whole = encode(np.asfortranarray(each.mask.whole().numpy(), dtype=np.uint8))
            found[-1] |= {"segmentation": whole, "id": len(found)}
    for each in (*expected, *found):
        each["area"] = int(area(each["segmentation"]))
        each["bbox"] = [0, 0, 1, 1]
    return expected, found


def library_scores(images, coco_module, eval_module, name):
    """The library's 12 figures, and its AP per class."""
    coco, evaluation = pytest.importorskip(coco_module), pytest.importorskip(eval_module)
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for listed in annotations(images):
            made = coco.COCO()
            made.dataset = {
                "images": [{"id": n + 1, "height": SIZE[0], "width": SIZE[1]} for n in range(len(images))],
                "categories": [{"id": label, "name": str(label)} for label in range(NUM_LABELS)],
                "annotations": listed,
            }
            made.createIndex()
            sets.append(made)
        run = getattr(evaluation, name)(*sets, "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]
    return list(run.stats[:12]), [precision[:, :, label].mean() for label in range(NUM_LABELS)]


def counted(images, order=None):
    counts = PrecisionCounts(NUM_LABELS, range(NUM_LABELS))
    for index in range(len(images)) if order is None else order:
        counts.add(index, *images[index])
    counts.images.sort(key=lambda image: image.index)
    return counts


@pytest.mark.parametrize(("coco_module", "eval_module", "name"), PARTS)
def test_figures_are_those_of_the_library_over_the_whole_set(images, coco_module, eval_module, name):
    expected, per_class = library_scores(images, coco_module, eval_module, name)
    scores = counted(images).scores()
    assert [scores[key] for key in KEYS] == pytest.approx(expected, abs=1e-9)
    found = np.nan_to_num(scores["per_category_average_precision"], nan=-1)
    assert found.tolist() == pytest.approx(per_class, abs=1e-9)
    assert len({round(scores[key], 3) for key in KEYS}) > 9 and min(expected) > 0.02  # each rule made a difference


def test_the_order_of_images_changes_nothing(images):
    expected = counted(images)
    order = np.random.default_rng(1).permutation(len(images))
    found = counted(images, order)
    assert np.array_equal(expected.segments(), found.segments())
    for key, value in expected.scores().items():
        assert np.array_equal(value, found.scores()[key], equal_nan=True)


def test_what_is_kept_of_an_image_is_small(images):
    kept = counted(images).images
    sizes = [sum(getattr(image, name).nbytes for name in ("classes", "scores", "ranks", "flags")) for image in kept]
    assert max(sizes) <= 300 * 26 and max(len(image.scores) for image in kept) > 100


def test_the_interval_is_that_of_resampled_images(images):
    rng = np.random.default_rng(4)  # no score comes twice: of equal ones a copy of the image would come in between
    images = [(reference, [each._replace(score=rng.random()) for each in found]) for reference, found in images[10:22]]
    counts = counted(images)
    interval = counts.interval(resamples=6, seed=3)
    times = np.array([multiplicities(3, index, 6) for index in range(len(images))])
    values = []
    for resample in range(6):
        again = [image for index, image in enumerate(images) for _ in range(times[index, resample])]
        values.append(counted(again).scores()["average_precision"])
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-9)
    assert interval["low"] < interval["high"]


def test_a_perfect_model_and_one_that_finds_nothing():
    mask = np.zeros(SIZE, dtype=bool)
    mask[:50, :50] = True
    reference = segments_of_masks([mask], [1], [False], SIZE)
    perfect = counted([(reference, [Instance(1, 0.9, boxed(mask))])]).scores()
    assert perfect["average_precision"] == perfect["average_precision_medium"] == 1
    assert np.isnan(perfect["average_precision_small"])
    assert np.isnan(perfect["per_category_average_precision"]).tolist() == [True, False, True, True]
    assert counted([(reference, [])]).scores()["average_precision"] == 0
    nothing = counted([(segments_of_masks([], [], [], SIZE), [Instance(1, 0.9, boxed(mask))])])
    assert np.isnan(nothing.scores()["average_precision"]) and nothing.segments().tolist() == [0, 0, 0, 0]
    assert np.isnan(nothing.interval(3, 0)["low"])
    assert np.isnan(counted([]).scores()["average_precision"])
