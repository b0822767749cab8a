"""Rows and cards name nothing but what is of their data set: no file of this machine, no server, no pipe."""

import json
import os

import datasets
import pytest
from hub_server import HubServer
from PIL import Image

from scripts import predict
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.bounds import Bounds
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_image, decode_sample
from scripts.data.sources import readable
from scripts.data.synthetic_scenes import encoded


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
LABEL = {"bytes": None, "path": "map.png"}


@pytest.fixture
def folder(tmp_path):
    """A data set's folder with an image and a map, beside a private image."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "image.png")
    Image.new("L", (8, 6), 1).save(folder / "map.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "private.png")
    return folder


@pytest.fixture
def read(folder):
    """The sample of a parquet file in `folder` whose row names an image so."""

    def sample(path, **flags):
        schema = datasets.Features(FEATURES).arrow_schema
        table = datasets.table.pa.Table.from_pylist([{"image": {"bytes": None, "path": path}, "label": LABEL}], schema)
        datasets.table.pa.parquet.write_table(table, folder / "rows.parquet")
        data = LabelledDataset(DatasetArguments(str(folder / "rows.parquet"), **flags), "train")
        return decode_sample(next(iter(data.stream)), data.row_format, 6, 0)

    return sample


def test_a_row_may_name_a_file_of_its_data_set(read, folder):
    assert read("image.png")[0].shape == (3, 6, 8)
    assert read(str(folder / "image.png"))[2] == "image.png"


@pytest.mark.parametrize(
    "path", ["{outside}/private.png", "../private.png", "link.png", "zip://a.png::{outside}/a.zip"]
)
def test_a_row_may_not_name_a_file_elsewhere(read, folder, path):
    (folder / "link.png").symlink_to(folder.parent / "private.png")
    with pytest.raises(
        UserError, match=r"image of sample \S+ names '.*', which lies outside of its data set"
    ) as raised:
        read(path.format(outside=folder.parent))
    assert not isinstance(raised.value, BadSample)


def test_a_row_may_not_name_a_server(read, folder):
    (folder / "plain").mkdir()
    with HubServer(folder) as server:
        url = f"{server.url}/plain/image.png"
        for name in (url, f"zip://a.png::{url}", f"http://x::{url}", "hf://datasets/a/b/image.png", "data:,x"):
            with pytest.raises(UserError, match="of its data set"):
                read(name)
        assert not server.asked
        assert read(url, allow_urls=True)[0].shape == (3, 6, 8)
        assert server.asked


@pytest.mark.parametrize("path", ["pipe.png", "/dev/zero"])
def test_pipes_and_devices_are_not_opened(read, folder, path):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UserError, match=r"is no regular file|lies outside"):
        read(path)


def test_files_of_a_data_set_on_the_hub():
    bounds = Bounds(hub="hf://datasets/owner/name")
    for name in ("hf://datasets/owner/name@main/a.png", "zip://a.png::hf://datasets/owner/name@0/a.zip"):
        assert bounds.checked_name(name, "row") == name
    for name in ("hf://datasets/owner/name2/a.png", "hf://datasets/owner/name@main/../../x/a.png", "/a.png", "a.png"):
        with pytest.raises(UserError, match="row names"):
            bounds.checked_name(name, "row")


@pytest.mark.parametrize(
    "card",
    [
        "data_files: '{outside}/*.parquet'",
        "data_files: [{{split: train, path: ../*.parquet}}]",
        "data_files: [{{split: test, path: [rows.parquet, '{url}/plain/rows.parquet']}}]",
        "data_dir: ..",
    ],
)
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_a_card_may_not_name_files_elsewhere(folder, card, file):
    rows = [{"image": encoded(Image.new("RGB", (8, 6)), "PNG"), "label": encoded(Image.new("L", (8, 6)), "PNG")}]
    for place in (folder, folder.parent):
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(place / "rows.parquet")
    with HubServer(folder) as server:
        text = f"configs:\n- config_name: default\n  {card.format(outside=folder.parent, url=server.url)}\n"
        (folder / file).write_text(f"---\n{text}---\n" if file == "README.md" else text)
        with pytest.raises(UserError, match=f"{file} of the data set names"):
            LabelledDataset(DatasetArguments(str(folder)), "train")
        assert not server.asked


def test_a_saved_folder_may_not_name_files_elsewhere(folder, tmp_path):
    data = datasets.Dataset.from_list([{"image": None, "label": None}], features=FEATURES)
    data.save_to_disk(tmp_path / "saved")
    assert LabelledDataset(DatasetArguments(str(tmp_path / "saved")), "train").num_examples == 1
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.rename(tmp_path / file.name)
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": f"../{file.name}"}]}))
    with pytest.raises(UserError, match="outside of its data set"):
        LabelledDataset(DatasetArguments(str(tmp_path / "saved")), "train")


def test_metadata_of_an_image_folder_names_nothing_elsewhere(folder, tmp_path):
    (folder / "map.png").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "../private.png", "label": 1}\n')
    data = LabelledDataset(DatasetArguments(str(folder)), "train", with_labels=False)
    with pytest.raises(UserError, match=r"cannot be read: .*\.\./private|outside of its data set"):
        decode_sample(next(readable(data.stream)), data.row_format, 6, 0)


def test_a_snapshot_in_the_hubs_cache_is_whole(folder, tmp_path):
    """Its files are links to `blobs`."""
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / "0" / "train"
    snapshot.mkdir(parents=True)
    (folder / "image.png").rename(tmp_path / "datasets--owner--name" / "blob")
    (snapshot / "image.png").symlink_to("../../../blob")
    data = LabelledDataset(DatasetArguments(str(snapshot.parent)), "train", with_labels=False)
    assert decode_image(next(iter(data.stream))["image"], "x", data.bounds).shape == (3, 6, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_prediction_draws_no_private_image(model_folder, read, folder, tmp_path, command, workers):
    read("image.png")
    schema = FEATURES.arrow_schema
    row = {"image": {"bytes": None, "path": str(tmp_path / "private.png")}, "label": LABEL}
    table = datasets.table.pa.Table.from_pylist([row], schema)
    datasets.table.pa.parquet.write_table(table, folder / "rows.parquet")
    flags = ["--model_name_or_path", model_folder, "--dataset_name", folder / "rows.parquet", "--split_name", "train"]
    out = tmp_path / "out"
    code, _, errors = command(
        predict, *flags, "--output_dir", out, "--overlays", 1, "--dataloader_num_workers", workers
    )
    assert code == 2 and "image of sample private.png names" in errors[-1], errors
    assert not (out / "overlays").exists() and not list((out / "data").iterdir())
