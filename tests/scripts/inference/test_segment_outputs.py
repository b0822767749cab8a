"""What `predict.py` writes of instance and panoptic models: COCO's files, maps of ids, overlays, shards."""

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image
from planted_segments import NAMES, SIZE, box, found_instances, found_panoptic, instance, masks

from scripts import predict as predict_command
from scripts.data.label_encodings import SegmentClasses, SegmentForm
from scripts.data.samples import RowFormat
from scripts.data.synthetic_scenes import draw_sample
from scripts.inference.found_segments import FoundSegments
from scripts.inference.segment_maps import SegmentMap, coco_results, segment_map
from scripts.inference.segment_outputs import SegmentOutputs, image_ids


@pytest.fixture
def write(tmp_path):
    """Writes the outputs of planted segments of images of these names."""

    def run(kinds, found, names=("a.png",), stuff=(), parts=1):
        outputs = [SegmentOutputs(kinds, tmp_path, NAMES, {}, False, stuff=stuff) for _ in range(parts)]
        for number, name in enumerate(names):
            image = Image.new("RGB", SIZE[::-1])
            path = tmp_path / "images" / name
            outputs[number % parts].write(
                path, path.relative_to(tmp_path / "images").with_suffix(""), image, lambda _: found
            )
        for kind in outputs[0].of_images:
            outputs[0].write_common(kind, [image for part in outputs for image in part.of_images[kind]])
        return tmp_path

    return run


# ---- instances


def test_coco_results_hold_the_masks_column_by_column():
    coco_masks = pytest.importorskip("pycocotools.mask")
    results = coco_results(found_instances().instances)
    assert [(one["category_id"], one["score"]) for one in results] == [(1, 0.9), (1, 0.8), (2, 0.7), (1, 0.6)]
    for result, mask in zip(results, masks(), strict=True):
        assert result["segmentation"]["size"] == list(SIZE)
        assert np.array_equal(coco_masks.decode(result["segmentation"]).astype(bool), mask)
        assert "bbox" not in result


def test_coco_reads_the_results_of_all_images(write):
    """Two processes; the better of two covers the other in maps, not in the results."""
    coco = pytest.importorskip("pycocotools.coco")
    folder = write(["instances"], found_instances(), ["b/000042.jpg", "000007.png"], parts=2)
    results = json.loads((folder / "instances.json").read_text())
    assert [one["image_id"] for one in results] == [7] * 4 + [42] * 4
    assert results[0]["file_name"] == "000007.png" and results[4]["file_name"] == "b/000042.jpg"
    truth, size = coco.COCO(), {"height": SIZE[0], "width": SIZE[1]}
    truth.dataset = {"images": [{"id": 7} | size, {"id": 42} | size], "categories": [{"id": index} for index in NAMES]}
    truth.createIndex()
    read = truth.loadRes(str(folder / "instances.json"))
    assert len(read.anns) == 8 and np.array_equal(read.annToMask(read.anns[3]).astype(bool), masks()[2])
    assert [read.anns[number]["area"] for number in (1, 2, 3, 4)] == [mask.sum() for mask in masks()]


def test_nothing_found_is_an_empty_list_that_may_be_written_over(write):
    for _ in range(2):
        folder = write(["instances", "ids", "overlay"], FoundSegments(SIZE, []))
        assert json.loads((folder / "instances.json").read_text()) == []
        assert not np.asarray(Image.open(folder / "a_ids.png")).any()
    assert Image.open(folder / "a_overlay.png").height > SIZE[0]


def test_ids_have_the_better_one_on_top_and_overlays_the_smaller_one(write):
    first, second, small, hidden = masks()
    by_score, by_size = segment_map(found_instances()), segment_map(found_instances(), small_on_top=True)
    assert (
        (by_score.ids[first] == 1).all() and not (by_score.ids == 3)[first].any() and (by_score.ids[second] == 2).all()
    )
    assert (by_size.ids[small] == 3).all() and (by_size.ids[hidden] == 4).all()
    assert [one["id"] for one in by_score.info()] == [1, 2]  # the others are covered
    stored = Image.open(write(["ids"], found_instances()) / "a_ids.png")
    assert stored.mode == "I;16" and np.array_equal(np.asarray(stored), by_score.ids)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "x/285.jpg"], [139, 285]),
        (["1.jpg", "x/01.jpg"], [1, 2]),
        (["1.jpg", "b.jpg"], [1, 2]),
        ([], []),
    ],
)
def test_images_that_are_named_by_numbers_keep_them(names, ids):
    assert image_ids(names) == ids


# ---- panoptic segments


def test_coco_panoptic_files_tell_the_segments(write):
    folder = write(["segments", "ids", "overlay"], found_panoptic(), ["x/a.png", "b.png"], stuff=[0])
    content = json.loads((folder / "panoptic.json").read_text())
    assert [(image["id"], image["file_name"], image["height"], image["width"]) for image in content["images"]] == [
        (1, "b.png", *SIZE), (2, "x/a.png", *SIZE),
    ]  # fmt: skip
    assert [(one["id"], one["name"], one["isthing"]) for one in content["categories"]] == [
        (0, "sky", 0), (1, "cell", 1), (2, "car", 1),
    ]  # fmt: skip
    assert [one["file_name"] for one in content["annotations"]] == ["b_segments.png", "x/a_segments.png"]
    colours = np.asarray(Image.open(folder / "x" / "a_segments.png")).astype(int)
    ids = colours @ [1, 256, 65536]
    assert np.array_equal(ids, found_panoptic().panoptic.ids)
    assert np.array_equal(np.asarray(Image.open(folder / "x" / "a_ids.png")), ids)
    listed = content["annotations"][1]["segments_info"]
    assert [(one["category_id"], one["isthing"], one["iscrowd"]) for one in listed] == [
        (0, 0, 0), (1, 1, 0), (1, 1, 0), (2, 1, 0),
    ]  # fmt: skip
    for one in listed:
        rows, columns = np.nonzero(ids == one["id"])
        left, top, width, height = one["bbox"]
        assert one["area"] == len(rows) and (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_what_is_a_thing_is_left_out_where_the_model_does_not_say(write):
    folder = write(["segments"], found_panoptic(), stuff=None)
    content = json.loads((folder / "panoptic.json").read_text())
    entries = content["categories"] + content["annotations"][0]["segments_info"]
    assert len(entries) == 7 and not any("isthing" in entry for entry in entries)


def test_ids_of_many_segments_are_colours():
    many = found_panoptic().panoptic.ids.copy()
    many[many == 4] = 70000
    coloured = np.asarray(SegmentMap(many, []).coloured()).astype(int)
    assert np.array_equal(coloured @ [1, 256, 65536], many)


# ---- polygons and the map


def drawn(geometry, size=SIZE, **place):
    from rasterio import features

    return features.rasterize([geometry], out_shape=size, dtype="uint8", **place).astype(bool)


def features_of(file):
    return json.loads(file.read_text())["features"]


def test_polygons_of_instances_are_their_whole_masks(write):
    """The hidden one too, and one of two parts."""
    pytest.importorskip("rasterio")
    found, two_parts = found_instances(), box(0, 50, 3, 55) | box(36, 50, 40, 60)
    found.instances.append(instance(2, 0.5, two_parts))
    polygons = features_of(write(["polygons"], found) / "a_polygons.geojson")
    assert [each["geometry"]["type"] for each in polygons] == ["Polygon"] * 4 + ["MultiPolygon"]
    for number, (each, mask) in enumerate(zip(polygons, [*masks(), two_parts], strict=True), 1):
        label, score = found.instances[number - 1][:2]
        about = {"id": number, "score": score, "class_id": label, "class": NAMES[label], "pixels": mask.sum()}
        assert each["properties"] == about and np.array_equal(drawn(each["geometry"]), mask)
    assert features_of(write(["polygons"], FoundSegments(SIZE, [])) / "a_polygons.geojson") == []


def test_polygons_of_panoptic_segments_are_the_map(write):
    pytest.importorskip("rasterio")
    polygons = features_of(write(["polygons"], found_panoptic(), stuff=[0]) / "a_polygons.geojson")
    ids = np.zeros(SIZE, dtype=np.int32)
    for each in polygons:
        ids[drawn(each["geometry"])] += each["properties"]["id"]
    assert np.array_equal(ids, found_panoptic().panoptic.ids)
    assert [each["properties"]["isthing"] for each in polygons] == [0, 1, 1, 1]
    assert polygons[3]["properties"]["class"] == "car" and polygons[3]["properties"]["score"] == 0.81


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_segments_lie_where_their_image_does(task, predicted, model_of, street, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.asarray(Image.open(street).convert("RGB")).transpose(2, 0, 1)
    size, there = pixels.shape[1:], rasterio.Affine(10, 0, 500_000, 0, -10, 5_316_000)
    place = {"crs": "EPSG:32632", "transform": there}
    form = {"driver": "GTiff", "width": size[1], "height": size[0], "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "street.tif", "w", **form, **place) as file:
        file.write(pixels)
    flags = ["--threshold", "0.1", "--outputs", "ids", "geotiff", "polygons"]
    predicted(model_of(task), *flags, images=tmp_path / "street.tif")
    folder, from_degrees = tmp_path / "out", rasterio.warp.transform_geom
    with rasterio.open(folder / "street_ids.tif") as file:
        assert file.crs == place["crs"] and file.transform == there and file.dtypes == ("uint16",)
        ids = file.read(1)
    assert np.array_equal(ids, np.asarray(Image.open(folder / "street_ids.png"))) and ids.any()
    pixels, degrees = (features_of(folder / f"street_polygons{kind}.geojson") for kind in ("", "_map"))
    assert len(pixels) == len(degrees) > 0
    for one, other in zip(pixels, degrees, strict=True):
        back = from_degrees("EPSG:4326", place["crs"], other["geometry"])
        assert one["properties"] == other["properties"]
        assert np.array_equal(drawn(one["geometry"], size), drawn(back, size, transform=there))
    _, error = predicted(model_of(task), *flags, code=2)
    assert "street.png has no coordinate reference system" in error


# ---- the command


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "street.png"
    draw_sample(np.random.default_rng(1))[0].save(file)
    return file


@pytest.fixture
def predicted(command, street, tmp_path):
    def run(model, *flags, code=0, images=street):
        found, out, errors = command(
            predict_command, images, "--model_name_or_path", model, "--output_dir", tmp_path / "out", *flags
        )
        assert found == code, errors
        return out, errors[-1] if errors else ""

    return run


def test_an_instance_model_writes_coco_results_and_an_overlay(predicted, model_of, tmp_path):
    counts = []
    for threshold in ("0.99", "0"):
        out, _ = predicted(model_of("instance"), "--threshold", threshold)
        assert "COCO results and overlays in" in out
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"instances.json", "street_overlay.png"}
        results = json.loads((tmp_path / "out" / "instances.json").read_text())
        assert all(one["score"] >= float(threshold) for one in results)
        counts.append(len(results))
    assert counts[0] < counts[1]


@pytest.mark.parametrize(("task", "file"), [("instance", "instances.json"), ("panoptic", "panoptic.json")])
def test_categories_are_those_of_the_json_that_the_model_was_trained_on(predicted, model_of, tmp_path, task, file):
    folder = shutil.copytree(model_of(task), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = [10 * (index + 1) for index in range(len(config["id2label"]))]
    (folder / "config.json").write_text(json.dumps(config | {"category_ids": own}))
    predicted(folder, "--threshold", "0")
    content = json.loads((tmp_path / "out" / file).read_text())
    if task == "panoptic":
        assert [each["id"] for each in content["categories"]] == own
        content = content["annotations"][0]["segments_info"]
    assert content and {each["category_id"] for each in content} <= {*own}


def test_a_panoptic_model_writes_segments_and_an_overlay(predicted, model_of, tmp_path):
    out, _ = predicted(model_of("panoptic"), "--threshold", "0.1")
    assert "panoptic segments and overlays in" in out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"panoptic.json", "street_segments.png", "street_overlay.png"}
    (annotation,) = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    ids = np.asarray(Image.open(tmp_path / "out" / "street_segments.png")).astype(int) @ [1, 256, 65536]
    assert annotation["segments_info"] and {one["id"] for one in annotation["segments_info"]} == {*np.unique(ids)} - {
        0
    }
    assert {one["isthing"] for one in annotation["segments_info"] if one["category_id"] == 0} <= {0}


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("instance", ["--outputs", "labels"], "--outputs labels of this instance model: a map of one class"),
        ("instance", ["--outputs", "segments"], "only a panoptic model finds segments"),
        ("instance", ["--outputs", "probabilities"], "its scores are of whole segments"),
        ("panoptic", ["--outputs", "coco"], "choose among segments, overlay, ids, polygons, geotiff"),
        ("panoptic", ["--outputs", "instances"], "only an instance model finds objects"),
        ("semantic", ["--outputs", "ids"], "no segments that could have ids"),
        ("instance", ["--tile", "64"], "--tile is for semantic models, this is of task instance"),
        ("semantic", ["--threshold", "0.5"], "--threshold 0.5 is for instance and panoptic models"),
        ("panoptic", ["--threshold", "1.5"], "--threshold 1.5: give 0 to 1"),
        ("panoptic", ["--threshold", "nan"], "--threshold nan: give 0 to 1"),
        ("panoptic", ["--config_overrides", "task=instance"], "says task panoptic, but config.json says instance"),
    ],
)
def test_what_makes_no_sense_for_a_task_is_refused(task, flags, message, predicted, model_of, tmp_path):
    _, error = predicted(model_of(task), *flags, code=2)
    assert error.startswith("predict.py: error: ") and message in error
    assert not (tmp_path / "out").exists()


# ---- a dataset


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_predictions_of_a_dataset_are_labels(task, model_of, shapes, tmp_path, command):
    """Shards of three; `load_dataset` and the reader of labels give them back. A second run adds nothing."""
    flags = [
        "--model_name_or_path", model_of(task), "--dataset_name", shapes, "--split_name", "train",
        "--rows_per_shard", 3, "--dataloader_num_workers", 0, "--output_dir", tmp_path / "out", "--threshold", 0.1,
    ]  # fmt: skip
    code, out, errors = command(predict_command, *flags, "--overlays", 1)
    assert code == 0 and "maps of segments in" in out, errors
    assert (tmp_path / "out" / "overlays" / "000000.png").is_file()
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    listed = [row["segments_info"] for row in rows]
    assert len(listed) == 7 and sum(map(len, listed)) > 7
    form = SegmentForm("segments", SegmentClasses(NAMES, {index: index for index in NAMES}))
    for row, infos in zip(rows.cast_column("label", datasets.Image(decode=False)), listed, strict=True):
        segments = form.decode(row, RowFormat(), row["image_id"])
        infos.sort(key=lambda info: info["id"])
        assert segments.size == (128, 160) and not segments.crowd.any()
        assert segments.areas().tolist() == [info["area"] for info in infos]
        assert segments.classes.tolist() == [info["category_id"] for info in infos]
    code, out, _ = command(predict_command, *flags)
    assert code == 0 and "going on after 3 shards, 7 rows" in out
    code, _, errors = command(predict_command, *flags[:-1], 0.2)
    assert code == 2 and "its shards were made with threshold 0.1, not 0.2" in errors[-1]
    code, _, errors = command(predict_command, *flags, "--score_maps")
    assert code == 2 and "--score_maps is for semantic models" in errors[-1]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "segments_info" in readme and "--label_encoding segments" in readme
