"""Outlines of segments, in COCO's json and in YOLO's text files: their masks, or a refusal that says why."""

import json

import numpy as np
import pytest
from PIL import Image
from segment_scenes import (
    CATEGORIES,
    NAMES,
    SIZE,
    TRAIN,
    VALIDATION,
    Box,
    class_map,
    coco,
    expected,
    found_in,
    opened,
    painted,
    write_coco,
    write_image,
    write_maps,
    write_panoptic,
    write_yolo,
)
from stream_batches import same, segment_batches

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.first_look import first_look
from scripts.data.outlines import mask_of_polygons
from scripts.data.samples import BadSample, decode_segments
from scripts.evaluation.degenerate import no_class_names


# --------------------------------------------------------------------------------------------------------- COCO's json


@pytest.mark.parametrize("kind", ["polygon", "code", "packed"])
def test_coco_outlines_are_the_masks(tmp_path, capsys, kind):
    images, file = write_coco(tmp_path, TRAIN, kind=kind, overlap=True)
    data = opened("instance", train_images=images, train_annotations=file)
    assert found_in(data) == {
        name: {part for part in parts if part[0] != "sky"} for name, parts in expected(TRAIN, True).items()
    }
    assert data.id2label == {0: "disc", 1: "bar"} and data.num_examples == len(TRAIN)
    assert data.category_ids == [category for category, name in CATEGORIES.items() if name != "sky"]
    assert (
        f"--train_annotations {file}: 6 images, 20 segments, 3 classes (--label_encoding coco)"
        in capsys.readouterr().err
    )


def test_crowds_stay_crowds(tmp_path):
    images, file = write_coco(tmp_path, ["a0"])
    boxes = [Box(0, 2, 3, 9, 9), Box(1, 5, 5, 30, 30, crowd=True)]
    content = coco({"a0": boxes}, "polygon")
    content["annotations"][1]["segmentation"] = coco({"a0": boxes}, "code")["annotations"][1]["segmentation"]
    file.write_text(json.dumps(content))
    data = opened("semantic", train_images=images, train_annotations=file)
    assert found_in(data) == {"a0": {(NAMES[box.label], box.mask().tobytes(), box.crowd) for box in boxes}}


def test_a_painted_map_has_a_background_and_the_smaller_segment_on_top(tmp_path):
    images, file = write_coco(tmp_path, ["a0", "a5"])
    boxes = [Box(0, 10, 10, 12, 12), Box(1, 5, 5, 30, 30)]
    file.write_text(json.dumps(coco({"a0": boxes, "a5": []})))
    data = opened("semantic", train_images=images, train_annotations=file)
    assert data.id2label == {0: "background", 1: "disc", 2: "bar", 3: "sky"}
    maps = painted(data)
    truth = np.zeros(SIZE, dtype=np.uint8)
    truth[5:30, 5:30], truth[10:12, 10:12] = 2, 1
    assert (maps["a0"] == truth).all() and (maps["a5"] == 0).all()


def test_panoptic_segments_never_overlap_and_the_smaller_lies_on_top(tmp_path, capsys):
    images, file = write_coco(tmp_path, ["a0"])
    covered, small, large = Box(1, 11, 11, 20, 20), Box(0, 10, 10, 20, 21), Box(1, 5, 5, 30, 30)
    front = [Box(0, 10 + 5 * at, 10, 15 + 5 * at, 21) for at in range(2)]  # together they hide the first
    file.write_text(json.dumps(coco({"a0": [covered, *front, large]})))
    data = opened("panoptic", train_images=images, train_annotations=file)
    ((_, segments, _),) = [decode_segments(row, data.row_format, 0) for row in data.stream]
    assert len(segments.layers) == 1 and segments.classes.tolist() == [0, 0, 1]
    assert [mask.tobytes() for mask in segments.masks().numpy()] == [
        *(box.mask().tobytes() for box in front),
        (large.mask() & ~small.mask()).tobytes(),
    ]
    assert (
        "panoptic segments do not overlap: where outlines do, the smaller one lies on top" in capsys.readouterr().err
    )
    assert len(found_in(opened("instance", train_images=images, train_annotations=file))["a0"]) == 4


def test_a_class_of_crowds_alone_is_not_seen_but_by_a_semantic_model(tmp_path):
    images, file = write_coco(tmp_path, ["a0"])
    file.write_text(json.dumps(coco({"a0": [Box(0, 2, 3, 9, 9), Box(1, 15, 15, 30, 30, crowd=True)]}, "code")))
    for task, seen in (("instance", {0}), ("panoptic", {0}), ("semantic", {0, 1, 2})):
        data = opened(task, train_images=images, train_annotations=file)
        assert set(first_look(data.stream, data.row_format).classes) == seen


def test_a_mask_of_polygons_is_that_of_pycocotools():
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 60, 2).tolist()
        count, digits = rng.integers(3, 9), rng.integers(0, 3)  # whole corners make ties of rounding
        corners = [rng.uniform(-15, 75, (count, 2)).round(digits) for _ in range(rng.integers(1, 4))]
        whole = tools.decode(tools.merge(tools.frPyObjects([points.ravel() for points in corners], height, width)))
        assert (mask_of_polygons(corners, (height, width), "a").whole().numpy() == whole).all()


def test_an_ignored_class_is_ignored_and_no_background(tmp_path):
    images, file = write_coco(tmp_path, ["a0"])
    file.write_text(json.dumps(coco({"a0": [Box(0, 10, 10, 12, 12), Box(2, 5, 5, 8, 8)]})))
    (tmp_path / "map.yaml").write_text("shape: [disc, 7]\nignore: sky\n")
    flags = {"train_images": images, "train_annotations": file, "class_map": str(tmp_path / "map.yaml")}
    data = opened("semantic", **flags)
    assert data.id2label == {0: "background", 1: "shape"}
    assert sorted(np.unique(painted(data)["a0"])) == [0, 1, 255]
    assert list(found_in(opened(**flags)).values()) == [{("shape", Box(0, 10, 10, 12, 12).mask().tobytes(), False)}]


def test_a_json_may_lack_sizes_and_list_images_that_are_not_there(tmp_path, capsys):
    images, file = write_coco(tmp_path, TRAIN)
    content = json.loads(file.read_text())
    for image in content["images"]:
        del image["height"]
    content["annotations"].append({"id": 99, "image_id": 5000, "category_id": 3, "segmentation": []})
    file.write_text(json.dumps(content))
    (images / "a1.png").unlink()
    write_image(images / "extra.png", "extra")
    data = opened(train_images=images, train_annotations=file)
    data.stream  # noqa: B018
    assert found_in(data) == expected([name for name in TRAIN if name != "a1"])
    assert (
        "16 segments, 3 classes (--label_encoding coco); left out: 1 image that is not there, with 4 segments; "
        "1 annotation of images that it does not list; 1 file of images that it does not list"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    "form", ["coco", "coco, images inside", "roboflow", "panoptic", "yolo", "yolo, splits outside"]
)
def test_folders_are_recognised(tmp_path, form):
    for split, year, names in (("train", "train2017", TRAIN), ("val", "val2017", VALIDATION)):
        if form.startswith("coco"):
            inside = "images/" if "inside" in form else ""
            write_coco(tmp_path, names, f"{inside}{year}", f"annotations/instances_{year}.json")
        elif form == "roboflow":
            write_coco(tmp_path, names, split, f"{split}/_annotations.coco.json")
        elif form == "panoptic":
            write_panoptic(tmp_path, names, year, f"annotations/panoptic_{year}", f"annotations/panoptic_{year}.json")
        else:
            outside = "outside" in form
            folders = [
                tmp_path / (f"{split}/{kind}" if outside else f"{kind}/{split}") for kind in ("images", "labels")
            ]
            write_yolo(*folders, names)
            (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {list(NAMES)}\n")
    data = opened(dataset_name=tmp_path)
    assert found_in(data) == expected(TRAIN)
    things = {data.id2label[index] for index in data.segment_classes.things}
    assert things == (set(NAMES) if "yolo" in form else {"disc", "bar"})
    assert found_in(data.other_split("validation")) == expected(VALIDATION)
    with pytest.raises(UserError, match="split 'test': the folder holds train, validation"):
        opened(split="test", dataset_name=tmp_path)


def test_a_folder_of_both_kinds_of_json_is_asked_about(tmp_path):
    write_coco(tmp_path, TRAIN, "train2017", "annotations/instances_train2017.json")
    write_panoptic(
        tmp_path, TRAIN, "train2017", "annotations/panoptic_train2017", "annotations/panoptic_train2017.json"
    )
    with pytest.raises(UserError, match="holds files of instances and of panoptic: give --label_encoding coco"):
        opened(dataset_name=tmp_path)
    for encoding in ("coco", "segments"):
        data = opened(dataset_name=tmp_path, label_encoding=encoding)
        assert data.encoding == encoding and found_in(data) == expected(TRAIN)


def test_some_of_the_training_split_is_held_back(tmp_path):
    images, file = write_coco(tmp_path, TRAIN)
    data = opened(train_images=images, train_annotations=file, train_val_split=0.34)
    validation = data.other_split("validation")
    assert found_in(data) | found_in(validation) == expected(TRAIN)
    assert (data.num_examples, validation.num_examples) == (4, 2)


COCO_REFUSALS = {
    "no json": (lambda content: "{", r"instances.json is not a valid JSON file: "),
    "another json": (lambda content: [1], "it has no list 'images', as COCO's files of instances and of panoptic do"),
    "no categories": (lambda content: {**content, "categories": []}, "it lists no categories"),
    "a category twice": (
        lambda content: {**content, "categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]},
        "two categories have one id",
    ),
    "a name twice": (
        lambda content: {**content, "categories": [{"id": index, "name": "a"} for index in (3, 7)]},
        "ids 3 and 7 are both called 'a'",
    ),
    "a category of none": (
        lambda content: {**content, "categories": content["categories"][:1]},
        r"segment \d+ of image a0 has category \d+, which is none of its categories",
    ),
    "a file outside": (
        lambda content: {**content, "images": [{"id": 1, "file_name": "../../etc/passwd.png"}]},
        r"'../../etc/passwd.png' leads out of the folder of its images",
    ),
    "an absolute file": (
        lambda content: {**content, "images": [{"id": 1, "file_name": "/etc/passwd.png"}]},
        "leads out of the folder",
    ),
    "none of the images": (
        lambda content: {**content, "images": [{"id": 100, "file_name": "b.png"}]},
        r"none of the 1 images of --train_annotations .*instances.json, such as b.png",
    ),
}


@pytest.mark.parametrize("case", COCO_REFUSALS)
def test_what_is_no_coco_file_is_refused(tmp_path, case):
    images, file = write_coco(tmp_path, TRAIN)
    change, message = COCO_REFUSALS[case]
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UserError, match=message):
        opened(train_images=images, train_annotations=file)


SEGMENTATIONS = {
    "none": (None, "segment 1 of sample a0 has no segmentation, perhaps a box alone"),
    "an empty list": ([], "has no segmentation, perhaps a box alone"),
    "a box": ([[1, 2, 3, 4]], "a polygon of 4 numbers: need x and y of three corners or more"),
    "an odd number": ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
    "words": ([["a"] * 6], "a polygon that is no list of numbers"),
    "no number": ([[float("nan")] * 6], "a corner far from its image"),
    "far away": ([[1e9, 0, 0, 1e9, 1, 1]], "a corner far from its image"),
    "no end": ([[0, 0, 1e6, 0, 0, 1] * 10], "outlines of .* pixels: more than"),
    "another size": (
        {"size": [4, 4], "counts": [16]},
        r"a run-length code of size \[4, 4\], but its image is \[40, 60\]",
    ),
    "too short": ({"size": [40, 60], "counts": [5, 5]}, "counts do not add up to its image"),
    "too long": ({"size": [40, 60], "counts": [2400, 1]}, "counts do not add up"),
    "negative": ({"size": [40, 60], "counts": [2401, -1]}, "counts do not add up"),
    "packed, too short": ({"size": [40, 60], "counts": "0000"}, "counts do not add up"),
    "packed, no end": ({"size": [40, 60], "counts": "PPPP"}, "counts do not add up"),
    "packed, endless number": ({"size": [40, 60], "counts": "P" * 30 + "0"}, "counts do not add up"),
    "packed, other letters": ({"size": [40, 60], "counts": "\u20ac~ "}, "counts do not add up"),
}


@pytest.mark.parametrize("case", SEGMENTATIONS)
def test_a_segment_without_pixels_is_a_bad_sample_that_is_named(tmp_path, case):
    images, file = write_coco(tmp_path, ["a0"])
    segmentation, message = SEGMENTATIONS[case]
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = segmentation
    file.write_text(json.dumps(content))
    with pytest.raises(BadSample, match=message):
        found_in(opened(train_images=images, train_annotations=file))


def test_a_size_that_is_not_the_images_is_a_bad_sample(tmp_path):
    images, file = write_coco(tmp_path, ["a0"])
    content = json.loads(file.read_text())
    for size, message in (
        ((60, 40), "turned by its EXIF"),
        ((10**6, 10**6), "pixels are more than"),
        ((0, 5), "size"),
    ):
        content["images"][0] |= {"height": size[0], "width": size[1]}
        file.write_text(json.dumps(content))
        with pytest.raises(BadSample, match=message):
            found_in(opened(train_images=images, train_annotations=file))


def test_polygons_without_pycocotools_say_what_to_install(tmp_path, monkeypatch):
    images, file = write_coco(tmp_path, ["a0"])
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(UserError, match=r'pip install "faseg-transformers\[coco\]"'):
        found_in(opened(train_images=images, train_annotations=file))


# ----------------------------------------------------------------------------------------------------- YOLO's polygons


def test_a_folder_of_text_files_takes_its_names_from_yaml_or_id2label(tmp_path, capsys):
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train", TRAIN)
    (tmp_path / "labels/train/classes.txt").write_text("disc\nbar\n")
    (tmp_path / "labels/train/lone.txt").write_text("0 0 0 1 0 1 1\n")
    flags = {"train_images": tmp_path / "images/train", "train_annotations": tmp_path / "labels/train"}
    assert opened(**flags).id2label is None
    assert (
        "6 images, 5 with polygons (--label_encoding yolo); left out: 1 text file of images" in capsys.readouterr().err
    )
    (tmp_path / "names.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert found_in(opened(**flags, id2label=str(tmp_path / "names.json"))) == expected(TRAIN)
    (tmp_path / "data.yaml").write_text("names:\n  0: disc\n  1: bar\n  2: sky\n")
    assert found_in(opened(**flags)) == expected(TRAIN)
    with pytest.raises(UserError, match=r"--id2label .*: labels of --label_encoding yolo have names of their own"):
        opened(**flags, id2label=str(tmp_path / "names.json")).id2label  # noqa: B018


@pytest.mark.parametrize("form", ["images/train", "train/images", "images"])
def test_a_yolo_folder_without_a_yaml_file_is_recognised_and_its_names_are_asked_for(tmp_path, form):
    write_yolo(tmp_path / form, tmp_path / form.replace("images", "labels"), TRAIN)
    data = opened("instance", dataset_name=tmp_path)
    assert data.encoding == "yolo" and data.num_examples == len(TRAIN) and data.id2label is None
    assert "no class names: YOLO's text files number their classes from 0" in str(no_class_names(data))
    (tmp_path / "data.yaml").write_text(f"names: {list(NAMES)}")
    assert found_in(opened("instance", dataset_name=tmp_path)) == expected(TRAIN)


def test_maps_with_a_note_beside_them_are_no_yolo_folder(tmp_path):
    write_maps(tmp_path, TRAIN, class_map)
    (tmp_path / "masks").rename(tmp_path / "labels")
    (tmp_path / "labels/a0.txt").write_text("drawn by hand")
    assert opened("semantic", dataset_name=tmp_path).encoding == "classes"


YOLO_REFUSALS = {
    "0 0.5 0.5 0.2 0.2": (UserError, "line 1 of the polygons of sample a0 has four numbers behind its class: a box"),
    "0 0.5 0.5 0.2 0.2 0.1": (BadSample, "has 6 numbers: need a class, and x and y of three corners or more"),
    "0.5 0 0 0 1 1 1": (BadSample, "has 7 numbers: need a class"),
    "0 0 0 30 0 30 20": (BadSample, "has corners outside of 0..1: need them relative to width and height"),
    "0 0 0 0 nan 1 1": (BadSample, "has corners outside of 0..1"),
    "disc 0 0 0 1 1 1": (BadSample, "holds other than numbers: 'disc 0 0"),
    "7 0 0 0 1 1 1": (UserError, "category 7 of a segment in image a0 is none of the 3 that are named"),
}


@pytest.mark.parametrize("line", YOLO_REFUSALS)
def test_a_line_that_is_no_polygon_is_refused(tmp_path, line):
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train", ["a0"])
    (tmp_path / "data.yml").write_text(f"names: {list(NAMES)}")
    (tmp_path / "labels/train/a0.txt").write_text(line)
    kind, message = YOLO_REFUSALS[line]
    with pytest.raises(kind, match=message):
        found_in(opened(dataset_name=tmp_path))


def test_polygons_are_relative_to_the_upright_image(tmp_path):
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train", ["a0"])
    (tmp_path / "data.yaml").write_text(f"names: {list(NAMES)}")
    with Image.open(tmp_path / "images/train/a0.png") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    turned.save(tmp_path / "images/train/a0.png", exif=exif)
    assert found_in(opened(dataset_name=tmp_path)) == expected(["a0"])


# ------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_workers_and_a_resume_give_the_same_batches(tmp_path, form):
    if form == "coco":
        images, file = write_coco(tmp_path, TRAIN, overlap=True)
        flags = {"train_images": str(images), "train_annotations": str(file)}
    else:
        write_yolo(tmp_path / "images/train", tmp_path / "labels/train", TRAIN)
        (tmp_path / "data.yaml").write_text(f"names: {list(NAMES)}")
        flags = {"dataset_name": str(tmp_path)}
    arguments = DatasetArguments(**flags)
    alone = segment_batches(arguments, count=5)
    assert sum(map(len, (labels for batch in alone for labels in batch["class_labels"]))) > 10
    for other in (
        segment_batches(arguments, workers=2, count=5),
        [*alone[:2], *segment_batches(arguments, count=3, start=alone[1]["position"])],
    ):
        assert all(same(one, another) for one, another in zip(alone, other, strict=True))


def test_a_bad_sample_is_named_and_replaced(tmp_path):
    images, file = write_coco(tmp_path, TRAIN)
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    found = segment_batches(DatasetArguments(train_images=str(images), train_annotations=str(file)), count=3)
    messages = {message for batch in found for message in batch["bad"]}
    assert [message.partition(":")[0] for message in messages] == [
        "segment 1 of sample a0 has no segmentation, perhaps a box alone"
    ]
    assert all("a0" not in batch["names"] for batch in found)


def test_all_of_coco_is_read_once(tmp_path, monkeypatch):
    images, file = write_coco(tmp_path, TRAIN)
    read, calls = json.loads, []
    monkeypatch.setattr("scripts.data.coco.json.loads", lambda text: calls.append(len(text)) or read(text))
    data = opened(train_images=images, train_annotations=file)
    rows = list(data.stream) + list(data.stream.shard(3, 1))
    assert calls.count(file.stat().st_size) == 1
    assert max(len(row["label"]) for row in rows) < file.stat().st_size / 3
    assert set(CATEGORIES) >= {each["category_id"] for row in rows for each in read(row["label"])["annotations"]}
