"""What `scripts/predict.py` writes of images, where, and which flags it refuses."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from random_splits import random_pixels

from scripts import predict as predict_command
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.data.images import find_images
from scripts.drawing.visualization import contours
from scripts.inference import regions
from scripts.inference.output_kinds import DEFAULT_KINDS, ENDINGS, KINDS, WHY_NOT, WORDS


def write_photo(file, height=48, width=64, **settings):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels(np.random.default_rng(0), height, width)).save(file, **settings)


def written(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def photo(tmp_path):
    write_photo(tmp_path / "photos" / "street.png")
    return tmp_path / "photos" / "street.png"


@pytest.fixture
def predicted(shapes_model, tmp_path, command):
    """Runs the command on what is given, into tmp_path/out; returns standard output and lines of standard error."""

    def run(*given, code=0):
        flags = ["--model_name_or_path", shapes_model, "--output_dir", tmp_path / "out"]
        found, out, errors = command(predict_command, *flags, *given)
        errors = [line for line in errors if line and not line.startswith(("Loading weights", "predict: "))]
        assert found == code, errors
        return out, errors

    return run


# ---- overlays


def test_overlays_of_contours_and_with_an_untinted_class(predicted, photo, tmp_path):
    own = np.asarray(Image.open(photo)).astype(int)
    drawn = {}
    for name, flags in (("plain", []), ("lines", ["--contours_only"]), ("bare", ["--untinted_class", "LABEL_0"])):
        predicted(photo, *flags)
        drawn[name] = np.asarray(Image.open(tmp_path / "out/street_overlay.png"))[:48, :64].astype(int)
    labels = np.asarray(Image.open(tmp_path / "out/street_labels.png"))
    inner = ~contours(labels)
    assert len(np.unique(labels)) > 1 and 0 in labels and inner.any()
    changed = {name: (image != own).any(axis=2) for name, image in drawn.items()}
    assert not changed["lines"][inner].any() and changed["lines"][~inner].any()
    assert np.array_equal(drawn["lines"][~inner], drawn["plain"][~inner])
    assert not changed["bare"][inner & (labels == 0)].any()
    assert np.array_equal(drawn["bare"][labels != 0], drawn["plain"][labels != 0])


# ---- where outputs go


def test_a_tree_of_folders_is_mirrored(predicted, tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.png", "trip/a.jpg", "trip/day 2/a.png", "trip/day 2/a.jpg", ".cache/b.png", "trip/.hidden.png"):
        write_photo(photos / name)
    (photos / "trip" / "loop").symlink_to(photos)
    out, _ = predicted(photos, "--outputs", "labels")
    assert "4 images found, in the folder named and 2 below it" in out
    names = ["a", "trip/a", "trip/day 2/a", "trip/day 2/a_png"]
    assert written(tmp_path / "out") == sorted(f"{name}_labels.png" for name in names)
    # A second run, whose images are its own outputs too, leaves these out.
    _, errors = predicted(tmp_path, "--outputs", "labels", "--tile", 64)
    assert any("4 images that this project wrote are left out" in line for line in errors)


def test_a_flat_folder_stays_flat(predicted, photo, tmp_path):
    out, _ = predicted(photo.parent)
    assert "1 image found\n" in out and "label maps and overlays in" in out
    assert written(tmp_path / "out") == ["street_labels.png", "street_overlay.png"]
    out, _ = predicted(photo)
    assert "found" not in out


# ---- probabilities and confidence


@pytest.mark.parametrize("tile", [[], ["--tile", "32", "--overlap", "8"]])
def test_probabilities_sum_to_one_and_the_best_is_the_label(predicted, photo, model_folder, tmp_path, tile):
    flags = ["--model_name_or_path", model_folder, *tile]
    predicted(photo, *flags, "--outputs", "probabilities", "confidence", "labels")
    probabilities = np.load(tmp_path / "out" / "street_probabilities.npy")
    assert probabilities.shape == (48, 64, 6) and probabilities.dtype == np.float16
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    total = probabilities.astype(np.float32).sum(-1)
    assert np.abs(total - 1).max() < 2e-3
    labels = np.asarray(Image.open(tmp_path / "out" / "street_labels.png"))
    best = probabilities.max(-1)
    assert np.array_equal(np.take_along_axis(probabilities, labels[..., None].astype(int), -1)[..., 0], best)
    confidence = np.asarray(Image.open(tmp_path / "out" / "street_confidence.png"))
    assert np.abs(confidence / 255 - best).max() < 0.51 / 255 + 1e-3
    predicted(photo, *flags, "--outputs", "probabilities")  # its own file is written over


# ---- polygons


def label_map():
    """Regions with holes, of one pixel, at corners, and one class several times."""
    image = Image.new("L", (60, 40), 1)
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, 30, 35), fill=2)
    draw.ellipse((10, 10, 22, 28), fill=1)
    draw.rectangle((14, 14, 16, 16), fill=2)
    draw.rectangle((40, 0, 59, 12), fill=4)
    labels = np.array(image)
    labels[20, 50], labels[21, 51], labels[39, 59], labels[0, 0] = 2, 2, 0, 3
    return labels


def test_polygons_drawn_again_are_the_label_map(tmp_path):
    features = pytest.importorskip("rasterio.features")
    labels = label_map()
    regions.write_geojson(regions.regions_of(labels), {2: "tree"}, tmp_path / "a.geojson", regions.PIXELS)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    shapes = [(feature["geometry"], feature["properties"]["class_id"]) for feature in content["features"]]
    assert np.array_equal(features.rasterize(shapes, out_shape=labels.shape, fill=255, dtype="uint8"), labels)
    assert sum(feature["properties"]["pixels"] for feature in content["features"]) == labels.size
    assert {feature["properties"]["class"] for feature in content["features"]} == {"0", "1", "tree", "3", "4"}
    assert max(len(geometry["coordinates"]) for geometry, _ in shapes) > 2  # an outline and holes


def decoded(segmentation, height, width):
    """A mask of COCO's run-length encoding or polygon."""
    from rasterio import features

    if isinstance(segmentation, dict):
        assert segmentation["size"] == [height, width] and sum(segmentation["counts"]) == height * width
        inside = np.arange(len(segmentation["counts"])) % 2
        return np.repeat(inside, segmentation["counts"]).reshape(width, height).T.astype(bool)
    (outline,) = segmentation
    ring = np.reshape(outline, (-1, 2)).tolist()
    polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    return features.rasterize([polygon], out_shape=(height, width), dtype="uint8").astype(bool)


def test_coco_annotations_drawn_again_are_the_label_map():
    pytest.importorskip("rasterio")
    labels = label_map()
    found = regions.coco_annotations(regions.regions_of(labels), labels.shape)
    assert {type(annotation["segmentation"]) for annotation in found} == {list, dict}
    drawn = np.full(labels.shape, 255)
    for annotation in found:
        mask = decoded(annotation["segmentation"], *labels.shape)
        assert (drawn[mask] == 255).all()  # no two regions overlap
        drawn[mask] = annotation["category_id"]
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min()) and annotation["area"] == mask.sum()
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert np.array_equal(drawn, labels)


def test_one_coco_file_of_all_images(predicted, tmp_path):
    pytest.importorskip("rasterio")
    for name in ("a.png", "trip/b.jpg"):
        write_photo(tmp_path / "photos" / name)
    predicted(tmp_path / "photos", "--outputs", "coco", "polygons", "labels")
    names = ["a_labels.png", "a_polygons.geojson", "coco.json", "trip/b_labels.png", "trip/b_polygons.geojson"]
    assert written(tmp_path / "out") == names
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "trip/b.jpg"]
    assert [category["id"] for category in content["categories"]] == list(range(6))
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    for image, name in zip(content["images"], ("a", "trip/b"), strict=True):
        labels = np.asarray(Image.open(tmp_path / "out" / f"{name}_labels.png"))
        own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        assert sum(each["area"] for each in own) == labels.size
        for each in own[:5]:
            assert (labels[decoded(each["segmentation"], *labels.shape)] == each["category_id"]).all()


# ---- the map


@pytest.fixture
def on_the_map(tmp_path):
    """A GeoTIFF of 10 m a pixel in UTM zone 32 north, near 9 degrees east and 48 north."""
    rasterio = pytest.importorskip("rasterio")
    pixels = random_pixels(np.random.default_rng(0), 48, 64).transpose(2, 0, 1)
    form = {"driver": "GTiff", "width": 64, "height": 48, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_316_000)}
    with rasterio.open(tmp_path / "a.tif", "w", **form, **place) as file:
        file.write(pixels)
    return tmp_path / "a.tif"


def test_outputs_lie_where_their_image_does(predicted, on_the_map, tmp_path):
    import rasterio
    from rasterio.warp import transform_geom

    predicted(on_the_map, "--outputs", "geotiff", "polygons", "labels")
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    with rasterio.open(tmp_path / "out" / "a_labels.tif") as file, rasterio.open(on_the_map) as source:
        assert file.crs == source.crs and file.transform == source.transform
        assert np.array_equal(file.read(1), labels) and file.colormap(1)[1][3] == 255
    pixels, degrees = (
        json.loads((tmp_path / "out" / f"a_polygons{kind}.geojson").read_text())["features"] for kind in ("", "_map")
    )
    assert [each["properties"] for each in pixels] == [each["properties"] for each in degrees]
    corners = np.concatenate([ring for each in degrees for ring in each["geometry"]["coordinates"]])
    assert (np.abs(corners - (9, 48)) < 0.1).all()
    back = [transform_geom("EPSG:4326", "EPSG:32632", each["geometry"]) for each in degrees]
    from rasterio import features

    shapes = [(geometry, each["properties"]["class_id"]) for geometry, each in zip(back, degrees, strict=True)]
    place = rasterio.Affine(10, 0, 500_000, 0, -10, 5_316_000)
    drawn = features.rasterize(shapes, out_shape=labels.shape, fill=255, transform=place, dtype="uint8")
    assert np.array_equal(drawn, labels)
    assert all(regions.signed_area(each["geometry"]["coordinates"][0]) > 0 for each in degrees)
    predicted(on_the_map, "--outputs", "geotiff", "polygons")  # its own files are written over


def test_an_image_that_lies_nowhere_is_refused_before_all(predicted, photo, on_the_map, tmp_path):
    _, errors = predicted(on_the_map, photo, "--outputs", "geotiff", code=2)
    assert len(errors) == 1 and "street.png has no coordinate reference system" in errors[0]
    assert not (tmp_path / "out").exists()


def test_without_rasterio(predicted, photo, monkeypatch):
    monkeypatch.setattr(regions.importlib.util, "find_spec", lambda name: None)
    _, errors = predicted(photo, "--outputs", "coco", code=2)
    assert (
        len(errors) == 1 and "--outputs coco needs rasterio, which is not installed: pip install rasterio" in errors[0]
    )


# ---- sizes


def test_a_large_shrink_is_said_once(predicted, tmp_path):
    for number in range(3):
        write_photo(tmp_path / "photos" / f"{number}.png", 150, 200)
    write_photo(tmp_path / "photos" / "small.png", 70, 70)
    _, errors = predicted(tmp_path / "photos", "--outputs", "labels")
    (line,) = errors
    assert "0.png of 150x200 (height x width) is read at 64x85, 2.4 times smaller, as are 2 more of the images" in line
    assert "--tile" in line and "--shortest_edge" in line
    for flags in (["--shortest_edge", 100], ["--tile", 64, 96]):
        assert predicted(tmp_path / "photos" / "0.png", "--outputs", "labels", *flags)[1] == []


def test_other_sizes_give_other_labels_and_all_are_of_the_images_size(predicted, tmp_path):
    write_photo(tmp_path / "a.png", 150, 200)
    found = []
    for flags in ([], ["--shortest_edge", 128], ["--tile", 64], ["--tile", 64, "--shortest_edge", 100]):
        predicted(tmp_path / "a.png", "--outputs", "labels", *flags)
        found.append(np.asarray(Image.open(tmp_path / "out" / "a_labels.png")))
        assert found[-1].shape == (150, 200)
    for number, labels in enumerate(found):
        assert not any(np.array_equal(labels, other) for other in found[:number])


# ---- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tile 31", "--tile [31]: give at least 32"),
        ("--tile 64 64 64", "--tile 64 64 64: give one number, or a height and a width"),
        (
            "--tile 64 --overlap 64",
            "--overlap 64: give a share below 1 of the tile's side, or whole pixels fewer than",
        ),
        ("--tile 64 --overlap 1.5", "--overlap 1.5: give a share below 1"),
        ("--tile 64 --overlap inf", "--overlap inf: give a share below 1"),
        ("--tile 64 --overlap -1", "--overlap -1.0: give at least 0"),
        ("--overlap 0.5", "--overlap belongs to --tile"),
        ("--shortest_edge 0", "--shortest_edge 0: give at least 1"),
        ("--shortest_edge 99999", "--shortest_edge 99999: give at most 16384"),
        ("--longest_edge 99", "--longest_edge belongs to --shortest_edge"),
        ("--shortest_edge 99 --longest_edge 9", "--longest_edge 9: give at least the --shortest_edge, 99"),
        ("--contours_only --outputs labels", "--contours_only is for overlays, and none is drawn: add overlay to"),
        ("--untinted_class LABEL_1 --outputs labels", "--untinted_class is for overlays, and none is drawn"),
        (
            "--untinted_class LABEL_11",
            "--untinted_class LABEL_11: the model has no such class: did you mean 'LABEL_1'?",
        ),
        ("--outputs labels masks", "--outputs masks: choose among labels, overlay,"),
        ("--score_maps", "--score_maps is for --dataset_name, not for images: leave it out (--outputs confidence"),
        ("--overlays 2", "--overlays is for --dataset_name, not for images: leave it out (--outputs overlay"),
        ("--no_streaming", "--no_streaming is for --dataset_name"),
        ("--dataset_config_name a", "--dataset_config_name is for --dataset_name"),
        ("--dataset_revision a", "--dataset_revision is for --dataset_name"),
        ("--image_column_name a", "--image_column_name is for --dataset_name"),
        ("--allow_urls", "--allow_urls is for --dataset_name"),
        ("--allow_links", "--allow_links is for --dataset_name"),
        ("--max_bad_samples 3", "--max_bad_samples is for --dataset_name"),
        ("--split_name train", "--split_name is for --dataset_name"),
        ("--rows_per_shard 7", "--rows_per_shard is for --dataset_name"),
        ("--dataloader_num_workers 3", "--dataloader_num_workers is for --dataset_name"),
        *((f"--{name} DATA", f"--{name} changes nothing here") for name in ("train_images", "train_masks")),
        *((f"--{name} DATA", f"--{name} changes nothing here") for name in ("eval_images", "eval_masks")),
        *((f"--{name} a", f"--{name} changes nothing here") for name in ("id2label", "class_map")),
        *((f"--{name} a", f"--{name} changes nothing here") for name in ("config_name", "model_type")),
    ],
)
def test_flags_that_images_do_not_have(flags, message, predicted, photo, tmp_path):
    _, errors = predicted(photo, *flags.replace("DATA", str(photo.parent)).split(), code=2)
    assert len(errors) == 1 and message in errors[0], errors
    assert not (tmp_path / "out").exists()


def test_flags_that_datasets_do_not_have(predicted, shapes):
    _, errors = predicted("--dataset_name", shapes, "--outputs", "confidence", code=2)
    assert (
        "--outputs is for images, not for --dataset_name: leave it out (see --score_maps and --overlays)" in errors[0]
    )
    _, errors = predicted("--dataset_name", shapes, "--model_type", "semask", code=2)
    assert "--model_type changes nothing here" in errors[0]


def test_every_flag_is_of_a_form(shapes_model):
    """A new flag of the shared groups must be sorted in: one that nothing reads would be left out in silence."""
    names = set(vars(parse_arguments(predict_command.PredictArguments, [], images="images")))
    both = {"output_dir", "overwrite", "tile", "overlap", "shortest_edge", "longest_edge", "mixed_precision", "recipe"}
    both |= {
        "images",
        "dataset_name",
        "model_name_or_path",
        "config_overrides",
        "trust_remote_code",
        "intensity_range",
        "threshold",
        "contours_only",
        "untinted_class",
        "torch_compile",
        "size_divisor",
    }
    sorted_in = {*both, *predict_command.OF_IMAGES, *predict_command.OF_A_DATASET}
    sorted_in |= {*predict_command.UNUSED, *predict_command.OF_LABELS}
    assert names == sorted_in


def test_tiles_of_a_dataset_are_part_of_what_made_its_labels(predicted, shapes, tmp_path):
    flags = ["--dataset_name", shapes, "--split_name", "validation", "--dataloader_num_workers", 0]
    predicted(*flags, "--tile", 64)
    state = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert state["tiles"] == "Tiles(height=64, width=64, overlap=(16, 16))"
    _, errors = predicted(*flags, "--tile", 96, code=2)
    assert "its shards were made with tiles" in errors[-1]


def test_kinds_of_outputs_are_sorted_by_task():
    """Each says why it is not for other tasks; those written by default are the first."""
    assert {kind for kinds in KINDS.values() for kind in kinds} == ENDINGS.keys() == WORDS.keys()
    assert WHY_NOT.keys() == ENDINGS.keys() - {"overlay", "polygons", "geotiff"}  # which all tasks have
    assert all(KINDS[task][:2] == kinds for task, kinds in DEFAULT_KINDS.items())


def test_overlap_is_a_share_or_pixels():
    def tiles(*flags):
        return predict_command.tiles_of(parse_arguments(predict_command.PredictArguments, [*flags], images="images"))

    assert tiles("--tile", "64").overlap == (16, 16) and tiles() is None
    assert tiles("--tile", "64", "96", "--overlap", "0.5").overlap == (32, 48)
    assert tiles("--tile", "64", "96", "--overlap", "10").overlap == (10, 10)
    with pytest.raises(UserError, match="whole pixels fewer than its 64"):
        tiles("--tile", "64", "96", "--overlap", "70")


def test_what_was_predicted_is_no_image_the_next_time(predicted, photo, tmp_path):
    out = tmp_path / "out"
    predicted(photo, "--outputs", "labels", "overlay", "probabilities", "confidence")
    assert {file.suffix for file in out.iterdir()} == {".png", ".npy"}
    Image.open(photo).save(out / "another.png")
    assert [found.path.name for found in find_images([str(out)])] == ["another.png"]


def test_label_maps_beside_their_images_are_no_images(photo, tmp_path, capsys):
    for name in ("a.png", "a_mask.png", "b_mask.png", "street_seg.png"):
        Image.open(photo).save(tmp_path / name)
    found = {image.path.name for image in find_images([str(tmp_path)])}
    assert "a_mask.png" not in found and {"a.png", "b_mask.png", "street_seg.png"} <= found
    assert "1 label map beside its image is left out" in capsys.readouterr().err
