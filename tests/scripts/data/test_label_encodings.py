"""Segments in maps of ids and lists beside them, and flags that contradict them: masks, or a refusal that says why."""

import json
from io import BytesIO

import datasets
import numpy as np
import pytest
from PIL import Image
from segment_scenes import (
    NAMES,
    SIZE,
    TRAIN,
    VALIDATION,
    Box,
    class_map,
    colours,
    expected,
    found_in,
    id_map,
    opened,
    painted,
    scene,
    write_coco,
    write_maps,
    write_panoptic,
)

from scripts.cli.errors import UserError
from scripts.data.first_look import first_look
from scripts.data.label_encodings import listed_segments
from scripts.data.samples import BadSample, decode_segments
from scripts.evaluation.degenerate import look_at_classes


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


def listed_rows(folder, change=lambda infos: infos):
    """A parquet file of maps and lists, `change`d."""
    rows = {"image": [], "label": [], "segments_info": [], "image_id": TRAIN}
    for name in TRAIN:
        boxes = scene(name)
        rows["image"].append(png(np.zeros((*SIZE, 3), np.uint8)))
        rows["label"].append(png(colours(id_map(boxes))))
        infos = [{"id": at, "category_id": box.label, "iscrowd": 0} for at, box in enumerate(boxes, 1)]
        rows["segments_info"].append(json.dumps(change(infos)))
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    features = {"image": datasets.Image(), "label": datasets.Image()}
    features |= {key: datasets.Value("string") for key in ("segments_info", "image_id")}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(folder / "rows.parquet")
    return {"dataset_name": folder / "rows.parquet"}


def test_a_list_may_be_a_dictionary_of_lists(tmp_path):
    def as_columns(infos):
        return {key: [each[key] for each in infos] for key in ("id", "category_id", "iscrowd")}

    assert found_in(opened(**listed_rows(tmp_path, as_columns))) == expected(TRAIN)
    assert listed_segments({"id": [], "category_id": []}) == listed_segments(None) == []
    for wrong in ({"id": [1], "category_id": []}, {"id": 1}, "7"):
        with pytest.raises(ValueError, match=r"argument|list of segments"):
            listed_segments(wrong)


def test_a_segment_of_id_zero_is_a_bad_sample_that_is_named(tmp_path):
    flags = listed_rows(tmp_path, lambda infos: [*infos, {"id": 0, "category_id": 1}])
    with pytest.raises(BadSample, match=r"segments_info of sample a0: lists id 0, .*: number segments from 1 on"):
        found_in(opened(**flags))


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


# --------------------------------------------------------------------------------------------------------------- flags


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


def test_an_encoding_that_the_labels_cannot_have_is_refused(tmp_path):
    flags = write_maps(tmp_path, TRAIN, MAPS["16 bits"][0])
    for encoding, message in (
        (
            "coco",
            r"--label_encoding coco: --train_masks .* holds images, no outlines: give COCO.s json by --",
        ),
        ("yolo", "no outlines: give the folder of YOLO's .txt files by --train_annotations in its place"),
        ("segments", "--label_encoding segments: no column 'segments_info' lists the segments of each map"),
    ):
        with pytest.raises(UserError, match=message):
            opened("instance", **flags, label_encoding=encoding).encoding  # noqa: B018


def test_class_maps_given_as_instances_are_refused_where_that_is_certain_and_else_warned_of(tmp_path, capsys):
    flags = write_maps(tmp_path, [f"b{at}" for at in range(9)], class_map)
    for name in ("images", "masks"):  # stripes: each id in many pieces, in every map
        for at in range(9):
            striped = np.kron(np.tile([[1, 2], [2, 1]], (4, 6)), np.ones((5, 5))).astype(np.uint8)
            Image.fromarray(striped).save(tmp_path / name / f"b{at}.png")
    flags |= {"label_encoding": "instances", "thing_classes": ["cell"]}
    message = "split 'train': all 9 maps hold 2 distinct ids, each in 100 % of them, and 100 % lie in several pieces"
    with pytest.raises(UserError, match=message + ".*--label_encoding classes reads them so.*--allow_absent_classes"):
        look_at_classes(opened("instance", **flags), {0: "cell"})
    assert look_at_classes(opened("instance", **flags, allow_absent_classes=True), {0: "cell"}).maps == 9
    capsys.readouterr()
    for at in range(7):
        for name in ("images", "masks"):
            (tmp_path / name / f"b{at}.png").unlink()
    look_at_classes(opened("instance", **flags), {0: "cell"})
    assert "warning: split 'train': all 2 maps hold 2 distinct ids" in capsys.readouterr().err


def test_instances_are_no_classes(tmp_path, capsys):
    flags = write_maps(tmp_path, [f"b{at}" for at in range(9)], MAPS["16 bits"][0])
    data = opened("instance", **flags, label_encoding="instances", thing_classes=["cell"])
    assert look_at_classes(data, {0: "cell"}).instances.maps == 9 and "warning" not in capsys.readouterr().err


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
