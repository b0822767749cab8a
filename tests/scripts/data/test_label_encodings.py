"""Segments in every form that data sets have them in: the same masks from each, or a refusal that says why."""

import json
from io import BytesIO

import datasets
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
    colours,
    id_map,
    scene,
    write_coco,
    write_image,
    write_panoptic,
    write_yolo,
)
from stream_batches import same, segment_batches

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.first_look import first_look
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_sample, decode_segments


def opened(task="panoptic", split="train", **flags):
    """A data set for a task."""
    data = LabelledDataset(
        DatasetArguments(
            **{
                key: str(value) if key.endswith(("images", "masks", "annotations", "name")) else value
                for key, value in flags.items()
            }
        ),
        split,
    )
    data.task = task
    return data


def found_in(data):
    """`{name: {(class name, pixels of the mask, crowd)}}` of all samples."""
    names, found = data.id2label, {}
    for index, row in enumerate(data.stream):
        image, segments, name = decode_segments(row, data.row_format, index)
        assert image.shape[1:] == segments.size == SIZE
        parts = zip(segments.classes.tolist(), segments.masks().numpy(), segments.crowd.tolist(), strict=True)
        found[name] = {(names[label], mask.tobytes(), crowd) for label, mask, crowd in parts}
    return found


def expected(names, overlap=False, label_of=lambda label: NAMES[label]):
    return {
        name: {(label_of(box.label), box.mask().tobytes(), box.crowd) for box in scene(name, overlap)}
        for name in names
    }


def painted(data):
    """`{name: (H, W) map}` as a semantic model learns it."""
    rows = enumerate(data.stream)
    samples = [decode_sample(row, data.row_format, len(data.id2label), index) for index, row in rows]
    return {name: label.numpy() for _, label, name in samples}


def write_maps(folder, names, of_boxes, ending=".png", mode=None):
    """Images, and what `of_boxes` makes of each image's boxes."""
    (folder / "masks").mkdir(parents=True)
    for name in names:
        write_image(folder / "images" / f"{name}.png", name)
        image = Image.fromarray(of_boxes(scene(name)))
        (image.convert(mode) if mode else image).save(folder / "masks" / f"{name}{ending}")
    return {"train_images": folder / "images", "train_masks": folder / "masks"}


# ---------------------------------------------------------------------------------------------------- COCO's json


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
    data = opened(train_images=images, train_annotations=file)
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


# ---------------------------------------------------------------------------------------------------- YOLO's polygons


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


# --------------------------------------------------------------------------------------------------- maps of instances


def big_ids(boxes):
    return id_map(boxes, [70000 * (index + 1) for index in range(len(boxes))])


MAPS = {
    "8 bits": (lambda boxes: id_map(boxes).astype(np.uint8), ".png"),
    "16 bits": (lambda boxes: (id_map(boxes) * 300).astype(np.uint16), ".png"),
    "16 bits, TIFF": (lambda boxes: (id_map(boxes) * 300).astype(np.uint16), ".tif"),
    "32 bits, TIFF": (lambda boxes: big_ids(boxes).astype(np.int32), ".tif"),
    "colours": (lambda boxes: colours(big_ids(boxes)), ".png"),
}


@pytest.mark.parametrize("form", MAPS)
def test_maps_of_instances_of_one_class_or_beside_class_maps(tmp_path, form):
    of_boxes, ending = MAPS[form]
    flags = write_maps(tmp_path, TRAIN, of_boxes, ending)
    one = opened("instance", **flags, label_encoding="instances", thing_classes=["cell"])
    assert found_in(one) == expected(TRAIN, label_of=lambda label: "cell")
    assert one.id2label == {0: "cell"}
    write_maps(tmp_path / "classes", TRAIN, class_map)
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert found_in(opened("instance", **flags, train_class_masks=tmp_path / "classes/masks")) == expected(TRAIN)


def test_one_class_has_a_background_for_a_semantic_model(tmp_path):
    flags = write_maps(tmp_path, ["a0"], MAPS["16 bits"][0]) | {
        "label_encoding": "instances",
        "thing_classes": ["cell"],
    }
    data = opened("semantic", **flags)
    assert data.id2label == {0: "background", 1: "cell"}
    assert (painted(data)["a0"] == (id_map(scene("a0")) > 0)).all()


def test_a_class_called_background_has_no_instances(tmp_path):
    flags = write_maps(tmp_path, ["a0"], MAPS["16 bits"][0])
    write_maps(tmp_path / "classes", ["a0"], class_map)
    flags["train_class_masks"] = tmp_path / "classes/masks"
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "Background", "1": NAMES[1], "2": NAMES[2]}))
    assert opened("instance", **flags).id2label == {0: NAMES[1], 1: NAMES[2]}
    assert opened("panoptic", **flags).segment_classes.things == {1, 2}


def test_stuff_of_a_class_map_is_one_segment_and_a_thing_without_an_instance_none(tmp_path):
    boxes = [Box(0, 0, 0, 9, 9), Box(0, 20, 0, 29, 9), Box(2, 0, 20, 9, 29), Box(2, 20, 20, 29, 29)]
    flags = write_maps(tmp_path, ["a0"], lambda _: id_map(boxes, [4, 0, 0, 9]).astype(np.uint16))
    write_maps(tmp_path / "classes", ["a0"], lambda _: class_map(boxes, none=1))
    flags["train_class_masks"] = tmp_path / "classes/masks"
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    rest = class_map(boxes, none=1) == 1
    sky = boxes[2].mask() | boxes[3].mask()
    stuff = {("sky", sky.tobytes(), False), ("bar", rest.tobytes(), False)}
    disc = ("disc", boxes[0].mask().tobytes(), False)
    assert found_in(opened(**flags, thing_classes=["disc"])) == {"a0": stuff | {disc}}
    assert found_in(opened("instance", **flags, thing_classes=["disc"])) == {"a0": {disc}}
    semantic = opened("semantic", **flags)  # every pixel's class is told, instances or not
    assert (painted(semantic)["a0"] == class_map(boxes, none=1)).all()


def test_an_instance_on_two_classes_is_a_bad_sample_that_is_named(tmp_path):
    boxes = [Box(0, 0, 0, 9, 9), Box(1, 20, 0, 29, 9)]
    flags = write_maps(tmp_path, ["a0"], lambda _: id_map(boxes, [4, 4]).astype(np.uint16))
    write_maps(tmp_path / "classes", ["a0"], lambda _: class_map(boxes))
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    with pytest.raises(BadSample, match="instance 4 of sample a0 lies on two classes of its class map, disc and bar"):
        found_in(opened(**flags, train_class_masks=tmp_path / "classes/masks"))


@pytest.mark.parametrize("channels", ["RGB", "RGBA", "LA"])
def test_class_and_instance_in_two_channels(tmp_path, channels):
    def annotation(boxes):
        planes = [class_map(boxes), id_map(boxes).astype(np.uint8)]
        planes += [np.zeros(SIZE, np.uint8)] * (len(channels) - 2)
        return np.stack(planes, axis=-1)

    flags = write_maps(tmp_path, TRAIN, annotation) | {"label_encoding": "class_and_instance"}
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert found_in(opened("instance", **flags)) == expected(TRAIN)
    assert (painted(opened("semantic", **flags))["a0"] == class_map(scene("a0"))).all()


def test_class_zero_is_left_out_where_transformers_reduces_labels(tmp_path):
    def annotation(boxes):
        shifted = np.where(class_map(boxes) == 255, 0, class_map(boxes) + 1).astype(np.uint8)
        return np.stack([shifted, id_map(boxes).astype(np.uint8), np.zeros(SIZE, np.uint8)], axis=-1)

    flags = write_maps(tmp_path, TRAIN, annotation)
    flags |= {"label_encoding": "class_and_instance", "do_reduce_labels": True}
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert found_in(opened("instance", **flags)) == expected(TRAIN)
    assert (painted(opened("semantic", **flags))["a0"] == (class_map(scene("a0")) + 1)).all()  # as stored
    look = first_look(opened("semantic", **flags).stream, opened("semantic", **flags).row_format)
    assert set(look.stored) == {0, 1, 2, 3} and set(look.classes) == {0, 1, 2}


def test_values_of_class_maps_are_named(tmp_path):
    flags = write_maps(tmp_path, TRAIN, lambda boxes: id_map(boxes).astype(np.uint16))
    write_maps(tmp_path / "classes", TRAIN, lambda boxes: np.where(id_map(boxes) > 0, 255, 0).astype(np.uint8))
    flags |= {"train_class_masks": tmp_path / "classes/masks", "mask_values": ["0=ignore", "255=cell"]}
    assert found_in(opened("instance", **flags)) == expected(TRAIN, label_of=lambda label: "cell")


# --------------------------------------------------------------------------------------------------- columns and lists


def png(array):
    content = BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def test_columns_of_a_data_set(tmp_path):
    rows = {"image": [], "label": [], "semantic": [], "image_id": TRAIN}
    for name in TRAIN:
        rows["image"].append(png(np.zeros((*SIZE, 3), np.uint8)))
        rows["label"].append(png((id_map(scene(name)) * 300).astype(np.uint16)))
        rows["semantic"].append(png(class_map(scene(name))))
    features = {key: datasets.Image() for key in ("image", "label", "semantic")} | {
        "image_id": datasets.Value("string")
    }
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    flags = {"dataset_name": tmp_path / "rows.parquet", "class_column_name": "semantic"}
    assert found_in(opened("instance", **flags)) == expected(TRAIN)
    with pytest.raises(UserError, match=r"no column 'other' in .*; set --class_column_name"):
        opened(**{**flags, "class_column_name": "other"})


def test_panoptic_maps_by_a_json(tmp_path, capsys):
    write_panoptic(tmp_path, TRAIN)
    flags = {"train_images": tmp_path / "images", "train_masks": tmp_path / "maps"}
    data = opened(**flags, train_annotations=tmp_path / "panoptic.json")
    assert found_in(data) == expected(TRAIN) and data.id2label == dict(enumerate(NAMES))
    assert "3 classes (--label_encoding segments)" in capsys.readouterr().err
    assert (painted(opened("semantic", **flags, train_annotations=tmp_path / "panoptic.json"))["a0"]
            == class_map(scene("a0"))).all()  # fmt: skip
    with pytest.raises(UserError, match="it is panoptic: give the folder of its maps by --train_masks"):
        opened(train_images=tmp_path / "images", train_annotations=tmp_path / "panoptic.json")


def test_a_class_map_takes_the_things_along(tmp_path):
    write_panoptic(tmp_path, TRAIN)
    flags = {"train_images": tmp_path / "images", "train_masks": tmp_path / "maps"}
    flags |= {"train_annotations": tmp_path / "panoptic.json"}
    (tmp_path / "map.yaml").write_text("clouds: sky\nignore: disc\n")
    merged = opened("panoptic", **flags, class_map=str(tmp_path / "map.yaml"))
    assert (merged.id2label, merged.segment_classes.things) == ({0: "bar", 1: "clouds"}, {0})
    named = opened("instance", **flags, mask_values=["90=clouds", "7=bar"])  # 3, a thing, is not named
    assert (named.id2label, named.segment_classes.table[7]) == ({0: "bar"}, 0)
    with pytest.raises(UserError, match="category 3 of a segment"):
        found_in(named)


@pytest.mark.parametrize(("task", "looked"), [("instance", 64), ("semantic", 64), ("panoptic", 64)])
def test_one_class_is_seen_soon(tmp_path, task, looked):
    flags = write_maps(tmp_path, ["a0"], MAPS["16 bits"][0])
    data = opened(task, **flags, label_encoding="instances", thing_classes=["cell"])
    (row,) = data.stream
    look = first_look([row] * 200, data.row_format)
    assert look.maps == looked and not look.whole


def test_the_json_and_the_list_of_real_data_give_the_same(tmp_path, shared):
    place = shared / "data/coco_panoptic_mini"
    if not place.is_dir():
        pytest.skip("no real panoptic data there")
    data = opened(split="validation", dataset_name=place)
    listed = data.encoding
    names, things = data.id2label, data.segment_classes.things
    parquet = next((place / "data").glob("*.parquet"))
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [
        {"id": 2 * at + 1, "name": name, "isthing": int(at in things)} for at, name in names.items()
    ]
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    for at, row in enumerate(datasets.Dataset.from_parquet(str(parquet))):
        row["image"].save(tmp_path / f"images/{at}.png")
        row["label"].save(tmp_path / f"maps/{at}.png")
        content["images"].append({"id": at, "file_name": f"{at}.png"})
        infos = [{**each, "category_id": 2 * each["category_id"] + 1} for each in row["segments_info"]]
        content["annotations"].append({"image_id": at, "file_name": f"{at}.png", "segments_info": infos})
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    by_json = opened(
        split="validation", eval_images=tmp_path / "images", eval_masks=tmp_path / "maps",
        eval_annotations=tmp_path / "panoptic.json",
    )  # fmt: skip
    assert (listed, by_json.encoding) == ("segments", "segments") and by_json.segment_classes.things == things
    for one, other in zip(data.stream, by_json.stream, strict=True):
        first, second = (decode_segments(row, each.row_format, 0) for row, each in ((one, data), (other, by_json)))
        assert len(first[1]) > 5 and (first[1].layers == second[1].layers).all()
        assert (first[1].classes == second[1].classes).all() and (first[0] == second[0]).all()


# ---------------------------------------------------------------------------------------------------- flags


FLAGS = {
    "another encoding than the json's": (
        {"label_encoding": "yolo"},
        "--label_encoding yolo: .* gives coco: leave one",
    ),
    "class maps beside a json": ({"train_class_masks": "x"}, "--train_class_masks x is for maps of instances"),
    "maps beside outlines": (
        {"train_masks": "images"},
        "it holds the segments' outlines itself: leave out --train_masks",
    ),
    "values of maps": (
        {"mask_values": ["0=a"]},
        "--mask_values 0=a: labels of --label_encoding coco have no class ids",
    ),
    "reduced labels": (
        {"do_reduce_labels": True},
        "--do_reduce_labels: labels of --label_encoding coco have no class 0",
    ),
    "colours": ({"mask_colors": "x.json"}, "--mask_colors x.json: labels of --label_encoding coco have no colours"),
    "a suffix": ({"mask_suffix": "_m"}, "--mask_suffix _m: --train_annotations .* names files itself"),
    "no such thing": ({"thing_classes": ["disk"]}, "--thing_classes: no class 'disk': the classes are disc, bar, sky"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_contradict_each_other_are_refused(tmp_path, case):
    images, file = write_coco(tmp_path, TRAIN)
    given, message = FLAGS[case]
    if given.get("train_masks"):
        given = {"train_masks": images}
    with pytest.raises(UserError, match=message):
        opened(train_images=images, train_annotations=file, **given).id2label  # noqa: B018


def test_what_nothing_tells_is_asked_for(tmp_path):
    flags = write_maps(tmp_path, TRAIN, MAPS["16 bits"][0])
    with pytest.raises(UserError, match="nothing tells what the label maps hold: give --label_encoding instances"):
        opened("instance", **flags).id2label  # noqa: B018
    with pytest.raises(UserError, match="hold one class, but 2 are named, a, b: name one by --thing_classes"):
        opened("instance", **flags, label_encoding="instances", thing_classes=["a", "b"]).id2label  # noqa: B018
    with pytest.raises(
        UserError, match=r"--class_column_name x is for maps of instances, not for --label_encoding coco"
    ):
        opened(**flags, label_encoding="coco", class_column_name="x")


def test_splits_of_two_forms_or_other_classes_are_refused(tmp_path):
    images, file = write_coco(tmp_path, TRAIN)
    eval_images, eval_file = write_coco(tmp_path / "eval", VALIDATION)
    flags = {"train_images": images, "train_annotations": file, "eval_images": eval_images}
    content = json.loads(eval_file.read_text())
    content["categories"][0]["name"] = "disk"
    eval_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"have other categories, such as 3 dis[ck]: write the same list into both"):
        opened(**flags, eval_annotations=eval_file).other_split("validation")
    content["categories"][0] |= {"name": "disc", "isthing": 0}
    eval_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="'disc' is a thing in one, stuff in the other"):
        opened(**flags, eval_annotations=eval_file).other_split("validation")
    with pytest.raises(UserError, match="one split has coco, the other label maps: give both in one form"):
        maps = write_maps(tmp_path / "maps", VALIDATION, class_map)["train_masks"]
        opened(**flags, eval_masks=maps).other_split("validation")


# ---------------------------------------------------------------------------------------------------- streams


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
