"""The doctor on instance and panoptic data: it names each planted fault and counts it, and finds nothing else."""

import ast
import json
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faulty_segments import CAR, FAULTS, GROUND, HEIGHT, PERSON, SKY, WIDTH, Scenes, box, cells, generated
from PIL import Image
from segment_scenes import Box, coco, write_coco

from scripts import check_dataset
from scripts.cli.errors import UserError
from scripts.data import label_encodings
from scripts.data.label_encodings import SegmentClasses, SegmentForm, id_map
from scripts.data.samples import RowFormat, decode_segments
from scripts.data.segments import segments_of_masks
from scripts.data.synthetic_scenes import encoded
from scripts.dataset_check.counts import MAX_KEYS, SplitCounts
from scripts.dataset_check.diagnosis import FAULTS as DIAGNOSED
from scripts.dataset_check.finding import NAMES
from scripts.dataset_check.label_rule import LabelRule
from scripts.dataset_check.sample import inspect
from scripts.dataset_check.sample_facts import SampleFacts, SegmentFacts
from scripts.dataset_check.segment_findings import SEGMENT_FAULTS
from scripts.dataset_check.segment_rule import SegmentRule
from scripts.dataset_check.splits import read_classes


@pytest.fixture
def doctor(command, tmp_path):
    """Writes scenes and checks them: `(exit code, JSON, standard output)`."""

    def run(scenes: Scenes, *flags):
        folder = scenes.write(tmp_path / f"data{len(list(tmp_path.iterdir()))}")
        code, out, errors = command(check_dataset, "--dataset_name", folder, "--json", folder / "check.json", *flags)
        assert code in (0, 1), errors
        return code, json.loads((folder / "check.json").read_text()), out

    return run


def names_in(result: dict) -> list[str]:
    return [finding["name"] for finding in result["findings"]]


INSTANCES = ("--task", "instance", "--label_encoding", "instances")


# ---- planted faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_clean_segments(doctor, task):
    code, result, out = doctor(generated(), "--task", task)
    assert (code, result["findings"], result["verdict"]) == (0, [], "clean"), out


def test_clean_instances(doctor):
    code, result, out = doctor(cells(), *INSTANCES)
    assert (code, result["findings"], result["verdict"]) == (0, [], "clean"), out


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(doctor, name):
    fault = FAULTS[name]
    code, result, out = doctor(fault.planted(), "--task", "panoptic")
    assert names_in(result) == [name], out
    (finding,) = result["findings"]
    assert code == int(finding["level"] == "error")
    (line,) = (line for line in out.splitlines() if line.startswith(f"{finding['level']} {name}"))
    assert finding["message"] in line and finding["fix"] and f"Fix: {finding['fix']}" in line
    if fault.samples:
        seen = [each for each in finding["details"].values() if isinstance(each, dict)]
        assert sum(each["count"] for each in seen) == fault.samples
        assert sum(each["times"] for each in seen) == fault.times
        assert f"in {fault.samples} of 12 samples" in finding["message"] and "train_0" in finding["message"]


def test_no_finding_is_without_a_fix():
    assert all(fix.strip() for _, _, fix in DIAGNOSED.values())
    for file in Path(check_dataset.__file__).with_name("dataset_check").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                fix = node.args[4]
                assert not isinstance(fix, ast.Constant) or str(fix.value).strip(), f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("encoding", ["classes", "segments", "coco", "yolo", "instances"])
def test_data_without_names_are_told_how_to_name_them(encoding):
    data = SimpleNamespace(encoding=encoding, class_map=None, classes_file=None, names_given=None)
    data.arguments, data.holds_instances_of_one_class = SimpleNamespace(mask_values=None), encoding == "instances"
    data.stream, data.own_row_format = [], RowFormat()
    _, _, (finding,) = read_classes(SimpleNamespace(model_name_or_path=None, warm_start=None), data)
    assert finding.message.startswith("no class name") and re.search(r"(give|name|write) .*--\w+", finding.fix)


def test_enough_faults_are_planted():
    assert len(FAULTS) >= 10 and FAULTS.keys() <= NAMES.keys() and SEGMENT_FAULTS.keys() <= NAMES.keys()


def test_every_fault_of_a_sample_is_named(doctor):
    scenes, names = generated(), ["tiny-segment", "segments-mismatch", "segment-listed-twice", "crowd-stuff"]
    for name in (names := [*names, "unknown-category"]):
        FAULTS[name].plant(scenes)
    _, result, _ = doctor(scenes, "--task", "panoptic")
    assert sorted(names_in(result)) == sorted(names)
    assert [each["details"]["train"]["count"] for each in result["findings"]] == [1] * len(names)


def test_queries_are_those_of_the_model(doctor, tiny_recipe):
    flags = ["--recipe", tiny_recipe, "--max_train_steps", "10", "--no_timing", "--task", "panoptic"]
    _, result, _ = doctor(generated(), *flags, "--config_overrides", "num_queries=6")
    (finding,) = (each for each in result["findings"] if each["name"] == "more-segments-than-queries")
    most = max(len(each.listed) for each in generated().all)
    assert f"num_queries={most}" in finding["fix"] and "6 queries" in finding["message"]
    assert sum(each["count"] for each in finding["details"].values() if isinstance(each, dict)) == sum(
        len(each.listed) > 6 for each in generated().all
    )


def test_a_recipe_is_timed_on_segments(doctor, tiny_recipe):
    flags = ["--recipe", tiny_recipe, "--max_train_steps", "10", "--config_overrides", "num_queries=9"]
    _, result, out = doctor(generated(), *flags, "--task", "instance")
    assert result["recipe"]["seconds_per_step"] > 0 and result["findings"] == [], out


# ---- what the maps hold ---------------------------------------------------------------------------------------------


def test_instances_read_as_classes(doctor):
    code, result, _ = doctor(cells())
    assert (code, names_in(result)) == (1, ["instances-as-classes"])
    assert "--task instance --label_encoding instances" in result["findings"][0]["fix"]
    assert "12 maps" in result["findings"][0]["message"]


def test_instances_that_are_classes_too_by_their_ids(doctor):
    scenes = cells()
    scenes.names = [f"class {number}" for number in range(40)]
    code, result, _ = doctor(scenes)
    assert (code, names_in(result)) == (0, ["instances-as-classes"])


def test_instances_of_ids_that_no_two_images_share(doctor):
    scenes = cells()
    for number, each in enumerate(scenes.all):
        each.ids[each.ids > 0] = each.ids[each.ids > 0] * 7 + 1000 * number + 300
    assert names_in(doctor(scenes)[1]) == ["instances-as-classes"]
    assert names_in(doctor(scenes, *INSTANCES)[1]) == []


def test_instances_read_as_classes_without_names(doctor):
    scenes = cells()
    scenes.names = []
    code, result, _ = doctor(scenes)
    assert code == 1 and sorted(names_in(result)) == ["instances-as-classes", "no-class-names"]
    (finding,) = (each for each in result["findings"] if each["name"] == "instances-as-classes")
    assert "and no class is named" in finding["message"] and "--thing_classes NAME" in finding["fix"]


def test_outlines_that_overlap_are_noted_of_panoptic_data_alone(command, tmp_path):
    images, file = write_coco(tmp_path, ["a0", "a1"])
    file.write_text(
        json.dumps(coco({"a0": [Box(0, 10, 10, 12, 12), Box(1, 5, 5, 30, 30)], "a1": [Box(0, 1, 1, 9, 9)]}))
    )
    for task, seen in (("panoptic", ["overlapping-segments"]), ("instance", [])):
        flags = ["--train_images", images, "--train_annotations", file, "--task", task]
        command(check_dataset, *flags, "--json", tmp_path / "check.json", "--overwrite")
        found = json.loads((tmp_path / "check.json").read_text())["findings"]
        assert [each["name"] for each in found if "overlap" in each["name"]] == seen
        assert not seen or "2 segments, 0 covered whole" in str(found)


def test_classes_read_as_instances(doctor):
    scenes = cells()
    for each in scenes.all:
        each.ids = np.where(each.ids > 0, 1 + each.ids % 2, 0)
    code, result, _ = doctor(scenes, *INSTANCES)
    assert (code, names_in(result)) == (1, ["classes-as-instances"])
    assert "2 distinct ids" in result["findings"][0]["message"] and "--task semantic" in result["findings"][0]["fix"]


def test_masks_of_0_and_255_read_as_instances(doctor):
    scenes = cells()
    for each in scenes.all:
        each.ids = np.where(each.ids > 0, 255, 0)
    assert names_in(doctor(scenes, *INSTANCES)[1]) == ["classes-as-instances"]


def test_an_encoding_that_the_maps_are_not_of(doctor):
    scenes = cells()
    scenes.map_of = lambda each: Image.fromarray(np.stack([each.ids, each.ids], axis=-1).astype(np.uint8), "LA")
    code, result, _ = doctor(scenes, *INSTANCES)
    assert (code, names_in(result)[0]) == (1, "wrong-encoding")
    assert "in 12 of 12 samples" in result["findings"][0]["message"]


def test_a_guessed_task_is_said(doctor):
    _, result, _ = doctor(generated())
    assert names_in(result) == ["panoptic-maps"] and "--task panoptic" in result["findings"][0]["message"]


def test_things_that_nothing_tells(doctor):
    scenes = generated()
    scenes.things = None
    FAULTS["scattered-instance"].plant(scenes)  # which may be stuff
    _, result, _ = doctor(scenes, "--task", "panoptic")
    assert names_in(result) == ["thing-ids"] and "--thing_classes" in result["findings"][0]["fix"]


def test_a_task_without_segments_is_refused(command, tmp_path):
    scenes = cells()
    folder = scenes.write(tmp_path / "data")
    code, _, errors = command(check_dataset, "--dataset_name", folder, "--task", "instance")
    assert code == 2 and "--label_encoding" in errors[-1]
    code, _, errors = command(check_dataset, "--dataset_name", folder, "--task", "things")
    assert code == 2 and "--task things" in errors[-1]


# ---- encodings of any kind ------------------------------------------------------------------------------------------


def looked_at(masks, classes, crowd=None, size=(WIDTH, HEIGHT)) -> SampleFacts:
    """What the doctor sees of masks over an image of this size, by an encoding that it knows nothing of."""

    def decode(form, row, row_format, name):
        kinds = [form.classes.class_of(category, name) for category in classes]
        return segments_of_masks(masks, kinds, crowd or [False] * len(masks), (HEIGHT, WIDTH))

    names = dict(enumerate(["sky", "ground", "car", "person"]))
    things = frozenset([CAR, PERSON])
    form = SegmentForm("masks", SegmentClasses(names, {index: index for index in names}, things))
    rule = SegmentRule(form, "instance", 100, things)
    image = {"path": None, **encoded(Image.new("RGB", size), "PNG")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(label_encodings.DECODERS, "masks", decode)
        return inspect({"image": image, "label": "no image"}, RowFormat(segments=form), LabelRule(4), 0, rule)


def test_a_new_encoding_gets_the_general_findings():
    whole, most = box(10, 10, 20, 20), box(10, 10, 20, 20)
    most[10, 10] = False
    facts = looked_at([whole, most, box(50, 50, 1, 2)], [CAR, CAR, 9])
    assert facts.faults.keys() == {"duplicate-segment", "unknown-category"}
    facts = looked_at([whole, most, box(12, 12, 6, 6), box(50, 50, 1, 2)], [CAR, PERSON, CAR, CAR])
    assert facts.faults.keys() == {"duplicate-segment", "tiny-segment"} and facts.times["duplicate-segment"] == 1
    assert facts.regions == 4 and facts.segments.classes == {CAR: 3, PERSON: 1}
    assert facts.segments.sizes == {"small": 4} and facts.segments.numbers.max() == 4


def test_sizes_are_those_of_coco():
    facts = looked_at([box(0, 0, 31, 33), box(40, 0, 32, 32), box(0, 40, 96, 80)], [CAR] * 3)
    assert facts.segments.sizes == {"small": 1, "medium": 2} and not facts.faults
    assert looked_at([box(0, 0, 96, 96)], [CAR]).segments.sizes == {"large": 1}


def test_an_object_that_something_hides_in_part_is_one():
    assert not looked_at([box(10, 10, 20, 20) | box(10, 40, 20, 20)], [CAR]).faults
    assert looked_at([box(10, 10, 20, 20) | box(10, 60, 20, 20)], [CAR]).faults.keys() == {"scattered-instance"}
    assert not looked_at([box(10, 10, 20, 20) | box(10, 60, 20, 20)], [SKY]).faults
    assert not looked_at([box(10, 10, 20, 20) | box(10, 60, 20, 20)], [CAR], [True]).faults
    assert not looked_at([box(10, 10, 20, 20) | box(10, 100, 5, 5)], [CAR]).faults  # a slip of the brush


def test_segments_of_another_size_than_the_image():
    facts = looked_at([box(10, 10, 20, 20)], [CAR], size=(WIDTH + 8, HEIGHT))
    assert facts.faults.keys() == {"size-mismatch"}
    assert looked_at([box(10, 10, 20, 20)], [CAR], size=(HEIGHT, WIDTH)).faults.keys() == {"swapped-size"}


@pytest.mark.parametrize("encoding", ["instances", "class_and_instance"])
def test_an_instance_on_several_classes(encoding, monkeypatch):
    """Another fault of the sample, a speck, is noted beside it; what is stuff there may have many ids."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, (top, left) in enumerate([(10, 10), (10, 50), (50, 50), (2, 30)], 1):
        ids[box(top, left, 20, 20) if number < 4 else box(top, left, 1, 2)] = number
    classes = np.where(np.arange(WIDTH) < 60, CAR, PERSON).astype(np.uint8)[None].repeat(HEIGHT, 0)
    classes[10:20, 10:20] = SKY
    files = {"label": np.stack([classes, ids], -1)} if encoding != "instances" else {"label": ids, "classes": classes}
    names = {0: "sky", 2: "car", 3: "person"}
    of_names = SegmentClasses(names, {index: index for index in names}, frozenset([CAR, PERSON]))
    form = SegmentForm(encoding, of_names, class_column=None if encoding != "instances" else "classes")

    def decode(form, row, row_format, name):
        instances, kinds = ids, id_map(row, form.class_column or "label", row_format, name, "map")
        kinds = kinds if kinds.ndim == 2 else kinds[..., 0]
        masks = [(instances == number) & (kinds != SKY) for number in range(1, 5)]
        kept = [np.unique(kinds[mask]).tolist() for mask in masks]
        assert all(len(classes) == 1 for classes in kept)  # as the trainer asks for
        return segments_of_masks(masks, [classes[0] for classes in kept], [False] * 4, ids.shape)

    monkeypatch.setitem(label_encodings.DECODERS, encoding, decode)
    row = {key: encoded(Image.fromarray(value), "PNG") for key, value in files.items()}
    row = {key: {"path": None, **value} for key, value in row.items()}
    row["image"] = {"path": None, **encoded(Image.new("RGB", (WIDTH, HEIGHT)), "PNG")}
    rule = SegmentRule(form, "instance", 100, frozenset([CAR, PERSON]))
    facts = inspect(row, RowFormat(segments=form), LabelRule(4), 0, rule)
    assert facts.faults["instance-of-several-classes"] == f"instance 2 lies on classes {CAR}, {PERSON}"
    assert facts.faults.keys() == {"instance-of-several-classes", "tiny-segment"}
    assert facts.times["instance-of-several-classes"] == 2 and facts.segments.classes.total() == 4


def test_a_list_in_json():
    scenes = FAULTS["tiny-segment"].planted()
    names = dict(enumerate(scenes.names))
    form = SegmentForm("segments", SegmentClasses(names, {k: k for k in names}, frozenset([CAR, PERSON])))
    rule = SegmentRule(form, "panoptic", 100, frozenset([CAR, PERSON]))
    row = {"image": encoded(scenes.first.image, "PNG"), "label": encoded(scenes.map_of(scenes.first), "PNG")}
    row = {key: {"path": None, **value} for key, value in row.items()}
    listed = scenes.first.listed
    for value, name in ((json.dumps(listed), "tiny-segment"), ("[{", "segments-mismatch"), (7, "segments-mismatch")):
        facts = inspect({**row, "segments_info": value}, RowFormat(segments=form), LabelRule(4), 0, rule)
        assert facts.faults.keys() == {name}
    assert facts.times["segments-mismatch"] == len(listed) + 1


@pytest.mark.parametrize("name", ["segments-mismatch", "segment-listed-twice", "unknown-category"])
def test_what_the_trainer_refuses_is_an_error(name):
    scenes = FAULTS[name].planted()
    names = dict(enumerate(scenes.names))
    form = RowFormat(segments=SegmentForm("segments", SegmentClasses(names, {k: k for k in names}, frozenset([2, 3]))))
    row = {"image": encoded(scenes.first.image, "PNG"), "label": encoded(scenes.map_of(scenes.first), "PNG")}
    row = {key: {"path": None, **value} for key, value in row.items()} | {"segments_info": scenes.first.listed}
    with pytest.raises(UserError):
        decode_segments(row, form, 0)
    assert SEGMENT_FAULTS[name][0] == "error"


# ---- what is told of all --------------------------------------------------------------------------------------------


def test_counts_of_segments(doctor):
    scenes = generated()
    scenes.first.of(CAR)[0]["iscrowd"] = 1
    _, result, out = doctor(scenes, "--task", "panoptic")
    train = scenes.splits["train"]
    crowds = {each["name"]: (each["segments"], each["crowd_regions"], each["thing"]) for each in result["classes"]}
    cars, ground = (sum(len(each.of(kind)) for each in scenes.all) for kind in (CAR, GROUND))
    assert crowds["car"] == (cars - 1, 1, True) and crowds["ground"] == (ground, 0, False)
    split = result["splits"]["train"]
    numbers = sorted(len(each.listed) - (each is scenes.first) for each in train)
    assert sum(int(number) * maps for number, maps in split["segments_per_map"].items()) == sum(numbers)
    assert sum(split["segment_sizes"].values()) == sum(numbers) and split["crowd_regions"] == 1
    (line,) = (line for line in out.splitlines() if line.startswith("train:"))
    assert f"segments per image: {numbers[0]} to {numbers[-1]}, median {numbers[3]}" in line
    assert "crowd regions: 1" in line and re.search(r"segments: \d+ small, \d+ medium, \d+ large", line)
    assert re.search(rf"car [\d.]+ % in 12 maps, {cars - 1} segments", out)


def test_the_page_tells_instances_apart(doctor, tmp_path):
    scenes = deepcopy(FAULTS["scattered-instance"].planted())
    doctor(scenes, "--task", "panoptic", "--report", tmp_path / "page" / "check.html")
    page = (tmp_path / "page" / "check.html").read_text()
    assert "scattered-instance" in page and "crowd regions" in page and "lines part segments" in page
    assert page.count("<img") >= 2 * 8 + 2


def test_counters_of_segments_stay_small():
    counts = SplitCounts("train")
    for number in range(MAX_KEYS + 10):
        facts = SampleFacts(str(number), ids={0: 1}, segments=SegmentFacts(ids=[2 * number, 2 * number + 1]))
        facts.segments.classes[number] = number
        counts.add(facts)
    assert max(len(counts.instance_ids), len(counts.class_segments), len(counts.segments_per_map)) <= MAX_KEYS + 1
