"""The doctor: what it finds in data sets with planted faults, and that it finds nothing else."""

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from faulty_datasets import FAULTS, Copy, copy_of, generated, street
from faulty_datasets import NAMES as STREET
from scripts import check_dataset
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT
from scripts.data.samples import RowFormat, decode_sample
from scripts.data.synthetic_scenes import encoded
from scripts.dataset_check import cost, step_time  # before `light_runs` replaces what it imports
from scripts.dataset_check.counts import MAX_KEYS, SplitCounts, quantiles
from scripts.dataset_check.finding import NAMES
from scripts.dataset_check.id_findings import expected_place
from scripts.dataset_check.label_rule import IGNORED, OUTSIDE, LabelRule
from scripts.dataset_check.sample import SampleFacts, count_regions, inspect
from scripts.dataset_check.similarity import SeenImages, perceptual_hash


@pytest.fixture
def doctor(command, tmp_path):
    """Writes a copy and checks it: `(exit code, JSON, standard output)`."""

    def run(copy: Copy, *flags):
        folder = copy.write(tmp_path / f"data{len(list(tmp_path.iterdir()))}")
        code, out, errors = command(
            check_dataset, "--dataset_name", folder, "--json", folder / "check.json", *copy.flags, *flags
        )
        assert code in (0, 1), errors
        return code, json.loads((folder / "check.json").read_text()), out

    return run


def named(result: dict, *levels: str) -> set[str]:
    """Names of the findings of `levels`."""
    return {finding["name"] for finding in result["findings"] if finding["level"] in levels}


def check_fault(doctor, copy: Copy, name: str) -> None:
    """The fault is found by its name, in one line with its fix, and nothing else is."""
    code, result, out = doctor(FAULTS[name](copy))
    assert named(result, "error", "warning") == {name}
    (finding,) = (finding for finding in result["findings"] if finding["name"] == name)
    assert code == int(finding["level"] == "error")
    (line,) = (line for line in out.splitlines() if line.startswith(f"{finding['level']} {name}"))
    assert finding["message"] in line and f"Fix: {finding['fix']}" in line


# ---- planted faults -------------------------------------------------------------------------------------------------


def test_a_clean_data_set(doctor):
    code, result, out = doctor(generated())
    assert (code, result["findings"], result["verdict"]) == (0, [], "clean")
    assert out.splitlines()[-2].endswith(": clean")


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(doctor, name):
    check_fault(doctor, generated(), name)


@pytest.fixture(scope="module")
def camvid(shared):
    """Every fortieth frame of CamVid."""
    return copy_of(shared / "data" / "camvid", every=40)


@pytest.fixture(scope="module")
def ade(shared):
    return copy_of(shared / "data" / "ade20k_mini", first=1)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_planted_into_camvid(doctor, camvid, name):
    check_fault(doctor, camvid, name)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_planted_into_ade20k(doctor, ade, name):
    check_fault(doctor, ade, name)


def test_nothing_false_on_real_data(command, shared, camvid, doctor):
    assert doctor(camvid)[1]["findings"] == []
    for name, flags in (("ade20k_mini", ["--do_reduce_labels"]), ("coco_panoptic_mini", [])):
        code, out, _ = command(check_dataset, "--dataset_name", shared / "data" / name, *flags)
        assert code == 0
        assert not re.search("^(error|warning)", out, re.MULTILINE)


@pytest.mark.slow
def test_all_of_camvid(command, shared, doctor):
    """Neighbouring frames of one sequence are in both splits: one second apart, which is no duplicate."""
    folder = shared / "data" / "camvid"
    code, out, _ = command(check_dataset, "--dataset_name", folder)
    assert (code, out.splitlines()[-1]) == (0, "camvid: clean")
    for name in FAULTS:
        check_fault(doctor, copy_of(folder), name)


# ---- other findings -------------------------------------------------------------------------------------------------


def test_ids_one_too_low_are_told_by_where_things_lie(doctor):
    copy = generated().with_labels(lambda label: (label - (label != 255)).astype(np.uint8))  # sky wraps to 255
    _, result, _ = doctor(copy)
    assert named(result, "error") == {"shifted-by-one"}
    assert "add 1 to every id" in result["findings"][0]["fix"]


def test_reduced_labels_are_told_when_reduced_again(doctor):
    _, result, _ = doctor(generated(), "--do_reduce_labels")
    assert named(result, "error") == {"labels-reduced-twice"}


def test_an_id_for_void_after_the_last_class(doctor):
    _, result, _ = doctor(generated().with_labels(lambda label: np.where(label == 255, 6, label).astype(np.uint8)))
    assert named(result, "error", "warning") == {"ids-out-of-range"}
    assert "`ignore: [6]`" in result["findings"][0]["fix"]


def test_an_id_for_void_where_class_0_never_occurs(doctor):
    """The heights say that the classes are right: a fix that subtracts 1 would ruin them."""

    copy = generated()
    names = {0: "animal", **{index: copy.names[index - 1] for index in range(1, 7)}}
    moved = copy.with_labels(lambda label: np.where(label == 255, 7, label + 1).astype(np.uint8))
    _, result, _ = doctor(replace(moved, names=names))
    assert "shifted-by-one" not in named(result, "error", "warning"), result["findings"]
    assert "ids-out-of-range" in named(result, "error", "warning")


@pytest.mark.parametrize("names", [{}, {index: f"class {index}" for index in range(300)}])
def test_names_of_no_or_too_many_classes(names, doctor):
    code, result, _ = doctor(replace(generated(), names=names))
    assert code == 1 and named(result, "error") & {"no-class-names", "class-names"}


def test_masks_of_0_and_255(doctor):
    copy = generated().with_labels(lambda label: np.where(label == 5, 255, 0).astype(np.uint8))
    _, result, _ = doctor(replace(copy, names={0: "background", 1: "car"}))
    assert named(result, "error", "warning") == {"255-as-class"}
    assert "store 1 in place of 255" in result["findings"][0]["fix"]


@pytest.mark.parametrize(
    ("kept", "message"),
    [(lambda ids: ids == 5, "is the only class that occurs"), (lambda ids: ids < 0, "no pixel of any class occurs")],
)
@pytest.mark.parametrize("several", [True, False])
def test_data_on_which_no_score_can_fail(several, kept, message, doctor):
    """One class in the maps, or none; named alone, or among others."""
    copy = generated().with_labels(lambda label: np.where(kept(label), 0, 255).astype(np.uint8))
    if several:
        copy = copy.with_labels(lambda label: np.where(label == 0, 2, label).astype(np.uint8))
    code, result, out = doctor(copy if several else replace(copy, names={0: "lesion"}))
    assert code == 1 and "too-few-classes" in named(result, "error"), out
    assert message in next(line for line in out.splitlines() if "error too-few-classes" in line)


def test_a_name_for_255(doctor):
    copy = generated()
    _, result, _ = doctor(replace(copy, names={**copy.names, 255: "kerb"}))
    assert named(result, "error", "warning") == {"255-as-class"}
    assert "'kerb'" in result["findings"][0]["message"]


def test_two_classes_of_one_name(doctor):
    copy = generated()
    code, result, out = doctor(replace(copy, names={**copy.names, 2: copy.names[0]}))
    assert code == 1 and "class-names" in named(result, "error")
    assert f"ids 0 and 2 are both called {copy.names[0]!r}. Fix: give each class a name of its own" in out


def test_names_that_do_not_start_at_0(doctor):
    copy = generated().with_labels(lambda label: np.where(label == 255, 0, label + 1).astype(np.uint8))
    _, result, _ = doctor(replace(copy, names={index + 1: name for index, name in copy.names.items()}))
    assert "class-names" in named(result, "error")
    assert any("--do_reduce_labels" in finding["fix"] for finding in result["findings"])


def test_no_names(doctor, command, tmp_path):
    folder = generated().write(tmp_path / "nameless")
    (folder / "id2label.json").unlink()
    code, out, _ = command(check_dataset, "--dataset_name", folder)
    assert code == 1
    assert re.search("^error no-class-names", out, re.MULTILINE) and "id 2 " in out


def test_a_class_in_one_split_only(doctor):
    copy = generated()
    without_cars = [replace(row, label=np.where(row.label == 5, 1, row.label)) for row in copy.splits["train"]]
    _, result, _ = doctor(replace(copy, splits={**copy.splits, "train": without_cars}))
    assert named(result, "error", "warning") == {"class-not-in-train"}
    without_cars = [replace(row, label=np.where(row.label == 5, 1, row.label)) for row in copy.splits["validation"]]
    _, result, _ = doctor(replace(copy, splits={**copy.splits, "validation": without_cars}))
    assert (named(result, "error", "warning"), named(result, "note")) == (set(), {"class-not-in-validation"})


def test_maps_of_nothing_but_ignored_pixels(doctor):
    copy = generated()
    label = np.full_like(copy.splits["train"][0].label, 255)
    _, result, _ = doctor(copy.with_row("train", 0, label=label))
    assert named(result, "error", "warning") == {"map-without-class"}
    blank = copy.with_labels(lambda label: np.where(np.arange(label.shape[0])[:, None] < 60, 255, label))
    _, result, _ = doctor(blank.with_labels(lambda label: label.astype(np.uint8)))
    assert "mostly-ignored" in named(result, "warning")


def test_a_mirrored_image_is_found_in_the_other_split(doctor):
    copy = generated()
    row = copy.splits["validation"][0]
    mirrored = Image.open(io.BytesIO(row.image)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changes = {"image": encoded(mirrored, "JPEG")["bytes"], "label": np.ascontiguousarray(row.label[:, ::-1])}
    _, result, _ = doctor(copy.with_row("train", 3, **changes))
    assert named(result, "error", "warning") == {"near-duplicate"}
    assert result["findings"][0]["details"]["pairs"][0][0::3] == ["train_3", True]


def test_a_split_that_is_not_there(doctor, command, tmp_path):
    copy = generated()
    code, result, _ = doctor(replace(copy, splits={"validation": copy.splits["validation"]}))
    assert (code, named(result, "note")) == (0, {"split-not-read"})
    folder = copy.write(tmp_path / "here")
    flags = ["--train_split_name", "a", "--eval_split_name", "b"]
    code, _, errors = command(check_dataset, "--dataset_name", folder, *flags)
    assert code == 2 and "split 'a'" in errors[-1]


def test_max_samples(doctor):
    _, result, _ = doctor(generated(), "--max_samples", "2")
    assert [split["samples"] for split in result["splits"].values()] == [2, 2]
    assert not any(split["complete"] for split in result["splits"].values())


def test_folders_of_images_and_maps(command, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(3):
        image, label = street(np.random.default_rng(number))
        image.save(tmp_path / "photos" / f"{number}.jpg")
        Image.fromarray(label).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(STREET))))
    flags = ["--train_images", tmp_path / "photos", "--train_masks", tmp_path / "masks"]
    code, out, errors = command(check_dataset, *flags)
    assert code == 0, errors
    assert "train: samples: 3" in out and "note split-not-read [validation]" in out
    assert "give both folders, or go without" in out
    flags += ["--eval_images", tmp_path / "photos", "--eval_masks", tmp_path]  # where no map has an image's name
    code, out, _ = command(check_dataset, *flags)
    assert code == 1 and "error split-not-read [validation]: --eval_masks" in out


def test_panoptic_maps(command, tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Image(),
            "segments_info": [{"id": datasets.Value("int32"), "category_id": datasets.Value("int32")}],
        }
    )
    image, label = street(np.random.default_rng(0))
    ids = np.where(label == 255, 0, label.astype(np.int64) * 300 + 1)
    colours = np.stack([ids % 256, ids // 256, ids // 65536], axis=-1).astype(np.uint8)
    segments = [{"id": index * 300 + 1, "category_id": index} for index in range(6)]
    row = {"image": encoded(image, "JPEG"), "label": encoded(Image.fromarray(colours), "PNG")}
    for name, listed, expected in (("right", segments, 0), ("wrong", segments[1:], 1)):
        folder = tmp_path / name
        folder.mkdir()
        rows = datasets.Dataset.from_list([{**row, "segments_info": listed}], features=features)
        rows.to_parquet(folder / "train.parquet")
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(STREET))))
        code, out, _ = command(check_dataset, "--dataset_name", folder)
        assert code == expected
        assert ("error segments-mismatch" in out) == bool(expected) and "note panoptic-maps" in out


def test_a_class_map(doctor, tmp_path):
    (tmp_path / "classes.yaml").write_text("ground: [road, car]\nignore: [tree]\n")
    _, result, _ = doctor(generated(), "--class_map", tmp_path / "classes.yaml")
    assert result["findings"] == []
    assert [row["name"] for row in result["classes"]] == ["building", "ground", "sky", "pavement"]
    stray = generated().with_labels(lambda label: np.where(label == 5, 9, label).astype(np.uint8))
    _, result, _ = doctor(stray, "--class_map", tmp_path / "classes.yaml")
    assert named(result, "error") == {"ids-out-of-range"} and "`ignore: [9]`" in result["findings"][0]["fix"]


# ---- agreement with the trainer -------------------------------------------------------------------------------------


def broken_rows():
    """`(finding, columns)` of samples that the trainer refuses or skips."""
    image, label = street(np.random.default_rng(0))
    jpeg, plain = encoded(image, "JPEG"), Image.fromarray(label)
    png = encoded(plain, "PNG")
    yield "unreadable-image", {"image": {"bytes": jpeg["bytes"][:200]}, "label": png}
    yield "unreadable-image", {"image": encoded(plain.convert("I;16"), "PNG"), "label": png}
    yield "unreadable-map", {"image": jpeg, "label": {"bytes": png["bytes"][:60]}}
    yield "unreadable-map", {"image": jpeg, "label": None}
    yield "unreadable-image", {"image": encoded(Image.new("1", (12000, 12000)), "PNG"), "label": png}
    yield "size-mismatch", {"image": jpeg, "label": encoded(plain.resize((64, 48)), "PNG")}
    yield "swapped-size", {"image": jpeg, "label": encoded(plain.rotate(90, expand=True), "PNG")}
    yield "rgb-maps", {"image": jpeg, "label": encoded(image, "PNG")}
    yield "rgb-maps", {"image": jpeg, "label": encoded(plain.convert("RGB"), "PNG")}
    yield "maps-not-ids", {"image": jpeg, "label": encoded(plain.convert("F"), "TIFF")}
    yield "maps-not-ids", {"image": jpeg, "label": encoded(plain.convert("I").point(lambda v: v - 3), "TIFF")}
    yield "ids-out-of-range", {"image": jpeg, "label": encoded(plain.point(lambda v: v + 7), "PNG")}
    yield "lossy-maps", {"image": jpeg, "label": encoded(plain, "JPEG")}


@pytest.mark.parametrize(
    ("name", "columns"), [*broken_rows()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_the_trainer_refuses_is_a_fault(name, columns):
    row = {key: value and {"path": None, **value} for key, value in columns.items()}
    facts = inspect(row, RowFormat(), LabelRule(6), 0)
    assert name in facts.faults
    assert name in NAMES
    with pytest.raises(UserError):
        decode_sample(row, RowFormat(), 6, 0)


def test_a_turned_image_names_its_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    image, label = street(np.random.default_rng(0))
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    map_column = {"path": None, **encoded(Image.fromarray(label), "PNG")}
    row = {"image": {"path": None, "bytes": file.getvalue()}, "label": map_column}
    assert "EXIF orientation is 6" in inspect(row, RowFormat(), LabelRule(6), 0).faults["swapped-size"]


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_label_rule():
    ids = np.array([0, 1, 4, 5, 6, 255])
    assert LabelRule(5).classes(ids).tolist() == [0, 1, 4, OUTSIDE, OUTSIDE, IGNORED]
    assert LabelRule(5, first=1).classes(ids).tolist() == [IGNORED, 0, 3, 4, OUTSIDE, IGNORED]


def test_the_hash_tells_images_apart_and_encodings_not():
    rng = np.random.default_rng(0)
    images = [street(rng)[0] for _ in range(20)]
    seen = SeenImages()
    for number, image in enumerate(images):
        seen.add(str(number), perceptual_hash(image), image)
    for number, image in enumerate(images):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        place, _, mirrored = seen.nearest(perceptual_hash(Image.open(file)))
        assert (place, mirrored) == (number, False)
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert seen.nearest(perceptual_hash(flipped))[::2] == (number, True)
    assert seen.nearest(perceptual_hash(street(rng)[0])) is None
    assert perceptual_hash(Image.new("RGB", (50, 40), "teal")) is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sky", "top"),
        ("sky-other-merged", "top"),
        ("road, route", "bottom"),
        ("Floor", "bottom"),
        ("floor-wood", "bottom"),
        ("street light", None),
        ("floor lamp", None),
        ("skyscraper", None),
        ("car", None),
    ],
)
def test_where_a_class_is_expected(name, place):
    assert expected_place(name) == place


def test_regions():
    labels = np.full((20, 20), IGNORED)
    labels[:5], labels[10:15, :8], labels[10:15, 12:], labels[18, 18] = 0, 1, 1, 1
    assert count_regions(labels) == 3


def test_counters_stay_small():
    counts = SplitCounts("train")
    for number in range(MAX_KEYS + 10):
        counts.add(SampleFacts(str(number), image_size=(number, 1), ids={number: 1}, faults={"rgb-maps": "x"}))
    assert len(counts.sizes) == len(counts.ids) == MAX_KEYS
    assert (counts.samples, counts.faults["rgb-maps"].count) == (MAX_KEYS + 10, MAX_KEYS + 10)
    assert len(counts.faults["rgb-maps"].examples) == 3
    assert quantiles(counts.regions_per_map) == (0, 0, 0)


# ---- recipe, report, usage ------------------------------------------------------------------------------------------


def test_a_recipe_is_weighed_and_timed(doctor, tiny_recipe):
    _, result, out = doctor(
        generated(), "--recipe", tiny_recipe, "--max_train_steps", "10", "--config_overrides", "num_queries=3"
    )
    assert named(result, "error", "warning") == {"more-classes-than-queries"}
    numbers = result["recipe"]
    assert numbers["steps"] == 10 and numbers["batch"] == 2
    assert numbers["memory"]["weights"] > 0 and numbers["memory"]["activations"] > numbers["memory"]["weights"]
    assert numbers["seconds_per_step"] > 0 and numbers["seconds_per_step_scaled_up"] is False
    assert "for 10 steps" in out and "GiB per process" in out


def test_a_recipe_too_large_for_the_machine(doctor, tiny_recipe, monkeypatch):
    monkeypatch.setattr(cost.RecipeCost, "_free_bytes", lambda self: 1000)
    _, result, _ = doctor(generated(), "--recipe", tiny_recipe, "--max_train_steps", "10")
    assert named(result, "warning") == {"does-not-fit"}
    assert "seconds_per_step" not in result["recipe"]


def test_timing_is_announced_and_can_be_left_out(doctor, tiny_recipe, capsys):
    _, result, out = doctor(generated(), "--recipe", tiny_recipe, "--no_timing")
    assert "seconds_per_step" not in result["recipe"] and "not measured, by --no_timing" in out
    assert result["recipe"]["memory"]["activations"] > 0


class FakeSteps:
    """A model whose passes take as many seconds as they have pixels, on a clock of its own."""

    def __init__(self, monkeypatch, seconds_per_pixel: float) -> None:
        self.seconds, self.seconds_per_pixel, self.shapes = 0.0, seconds_per_pixel, []
        self.config, self.weight = SimpleNamespace(), torch.ones((), requires_grad=True)
        monkeypatch.setattr(step_time.StepTimer, "_now", lambda timer: self.seconds)

    def __call__(self, pixel_values, mask_labels, **_):
        assert mask_labels[0].shape[-2:] == pixel_values.shape[-2:]
        self.shapes.append(tuple(pixel_values.shape))
        self.seconds += self.seconds_per_pixel * pixel_values[:, 0].numel()
        return SimpleNamespace(loss=self.weight * 1)

    def measured(self) -> step_time.StepTime:
        """What the timer says of a batch of four crops of 512 x 512."""
        inputs = {
            "pixel_values": torch.zeros(4, 3, 512, 512), "pixel_mask": torch.ones(4, 512, 512),
            "mask_labels": [torch.zeros(1, 512, 512)] * 4, "class_labels": [torch.zeros(1)] * 4,
        }  # fmt: skip
        optimizer = torch.optim.SGD([self.weight], lr=0)
        return step_time.StepTimer(self, optimizer, inputs, Accelerator(cpu=True)).measure()


PART, WHOLE = (1, 3, 256, 256), (4, 3, 512, 512)


@pytest.mark.parametrize(
    ("seconds_of_whole", "shapes", "how"),
    [
        (10, [PART, PART, WHOLE, WHOLE], "two steps run, the second measured"),
        (100, [PART, PART], "scaled up by pixels from one crop of 256x256: two micro batches would take 200 s"),
        (1600, [PART], "not measured: one step takes over 100 s"),
    ],
)
def test_timing_takes_a_minute_whatever_the_recipe(seconds_of_whole, shapes, how, monkeypatch):
    """A part of the batch tells whether there is time for all of it; 16 such parts make the whole."""
    steps = FakeSteps(monkeypatch, seconds_of_whole / (4 * 512 * 512))
    found = steps.measured()
    assert steps.shapes == shapes and found.how == how and found.scaled == ("scaled" in how)
    assert found.seconds == (None if "not measured" in how else pytest.approx(seconds_of_whole))
    assert steps.seconds <= max(step_time.TIME_LIMIT, seconds_of_whole / 16)


def test_the_page_holds_findings_classes_and_images(doctor, tmp_path):
    doctor(FAULTS["near-duplicate"](generated()), "--report", tmp_path / "page" / "check.html")
    page = (tmp_path / "page" / "check.html").read_text()
    assert "near-duplicate" in page and "leaked in train" in page and "validation_3 in the other split" in page
    assert page.count("<img") >= 2 * 8 + 2
    assert all(name in page for name in STREET)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no dataset"),
        (["--dataset_name", "{folder}", "--max_samples", "0"], "--max_samples 0: give at least 1"),
        (["--dataset_name", "{folder}", "--label_column_name", "mask"], "no column 'mask'"),
        (["--dataset_name", "{folder}", "--id2label", "nowhere.json"], "nowhere.json"),
        (["--dataset_name", "{folder}", "--json", "{folder}"], "is a folder: name a file"),
        (["--dataset_name", "{folder}", "--recipe", "no-such"], "recipe 'no-such' not found"),
    ],
)
def test_wrong_usage_is_one_line(command, tmp_path, flags, message):
    folder = generated(2, 1).write(tmp_path / "data")
    code, _, errors = command(check_dataset, *(flag.format(folder=folder) for flag in flags))
    assert code == 2 and message in errors[-1] and errors[-1].startswith("check_dataset.py: error:")


def test_every_finding_is_in_the_guide():
    guide = (PROJECT_ROOT / "docs" / "data.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in guide] == []
