"""`--train_val_split`: what is held back, from names and rows, in folders, parquet and packed data."""

import json
import random

import datasets
import numpy as np
import pytest
from folder_forms import TRAIN, pairs, write_files, write_form

from scripts import pack_dataset
from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.held_back import held_back
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.streaming import shuffled_rows


def numbered(form, count):
    return [form.format(number) for number in range(count)]


FOLDERS = [f"town{place}/{number:03d}" for place in range(8) for number in range(10)]
VIDEOS = [f"seq{video}_{frame:04d}" for video in range(10) for frame in range(10)]


@pytest.mark.parametrize(
    ("names", "share", "held", "how"),
    [
        (FOLDERS, 0.25, 20, "whole groups: town"),
        (VIDEOS, 0.2, 20, "whole groups: seq"),
        (numbered("clip{:05d}", 40), 0.1, 4, "the last by name, from clip00036 on"),
        (numbered("frame_{}", 12), 0.25, 3, "the last by name, from frame_9 on"),  # 9 comes before 10
        (
            [f"{video}/{frame:03d}" for video in "ab" for frame in range(50)],
            0.1,
            10,
            "the last by name of each group: a/",
        ),
        (numbered("{}", 2), 0.01, 1, "the last by name, from 1 on"),
        (numbered("{}", 5), 0.99, 4, "the last by name, from 1 on"),
        (["beach", "harbour"], 0.5, 1, "whole groups: "),
    ],
)
def test_neighbours_stay_together(names, share, held, how):
    choice = held_back(share, len(names), names)
    assert choice.chosen.sum() == held and choice.how.startswith(how), choice.how
    line = f"validation: {held} of {len(names)} images held back (--train_val_split {share:g}), {choice.how}"
    assert choice.described(share) == line
    assert (choice.kept("validation") ^ choice.kept("train")).all()
    if "whole groups" in how:
        groups = {name: name.rpartition("/")[0] or name.partition("_")[0] for name in names}
        chosen = {groups[name] for name, is_held in zip(names, choice.chosen, strict=True) if is_held}
        assert not chosen & {groups[name] for name, is_held in zip(names, choice.chosen, strict=True) if not is_held}


@pytest.mark.parametrize("names", [FOLDERS, VIDEOS, numbered("clip{}", 33)])
def test_the_choice_is_of_names_not_of_their_order(names):
    def chosen(names):
        return {name for name, held in zip(names, held_back(0.2, len(names), names).chosen, strict=True) if held}

    assert chosen(names) == chosen(random.Random(0).sample(names, len(names)))


def test_other_names_of_the_validation_split_are_the_same():
    """Else evaluation on `val` would be on what was trained on."""
    choice = held_back(0.25, 8)
    assert [choice.kept(name).sum() for name in ("validation", "val", "valid", "train")] == [2, 2, 2, 6]


def test_rows_without_names():
    assert np.flatnonzero(held_back(0.3, 10).chosen).tolist() == [7, 8, 9]
    with pytest.raises(UserError, match="the training split has 1 image, which cannot be shared"):
        held_back(0.5, 1)


# --------------------------------------------------------------------------------------------------------------- data


def names_of(arguments, split):
    data = LabelledDataset(arguments, split)
    names = [row["image_id"] for row in data.stream]
    assert data.num_examples == len(names) == sum(len(list(shard)) for shard in shards(data.stream))
    assert {row["image_id"] for _, row in shuffled_rows(data.stream, 0, 0, 4)} == set(names)
    return set(names)


def shards(stream):
    return [stream.shard(stream.num_shards, number) for number in range(stream.num_shards)]


@pytest.fixture
def own(tmp_path):
    """A folder with a training split alone: three videos of five frames."""
    return write_form(tmp_path / "own", "train/images + train/masks", {"train": TRAIN})


def test_every_kind_of_data_holds_back_the_same(own, tmp_path, command, capsys):
    folder = DatasetArguments(str(own), train_val_split=0.3)
    expected = names_of(folder, "validation")
    assert len(expected) == 5 and len({name[:4] for name in expected}) == 1
    assert names_of(folder, "train") == set(TRAIN) - expected
    line = f"validation: 5 of 15 images held back (--train_val_split 0.3), whole groups: {min(expected)[:4]}\n"
    assert capsys.readouterr().err.count(line) == 1
    flags = ["--train_images", own / "train/images", "--train_masks", own / "train/masks"]
    assert command(pack_dataset, *flags, "--output_dir", tmp_path / "packed")[0] == 0
    datasets.load_dataset(str(tmp_path / "packed"), split="train").save_to_disk(tmp_path / "saved")
    one = datasets.load_dataset(str(tmp_path / "packed"), split="train")
    one.to_parquet(tmp_path / "one.parquet")
    for other in (
        DatasetArguments(train_images=str(flags[1]), train_masks=str(flags[3]), train_val_split=0.3),
        DatasetArguments(str(tmp_path / "packed"), train_val_split=0.3),
        DatasetArguments(str(tmp_path / "packed"), train_val_split=0.3, streaming=False),
        DatasetArguments(str(tmp_path / "saved"), train_val_split=0.3),
        DatasetArguments(str(tmp_path / "one.parquet"), train_val_split=0.3),
    ):
        assert names_of(other, "validation") == expected, other
        assert names_of(other, "train") == set(TRAIN) - expected, other


def test_packing_writes_both_splits(own, tmp_path, command):
    given = ["--dataset_name", own, "--train_val_split", 0.3]
    code, printed, errors = command(pack_dataset, *given, "--output_dir", tmp_path / "packed")
    assert code == 0 and "15 images in" in printed, errors
    for split in ("train", "validation"):
        packed = names_of(DatasetArguments(str(tmp_path / "packed")), split)
        assert packed == names_of(DatasetArguments(str(own), train_val_split=0.3), split)
    code, _, errors = command(pack_dataset, "--dataset_name", tmp_path / "packed", "--output_dir", tmp_path / "again")
    assert code == 2 and "no folder of image files, which alone can be packed" in errors[-1]


def test_packing_leaves_links_alone(own, tmp_path, command):
    file = own / "train" / "images" / f"{TRAIN[0]}.jpg"
    file.rename(tmp_path / "secret.jpg")
    file.symlink_to(tmp_path / "secret.jpg")
    code, _, errors = command(pack_dataset, "--dataset_name", own, "--output_dir", tmp_path / "packed")
    assert code == 2 and "which lies outside of its data set" in errors[-1] and not (tmp_path / "packed").exists()
    links = ["--allow_links", "--output_dir", tmp_path / "packed"]
    assert command(pack_dataset, "--dataset_name", own, *links)[0] == 0


def test_rows_without_names_are_held_back_in_one_piece(shapes, tmp_path):
    data = datasets.load_dataset(str(shapes), split="train").remove_columns("image_id")
    for number in range(3):
        data.shard(3, number, contiguous=True).to_parquet(tmp_path / f"train-{number}.parquet")
    for streaming in (True, False):
        arguments = DatasetArguments(str(tmp_path), train_val_split=0.4, streaming=streaming)
        train, validation = (LabelledDataset(arguments, split) for split in ("train", "validation"))
        assert (train.num_examples, validation.num_examples) == (4, 3)
        rows = [row["image"]["bytes"] for part in (train, validation) for row in part.stream]
        assert rows == [row["image"]["bytes"] for row in data.cast_column("image", datasets.Image(decode=False))]


def test_the_choice_is_part_of_the_data(own):
    found = [LabelledDataset(DatasetArguments(str(own), train_val_split=share), "train") for share in (0.3, 0.7, None)]
    identities = [data.identity() for data in found]
    assert identities[0]["samples held back"] != identities[1]["samples held back"]
    assert "samples held back" not in identities[2]


@pytest.mark.parametrize(
    ("settings", "split", "message"),
    [
        ({"train_val_split": 0.0}, "train", "--train_val_split 0: give a share above 0 and below 1"),
        ({"train_val_split": 1.0}, "train", "--train_val_split 1: give a share"),
        ({"train_val_split": float("nan")}, "train", "--train_val_split nan: give a share"),
        ({"train_val_split": 0.2, "eval_images": "x"}, "train", "--eval_images is the validation split"),
        ({"train_val_split": 0.2, "train_split_name": "validation"}, "train", "it cannot be trained on"),
        ({"train_val_split": 0.2}, "train[:3]", "--train_val_split shares out 'train': give no slice of it"),
    ],
)
def test_wrong_shares(own, settings, split, message):
    with pytest.raises(UserError) as error:
        LabelledDataset(DatasetArguments(str(own), **settings), split)
    assert message in str(error.value)


def test_data_with_a_validation_split(shapes, tmp_path):
    own = write_files(tmp_path / "own", pairs("train/images", "train/masks") + pairs("val/images", "val/masks"))
    for place, name in ((own, "validation"), (shapes, "validation")):
        for split in ("train", "validation"):
            with pytest.raises(UserError, match=f"the data has a validation split, '{name}': leave it out"):
                LabelledDataset(DatasetArguments(str(place), train_val_split=0.2), split)


def test_a_stream_of_unknown_size(tmp_path):
    rows = [{"file_name": f"{name}.jpg", "label_file_name": f"{name}.png"} for name in ("a1", "a2", "b1")]
    own = write_files(tmp_path / "own", pairs("train", "train"))
    (own / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = DatasetArguments(str(own), train_val_split=0.34)
    with pytest.raises(UserError, match="does not tell how many rows there are, as parquet files do: give --no_s"):
        LabelledDataset(arguments, "train")
    arguments.streaming = False
    assert [LabelledDataset(arguments, split).num_examples for split in ("train", "validation")] == [2, 1]
